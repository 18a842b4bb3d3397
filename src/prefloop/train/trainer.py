"""The one trainer: `transformers.Trainer` with a preference loss, by its public hooks only.

    layout -> token log-probabilities -> [R] per response -> objective -> [n] losses -> one weighted sum

The loss of an optimiser step is sum(weight * loss) / n over all its examples, on however many processes. A micro-batch
contributes its part of the sum divided by the n of the whole step, so the result does not depend on how the step is
cut (tests/train/test_trainer.py, tests/train/test_ranks.py). To the trainer a step is one batch: cutting it, and
holding back the synchronisation of gradients until its last micro-batch, happens here. Shape letters: n examples in a
micro-batch, R responses.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerCallback

from prefloop.engine.layout import Layout
from prefloop.engine.logprob import response_lengths, sequence_logprobs, token_logprobs
from prefloop.errors import PrefloopError
from prefloop.train import adapters, losses
from prefloop.train.batches import Batch, Collator, StepData
from prefloop.train.contrast import Tokens, Totals
from prefloop.train.examples import Examples
from prefloop.train.meter import Meter
from prefloop.train.objectives import OBJECTIVES, Scored
from prefloop.train.precision import Precision
from prefloop.train.rhythm import Rhythm
from prefloop.train.shift import RewardShift
from prefloop.train.steps import StepSampler

logger = logging.getLogger(__name__)

Record = dict[str, Any]
VALIDATION = "eval_"


class PreferenceTrainer(transformers.Trainer):  # type: ignore[misc]
    """Trains a policy on examples.

    Args:
        model: had `attach_scorer`; on its device already.
        arguments: with logging, saving and evaluation strategies "no" and no gradient accumulation: `rhythm` and
            `sampler` decide.
        examples, validation: with reference log-probabilities where the objective needs them.
        objective: the recipe's `train.objective`.
        at_begin: called with the wrapped model before anything else is done with it.
        shift: of a fresh training, or of the checkpoint that it goes on from.
        check_start: the model equals its reference now, so the first loss must be what the formula says.
        apart: what an objective only looks at is computed in a pass of its own while training: dropout is on.
        on_log: called with each record, on the first process. `kind` is "train" or "validation", `step` the optimiser
            steps done. After a resume the steps behind the checkpoint come again, with the same values but for the
            speed: of two records with equal kind and step the later one holds.
    """

    # Since transformers 5.19 this says that the loss is not to be divided by the accumulation steps;
    # `model_accepts_loss_kwargs` together with a count from `get_batch_samples` says it before.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: nn.Module,
        arguments: transformers.TrainingArguments,
        examples: Examples,
        validation: Examples,
        objective: Any,
        *,
        collate: Collator,
        precision: Precision,
        sampler: StepSampler,
        meter: Meter,
        rhythm: Rhythm,
        shift: RewardShift,
        check_start: bool,
        apart: bool,
        on_log: Callable[[Record], None],
        at_begin: Callable[[nn.Module], None] | None = None,
    ) -> None:
        # The trainer would otherwise spread the batch over all GPUs it sees; a layout cannot be cut that way.
        model.is_parallelizable = model.model_parallel = True  # type: ignore[assignment]
        super().__init__(
            model=model,
            args=arguments,
            data_collator=collate,
            train_dataset=StepData(examples),
            eval_dataset=StepData(validation) if len(validation) else None,
            callbacks=[rhythm, *([] if at_begin is None else [_AtBegin(lambda: at_begin(self.model_wrapped))])],
        )
        self.model_accepts_loss_kwargs = True
        for printer in (PrinterCallback, ProgressCallback):
            self.remove_callback(printer)
        self._section, self._objective = objective, OBJECTIVES[objective.type]
        self._precision, self._sampler, self._meter = precision, sampler, meter
        self._shift, self._check_start, self._on_log = shift, check_start, on_log
        self._apart, self._totals = apart, Totals(0, 0, 0)

    def score(self, model: nn.Module, batch: Batch, drift: float = 0.0) -> Scored:
        """Forward pass of a micro-batch: the summed log-probability of every response."""
        device = self._precision.device
        layout = batch.layout.to(device)
        policy_N = self._logps(model, layout)
        policy_R, tokens_R = sequence_logprobs(policy_N, layout), response_lengths(layout)
        return Scored(
            policy=policy_R,
            reference=batch.reference.to(device),
            tokens=tokens_R,
            counts=batch.counts,
            weight=batch.weight.to(device),
            margin=batch.margin.to(device),
            label=batch.label.to(device),
            drift=drift,
            shift=self._shift.mean,
            by_token=self._by_token(model, batch, layout, policy_N) if self._objective.by_token else None,
        )

    def _by_token(self, model: nn.Module, batch: Batch, layout: Layout, policy_N: Tensor) -> Tokens:
        """The tokens behind `Scored`; what flags them is computed without dropout, on every process alike."""
        detector_N = None
        if self._apart and model.training and self._section.detector == "policy":
            model.eval()
            with torch.no_grad():
                detector_N = self._logps(model, layout)
            model.train()
        return Tokens(
            policy=policy_N,
            response=layout.response_N,
            counts=batch.counts,
            totals=self._totals,
            detector=detector_N,
            flags=None if batch.flags is None else batch.flags.to(policy_N.device),
        )

    def _logps(self, model: nn.Module, layout: Layout) -> Tensor:
        """Log-probabilities of the layout's scored tokens, [N]."""
        with self._precision.autocast():
            return token_logprobs(model, layout)

    def _sums(self, model: nn.Module, layout: Layout) -> tuple[Tensor, Tensor]:
        """Summed log-probabilities and scored tokens, both [R]."""
        layout = layout.to(self._precision.device)
        return sequence_logprobs(self._logps(model, layout), layout), response_lengths(layout)

    def training_step(
        self, model: nn.Module, inputs: list[Batch], num_items_in_batch: int | Tensor | None = None
    ) -> Tensor:
        """Forward and backward of this process's micro-batches; `num_items_in_batch` is n over all processes."""
        model.train()
        drift = self._drift(model, inputs)
        total = torch.zeros((), device=self._precision.device)
        deepspeed = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        for place, batch in enumerate(inputs):
            last = place == len(inputs) - 1
            # The trainer set this for the step; DeepSpeed's engine steps at every backward pass that finds it set.
            self.accelerator.gradient_state._set_sync_gradients(last)
            held_back = nullcontext() if last or deepspeed else self.accelerator.no_sync(model)
            with held_back:
                loss = self.compute_loss(model, batch, num_items_in_batch=num_items_in_batch, drift=drift)
                self.accelerator.backward(loss, **({"scale_wrt_gas": False} if deepspeed else {}))
            total += loss.detach()
        if self._objective.shifts is not None:
            self._shift.end_step(self.accelerator)
        return total

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: int | Tensor | None = None,
        drift: float = 0.0,
    ) -> Any:
        """This micro-batch's share of the step's loss."""
        scored = self.score(model, inputs, drift)
        losses_n = self._objective.losses(scored, self._section)
        self._check_finite(losses_n, inputs.ids)
        if self._check_start:
            self._check_start = False
            self._check_first_loss(scored, losses_n)
        # Processes average their gradients, and the sum is asked for.
        share = self.accelerator.num_processes / (num_items_in_batch or self._items(inputs))
        loss = losses.reduce(losses_n, scored.weight) * len(losses_n) * share
        if (beside_n := self._objective.beside(scored, self._section)) is not None:
            self._check_finite(beside_n, inputs.ids)
            # A filler stands for no example: its weight is 0, and nothing of it counts.
            loss = loss + losses.reduce(beside_n) * len(beside_n) * share * bool(inputs.ids)
        self._meter.add(inputs, self._objective.metrics(scored, self._section))
        if self._objective.shifts is not None and inputs.ids:
            self._shift.add(self._objective.shifts(scored, self._section))
        return (loss, {"losses": losses_n}) if return_outputs else loss

    def _items(self, batch: Batch) -> int:
        """What a step's loss is divided by: this micro-batch's examples, or their scored tokens."""
        if not batch.ids:
            return 0
        return len(batch.layout.targets_N) if self._objective.per_token(self._section) else len(batch.ids)

    @torch.no_grad()
    def _drift(self, model: nn.Module, step: Sequence[Batch]) -> float:
        """The mean log-ratio of the step's prompts with other prompts' answers, over all processes, at least 0."""
        if not self._objective.drifts:
            return 0.0
        sums = torch.zeros(2, device=self._precision.device)
        for batch in step:
            assert batch.drift is not None
            assert batch.drift_reference is not None
            policy_R, _ = self._sums(model, batch.drift)
            if batch.ids:
                sums[0] += (policy_R - batch.drift_reference.to(policy_R)).sum()
                sums[1] += len(batch.ids)
        total, count = self.accelerator.reduce(sums, "sum").tolist()
        return max(0.0, float(total / count))

    def get_batch_samples(
        self, epoch_iterator: Iterator[list[Batch]], num_batches: int, device: torch.device
    ) -> tuple[list[list[Batch]], int]:
        """The next optimiser step, and by what its loss is to be divided."""
        steps = list(islice(epoch_iterator, num_batches))
        self._totals = self._step_totals([batch for step in steps for batch in step])
        own = sum(self._items(batch) for step in steps for batch in step)
        return steps, int(self.accelerator.reduce(torch.tensor(own, device=self._precision.device), "sum"))

    def _step_totals(self, step: Sequence[Batch]) -> Totals:
        """What an objective that looks at tokens divides by; of all processes' micro-batches, fillers left out."""
        own = torch.zeros(3, device=self._precision.device)
        if not self._objective.by_token:
            return Totals(0, 0, 0)
        for batch in step:
            lengths = torch.bincount(batch.layout.response_N, minlength=batch.layout.responses).tolist()
            first = 0
            for count in batch.counts if batch.ids else ():
                own += torch.tensor([1, lengths[first], lengths[first] * (count > 1)], device=own.device)
                first += count
        return Totals(*self.accelerator.reduce(own, "sum").tolist())

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The sampler's steps, read in this process: the order must not depend on workers or global state."""
        return self._loader(self.train_dataset, self._sampler)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Validation examples in their own order, cut as in training."""
        data: StepData = eval_dataset or self.eval_dataset
        sampler = self._sampler
        own = StepSampler(data.examples.tokens, sampler.batch_size, sampler.cut, seed=None, rank=sampler.rank)
        return self._loader(data, own)

    def _loader(self, data: StepData, sampler: StepSampler) -> DataLoader[Any]:
        # A loader draws a seed for workers when iterated; its own generator leaves the process's state alone.
        return DataLoader(data, batch_sampler=sampler, collate_fn=self.data_collator, generator=torch.Generator())  # type: ignore[arg-type]

    @torch.no_grad()
    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Loss and metrics on the validation examples, averaged over them, not over batches. Logs and returns them.

        The loss is divided by what a step's is: examples, or scored tokens.
        """
        model = self.model_wrapped
        training = model.training
        model.eval()
        meter = Meter()
        for step in self.get_eval_dataloader(eval_dataset):
            self._totals = self._step_totals(step)
            drift = self._drift(model, step)
            for batch in step:
                scored = self.score(model, batch, drift)
                losses_n = self._objective.losses(scored, self._section)
                loss_n = scored.weight * losses_n
                if (beside_n := self._objective.beside(scored, self._section)) is not None:
                    loss_n = loss_n + beside_n
                # The meter leaves NaN out, for metrics that an example has not; a loss that is NaN is not to vanish.
                loss_n = torch.nan_to_num(loss_n, nan=math.inf, posinf=math.inf)
                shown = {"loss": loss_n, **self._objective.metrics(scored, self._section)}
                if self._objective.per_token(self._section):
                    shown["tokens"] = scored.tokens
                meter.add(batch, shown)
        model.train(training)
        averages = meter.flush(self.accelerator)
        averages["loss"] /= averages.pop("tokens", 1.0)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in averages.items()}
        self.log(metrics)
        self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Complete a record and hand it to the trackers and to `on_log`."""
        if "loss" in logs:
            logs.update(self._meter.flush(self.accelerator))
            kind, record = "train", dict(logs)
        elif all(name.startswith(VALIDATION) for name in logs):
            kind, record = "validation", {name.removeprefix(VALIDATION): value for name, value in logs.items()}
        else:
            return  # the trainer's closing totals, which say nothing that the records do not
        super().log(logs, start_time)
        if self.is_world_process_zero():
            self._on_log({"kind": kind, "step": self.state.global_step, "epoch": self.state.epoch or 0.0, **record})

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Weights and configuration as safetensors and JSON; no pickled arguments, no tokenizer.

        Checkpoints of a sharded model are left to the trainer, which writes each process's shard; `adapters.merge`
        gathers them.
        """
        folder = Path(output_dir or self.args.output_dir)
        if _internal_call and self.is_fsdp_enabled:
            if self.is_world_process_zero():
                adapters.save_configuration(self.accelerator.unwrap_model(self.model), folder)
            return
        state = self.whole_state()
        if self.is_world_process_zero():
            adapters.save(self.accelerator.unwrap_model(self.model), folder, state)

    def whole_state(self) -> dict[str, Tensor] | None:
        """The weights of a sharded model, gathered on the first process; None where each process has them all."""
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            return None
        # On the other processes DeepSpeed gathers nothing, and says None.
        return dict(self.accelerator.get_state_dict(self.model_wrapped) or {})

    def floating_point_ops(self, inputs: Any) -> int:
        """Not estimated: the trainer's rule knows nothing of layouts."""
        return 0

    def _check_finite(self, losses_n: Tensor, ids: Sequence[str]) -> None:
        if not ids:  # a filler: the process that has its row as an example says so
            return
        finite_n = losses_n.detach().isfinite()
        if not bool(finite_n.all()):
            bad = [row for row, ok in zip(ids, finite_n.tolist(), strict=True) if not ok]
            raise PrefloopError(
                f"the loss is not finite at step {self.state.global_step + 1}; rows {', '.join(bad)}",
                fix="lower train.learning_rate; if it happens at the first step, look at these rows' margins, or try "
                "model.dtype=float32. Checkpoints hold the weights before this step",
            )

    def _check_first_loss(self, scored: Scored, losses_n: Tensor) -> None:
        """The unweighted loss must be the formula's at policy = reference: ln 2 for sigmoid DPO without margins."""
        if not self._objective.needs_reference:
            return
        expected_n = self._objective.losses(scored.at_start(), self._section)
        found, expected = float(losses_n.detach().mean()), float(expected_n.mean())
        # What a nat of log-ratio does to the loss differs between losses; their own slope at the start says it.
        slope = self._slope(scored)
        allowed = start_tolerance(self._precision, slope, int(scored.tokens.max()))
        if abs(found - expected) > allowed:
            raise PrefloopError(
                f"training does not start from its reference: the first loss is {found:.4f}, and {expected:.4f} where "
                f"policy and reference are the same model (allowed difference {allowed:.2g})",
                fix="likely causes: weights that changed after the reference was computed; a dropout that stays on; "
                "an adapter that was active on one side only; cached values of another model under the same digest "
                "(prefloop cache prune --kind reference)",
            )
        logger.info("first loss %.6f, expected %.6f", found, expected)

    @torch.enable_grad()
    def _slope(self, scored: Scored) -> float:
        """The largest change of an example's loss per nat of one response's log-probability, at the start."""
        policy_R = scored.reference.clone().requires_grad_()
        at_start = replace(scored.at_start(), policy=policy_R)
        (gradient_R,) = torch.autograd.grad(self._objective.losses(at_start, self._section).sum(), policy_R)
        return float(gradient_R.abs().max())


class _AtBegin(TrainerCallback):  # type: ignore[misc]
    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._call()


def start_tolerance(precision: Precision, slope: float, tokens: int) -> float:
    """How far the first loss may lie from the formula's.

    In float32, 1e-3: rounding gives some 1e-6. In bfloat16 the log-probability of a token computed in a batch of
    another shape differs by about 0.03 nats (2^-8 of logits around 8), independently between tokens.

    Args:
        slope: change of the loss per nat.
        tokens: of the longest response.
    """
    noise = 0.0 if precision.compute == torch.float32 else 0.06 * tokens**0.5
    return float(1e-3 * max(1.0, 2 * slope) + slope * noise)
