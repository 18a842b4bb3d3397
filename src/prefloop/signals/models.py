"""The models that are open at one time, behind the project's cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from prefloop.backends.base import Backend, Request, Result
from prefloop.backends.cached import CachedBackend
from prefloop.config import ModelSection, RetrieverSection
from prefloop.store.cache import Cache


class OpenModels:
    """Each model is opened when it is first asked, and where memory would not hold it too, the one used longest ago
    is closed.

    Args:
        cache: the project's.
        earlier_cost: what a model of that name has cost before; its limit counts it.
        opened: told of each model that was opened.
        closing: told of each model that is about to be closed.

    Attributes:
        on_batch: told how many requests of the present call are answered.
    """

    def __init__(
        self,
        cache: Cache | None,
        *,
        earlier_cost: Callable[[str], float],
        closing: Callable[[CachedBackend], None],
        opened: Callable[[ModelSection | RetrieverSection, Backend], None] = lambda section, backend: None,
    ) -> None:
        self.cache = cache
        self.on_batch: Callable[[int], None] = lambda done: None
        self._earlier_cost, self._opened, self._closing = earlier_cost, opened, closing
        self._open: dict[str, CachedBackend] = {}

    def __iter__(self) -> Iterator[CachedBackend]:
        return iter(list(self._open.values()))

    def get(self, section: ModelSection | RetrieverSection, kind: str = "language") -> Backend:
        """A section's model, which is opened when it is first asked, and again if it had to make room.

        Args:
            kind: what it is, see `base.Need`.
        """
        return _AtItsTurn(self, section, kind)

    def open(self, section: ModelSection | RetrieverSection, kind: str = "language") -> CachedBackend:
        """A section's model, open now."""
        from prefloop.engine.load import quiet
        from prefloop.signals.build import open_backend

        key = f"{kind} {section.model_dump_json(exclude={'batch_size'})}"
        held = self._open.pop(key, None)
        if held is None:
            quiet()
            self._make_room(section)
            inner = open_backend(section, kind, self.cache)
            inner.earlier_cost = self._earlier_cost(inner.name)
            held = CachedBackend(inner, self.cache, on_batch=lambda done: self.on_batch(done))
            self._opened(section, inner)
        held.inner.batch_size = section.batch_size
        self._open[key] = held
        return held

    def release(self) -> None:
        """Close all."""
        for key in list(self._open):
            self._close(key)

    def _make_room(self, section: ModelSection | RetrieverSection) -> None:
        """A GPU that trains a model can hold it once more, not twice; main memory is larger and a load is slow."""
        if section.endpoint is not None:
            return
        from prefloop.engine.load import choose_device

        room = 1 if choose_device(section.device).type == "cuda" else 2
        here = [key for key, held in self._open.items() if held.inner.place is not None]
        for key in here[: max(0, len(here) - room + 1)]:
            self._close(key)

    def _close(self, key: str) -> None:
        held = self._open.pop(key)
        try:
            self._closing(held)
        finally:
            held.close()


class _AtItsTurn(Backend):
    """A model that may be asked; what is open while it waits is somebody else's."""

    def __init__(self, models: OpenModels, section: ModelSection | RetrieverSection, kind: str) -> None:
        self.models, self.section, self.kind = models, section, kind

    def plan(self, requests: Sequence[Request]) -> list[list[int]]:
        return self.models.open(self.section, self.kind).plan(requests)

    def run(self, requests: Sequence[Request]) -> list[Result]:
        return self.models.open(self.section, self.kind).run(requests)

    def answer(self, requests: Sequence[Request]) -> list[Result]:
        # A wave may have no question for one of several judges.
        return self.models.open(self.section, self.kind).answer(requests) if requests else []
