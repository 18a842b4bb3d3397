"""The train and merge stages: pairs in, an adapter or weights out, then a plain model folder.

A training's folder holds `adapter/` or `model/`, `rejects.parquet`, `trained.json` (written last: the training is
done) and, while it runs, `checkpoint-N/`. Called again after a kill, `train` continues from the last complete
checkpoint and ends with the same weights as an undisturbed run (bit-equal on the CPU); called again after the end, it
returns what `trained.json` says.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import GenerationConfig, TrainingArguments

from prefloop.config import MergeSection, ModelSection, TrainSection
from prefloop.engine.load import choose_device, choose_dtype, freeing, load_config, load_model, resolve_model_path
from prefloop.engine.logprob import attach_scorer
from prefloop.engine.tokens import end_of_turn_ids, load_tokenizer
from prefloop.errors import Interrupted, PrefloopError
from prefloop.records import PreferenceRow, RejectRow
from prefloop.store import atomic
from prefloop.store.cache import Cache
from prefloop.store.fingerprint import digest, model_digest
from prefloop.store.rows import to_table
from prefloop.train import adapters, checkpoints
from prefloop.train.check import check_trainable, refuse_quantised
from prefloop.train.data import Collator, EpochSampler, Pair, encode_pairs
from prefloop.train.meter import Meter
from prefloop.train.objectives import OBJECTIVES
from prefloop.train.precision import Precision
from prefloop.train.reference import add_reference
from prefloop.train.rhythm import Plan, Rhythm, stopping_on_signals
from prefloop.train.trainer import PreferenceTrainer, Record

__all__ = ["check_trainable", "merge", "train"]

logger = logging.getLogger(__name__)

DONE, REJECTS = "trained.json", "rejects.parquet"
SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}
# What changes no weight, beyond rounding and the draws of LoRA's dropout: a run may be continued with other values of
# these, such as a smaller micro-batch after the memory was full
# (tests/train/test_resume.py::test_a_smaller_micro_batch_continues).
_COSMETIC = {"report_to", "save_steps", "logging_steps", "micro_batch_size", "gradient_checkpointing"}


@freeing()
def train(
    model: ModelSection,
    train_rows: Sequence[PreferenceRow],
    validation_rows: Sequence[PreferenceRow],
    section: TrainSection,
    *,
    seed: int,
    out: Path,
    cache: Cache,
    on_log: Callable[[Record], None] = lambda record: None,
    on_step: Callable[[int, int], None] = lambda done, total: None,
    on_reference: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Train a model on pairs.

    Args:
        seed: of the adapter's start, the order of rows and LoRA's dropout. On a CPU equal seeds give equal weights.
        out: the training's folder; its own files there are continued, or replaced when data or settings changed.
        cache: holds reference log-probabilities.
        on_log: records with `kind` ("train", "validation"), `step`, `epoch` and metrics; see `PreferenceTrainer`.
        on_step: called with (optimiser steps done, steps in all).
        on_reference: called with (answers done, answers in all) while the reference scores them, before any step.

    Returns:
        The content of `trained.json`: pairs, rejected, steps, first_loss, final, validation, parameters,
        reference, …

    Raises:
        UsageError: a model or setting that cannot be trained. PrefloopError: no pair is left, a loss or gradient is
        not finite, or training does not start from its reference. Interrupted: stopped by a signal, with a checkpoint.
    """
    precision = check_trainable(model, section)
    weights = _name(precision.weights(frozen=section.lora is not None))
    tokenizer = load_tokenizer(model)
    end_of_turn = end_of_turn_ids(tokenizer, _generation_config(model))[0]
    pairs, rejects = encode_pairs(train_rows, tokenizer, end_of_turn, section.max_length)
    validation, more = encode_pairs(validation_rows, tokenizer, end_of_turn, section.max_length)
    rejects += more
    reasons = dict(sorted(Counter(r["reason"] for r in rejects).items()))
    out.mkdir(parents=True, exist_ok=True)
    atomic.sweep(out)
    _write_rejects(out, rejects)
    if not pairs:
        raise PrefloopError(
            f"no pair is left to train on: {len(train_rows)} came in, rejected for {reasons or 'nothing'}",
            where=str(out / REJECTS),
            fix="raise train.max_length, or look at the rejected rows",
        )

    path = resolve_model_path(model.path)
    digest_of_model = model_digest(path, model.revision, memo=cache)
    reference = {"model": digest_of_model, "dtype": precision.name, "weights": weights}
    settings = section.model_dump(exclude=_COSMETIC)
    fingerprint = digest([[_content(p) for p in pairs], [_content(p) for p in validation], settings, seed, reference])
    done = atomic.read_json(out / DONE) if (out / DONE).exists() else {}
    if done.get("fingerprint") == fingerprint:
        checkpoints.clear(out)
        return dict(done)
    (out / DONE).unlink(missing_ok=True)
    checkpoint = checkpoints.latest(out, fingerprint)

    policy = load_model(model.model_copy(update={"dtype": weights}))
    refuse_quantised(policy.config, model.path)
    adapters.switch_off_dropout(policy)
    attach_scorer(policy)
    micro = section.micro_batch_size or section.batch_size
    pad_id = 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    if OBJECTIVES[section.objective.type].needs_reference:
        both = add_reference(
            [*pairs, *validation],
            policy,
            identity=reference,
            name=model.path,
            cache=cache,
            precision=precision,
            batch_size=2 * micro,
            pad_id=pad_id,
            on_batch=on_reference,
        )
        pairs, validation = both[: len(pairs)], both[len(pairs) :]

    transformers.set_seed(seed)
    if section.lora is not None:
        policy = adapters.add_lora(policy, section.lora)
    plan = Plan.of(
        len(pairs),
        section.batch_size,
        section.epochs,
        section.warmup_ratio,
        log=section.logging_steps,
        save=section.save_steps,
        validate=bool(validation),
    )
    if plan.warmup >= plan.total:
        logger.warning(
            "warm-up takes all %d steps: the learning rate never reaches %g; lower train.warmup_ratio or train longer",
            plan.total,
            section.learning_rate,
        )
    meter, sampler = Meter(), EpochSampler(len(pairs), seed)
    rhythm = Rhythm(plan, meter, sampler, out, fingerprint, on_step)
    trainer = PreferenceTrainer(
        policy,
        _arguments(section, plan, precision, out=out, seed=seed, fresh=checkpoint is None),
        pairs,
        validation,
        section.objective,
        collate=Collator(pad_id),
        precision=precision,
        sampler=sampler,
        meter=meter,
        rhythm=rhythm,
        check_start=checkpoint is None,
        on_log=on_log,
    )
    with stopping_on_signals(rhythm):
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if trainer.state.global_step < plan.total:
        raise Interrupted(
            f"training stopped at step {trainer.state.global_step} of {plan.total}, with a checkpoint",
            fix="start the same command again to go on",
        )

    name = adapters.MODEL if section.lora is None else adapters.ADAPTER
    with atomic.directory(out / name) as folder:
        adapters.save(policy, folder)
    result = {
        "fingerprint": fingerprint,
        "weights": name,
        "objective": section.objective.model_dump(),
        "reference": reference,
        "pairs": len(pairs),
        "validation_pairs": len(validation),
        "rejected": reasons,
        "steps": plan.total,
        "steps_per_epoch": plan.epoch,
        "parameters": sum(p.numel() for p in policy.parameters()),
        "trainable_parameters": sum(p.numel() for p in policy.parameters() if p.requires_grad),
        **_outcome(trainer.state.log_history),
    }
    atomic.write_json(out / DONE, result)
    checkpoints.clear(out)
    if rhythm.stop:
        raise Interrupted("stopped; the training itself is finished", fix="start the same command again to go on")
    return result


