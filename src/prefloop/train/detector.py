"""Flags by a frozen model: what a judgment speaks of, found once, by the model that training starts from.

It is the same model with dropout off, before its first step, so no second one is in memory. A training that goes on
finds the same flags again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from prefloop.engine.logprob import token_logprobs
from prefloop.engine.sharing import Sharing
from prefloop.train import losses
from prefloop.train.batches import Collator
from prefloop.train.contrast import Tokens, Totals
from prefloop.train.encode import Example
from prefloop.train.examples import Examples
from prefloop.train.precision import Precision


@torch.no_grad()
def find_flags(
    parts: Sequence[Examples],
    model: nn.Module,
    *,
    threshold: float,
    precision: Precision,
    tokens: int,
    pad_id: int,
    sharing: Sharing,
) -> None:
    """Fill `Examples.flags` of every part.

    Args:
        model: had `attach_scorer`; on its device.
        threshold: of the ratio of probabilities, see `losses.flags`.
        tokens: in one forward pass at most; a longer example is passed alone.
    """
    training = model.training
    model.eval()
    collate = Collator(pad_id, sharing)
    try:
        for part in parts:
            found: list[list[bool]] = [[] for _ in range(len(part))]
            for places in _batches(part, tokens):
                examples = [part[place] for place in places]
                judged_M, plain_M = contexts(collate, examples, model, precision)
                flags = losses.flags(judged_M, plain_M, threshold=threshold).tolist()
                for place, example in zip(places, examples, strict=True):
                    found[place], flags = flags[: len(example.responses[0])], flags[len(example.responses[0]) :]
            part.flags = np.array([flag for own in found for flag in own], dtype=bool)
            part.flag_starts = np.cumsum([0, *map(len, found)])
    finally:
        model.train(training)


def contexts(
    collate: Collator, examples: Sequence[Example], model: nn.Module, precision: Precision
) -> tuple[Tensor, Tensor]:
    """(behind the judged prompt [M], behind the plain one [M]): log-probabilities of criticised examples' tokens."""
    batch = collate.batch(examples)
    layout = batch.layout.to(precision.device)
    with precision.autocast():
        logps_N = token_logprobs(model, layout)
    return Tokens(logps_N, layout.response_N, batch.counts, Totals(0, 0, 0)).pair(logps_N)


def _batches(part: Examples, tokens: int) -> Iterator[list[int]]:
    """Places of criticised examples, longest first, so many together as fit."""
    order = sorted(np.flatnonzero(part.judged).tolist(), key=lambda place: (-int(part.tokens[place]), place))
    batch: list[int] = []
    for place in order:
        if batch and int(part.tokens[batch[0]]) * (len(batch) + 1) > tokens:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch
