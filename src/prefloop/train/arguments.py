"""A train section as the arguments of transformers' Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from prefloop.config import TrainSection
from prefloop.train.check import is_sharded
from prefloop.train.precision import Precision
from prefloop.train.rhythm import Plan

SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


def arguments(
    section: TrainSection, plan: Plan, precision: Precision, *, out: Path, seed: int, fresh: bool
) -> TrainingArguments:
    """What transformers' Trainer is told.

    Args:
        plan: how many steps, and what is done at which.
        out: the training's folder.
        fresh: whether it begins at step 0.
    """
    # Transformers renamed these in 5.2x and warns at the old names; only who asks for it is to see that.
    recompute: dict[str, Any] = {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
    }
    made = TrainingArguments(
        output_dir=str(out),
        max_steps=plan.total,
        # What the trainer takes for a batch is a whole step; `StepSampler` makes and cuts it.
        per_device_train_batch_size=section.batch_size,
        per_device_eval_batch_size=section.batch_size,
        learning_rate=section.learning_rate,
        lr_scheduler_type=SCHEDULES[section.schedule],
        warmup_steps=plan.warmup,
        weight_decay=section.weight_decay,
        max_grad_norm=section.max_grad_norm,
        optim="adamw_torch_fused",
        seed=seed,
        **(recompute if section.gradient_checkpointing else {}),
        # `Rhythm` decides all of these.
        logging_strategy="no",
        save_strategy="no",
        eval_strategy="no",
        eval_on_start=plan.validate and fresh,
        logging_nan_inf_filter=False,
        report_to=section.report_to or "none",
        remove_unused_columns=False,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        use_cpu=precision.device.type == "cpu",
    )
    # Not what an accelerate configuration says: the reference and its key go by `Precision`, which casts by itself;
    # only what shares the weights out has to know in which type to gather them.
    made.mixed_precision = "bf16" if is_sharded() and precision.name == "bfloat16" else "no"
    return made
