"""When training logs, measures, saves and stops: one callback instead of the trainer's many strategies."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prefloop.errors import PrefloopError
from prefloop.train import checkpoints
from prefloop.train.meter import Meter
from prefloop.train.shift import RewardShift
from prefloop.train.steps import StepSampler


@dataclass(frozen=True)
class Plan:
    """The steps of a training, counted in optimiser steps.

    Attributes:
        epoch: steps in one pass over the pairs; the last step of a pass may hold fewer pairs.
        total: steps in all.
        warmup: steps over which the learning rate rises.
        log, save: steps between log records and between checkpoints.
        validate: whether there are validation pairs.
    """

    epoch: int
    total: int
    warmup: int
    log: int
    save: int
    validate: bool

    @classmethod
    def of(
        cls,
        pairs: int,
        batch: int,
        epochs: float,
        warmup_ratio: float,
        *,
        log: int,
        save: int,
        validate: bool,
        warmup_steps: int | None = None,
    ) -> Plan:
        """The plan for a number of pairs; fractions of steps are rounded up."""
        epoch = math.ceil(pairs / batch)
        total = max(1, math.ceil(epochs * epoch))
        warmup = math.ceil(warmup_ratio * total) if warmup_steps is None else warmup_steps
        return cls(epoch, total, warmup, log, save, validate)


class Rhythm(TrainerCallback):  # type: ignore[misc]
    """Sets the trainer's flags, tells the sampler the epoch, seals checkpoints, and stops at a bad gradient.

    A checkpoint coincides with a log record and, at the end of an epoch, follows its validation, so nothing that was
    measured before it is missing after a resume. The last step makes no checkpoint: the finished weights follow.
    """

    def __init__(
        self,
        plan: Plan,
        meter: Meter,
        sampler: StepSampler,
        out: Path,
        fingerprint: str,
        on_step: Callable[[int, int], None],
        shift: RewardShift,
    ) -> None:
        self.plan, self.meter, self.sampler, self.shift = plan, meter, sampler, shift
        self.out, self.fingerprint, self.on_step = out, fingerprint, on_step
        self.stop = False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.on_step(state.global_step, self.plan.total)

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        # From the step, not from the trainer's float epoch; the loader is iterated right after this.
        self.sampler.epoch = state.global_step // self.plan.epoch

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.meter.begin_step(time.monotonic())

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any, **_: Any
    ) -> None:
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if not bool((norm.full_tensor() if isinstance(norm, DTensor) else norm).isfinite()):
            raise PrefloopError(
                f"the gradient is not finite at step {state.global_step + 1}; rows {', '.join(self.meter.step_ids)}",
                fix="lower train.learning_rate; if it happens at the first step, look at these rows, or try "
                "model.dtype=float32. The weights before this step are in the last checkpoint",
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.meter.end_step(time.monotonic())
        step, plan = state.global_step, self.plan
        last, stop = step >= plan.total, self._agree_to_stop()
        control.should_save = not last and (step % plan.save == 0 or stop)
        control.should_log = last or control.should_save or step % plan.log == 0
        control.should_evaluate = plan.validate and (last or step % plan.epoch == 0)
        control.should_training_stop = last or stop
        self.on_step(step, plan.total)

    def ask_to_stop(self) -> None:
        """Let the step in progress end, and a checkpoint be taken."""
        self.stop = True

    def _agree_to_stop(self) -> bool:
        """Whether any process was asked to. One that saved while another went on would wait for it for ever."""
        ranks = PartialState()
        if ranks.num_processes == 1:
            return self.stop
        return bool(reduce(torch.tensor(float(self.stop), device=ranks.device), "sum") > 0)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        ranks = PartialState()
        ranks.wait_for_everyone()
        if ranks.is_main_process:
            folder = self.out / f"checkpoint-{state.global_step}"
            if self.shift.count:
                self.shift.save(folder)
            checkpoints.seal(folder, self.fingerprint)
        # A process that stops here takes its launcher's group along: not before the checkpoint counts.
        ranks.wait_for_everyone()
