"""Log-probabilities of the answers under the frozen start, computed once, before training, and cached by content.

Before training the policy *is* the reference, so no second model is ever in memory: with LoRA there is no adapter
yet, with full weights nothing has moved. The cache key holds the weights' digest, the precision and the token ids,
so a run over another beta, other weights or other margins computes nothing again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from prefloop.engine.layout import concatenated
from prefloop.engine.logprob import sequence_logprobs, token_logprobs
from prefloop.errors import PrefloopError
from prefloop.store.cache import Cache
from prefloop.store.fingerprint import digest
from prefloop.train.data import Pair
from prefloop.train.precision import Precision

KIND = "reference"
Answer = tuple[tuple[int, ...], tuple[int, ...]]
"""Prompt ids and completion ids."""


@torch.no_grad()
def add_reference(
    pairs: Sequence[Pair],
    model: nn.Module,
    *,
    identity: dict[str, Any],
    name: str,
    cache: Cache,
    precision: Precision,
    batch_size: int,
    pad_id: int,
    on_batch: Callable[[int, int], None] | None = None,
) -> list[Pair]:
    """The pairs with their reference log-probabilities.

    Batches are formed from all distinct answers, longest first, and stored whole, each in one transaction: a run that
    was killed forms the same batches again and gets bit-equal values.

    Args:
        model: scored as it is, in eval mode; had `attach_scorer`.
        identity: everything about the model that changes its log-probabilities.
        name: of the model, for `prefloop cache ls`.
        batch_size: answers in one forward pass.
        on_batch: called with (answers done, answers in all).

    Raises:
        PrefloopError: the model gives a log-probability that is not finite.
    """
    answers: list[Answer] = sorted(
        {(p.prompt_ids, ids) for p in pairs for ids in (p.chosen_ids, p.rejected_ids)},
        key=lambda a: (-len(a[0]) - len(a[1]), a),
    )
    keys = {a: digest([KIND, identity, precision.name, a[0], a[1]]) for a in answers}
    known: dict[str, float] = cache.get_many(keys.values())
    training = model.training
    model.eval()
    try:
        for start in range(0, len(answers), batch_size):
            batch = answers[start : start + batch_size]
            if any(keys[a] not in known for a in batch):
                computed = dict(zip((keys[a] for a in batch), _score(model, batch, precision, pad_id), strict=True))
                cache.put_many(KIND, computed, model=name)
                known = {**computed, **known}
            if on_batch is not None:
                on_batch(min(start + batch_size, len(answers)), len(answers))
    finally:
        model.train(training)
    return [
        replace(
            p,
            reference_chosen=known[keys[p.prompt_ids, p.chosen_ids]],
            reference_rejected=known[keys[p.prompt_ids, p.rejected_ids]],
        )
        for p in pairs
    ]


def _score(model: nn.Module, batch: Sequence[Answer], precision: Precision, pad_id: int) -> list[float]:
    layout = concatenated([(prompt, (completion,)) for prompt, completion in batch], pad_id).to(precision.device)
    with precision.autocast():
        sums_R = sequence_logprobs(token_logprobs(model, layout), layout)
    if not bool(sums_R.isfinite().all()):
        raise PrefloopError(
            "the model gives an answer a log-probability that is not finite, before any training",
            fix="the weights hold NaN, or the precision overflows: try model.dtype=float32",
        )
    return [float(x) for x in sums_R.tolist()]
