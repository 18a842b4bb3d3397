"""How the policy is trained, and what the merged model looks like."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from prefloop.config.base import Section
from prefloop.config.objectives import DpoObjectiveSection, ObjectiveSection


class LoraSection(Section):
    """Low-rank adapters (Hu et al. 2021); without this section all weights are trained."""

    r: int = Field(16, gt=0, description="Rank.")
    alpha: float = Field(32, gt=0, description="Scale: the update is multiplied by alpha / r.")
    dropout: float = Field(0.0, ge=0, lt=1, description="On the adapter's input, while training.")
    target_modules: str | list[str] = Field(
        "all-linear", description="all-linear, a list of module names, or a regular expression over them."
    )
    quantize: Literal["nf4"] | None = Field(
        None,
        description="QLoRA (Dettmers et al. 2023): the frozen base in 4 bits while training, by bitsandbytes "
        "(`pip install prefloop[qlora]`). The adapter is merged into the unquantised base.",
    )


class LaunchSection(Section):
    """Training in several processes, started by accelerate; without this section in this process alone."""

    config: str = Field(
        description="An accelerate configuration: a file, or a shipped one (`ddp`, `fsdp2`, `zero3`, `cpu`)."
    )
    processes: int | None = Field(None, gt=0, description="How many; without it as many as the configuration says.")


class TrainSection(Section):
    """Training of the policy on pairs."""

    objective: ObjectiveSection = Field(
        DpoObjectiveSection(), description="What is learned from the rows; see the objective sections."
    )
    lora: LoraSection | None = LoraSection()
    reference: Literal["previous", "first"] = Field(
        "previous",
        description="In rounds after the first: what the policy is held to, the model it starts from or the recipe's.",
    )
    epochs: float = Field(1.0, gt=0, description="Passes over the pairs.")
    batch_size: int = Field(8, gt=0, description="Pairs in one optimiser step.")
    micro_batch_size: int | None = Field(
        None, gt=0, description="Pairs in one forward pass at most. None: the whole batch."
    )
    micro_batch_tokens: int | None = Field(
        None,
        gt=0,
        description="Tokens in one forward pass at most, a prompt counted with each of its answers; short rows go "
        "together in larger numbers than long ones. A longer row is passed alone.",
    )
    learning_rate: float = Field(5e-5, gt=0, description="Peak, behind the warm-up.")
    schedule: Literal["linear", "cosine", "constant"] = Field("linear", description="How it falls afterwards.")
    warmup_ratio: float = Field(0.1, ge=0, lt=1, description="Share of the steps in which it rises.")
    warmup_steps: int | None = Field(None, ge=0, description="Steps in which it rises, in place of `warmup_ratio`.")
    weight_decay: float = Field(0.0, ge=0, description="Of AdamW.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are clipped to this norm.")
    max_length: int = Field(1024, gt=0, description="Prompt and answer together, tokens; longer pairs are rejected.")
    scale_weights: bool = Field(
        False,
        description="Divide the rows' weights by their mean over the data set, so that a training with weights takes "
        "steps as large as one without. Otherwise they are taken as they are.",
    )
    launch: LaunchSection | None = Field(None, description="Several processes; see `LaunchSection`.")
    gradient_checkpointing: bool = Field(False, description="Less memory for about a third more time.")
    logging_steps: int = Field(1, gt=0, description="Optimiser steps between records in metrics.jsonl.")
    save_steps: int = Field(50, gt=0, description="Optimiser steps between checkpoints.")
    validation_share: float = Field(
        0.05, ge=0, lt=1, description="Share of prompts whose pairs are kept from training to measure the loss on."
    )
    report_to: list[str] = Field(default_factory=list, description="Trackers of transformers, such as tensorboard.")

    @model_validator(mode="before")
    @classmethod
    def _launch_config(cls, data: Any) -> Any:
        launch = data.get("launch") if isinstance(data, dict) else None
        return {**data, "launch": {"config": launch}} if isinstance(launch, str) else data

    @model_validator(mode="before")
    @classmethod
    def _objective_type(cls, data: Any) -> Any:
        objective = data.get("objective") if isinstance(data, dict) else None
        if isinstance(objective, str):
            return {**data, "objective": {"type": objective}}
        if isinstance(objective, dict) and "type" not in objective:
            return {**data, "objective": {"type": "dpo", **objective}}
        return data


COSMETIC = {
    "report_to",
    "save_steps",
    "logging_steps",
    "micro_batch_size",
    "micro_batch_tokens",
    "gradient_checkpointing",
    "launch",
}
"""Settings of `TrainSection` that change no weight, beyond rounding and the draws of LoRA's dropout.

A training may be continued with other values of these, such as a smaller micro-batch after the memory was full
(tests/train/test_resume.py::test_a_smaller_micro_batch_continues).
"""


class MergeSection(Section):
    """What the merged model folder looks like."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="auto: as trained.")
    max_shard_size: str = Field("5GB", description="Size of one weights file.")
