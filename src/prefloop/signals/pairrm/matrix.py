"""From pair logits to scores, ranks and counts: plain arithmetic, without torch.

M[i][j] is the logit with answer i shown first and j second, > 0 where i is the better one, 0 on the diagonal. The two
seats are not alike to the network, so M[i][j] is not -M[j][i]; what counts is the difference d(i, j) = M[i][j] -
M[j][i], which no preference for a seat changes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Matrix = Sequence[Sequence[float]]


def distinct(texts: Sequence[str]) -> tuple[list[int], list[int]]:
    """Texts that differ in more than outer white space, which the tokenizer drops.

    Returns:
        The index of the first of each kind, and for every text the place of its kind in that list.
    """
    place: dict[str, int] = {}
    firsts: list[int] = []
    member: list[int] = []
    for index, text in enumerate(texts):
        key = text.strip()
        if key not in place:
            place[key] = len(firsts)
            firsts.append(index)
        member.append(place[key])
    return firsts, member


def ordered_pairs(n: int) -> list[tuple[int, int]]:
    """All (i, j) with i != j among n, each unordered pair's two orders side by side."""
    return [pair for i in range(n) for j in range(i + 1, n) for pair in ((i, j), (j, i))]


def expand(logits: dict[tuple[int, int], float], member: Sequence[int]) -> list[list[float]]:
    """[n, n] of all answers from the logits between distinct texts; equal texts have 0 among themselves."""
    return [[0.0 if a == b else logits[a, b] for b in member] for a in member]


def difference(matrix: Matrix, i: int, j: int) -> float:
    """d(i, j): how much better i is than j with the seats evened out; P(i beats j) is its logistic function."""
    return matrix[i][j] - matrix[j][i]


def scores(matrix: Matrix) -> list[float]:
    """score_i = (1/N) Σ_j d(i, j), [n]. They sum to 0; their scale depends on N, so compare within a prompt only."""
    n = len(matrix)
    return [math.fsum(difference(matrix, i, j) for j in range(n)) / n for i in range(n)]


def wins(matrix: Matrix) -> list[float | None]:
    """Mean of P(i beats j) = σ(d(i, j)) over the other answers, [n]; None for an answer without others."""
    n = len(matrix)
    if n == 1:
        return [None]
    return [math.fsum(logistic(difference(matrix, i, j)) for j in range(n) if j != i) / (n - 1) for i in range(n)]


def ranks(values: Sequence[float]) -> list[int]:
    """1 + how many scores are strictly larger; ties share the better rank (1, 1, 3)."""
    return [1 + sum(other > value for other in values) for value in values]


def logistic(x: float) -> float:
    """1 / (1 + exp(-x)), without overflow."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
