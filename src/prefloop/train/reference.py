"""Log-probabilities of the responses under the frozen start, computed once and cached by content.

Before training the policy *is* the reference, so no second model is ever in memory: an adapter adds exactly nothing
before its first step, and full weights have not moved. The cache key holds the weights' digest, the precision and the
token ids, so a run over another beta, other weights or other margins computes nothing again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn

from prefloop.engine.logprob import sequence_logprobs, token_logprobs
from prefloop.engine.sharing import Sharing, build
from prefloop.errors import PrefloopError
from prefloop.store.cache import Cache
from prefloop.store.fingerprint import digest
from prefloop.train.examples import Examples
from prefloop.train.precision import Precision

if TYPE_CHECKING:
    from accelerate import PartialState

KIND = "reference"
_WINDOW = 4096

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class _Unit:
    """A prompt with all its distinct responses. places: where each one's ids are, and the slot of its value."""

    places: list[tuple[Examples, int, int, int]]
    size: int


class Reference:
    """The frozen start's log-probabilities of everything in some examples.

    Args:
        examples: each gets its `reference` from `compute`.
        identity: everything about the model that changes its log-probabilities.
        name: of the model, for `prefloop cache ls`.
        cache: read and written by the first process alone; None on the others.
        tokens: places in one forward pass; a prompt whose responses have more is scored alone.
    """

    def __init__(
        self,
        examples: Sequence[Examples],
        *,
        identity: dict[str, Any],
        name: str,
        cache: Cache | None,
        precision: Precision,
        tokens: int,
        pad_id: int,
        sharing: Sharing,
    ) -> None:
        self._examples, self._name, self._cache = examples, name, cache
        self._precision, self._pad_id, self._sharing = precision, pad_id, sharing
        self._keys: dict[str, int] = {}
        self._slots = [self._slots_of(part, [KIND, identity, precision.name]) for part in examples]
        self._batches = self._batch(tokens)

    @torch.no_grad()
    def compute(
        self,
        model: nn.Module,
        ranks: PartialState,
        on_batch: Callable[[int, int], None] | None = None,
        *,
        moved: bool = False,
    ) -> None:
        """Score what the cache does not hold and give every example its reference.

        Batches are formed from all distinct responses, the largest first, and stored whole, each in one transaction:
        a run that was killed forms the same batches again and gets bit-equal values. Processes share the batches.

        Args:
            model: scored as it is, in eval mode; had `attach_scorer`; wrapped where it is to be sharded.
            on_batch: called with (responses done, responses in all).
            moved: the model is not the start any more, so all must be in the cache.

        Raises:
            PrefloopError: the model has moved and something is not in the cache, or it gives a log-probability that
                is not finite.
        """
        values = self._known(ranks)
        keys = list(self._keys)
        missing = [
            b for b in self._batches if np.isnan(values[[slot for unit in b for *_, slot in unit.places]]).any()
        ]
        done = len(keys) - sum(len(unit.places) for batch in missing for unit in batch)
        if missing and moved:
            raise PrefloopError(
                f"{len(keys) - done} of {len(keys)} reference log-probabilities are no longer in the cache, and the "
                "sharded model of the checkpoint is not the reference",
                fix="remove the training's checkpoint folders to start it over",
            )
        rank, size = ranks.process_index, ranks.num_processes
        training = model.training
        model.eval()
        try:
            for start in range(0, len(missing), size):
                together = missing[start : start + size]
                # A process without a batch of its own goes along: a sharded model needs all of them at each forward.
                computed = self._score(model, together[min(rank, len(together) - 1)])
                everything = [computed] if size == 1 else gather_object([computed])
                for found in everything[: len(together)]:
                    if self._cache is not None:
                        self._cache.put_many(KIND, {keys[slot]: value for slot, value in found}, model=self._name)
                    for slot, value in found:
                        values[slot] = value
                    done += len(found)
                if on_batch is not None:
                    on_batch(done, len(keys))
        finally:
            model.train(training)
        for part, (slots, starts) in zip(self._examples, self._slots, strict=True):
            part.reference, part.starts = values[slots], starts

    def _slots_of(self, part: Examples, head: list[Any]) -> tuple[Array, Array]:
        """The slot of each response's value, examples one behind the other, and where each example begins."""
        slots: list[int] = []
        starts = [0]
        for example in part:
            for response in example.responses:
                key = digest([*head, example.prompt_ids, response])
                slots.append(self._keys.setdefault(key, len(self._keys)))
            starts.append(len(slots))
        return np.array(slots, dtype=np.int64), np.array(starts, dtype=np.int64)

    def _batch(self, tokens: int) -> list[list[_Unit]]:
        """Batches of units, each of at most so many tokens, the largest first."""
        grouped: dict[bytes, list[tuple[Examples, int, int, int]]] = {}
        sizes: dict[bytes, int] = {}
        taken = np.zeros(len(self._keys), dtype=bool)
        for part, (slots, starts) in zip(self._examples, self._slots, strict=True):
            for index, example in enumerate(part):
                prompt = hashlib.blake2b(
                    np.array(example.prompt_ids, dtype=np.int32).tobytes(), digest_size=16
                ).digest()
                for k, response in enumerate(example.responses):
                    slot = int(slots[starts[index] + k])
                    if not taken[slot]:
                        taken[slot] = True
                        grouped.setdefault(prompt, []).append((part, index, k, slot))
                        sizes[prompt] = sizes.get(prompt, 0) + len(example.prompt_ids) + len(response)
        units = [_Unit(grouped[prompt], sizes[prompt]) for prompt in sorted(sizes, key=lambda p: (-sizes[p], p))]
        batches: list[list[_Unit]] = []
        room = 0
        for unit in units:
            if not batches or unit.size > room:
                batches.append([])
                room = tokens
            batches[-1].append(unit)
            room -= unit.size
        return batches

    def _known(self, ranks: PartialState) -> Array:
        """The values in the cache, by slot; NaN where there is none."""
        values = np.full(len(self._keys), np.nan)
        if self._cache is not None:
            keys = list(self._keys)
            for start in range(0, len(keys), _WINDOW):
                for key, value in self._cache.get_many(keys[start : start + _WINDOW]).items():
                    values[self._keys[key]] = value
        if ranks.num_processes > 1:
            values = broadcast_object_list([values])[0]
        return values

    def _score(self, model: nn.Module, batch: Sequence[_Unit]) -> list[tuple[int, float]]:
        """(slot, summed log-probability) of each response."""
        rows = [
            (unit.places[0][0][unit.places[0][1]].prompt_ids, [part[i].responses[k] for part, i, k, _ in unit.places])
            for unit in batch
        ]
        layout = build(rows, self._pad_id, self._sharing).to(self._precision.device)
        with self._precision.autocast():
            sums_R = sequence_logprobs(token_logprobs(model, layout), layout)
        if not bool(sums_R.isfinite().all()):
            raise PrefloopError(
                "the model gives an answer a log-probability that is not finite, before any training",
                fix="the weights hold NaN, or the precision overflows: try model.dtype=float32",
            )
        slots = [slot for unit in batch for *_, slot in unit.places]
        return list(zip(slots, sums_R.tolist(), strict=True))
