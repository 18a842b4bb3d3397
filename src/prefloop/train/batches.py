"""Micro-batches: examples as the tensors of one forward pass. Shape letters: n examples, R responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

from prefloop.engine import flops
from prefloop.engine.layout import Kind, Layout
from prefloop.engine.sharing import Sharing, build
from prefloop.train.encode import Example
from prefloop.train.examples import Examples
from prefloop.train.steps import Micro, Step


@dataclass(frozen=True)
class Batch:
    """A micro-batch.

    Attributes:
        layout: its responses, those of one example together and in order.
        counts: responses of each example; one that is scored behind two prompts counts twice, the plain one first.
        tokens: of the responses, each with its own prompt.
        operations: floating-point operations of a forward and backward pass that the layout needs, without padding.
        ids: of the examples; empty for a filler, which counts for nothing.
        weight, margin, label: [n], float32.
        reference: [R], float32; NaN where there is none, so that an objective which reads it stops at once.
        drift, drift_reference: the same prompts with other prompts' answers, from which an objective estimates how
            far the policy has moved from its reference; None where none does.
        flags: bool, of all tokens of criticised answers, one behind the other; None where no frozen model found them.
    """

    layout: Layout
    counts: tuple[int, ...]
    tokens: int
    operations: float
    ids: tuple[str, ...]
    weight: Tensor
    margin: Tensor
    label: Tensor
    reference: Tensor
    drift: Layout | None = None
    drift_reference: Tensor | None = None
    flags: Tensor | None = None


class StepData(Dataset[list[tuple[Micro, list[Example]]]]):
    """The data set of steps: what a loader with a `StepSampler` reads."""

    def __init__(self, examples: Examples) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitems__(self, step: Step) -> list[tuple[Micro, list[Example]]]:
        return [(micro, [self.examples[i] for i in micro.rows]) for micro in step]


class Collator:
    """Examples -> the micro-batches of a step, deterministically.

    Args:
        pad_id: any id of the vocabulary.
        sharing: what the model can do with a shared prompt.
        passes: what of the model is trained, for `Batch.operations`.
        drifting: the second response of each example is another prompt's, for `Batch.drift`.
    """

    def __init__(
        self, pad_id: int, sharing: Sharing, *, passes: flops.Passes = flops.TRAIN, drifting: bool = False
    ) -> None:
        self.pad_id, self.sharing, self.passes, self.drifting = pad_id, sharing, passes, drifting

    def __call__(self, step: Sequence[tuple[Micro, Sequence[Example]]]) -> list[Batch]:
        return [self.batch(examples, filler=micro.filler) for micro, examples in step]

    def batch(self, examples: Sequence[Example], *, filler: bool = False) -> Batch:
        """One micro-batch."""
        own = slice(0, 1) if self.drifting else slice(None)
        other = slice(1, 2)
        layout = self._layout(examples, own)
        return Batch(
            layout=layout,
            counts=tuple(len(e.responses[own]) * len(e.contexts) for e in examples),
            tokens=sum(len(p) + len(r) for e in examples for p in e.contexts for r in e.responses[own]),
            operations=self._operations(examples, own, layout.kind),
            ids=() if filler else tuple(e.id for e in examples),
            weight=_column(0.0 if filler else e.weight for e in examples),
            margin=_column(e.margin for e in examples),
            label=_column(e.label for e in examples),
            reference=_reference(examples, own),
            drift=self._layout(examples, other) if self.drifting else None,
            drift_reference=_reference(examples, other) if self.drifting else None,
            flags=_flags(examples),
        )

    def _operations(self, examples: Sequence[Example], which: slice, kind: Kind) -> float:
        lengths = [(len(p), [len(r) for r in e.responses[which]]) for e in examples for p in e.contexts]
        if kind == "concatenated":
            lengths = [(prompt, [response]) for prompt, responses in lengths for response in responses]
        return sum(flops.count([row], self.sharing.shape, kind, self.passes).total for row in lengths)

    def _layout(self, examples: Sequence[Example], which: slice) -> Layout:
        return build([(p, e.responses[which]) for e in examples for p in e.contexts], self.pad_id, self.sharing)


def _column(values: object) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float32)  # type: ignore[call-overload]


def _reference(examples: Sequence[Example], which: slice) -> Tensor:
    return _column(value for e in examples for value in (e.reference or (float("nan"),) * len(e.responses))[which])


def _flags(examples: Sequence[Example]) -> Tensor | None:
    if all(e.flags is None for e in examples):
        return None
    return torch.tensor([flag for e in examples for flag in e.flags or ()], dtype=torch.bool)
