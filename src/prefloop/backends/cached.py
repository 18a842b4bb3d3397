"""A backend that remembers: what a model once answered is not computed again.

All requests are planned, cached ones included; then batches that are cached whole are skipped, and the missing ones
of the others are computed. A batch is stored in one transaction. So a run that was killed and started again forms
the batches it would have formed, and gets bit-equal results although rounding depends on a batch's composition
(tests/backends/test_cached.py).

This module imports no torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict

from prefloop.backends.base import (
    RESULT_TYPES,
    Backend,
    Generation,
    Refusal,
    Request,
    Result,
    Usage,
    request_json,
)
from prefloop.store.cache import Cache
from prefloop.store.fingerprint import digest

SCHEMA_VERSION = 1
"""Part of every key: raise it when stored results would mean something else."""


class CachedBackend(Backend):
    """Answers from the cache where it can, from `inner` where it must.

    Args:
        inner: the backend that computes.
        cache: None computes everything (equal requests of one call once all the same).
        on_batch: called after each batch with how many of the call's requests are answered so far.

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
        """One batch: read what is cached, compute the rest, store it in one transaction."""
        keys = [self.key(r) for r in requests]
        known = {} if self.cache is None else self.cache.get_many(keys)
        results: dict[str, Result] = {}
        missing: dict[str, Request] = {}
        for key, request in zip(keys, requests, strict=True):
            if key in known:
                results[key] = RESULT_TYPES[request.verb](**known[key])
            else:
                missing[key] = request
        computed = dict(zip(missing, self.inner.run(list(missing.values())), strict=True)) if missing else {}
        if self.cache is not None:
            # A refusal is never stored: it may be gone with the next version, and it is cheap to find again.
            store = {key: asdict(result) for key, result in computed.items() if not isinstance(result, Refusal)}
            if store:
                self.cache.put_many(requests[0].verb, store, model=self.name)
        self._count(requests, keys, results, computed)
        results.update(computed)
        return [results[key] for key in keys]

    def answer(self, requests: Sequence[Request]) -> list[Result]:
        """Everything, results in the order of the requests; equal requests are computed once."""
        unique = list(dict.fromkeys(requests))
        copies = Counter(requests)
        results: dict[Request, Result] = {}
        done = 0
        for batch in self.plan(unique):
            some = [unique[i] for i in batch]
            results.update(zip(some, self.run(some), strict=True))
            done += sum(copies[r] for r in some)
            if self.on_batch is not None:
                self.on_batch(done)
        extra = len(requests) - len(unique)
        if extra:
            self.usage.asked += extra
            self._count_duplicates(extra)
        return [results[r] for r in requests]

    def close(self) -> None:
        """Close the inner backend. The cache belongs to whoever opened it."""
        self.inner.close()

    def _count(
        self, requests: Sequence[Request], keys: Sequence[str], cached: dict[str, Result], computed: dict[str, Result]
    ) -> None:
        usage = self.usage
        refused = sum(isinstance(result, Refusal) for result in computed.values())
        usage.asked += len(requests)
        usage.cached += len(cached)
        usage.computed += len(computed) - refused
        usage.refused += refused
        usage.generated_tokens += sum(len(r.token_ids) for r in computed.values() if isinstance(r, Generation))
        self._count_duplicates(len(keys) - len(set(keys)))

    def _count_duplicates(self, extra: int) -> None:
        if extra:
            self.usage.detail["duplicates"] = self.usage.detail.get("duplicates", 0) + extra
