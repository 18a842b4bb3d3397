"""PairRM's training objective: llm-blender's loss `instructgpt` over all pairs of a request's answers.

For two answers of one request and the sign g of their difference in quality, the loss is -log σ(g · logit). A tie has
g = 0 and costs log 2 whatever the network says, so it teaches nothing. Seats are drawn anew for every pair: what the
network learns of a seat is noise.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import combinations

import torch
from torch.nn.functional import logsigmoid

Seated = tuple[int, int, int]
"""Answer in the first seat, answer in the second, and the sign of the first's quality minus the second's."""


def pair_loss(logits: torch.Tensor, signs: torch.Tensor) -> torch.Tensor:
    """-log σ(g · logit), [n] from logits [n] and signs [n] in {-1, 0, 1}; not averaged."""
    return -logsigmoid(signs * logits)


def seat(rng: random.Random, qualities: Sequence[float], most: int) -> list[Seated]:
    """Pairs of one request's answers: of all C(n, 2), at most so many, each in one order by a coin.

    Args:
        qualities: [n], higher is better; only their order counts.
        most: how many pairs to keep, drawn without repetition.
    """
    pairs = list(combinations(range(len(qualities)), 2))
    kept = pairs if len(pairs) <= most else rng.sample(pairs, most)
    seated = [pair if rng.random() < 0.5 else pair[::-1] for pair in kept]
    return [(i, j, (qualities[i] > qualities[j]) - (qualities[i] < qualities[j])) for i, j in seated]