@freeing()
def merge(model: ModelSection, trained: Path, out: Path, section: MergeSection) -> dict[str, Any]:
    """Write the trained policy as a plain Hugging Face folder; see `adapters.merge`.

    Args:
        model: the model that was trained.
        trained: the training's folder, or any LoRA adapter's.
        out: the folder to write; replaced when it is there.

    Returns:
        {"dtype", "parameters"}.
    """
    if section.dtype != "auto":
        dtype = getattr(torch, section.dtype)
    elif (trained / DONE).exists():
        dtype = getattr(torch, atomic.read_json(trained / DONE)["reference"]["dtype"])
    else:
        dtype = choose_dtype(model, choose_device(model.device))
    return dict(adapters.merge(model, trained, out, dtype=dtype, max_shard_size=section.max_shard_size))


def _generation_config(model: ModelSection) -> Any:
    """As loading the model would set it: the folder's own, or one made from the model's configuration."""
    path = resolve_model_path(model.path)
    try:
        return GenerationConfig.from_pretrained(path, revision=model.revision)
    except OSError:
        return GenerationConfig.from_model_config(load_config(model))


def _arguments(
    section: TrainSection, plan: Plan, precision: Precision, *, out: Path, seed: int, fresh: bool
) -> TrainingArguments:
    micro = section.micro_batch_size or section.batch_size
    # Transformers renamed these in 5.2x and warns at the old names; only who asks for it is to see that.
    recompute: dict[str, Any] = {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
    }
    return TrainingArguments(
        output_dir=str(out),
        max_steps=plan.total,
        per_device_train_batch_size=micro,
        per_device_eval_batch_size=micro,
        gradient_accumulation_steps=section.batch_size // micro,
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


def _content(pair: Pair) -> list[Any]:
    return [pair.id, pair.prompt_ids, pair.chosen_ids, pair.rejected_ids, pair.weight, pair.margin]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _write_rejects(out: Path, rejects: Sequence[RejectRow]) -> None:
    atomic.write_parquet(out / REJECTS, to_table("rejects", rejects, where="train"))


def _outcome(history: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """First loss, last training record and first and last validation, without speeds: equal for equal runs."""
    steps = [h for h in history if "loss" in h]
    validations = [
        {k.removeprefix("eval_"): v for k, v in sorted(h.items()) if k.startswith("eval_")}
        for h in history
        if "eval_loss" in h
    ]
    return {
        "first_loss": steps[0]["loss"],
        "final": {k: v for k, v in sorted(steps[-1].items()) if k not in ("epoch", "step", "tokens_per_second")},
        "validation": {"before": validations[0], "after": validations[-1]} if validations else None,
    }
