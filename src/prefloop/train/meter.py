"""Running sums behind the training records. Shape letter: n pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class Meter:
    """Averages over rows between two log records, tokens per second, and the rows of the step in progress.

    Sums stay on their device until `flush`, so metering never waits for a GPU.
    """

    def __init__(self) -> None:
        self.step_ids: list[str] = []
        self._started = 0.0
        self._reset()

    def _reset(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._rows, self._tokens, self._seconds = 0, 0, 0.0

    def begin_step(self, now: float) -> None:
        """An optimiser step begins, at `now` seconds."""
        self.step_ids = []
        self._started = now

    def end_step(self, now: float) -> None:
        """The step is done; what follows (records, validation, checkpoints) does not count as training time."""
        self._seconds += now - self._started

    def add(self, ids: Sequence[str], metrics: Mapping[str, Tensor], tokens: int) -> None:
        """Count one micro-batch: metrics name -> [n], without gradient; tokens without padding."""
        self.step_ids.extend(ids)
        self._rows += len(ids)
        self._tokens += tokens
        for name, values_n in metrics.items():
            total = values_n.sum(dtype=torch.float64 if values_n.device.type != "mps" else None)
            self._sums[name] = self._sums[name] + total if name in self._sums else total

    def flush(self) -> dict[str, float]:
        """Averages since the last flush, and `tokens_per_second` where steps were timed."""
        averages = {name: total.item() / self._rows for name, total in self._sums.items()}
        if self._seconds > 0:
            averages["tokens_per_second"] = self._tokens / self._seconds
        self._reset()
        return averages
