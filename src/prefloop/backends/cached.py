"""A backend that remembers: what a model once answered is not computed again.

All requests are planned, cached ones included; then batches that are cached whole are skipped, and the missing ones
of the others are computed. What comes in together is stored in one transaction: a whole batch of a model in this
process, so that a run that was killed and started again forms the batches it would have formed, and gets bit-equal
results although rounding depends on a batch's composition (tests/backends/test_cached.py); each answer of a server by
itself.

This module imports no torch.
"""

from __future__ import annotations

import base64
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from prefloop.backends.base import (
    RESULT_TYPES,
    Arrival,
    Backend,
    Embedding,
    EmbedRequest,
    Generation,
    Refusal,
    Request,
    Result,
    Usage,
    Withheld,
    request_json,
)
from prefloop.store.cache import Cache
from prefloop.store.fingerprint import digest

SCHEMA_VERSION = 1
"""Part of every key: raise it when stored results would mean something else."""


class _Missing(NamedTuple):
    """What is not cached of a batch: its number, the keys, where each key stands in it, and a request of each key."""

    number: int
    keys: list[str]
    places: dict[str, list[int]]
    requests: list[Request]


class CachedBackend(Backend):
    """Answers from the cache where it can, from `inner` where it must.

    Args:
        inner: the backend that computes.
        cache: None computes everything (equal requests of one call once all the same).
        on_batch: called whenever results are there with how many of the call's requests are answered so far.

    Attributes:
        usage: what was asked and done since the start. asked = cached + computed + refused + detail["duplicates"].
    """

    def __init__(self, inner: Backend, cache: Cache | None, on_batch: Callable[[int], None] | None = None) -> None:
        self.inner, self.cache, self.on_batch = inner, cache, on_batch
        self.identity, self.name = inner.identity, inner.name
        self.usage = Usage()

    def key(self, request: Request) -> str:
        """The cache key: everything that changes the answer."""
        return digest({"schema": SCHEMA_VERSION, "identity": self.identity, "request": request_json(request)})

    def plan(self, requests: Sequence[Request]) -> list[list[int]]:
        return self.inner.plan(requests)

    def run(self, requests: Sequence[Request]) -> list[Result]:
        """One batch: read what is cached, compute the rest, store it."""
        results = {arrival.index: arrival.result for group in self.arrivals(requests) for arrival in group}
        return [results[i] for i in range(len(requests))]

    def arrivals(self, requests: Sequence[Request]) -> Iterator[list[Arrival]]:
        for _, group in self.run_all([requests]):
            yield group

    def run_all(self, batches: Sequence[Sequence[Request]]) -> Iterator[tuple[int, list[Arrival]]]:
        """What is cached of all batches, then what the inner backend gives, each group stored before it is handed on.

        Every group is one transaction. So of a server's answers a killed process loses none that came in
        (tests/backends/test_http.py), and of a batch whose results depend on each other all or none.
        """
        missing: list[_Missing] = []
        for number, requests in enumerate(batches):
            places: dict[str, list[int]] = {}
            for i, request in enumerate(requests):
                places.setdefault(self.key(request), []).append(i)
            known = {} if self.cache is None else self.cache.get_many(list(places))
            found = {key: _from_json(requests[places[key][0]], value) for key, value in known.items()}
            if found:
                self.usage.cached += len(found)
                yield number, self._hand_on(places, found)
            if keys := [key for key in places if key not in found]:
                missing.append(_Missing(number, keys, places, [requests[places[key][0]] for key in keys]))
        for which, group in self.inner.run_all([part.requests for part in missing]):
            part = missing[which]
            arrived = {part.keys[a.index]: a for a in group}
            self._store(part.requests[0].verb, arrived)
            yield part.number, self._hand_on(part.places, {key: a.result for key, a in arrived.items()})

    def _store(self, verb: str, arrived: dict[str, Arrival]) -> None:
        # A refusal may be gone with the next version, and is cheap to find again, unless it was paid.
        kept = {key: a for key, a in arrived.items() if _is_kept(a.result)}
        if self.cache is not None and kept:
            self.cache.put_many(
                verb,
                {key: _to_json(a.result) for key, a in kept.items()},
                model=self.name,
                calls={key: a.call for key, a in kept.items() if a.call is not None},
            )
        usage = self.usage
        refused = sum(isinstance(a.result, Refusal) for a in arrived.values())
        usage.computed += len(arrived) - refused
        usage.refused += refused
        answers = [a.result for a in kept.values() if isinstance(a.result, Generation)]
        usage.generated_tokens += sum(len(answer.token_ids or ()) for answer in answers)

    def _hand_on(self, places: dict[str, list[int]], results: dict[str, Result]) -> list[Arrival]:
        group = [Arrival(i, result) for key, result in results.items() for i in places[key]]
        self.usage.asked += len(group)
        self._count_duplicates(len(group) - len(results))
        return group

    def answer(self, requests: Sequence[Request]) -> list[Result]:
        """Everything, results in the order of the requests; equal requests are computed once."""
        unique = list(dict.fromkeys(requests))
        copies = Counter(requests)
        results: dict[Request, Result] = {}
        done = 0
        batches = [[unique[i] for i in batch] for batch in self.plan(unique)]
        for number, group in self.run_all(batches):
            some = batches[number]
            results.update((some[a.index], a.result) for a in group)
            done += sum(copies[some[a.index]] for a in group)
            if self.on_batch is not None:
                self.on_batch(done)
        extra = len(requests) - len(unique)
        self.usage.asked += extra
        self._count_duplicates(extra)
        return [results[r] for r in requests]

    def spent(self) -> dict[str, float]:
        return self.inner.spent()

    def close(self) -> None:
        """Close the inner backend. The cache belongs to whoever opened it."""
        self.inner.close()

    def _count_duplicates(self, extra: int) -> None:
        if extra:
            self.usage.detail["duplicates"] = self.usage.detail.get("duplicates", 0) + extra


def _is_kept(result: Result) -> bool:
    return isinstance(result, Withheld) or not isinstance(result, Refusal)


def _to_json(result: Result) -> dict[str, Any]:
    """JSON has no infinities; a label that is not among a server's most probable words has log-probability -inf.

    A withheld answer is {"withheld": reason}, which no result of a verb looks like. A vector is {"float32": base64 of
    its bytes, little-endian}: a list of decimals takes five times the room.
    """
    if isinstance(result, Withheld):
        return {"withheld": result.reason}
    if isinstance(result, Embedding):
        return {"float32": _packed(result.values)}
    lists = {k: ["-inf" if x == -math.inf else x for x in v] for k, v in asdict(result).items() if isinstance(v, list)}
    return asdict(result) | lists


def _from_json(request: Request, value: dict[str, Any]) -> Result:
    """The inverse of `_to_json`."""
    if "withheld" in value:
        return Withheld(value["withheld"])
    if request.verb == EmbedRequest.verb:
        return Embedding(_unpacked(value["float32"]))
    lists = {k: [-math.inf if x == "-inf" else x for x in v] for k, v in value.items() if isinstance(v, list)}
    return RESULT_TYPES[request.verb](**(value | lists))


def _packed(values: Any) -> str:
    import numpy as np

    return base64.b64encode(np.ascontiguousarray(values, dtype="<f4").tobytes()).decode("ascii")


def _unpacked(text: str) -> Any:
    import numpy as np

    return np.frombuffer(base64.b64decode(text), dtype="<f4")
