"""sentence-transformers' `CrossEncoderTrainer` with one joint loss, by its public hooks.

A step is a few queries (`batches.py`); losses, weights and gradients are `joint.backward`'s. Steps follow from seed
and epoch alone and checkpoints carry the random state, so a training that was stopped and started again ends with the
same weights (tests/rerank/test_rerank_training.py).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from prefloop.config import RerankSection
from prefloop.errors import PrefloopError, UsageError
from prefloop.records import RankingRow
from prefloop.rerank import metrics
from prefloop.rerank.batches import Batch, Collator, QuerySampler
from prefloop.rerank.groups import Group
from prefloop.rerank.joint import JointLoss, Weighed, backward
from prefloop.store import atomic
from prefloop.train import checkpoints
from prefloop.train.precision import Precision

logger = logging.getLogger(__name__)

Record = dict[str, Any]
ALL_WEIGHT, NO_GRADIENT = 0.99, 1e-3
"""MGDA stands still: a loss has more than this weight, and a gradient of at most this length beside the longest."""
BEST, BEST_MARK = "best.safetensors", "best.json"


class Rhythm(TrainerCallback):  # type: ignore[misc]
    """When training logs, measures, saves and stops; checkpoints coincide with a log record and count once sealed."""

    def __init__(
        self,
        section: RerankSection,
        sampler: QuerySampler,
        out: Path,
        fingerprint: str,
        *,
        validate: bool,
        on_step: Callable[[int, int], None],
    ) -> None:
        self.section, self.sampler, self.out, self.fingerprint = section, sampler, out, fingerprint
        self.epoch, self.validate, self.on_step = len(sampler), validate, on_step
        self.total = max(1, math.ceil(section.epochs * self.epoch))
        self.stop = False

    def ask_to_stop(self) -> None:
        """Let the step in progress end, and a checkpoint be taken."""
        self.stop = True

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.on_step(state.global_step, self.total)

    def on_epoch_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.sampler.epoch = state.global_step // self.epoch

    def on_pre_optimizer_step(
        self, args: Any, state: TrainerState, control: TrainerControl, model: Any, **_: Any
    ) -> None:
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        if not bool(norm.isfinite()):
            raise PrefloopError(
                f"the gradient is not finite at step {state.global_step + 1}",
                fix="lower learning_rate, or train in float32; the last checkpoint holds the weights before",
            )

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        step = state.global_step
        last, ends = step >= self.total, step % self.epoch == 0
        control.should_save = not last and (step % self.section.save_steps == 0 or ends or self.stop)
        control.should_log = last or control.should_save or step % self.section.logging_steps == 0
        control.should_evaluate = self.validate and (last or ends)
        control.should_training_stop = last or self.stop
        self.on_step(step, self.total)

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        checkpoints.seal(self.out / f"checkpoint-{state.global_step}", self.fingerprint)


class RerankTrainer(CrossEncoderTrainer):  # type: ignore[misc]
    """Trains a cross-encoder with two logits on groups.

    Args:
        groups: each teaches at least one of the section's losses.
        validation: rows on which the best epoch is chosen; may be empty.
        on_log: called with each record: `kind` ("train" or "validation"), `step`, `epoch`, and for training the
            losses by name, `weight_NAME` of each and `gram_NAME_NAME`, averaged since the last record.
    """

    def __init__(
        self,
        model: CrossEncoder,
        section: RerankSection,
        groups: Sequence[Group],
        validation: Sequence[RankingRow],
        *,
        arguments: CrossEncoderTrainingArguments,
        sampler: QuerySampler,
        rhythm: Rhythm,
        precision: Precision,
        on_log: Callable[[Record], None],
    ) -> None:
        # The trainer would otherwise spread a batch over all GPUs that it sees, and losses couple a batch's rows.
        model.is_parallelizable = model.model_parallel = True
        self._section, self._groups, self._validation = section, groups, validation
        self._sampler, self._out, self._on_log = sampler, rhythm.out, on_log
        self._fingerprint = rhythm.fingerprint
        self._collate = Collator(model.tokenizer, model.max_seq_length, section)
        self._sums: dict[str, list[float]] = {}
        self._warned = False
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_dict({"place": list(range(len(groups)))}),
            loss=JointLoss(model, section, precision),
            data_collator=self._collated,
            callbacks=[rhythm],
        )
        for printer in (PrinterCallback, ProgressCallback):
            self.remove_callback(printer)

    def _collated(self, places: Sequence[dict[str, int]]) -> dict[str, Batch]:
        return {"batch": self._collate([self._groups[one["place"]] for one in places])}

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """None: the library's card tells of data sets and losses that are not those of this training."""

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The sampler's steps, collated in this process."""
        return DataLoader(
            self.train_dataset, batch_sampler=self._sampler, collate_fn=self._collated, generator=torch.Generator()
        )

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Batch], num_items_in_batch: int | Tensor | None = None
    ) -> Tensor:
        """Forward and backward of one step; the gradient is that of the weighted sum."""
        model.train()
        weighed = backward(self.loss, inputs["batch"].to(self.args.device))
        self._note(weighed, inputs["batch"])
        return weighed.total.detach().to(self.args.device)

    def _note(self, weighed: Weighed, batch: Batch) -> None:
        shown = {name: loss.item() for name, loss in weighed.losses.items()}
        bad = [name for name, value in shown.items() if not math.isfinite(value)]
        if bad:
            raise PrefloopError(
                f"{' and '.join(bad)} is not finite at step {self.state.global_step + 1}; rows {', '.join(batch.ids)}",
                fix="lower learning_rate, or train in float32; the last checkpoint holds the weights before",
            )
        names = list(shown)
        self._warn_of_standstill(names, weighed)
        shown |= {f"weight_{name}": w for name, w in zip(names, weighed.weights.tolist(), strict=True)}
        if weighed.gram is not None:
            for i, first in enumerate(names):
                for j, second in enumerate(names[i:], i):
                    shown[f"gram_{first}_{second}"] = weighed.gram[i, j].item()
        shown["rows"] = float(batch.rows)
        for name, value in shown.items():
            self._sums.setdefault(name, []).append(value)

    def _warn_of_standstill(self, names: Sequence[str], weighed: Weighed) -> None:
        """Once: a loss at its end holds all the weight, and the others, which are not at theirs, are not learned."""
        if self._warned or weighed.gram is None:
            return
        lengths = weighed.gram.diagonal().clamp(min=0).sqrt().tolist()
        for name, weight, length in zip(names, weighed.weights.tolist(), lengths, strict=True):
            if weight > ALL_WEIGHT and length <= NO_GRADIENT * max(lengths) and len(names) > 1:
                self._warned = True
                logger.warning(
                    "step %d: MGDA gives %s a weight of %.3f and its gradient has nearly vanished, so nothing is "
                    "learned of the others; set normalize=l2 or weighting=fixed, or take %s out of losses "
                    "(docs/rerank.md)",
                    self.state.global_step + 1,
                    name,
                    weight,
                    name,
                )

    @torch.no_grad()
    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Measures on the validation rows, logged; the weights are kept where they are the best so far."""
        found = self.measured(self._validation)
        named = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(dict(named))
        self.callback_handler.on_evaluate(self.args, self.state, self.control, named)
        if self._section.metric not in found:
            raise UsageError(
                f"the validation queries have no {self._section.metric}: "
                + ("no document of theirs has a label" if not found else "none has an aligned document among several"),
                fix="give others with --validation, set another metric, or validation_share=0: the last weights are "
                "taken then",
            )
        if self.state.global_step:
            self._keep_best(found)
        return named

    def measured(self, rows: Sequence[RankingRow]) -> dict[str, float]:
        """Measures of the model as it is; dropout is off meanwhile."""
        training = self.model.training
        with self.loss.precision.autocast():
            differences, second = metrics.two_logits(self.model, rows)
        self.model.train(training)
        return metrics.measure(rows, differences, second if self._section.rank_by == "logit1" else None)

    def _keep_best(self, found: dict[str, float]) -> None:
        from safetensors.torch import save_model

        name = self._section.metric
        before = best_of(self._out, self._fingerprint)
        if before is not None and not found[name] > before["value"]:
            return
        path = self._out / BEST
        # The weights before the mark: a kill between the two leaves better weights under an older mark, and the
        # resumed training measures them again.
        temporary = path.with_name(f"{atomic.TEMPORARY}{path.name}")
        save_model(self.model, str(temporary))
        temporary.replace(path)
        mark = {"fingerprint": self._fingerprint, "step": self.state.global_step, "metric": name, "value": found[name]}
        atomic.write_json(self._out / BEST_MARK, mark | {"measures": found})

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Complete a record and hand it to the trackers and to `on_log`."""
        if "loss" in logs:
            logs.update({name: sum(values) / len(values) for name, values in self._sums.items()})
            self._sums.clear()
            kind, record = "train", dict(logs)
        elif all(name.startswith("eval_") for name in logs):
            kind, record = "validation", {name.removeprefix("eval_"): value for name, value in logs.items()}
        else:
            return  # the trainer's closing totals, which say nothing that the records do not
        super().log(logs, start_time)
        self._on_log({"kind": kind, "step": self.state.global_step, "epoch": self.state.epoch or 0.0, **record})

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Weights as safetensors, configuration and tokenizer; no pickled arguments."""
        self.model.save_pretrained(output_dir or self.args.output_dir, create_model_card=False)

    def floating_point_ops(self, inputs: Any) -> int:
        """Not estimated."""
        return 0


def best_of(out: Path, fingerprint: str) -> dict[str, Any] | None:
    """The mark of the best weights of this very training, if there are any."""
    mark = out / BEST_MARK
    found: dict[str, Any] = atomic.read_json(mark) if mark.is_file() and (out / BEST).is_file() else {}
    return found if found.get("fingerprint") == fingerprint else None


def load_best(model: CrossEncoder, out: Path) -> None:
    """Put the best weights into the model."""
    from safetensors.torch import load_model

    load_model(model, str(out / BEST), device=str(model.device))
