"""The running mean of rewards that BCO's classifier takes as its threshold.

The mean is over all pairs of all steps before the one in progress: 0 at the first, where policy and reference are the
same and every reward is 0. So it costs no forward pass, and does not depend on how a step is cut into micro-batches
and processes. A checkpoint holds it (tests/train/test_shift.py). Shape letter: n examples.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from prefloop.store import atomic

if TYPE_CHECKING:
    from accelerate import Accelerator

FILE = "shift.json"
"""In a checkpoint."""


class RewardShift:
    """Sums of the rewards of finished steps, and of the step in progress.

    Attributes:
        total, count: of the finished steps; equal on all processes.
    """

    def __init__(self, total: float = 0.0, count: int = 0) -> None:
        self.total, self.count = total, count
        self._step: Tensor | None = None

    @property
    def mean(self) -> float:
        """Over the finished steps; 0 before the first."""
        return self.total / self.count if self.count else 0.0

    def add(self, rewards_n: Tensor) -> None:
        """Take note of a micro-batch's rewards; they count from the next step on."""
        wide = torch.float64 if rewards_n.device.type != "mps" else torch.float32
        wide_n = rewards_n.detach().to(wide)
        sums = torch.stack([wide_n.sum(), torch.ones_like(wide_n).sum()])
        self._step = sums if self._step is None else self._step + sums

    def end_step(self, accelerator: Accelerator) -> None:
        """Add the step's sums over all processes."""
        wide = torch.float64 if accelerator.device.type != "mps" else torch.float32
        own = torch.zeros(2, dtype=wide, device=accelerator.device) if self._step is None else self._step
        total, count = accelerator.reduce(own, "sum").tolist()
        self.total, self.count, self._step = self.total + total, self.count + int(count), None

    def save(self, checkpoint: Path) -> None:
        """Write the sums; JSON keeps every bit of a float."""
        atomic.write_json(checkpoint / FILE, {"total": self.total, "count": self.count})

    @classmethod
    def load(cls, checkpoint: Path) -> Self:
        """The sums that `save` wrote."""
        return cls(**atomic.read_json(checkpoint / FILE))
