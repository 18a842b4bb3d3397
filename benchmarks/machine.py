"""What a machine is, how fast it multiplies matrices, and how much memory a process has touched."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch

_PROC = Path("/proc/self")

Clock = Callable[[], float]
"""Seconds: `time.perf_counter`, or `time.process_time` where other processes take the cores away."""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def synchronize(device: torch.device) -> None:
    """Wait for a GPU; nothing to wait for elsewhere."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_peak(
    device: torch.device, dtype: torch.dtype, clock: Clock = time.perf_counter, *, tries: int = 9
) -> float:
    """Operations per second of square matrix products: the best of some.

    The best and not the median: what other processes take away is not the machine's.
    """
    size = 2048 if device.type == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    best = float("inf")
    for _ in range(tries):
        started = clock()
        torch.mm(a, b, out=out)
        synchronize(device)
        best = min(best, clock() - started)
    return 2 * size**3 / best


def describe(device: torch.device, peak: float) -> dict[str, object]:
    """Facts that belong to every figure."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "matmul_gflops": round(peak / 1e9, 1),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


class PeakMemory:
    """Bytes that a block touches above what was there at its start.

    On a GPU the allocator's own high-water mark. On Linux the kernel's high-water mark of resident memory, which it
    lets a process set back (`/proc/self/clear_refs`); elsewhere there is no such thing, and `bytes` stays None. A
    process that has freed memory may hold on to it, so measure in a fresh one.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bytes: int | None = None

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._start = torch.cuda.memory_allocated(self.device)
        elif (_PROC / "clear_refs").exists():
            (_PROC / "clear_refs").write_text("5")
            self._start = _status("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device) - self._start
        elif (_PROC / "clear_refs").exists():
            self.bytes = _status("VmHWM") - self._start


def _status(name: str) -> int:
    for line in (_PROC / "status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {name}")
