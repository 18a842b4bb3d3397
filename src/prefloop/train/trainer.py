"""The one trainer: `transformers.Trainer` with a preference loss, by its public hooks only.

    layout -> token log-probabilities -> [n] per answer -> objective -> [n] losses -> one weighted sum

The loss of an optimiser step is sum(weight * loss) / n over all its pairs. A micro-batch contributes its part of the
sum divided by the n of the whole step, so the result does not depend on how the batch is cut
(tests/train/test_trainer.py). One process, one device. Shape letter: n pairs in a micro-batch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from prefloop.config import DpoObjectiveSection
from prefloop.engine.logprob import response_lengths, sequence_logprobs, token_logprobs
from prefloop.errors import PrefloopError
from prefloop.train import adapters, losses
from prefloop.train.data import Batch, Collator, EpochSampler, Pair
from prefloop.train.meter import Meter
from prefloop.train.objectives import OBJECTIVES, PairLogprobs
from prefloop.train.precision import Precision
from prefloop.train.rhythm import Rhythm

logger = logging.getLogger(__name__)

Record = dict[str, Any]
VALIDATION = "eval_"


class PreferenceTrainer(transformers.Trainer):  # type: ignore[misc]
    """Trains a policy on pairs.

    Args:
        model: had `attach_scorer`; on its device already.
        arguments: with logging, saving and evaluation strategies "no": `rhythm` decides.
        pairs, validation: with reference log-probabilities where the objective needs them.
        check_start: the model equals its reference now, so the first loss must be what the formula says.
        on_log: called with each record. `kind` is "train" or "validation", `step` the optimiser steps done. After a
            resume the steps behind the checkpoint come again, with the same values but for the speed: of two records
            with equal kind and step the later one holds.
    """

    # Since transformers 5.19 this says that the loss is not to be divided by the accumulation steps;
    # `model_accepts_loss_kwargs` together with a count from `get_batch_samples` says it before.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: nn.Module,
        arguments: transformers.TrainingArguments,
        pairs: Sequence[Pair],
        validation: Sequence[Pair],
        objective: DpoObjectiveSection,
        *,
        collate: Collator,
        precision: Precision,
        sampler: EpochSampler,
        meter: Meter,
        rhythm: Rhythm,
        check_start: bool,
        on_log: Callable[[Record], None],
    ) -> None:
        # The trainer would otherwise spread the batch over all GPUs it sees; a layout cannot be cut that way.
        model.is_parallelizable = model.model_parallel = True  # type: ignore[assignment]
        super().__init__(
            model=model,
            args=arguments,
            data_collator=collate,
            train_dataset=pairs,
            eval_dataset=validation or None,
            callbacks=[rhythm],
        )
        self.model_accepts_loss_kwargs = True
        for printer in (PrinterCallback, ProgressCallback):
            self.remove_callback(printer)
        self._section, self._objective = objective, OBJECTIVES[objective.type]
        self._precision, self._sampler, self._meter = precision, sampler, meter
        self._check_start, self._on_log = check_start, on_log

    def score(self, model: nn.Module, batch: Batch) -> PairLogprobs:
        """Forward pass of a micro-batch: summed log-probabilities of both answers of each pair."""
        device = self._precision.device
        layout = batch["layout"].to(device)
        with self._precision.autocast():
            policy_n2 = sequence_logprobs(token_logprobs(model, layout), layout).view(-1, 2)
        reference_n2, tokens_n2 = batch["reference"].to(device), response_lengths(layout).view(-1, 2)
        return PairLogprobs(
            policy_chosen=policy_n2[:, 0],
            policy_rejected=policy_n2[:, 1],
            reference_chosen=reference_n2[:, 0],
            reference_rejected=reference_n2[:, 1],
            tokens_chosen=tokens_n2[:, 0],
            tokens_rejected=tokens_n2[:, 1],
            weight=batch["weight"].to(device),
            margin=batch["margin"].to(device),
        )

    def compute_loss(
        self, model: nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: int | None = None
    ) -> Any:
        """This micro-batch's share of the step's loss. `num_items_in_batch` is n over the whole step."""
        pairs = self.score(model, inputs)
        losses_n = self._objective.losses(pairs, self._section)
        self._check_finite(losses_n, inputs["ids"])
        if self._check_start:
            self._check_start = False
            self._check_first_loss(pairs, losses_n)
        share = len(inputs["ids"]) / (num_items_in_batch or len(inputs["ids"]))
        loss = losses.reduce(losses_n, pairs.weight) * share
        tokens = int(inputs["layout"].attention_mask_BT.sum())
        self._meter.add(inputs["ids"], self._objective.metrics(pairs, self._section), tokens)
        return (loss, {"losses": losses_n}) if return_outputs else loss

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], int]:
        """The micro-batches of one optimiser step, and how many pairs they hold."""
        batches = list(islice(epoch_iterator, num_batches))
        return batches, sum(len(b["ids"]) for b in batches)

    def get_train_dataloader(self) -> DataLoader[Pair]:
        """Pairs in the sampler's order, in this process: the order must not depend on workers or global state."""
        return self._loader(self.train_dataset, self.args.per_device_train_batch_size, self._sampler)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Pair]:
        """Validation pairs in their own order."""
        return self._loader(eval_dataset or self.eval_dataset, self.args.per_device_eval_batch_size, None)

    def _loader(self, pairs: Sequence[Pair], size: int, sampler: EpochSampler | None) -> DataLoader[Pair]:
        # A loader draws a seed for workers when iterated; its own generator leaves the process's state alone.
        return DataLoader(
            pairs,  # type: ignore[arg-type]
            batch_size=size,
            sampler=sampler,
            collate_fn=self.data_collator,
            generator=torch.Generator(),
        )

    @torch.no_grad()
    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Loss and metrics on the validation pairs, averaged over pairs (not over batches). Logs and returns them."""
        training = self.model.training
        self.model.eval()
        meter = Meter()
        for batch in self.get_eval_dataloader(eval_dataset):
            pairs = self.score(self.model, batch)
            losses_n = self._objective.losses(pairs, self._section)
            meter.add(
                batch["ids"], {"loss": pairs.weight * losses_n, **self._objective.metrics(pairs, self._section)}, 0
            )
        self.model.train(training)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in meter.flush().items()}
        self.log(metrics)
        self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Complete a record and hand it to the trackers and to `on_log`."""
        if "loss" in logs:
            logs.update(self._meter.flush())
            kind, record = "train", dict(logs)
        elif all(name.startswith(VALIDATION) for name in logs):
            kind, record = "validation", {name.removeprefix(VALIDATION): value for name, value in logs.items()}
        else:
            return  # the trainer's closing totals, which say nothing that the records do not
        super().log(logs, start_time)
        self._on_log({"kind": kind, "step": self.state.global_step, "epoch": self.state.epoch or 0.0, **record})

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Weights and configuration as safetensors and JSON; no pickled arguments, no tokenizer."""
        adapters.save(self.model, Path(output_dir or self.args.output_dir))

    def floating_point_ops(self, inputs: Any) -> int:
        """Not estimated: the trainer's rule knows nothing of layouts."""
        return 0

    def _check_finite(self, losses_n: Tensor, ids: Sequence[str]) -> None:
        finite_n = losses_n.detach().isfinite()
        if not bool(finite_n.all()):
            bad = [row for row, ok in zip(ids, finite_n.tolist(), strict=True) if not ok]
            raise PrefloopError(
                f"the loss is not finite at step {self.state.global_step + 1}; rows {', '.join(bad)}",
                fix="lower train.learning_rate; if it happens at the first step, look at these rows' margins, or try "
                "model.dtype=float32. Checkpoints hold the weights before this step",
            )

    def _check_first_loss(self, pairs: PairLogprobs, losses_n: Tensor) -> None:
        """The unweighted loss must be the formula's at policy = reference: ln 2 for sigmoid DPO without margins."""
        if not self._objective.needs_reference:
            return
        expected_n = self._objective.losses(pairs.at_start(), self._section)
        found, expected = float(losses_n.detach().mean()), float(expected_n.mean())
        tokens = int((pairs.tokens_chosen + pairs.tokens_rejected).max())
        allowed = start_tolerance(self._precision, self._section.beta, tokens)
        if abs(found - expected) > allowed:
            raise PrefloopError(
                f"training does not start from its reference: the first loss is {found:.4f}, and {expected:.4f} where "
                f"policy and reference are the same model (allowed difference {allowed:.2g})",
                fix="likely causes: weights that changed after the reference was computed; a dropout that stays on; "
                "an adapter that was active on one side only; cached values of another model under the same digest "
                "(prefloop cache prune --kind reference)",
            )
        logger.info("first loss %.6f, expected %.6f", found, expected)


def start_tolerance(precision: Precision, beta: float, tokens: int) -> float:
    """How far the first loss may lie from the formula's.

    In float32, 1e-3: rounding gives some 1e-6. In bfloat16 the log-probability of a token computed in a batch of
    another shape differs by about 0.03 nats (2^-8 of logits around 8), independently between tokens, and the loss
    moves by at most beta per nat.
    """
    noise = 0.0 if precision.compute == torch.float32 else 0.03 * tokens**0.5
    return float(1e-3 + beta * noise)
