"""Log-probabilities of the responses under the frozen start, computed once and cached by content.

Before training the policy *is* the reference, so no second model is ever in memory: an adapter adds exactly nothing
before its first step, and full weights have not moved. The cache key holds the weights' digest, the precision and the
token ids, so a run over another beta, other weights or other margins computes nothing again.
"""

from __future__ import annotations

import hashlib
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn

from prefloop.engine.logprob import sequence_logprobs, token_logprobs
from prefloop.engine.sharing import Sharing, build
from prefloop.errors import PrefloopError
from prefloop.store.cache import Cache
from prefloop.store.fingerprint import digest
from prefloop.train.encode import Example
from prefloop.train.examples import Examples
from prefloop.train.precision import Precision

if TYPE_CHECKING:
    from accelerate import PartialState

KIND = "reference"
_WINDOW = 4096
"""Values that go to or come from the cache together."""
_SECONDS = 10.0
"""What a kill loses at most: computed values wait so long for others to be stored with."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class _Responses:
    """All distinct responses of some examples: numbers in arrays, some 60 bytes each, so that millions may be many.

    A response is the same wherever its prompt and ids are the same. Shape letters: S distinct responses, in the order
    of their keys, so that it depends on content alone; R all responses, examples one behind the other.

    Attributes:
        keys: [S, 32], bytes of their keys in the cache.
        prompts: [S, 16], hash of their prompts.
        sizes: [S], tokens of prompt and response.
        places: [S, 3], a part, an example of it, and a response of that, where its ids stand.
        slots: of each part, [R]: which of them each of its responses is.
        starts: of each part, [examples + 1]: where each example's responses begin.
    """

    keys: Array
    prompts: Array
    sizes: Array
    places: Array
    slots: list[Array]
    starts: list[Array]

    @classmethod
    def of(cls, parts: Sequence[Examples], head: list[Any]) -> Self:
        """Read every example once. head: what keys hold beside the ids."""
        keys, prompts, sizes, places = bytearray(), bytearray(), array("i"), array("i")
        starts, ends = [], [0]
        for number, part in enumerate(parts):
            begins = array("q", [0])
            for index, example in enumerate(part):
                ids = np.array(example.prompt_ids, dtype=np.int32).tobytes()
                prompt = hashlib.blake2b(ids, digest_size=16).digest()
                for k, response in enumerate(example.responses):
                    keys += bytes.fromhex(digest([*head, example.prompt_ids, response]))
                    prompts += prompt
                    sizes.append(len(example.prompt_ids) + len(response))
                    places.extend((number, index, k))
                begins.append(len(sizes) - ends[-1])
            starts.append(np.array(begins))
            ends.append(len(sizes))
        # numpy sorts bytes as it sorts text; all are of one length, so nothing is cut off.
        _, first_S, slot_R = np.unique(np.frombuffer(keys, dtype="S32"), return_index=True, return_inverse=True)
        return cls(
            keys=np.frombuffer(keys, dtype=np.uint8).reshape(-1, 32)[first_S],
            prompts=np.frombuffer(prompts, dtype=np.uint8).reshape(-1, 16)[first_S],
            sizes=np.array(sizes)[first_S],
            places=np.array(places).reshape(-1, 3)[first_S],
            slots=[slot_R[a:b] for a, b in pairwise(ends)],
            starts=starts,
        )

    def batches(self, tokens: int) -> list[Array]:
        """The slots of each batch: prompts with all their responses, of at most so many tokens, the largest first."""
        if not len(self.keys):
            return []
        _, prompt_S = np.unique(np.ascontiguousarray(self.prompts).view("S16").ravel(), return_inverse=True)
        size_P = np.bincount(prompt_S, weights=self.sizes).astype(np.int64)
        rank_P = np.empty(len(size_P), dtype=np.int64)
        largest_first = np.argsort(-size_P, kind="stable")
        rank_P[largest_first] = np.arange(len(size_P))
        order_S = np.lexsort((np.arange(len(prompt_S)), rank_P[prompt_S]))
        count_P = np.bincount(prompt_S)
        cuts, room, seen = [], 0, 0
        for prompt in largest_first.tolist():
            size = int(size_P[prompt])
            if not seen or size > room:
                cuts.append(seen)
                room = tokens
            room -= size
            seen += int(count_P[prompt])
        return np.split(order_S, cuts[1:])

    def key(self, slot: int) -> str:
        """In the cache."""
        return bytes(self.keys[slot]).hex()


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
        self._all = _Responses.of(examples, [KIND, identity, precision.name])
        self._batches = self._all.batches(tokens)
        self._waiting: dict[str, float] = {}
        self._stored = time.monotonic()

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

        Batches are formed from all distinct responses, the largest first, and stored whole, some together in one
        transaction: a run that was killed forms the same batches again and gets bit-equal values. Processes share the
        batches.

        Args:
            model: scored as it is, in eval mode; had `attach_scorer`; wrapped where it is to be sharded.
            on_batch: called with (responses done, responses in all).
            moved: the model is not the start any more, so all must be in the cache.

        Raises:
            PrefloopError: the model has moved and something is not in the cache, or it gives a log-probability that
                is not finite.
        """
        values_S = self._known(ranks)
        missing = [batch for batch in self._batches if np.isnan(values_S[batch]).any()]
        done = len(values_S) - sum(map(len, missing))
        if missing and moved:
            raise PrefloopError(
                f"{len(values_S) - done} of {len(values_S)} reference log-probabilities are no longer in the cache, "
                "and the sharded model of the checkpoint is not the reference",
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
                for batch, found in zip(together, everything, strict=False):
                    values_S[batch] = found
                    self._store(batch, found)
                    done += len(found)
                if done == len(values_S):
                    self._flush()
                if on_batch is not None:
                    on_batch(done, len(values_S))
        finally:
            self._flush()
            model.train(training)
        for part, slots_R, starts in zip(self._examples, self._all.slots, self._all.starts, strict=True):
            part.reference, part.starts = values_S[slots_R], starts

    def _known(self, ranks: PartialState) -> Array:
        """[S], the values in the cache; NaN where there is none."""
        values_S = np.full(len(self._all.keys), np.nan)
        if self._cache is not None:
            for start in range(0, len(values_S), _WINDOW):
                slots = {self._all.key(slot): slot for slot in range(start, min(start + _WINDOW, len(values_S)))}
                for key, value in self._cache.get_many(slots).items():
                    values_S[slots[key]] = value
        if ranks.num_processes > 1:
            values_S = broadcast_object_list([values_S])[0]
        return values_S

    def _store(self, batch: Array, found: Sequence[float]) -> None:
        """Keep a batch for the cache, which takes many at once for little more than one."""
        if self._cache is None:
            return
        self._waiting.update((self._all.key(slot), value) for slot, value in zip(batch.tolist(), found, strict=True))
        if len(self._waiting) >= _WINDOW or time.monotonic() - self._stored > _SECONDS:
            self._flush()

    def _flush(self) -> None:
        if self._cache is not None and self._waiting:
            # In their order, neighbours of the file's index are written together.
            self._cache.put_many(KIND, dict(sorted(self._waiting.items())), model=self._name)
        self._waiting, self._stored = {}, time.monotonic()

    def _score(self, model: nn.Module, batch: Array) -> list[float]:
        """The summed log-probability of each response of a batch."""
        decoded: dict[tuple[int, int], Example] = {}
        rows: dict[bytes, tuple[tuple[int, ...], list[tuple[int, ...]]]] = {}
        for slot in batch.tolist():
            part, index, k = self._all.places[slot].tolist()
            if (part, index) not in decoded:
                decoded[part, index] = self._examples[part][index]
            example = decoded[part, index]
            row = rows.setdefault(self._all.prompts[slot].tobytes(), (example.prompt_ids, []))
            row[1].append(example.responses[k])
        layout = build(list(rows.values()), self._pad_id, self._sharing).to(self._precision.device)
        with self._precision.autocast():
            sums_R = sequence_logprobs(token_logprobs(model, layout), layout)
        if not bool(sums_R.isfinite().all()):
            raise PrefloopError(
                "the model gives an answer a log-probability that is not finite, before any training",
                fix="the weights hold NaN, or the precision overflows: try model.dtype=float32",
            )
        return list(sums_R.tolist())
