"""Which examples meet in an optimiser step, and how a step is cut into the micro-batches of each process.

The examples of a step follow from seed and epoch alone. How it is cut (micro-batches, processes) changes the order of
a sum and nothing else (tests/train/test_trainer.py::test_the_cut_of_a_batch_does_not_matter), so within a step rows
of similar length may go together, while across steps they stay shuffled.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Sampler


@dataclass(frozen=True)
class Micro:
    """A micro-batch: places in the data set. A filler keeps processes in step and counts for nothing."""

    rows: tuple[int, ...]
    filler: bool = False


Step = list[Micro]
"""One process's share of an optimiser step."""


@dataclass(frozen=True)
class Cut:
    """How large a micro-batch may be.

    Attributes:
        rows: at most so many examples.
        tokens: at most so many tokens, prompts counted once for each response and the rows padded to the longest; an
            example that is longer makes a micro-batch of its own. None: no such bound.
        ranks: processes that share the step.
    """

    rows: int
    tokens: int | None = None
    ranks: int = 1

    def __call__(self, step: Sequence[int], sizes: Sequence[int]) -> list[Step]:
        """The step's examples, longest first, as micro-batches for each process; every process gets as many.

        Args:
            step: places in the data set.
            sizes: tokens of each of them.
        """
        order = sorted(range(len(step)), key=lambda i: (-sizes[i], i))
        micros: list[list[int]] = []
        longest = 0
        for i in order:
            full = not micros or len(micros[-1]) == self.rows
            if full or (self.tokens is not None and longest * (len(micros[-1]) + 1) > self.tokens):
                micros.append([])
                longest = sizes[i]
            micros[-1].append(step[i])
        cut = [Micro(tuple(rows)) for rows in micros]
        cut += [Micro(cut[-1].rows[-1:], filler=True)] * (-len(cut) % self.ranks)
        return [cut[rank :: self.ranks] for rank in range(self.ranks)]


def permutation(rows: int, seed: int, epoch: int) -> list[int]:
    """The order of an epoch. It depends on seed and epoch alone: the random state of the process plays no part."""
    mixed = hashlib.sha256(f"{seed}:{epoch}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(mixed[:7], "big"))
    return list(torch.randperm(rows, generator=generator).tolist())


class StepSampler(Sampler[Step]):
    """The steps of an epoch for one process, in order; the last one may hold fewer examples.

    A loader skips steps by their places and reads nothing of them, so a resumed run goes on at the exact row
    (tests/train/test_resume.py).
    """

    def __init__(self, sizes: np.ndarray, batch_size: int, cut: Cut, *, seed: int | None, rank: int = 0) -> None:  # type: ignore[type-arg]
        self.sizes, self.batch_size, self.cut = sizes, batch_size, cut
        self.seed, self.rank, self.epoch = seed, rank, 0

    def __len__(self) -> int:
        return -(-len(self.sizes) // self.batch_size)

    def __iter__(self) -> Iterator[Step]:
        rows = len(self.sizes)
        order = range(rows) if self.seed is None else permutation(rows, self.seed, self.epoch)
        for start in range(0, rows, self.batch_size):
            step = list(order[start : start + self.batch_size])
            yield self.cut(step, [int(self.sizes[i]) for i in step])[self.rank]
