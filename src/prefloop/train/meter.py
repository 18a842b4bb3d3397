"""Running sums behind the training records. Shape letter: n examples."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prefloop.train.batches import Batch

if TYPE_CHECKING:
    from accelerate import Accelerator


SPEEDS = ("tokens_per_second", "utilisation")
"""Metrics that differ between equal runs."""


@functools.cache
def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of square matrix products on a device, measured once a process: the best of five."""
    size = 1024 if device.type == "cpu" else 8192
    a = torch.randn(size, size, device=device).to(dtype)
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        _wait(a @ a)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def _wait(result: Tensor) -> None:
    if result.device.type == "cuda":
        torch.cuda.synchronize(result.device)
    elif result.device.type == "mps":
        torch.mps.synchronize()


class Meter:
    """Averages over examples between two log records, speed, padding, and the examples of the step in progress.

    Sums stay on their device until `flush`, so metering never waits for a GPU.

    Args:
        peak: operations per second of one process's device in plain matrix products, for `utilisation`.
    """

    def __init__(self, peak: float | None = None) -> None:
        self.step_ids: list[str] = []
        self._peak = peak
        self._started = 0.0
        self._reset()

    def _reset(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}
        self._seconds = 0.0
        self._tokens, self._filled, self._places, self._operations = 0, 0, 0, 0.0

    def begin_step(self, now: float) -> None:
        """An optimiser step begins, at `now` seconds."""
        self.step_ids = []
        self._started = now

    def end_step(self, now: float) -> None:
        """The step is done; what follows (records, validation, checkpoints) does not count as training time."""
        self._seconds += now - self._started

    def add(self, batch: Batch, metrics: Mapping[str, Tensor]) -> None:
        """Count one micro-batch, unless it is a filler. metrics: name -> [n], without gradient; NaN: has none."""
        if not batch.ids:
            return
        self.step_ids.extend(batch.ids)
        self._tokens += batch.tokens
        self._filled += int(batch.layout.attention_mask_BT.sum())
        self._places += batch.layout.attention_mask_BT.numel()
        self._operations += batch.operations
        for name, values_n in metrics.items():
            total = values_n.nansum(dtype=torch.float64 if values_n.device.type != "mps" else None)
            count = (~values_n.isnan()).sum()
            self._sums[name] = self._sums[name] + total if name in self._sums else total
            self._counts[name] = self._counts[name] + count if name in self._counts else count

    def flush(self, accelerator: Accelerator | None = None) -> dict[str, float]:
        """Averages since the last flush, over all processes; a metric that no example has is left out.

        Besides the metrics: `padding`, the share of computed places that hold no token; and where steps were timed
        `tokens_per_second` of all processes together (a prompt counts with each of its responses, whether or not the
        layout computes it once), and `utilisation`, the share of the devices' peak that the
        model's own operations make (padding and recomputation earn nothing).
        """
        names = list(self._sums)
        totals = [(float(self._sums[name]), int(self._counts[name])) for name in names]
        counts = [self._tokens, self._filled, self._places, self._operations, self._seconds]
        ranks = 1
        if accelerator is not None and accelerator.num_processes > 1:
            # A process may have met fillers only, and so no name at all.
            gathered = _gather([dict(zip(names, totals, strict=True)), counts])
            ranks = len(gathered)
            names = list(dict.fromkeys(name for sums, _ in gathered for name in sums))
            found = [[sums.get(name, (0.0, 0)) for sums, _ in gathered] for name in names]
            totals = [(sum(total for total, _ in own), sum(count for _, count in own)) for own in found]
            counts = [sum(column) for column in zip(*(c for _, c in gathered), strict=True)]
        tokens, filled, places, operations, seconds = counts
        averages = {name: total / count for name, (total, count) in zip(names, totals, strict=True) if count}
        if places:
            averages["padding"] = 1 - filled / places
        if seconds > 0:
            averages["tokens_per_second"] = tokens * ranks / seconds
            if self._peak is not None and operations:
                averages["utilisation"] = operations / (seconds * self._peak)
        self._reset()
        return averages


def _gather(value: list[object]) -> list[tuple[dict[str, tuple[float, int]], list[float]]]:
    from accelerate.utils import gather_object

    return list(gather_object([tuple(value)]))
