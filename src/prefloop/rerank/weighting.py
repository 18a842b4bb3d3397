"""How much each task counts: fixed weights, or those of the shortest vector in the hull of the tasks' gradients.

MGDA (Désidéri 2012; Sener & Koltun 2018) weighs t losses by

    w = argmin over the simplex of wᵀGw,   G_ij = ⟨∇L_i, ∇L_j⟩,

so that −Σ w_i ∇L_i lowers all of them, unless none can be lowered without raising another. The weights depend on the
directions and lengths of the gradients and not on their common scale: G and c·G have the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prefloop.errors import PrefloopError, UsageError

MOST_TASKS = 8
"""The exact solver looks at 2^t − 1 faces of the simplex; 255 small systems are still milliseconds."""


def mgda(gram: Tensor | Sequence[Sequence[float]]) -> Tensor:
    """The weights of least norm, exactly, in float64.

    The minimum lies inside one of the simplex's faces. On each face it solves the linear system of its Lagrange
    conditions; a face with a singular system has a line of minima that reaches a smaller face. Of the solutions
    inside their face the best one is taken. No step size, no tolerance, no iteration.

    Args:
        gram: [t, t], symmetric and positive semidefinite up to rounding; of any scale.

    Returns:
        [t], float64 on the processor, each at least 0, summing to 1. Equal weights where all gradients vanish.

    Raises:
        PrefloopError: a value is not finite.
        UsageError: not square, or more tasks than `MOST_TASKS`.

    Example:
        >>> mgda([[1.0, 0.0], [0.0, 3.0]])
        tensor([0.7500, 0.2500], dtype=torch.float64)
    """
    matrix = np.asarray(gram.detach().cpu().double() if isinstance(gram, Tensor) else gram, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
        raise UsageError(f"a Gram matrix is square, and this one has the shape {matrix.shape}")
    tasks = len(matrix)
    if tasks > MOST_TASKS:
        raise UsageError(
            f"exact MGDA looks at every face of the simplex, for {tasks} tasks {2**tasks - 1:,} of them",
            fix=f"weigh at most {MOST_TASKS} tasks, or use fixed weights",
        )
    if not np.isfinite(matrix).all():
        raise PrefloopError(
            f"the gradients of the tasks are not finite: their Gram matrix is {matrix.tolist()}",
            fix="lower the learning rate, or train in float32; the last checkpoint holds the weights before",
        )
    scale = np.abs(matrix).max()
    if scale == 0:
        return torch.full((tasks,), 1 / tasks, dtype=torch.float64)
    matrix = matrix / scale
    matrix = (matrix + matrix.T) / 2
    best, least = np.zeros(tasks), np.inf
    for size in range(1, tasks + 1):
        for face in combinations(range(tasks), size):
            found = _inside(matrix[np.ix_(face, face)])
            if found is None:
                continue
            weights = np.zeros(tasks)
            weights[list(face)] = found
            value = float(weights @ matrix @ weights)
            if value < least:
                best, least = weights, value
    return torch.from_numpy(best)


def _inside(matrix: np.ndarray[Any, Any]) -> np.ndarray[Any, Any] | None:
    """Where wᵀGw is stationary among weights that sum to 1, if all of them are above 0 there."""
    size = len(matrix)
    if size == 1:
        return np.ones(1)
    bordered = np.ones((size + 1, size + 1))
    bordered[:size, :size], bordered[size, size] = matrix, 0.0
    target = np.zeros(size + 1)
    target[size] = 1.0
    try:
        weights = np.linalg.solve(bordered, target)[:size]
    except np.linalg.LinAlgError:
        return None
    if not np.isfinite(weights).all() or not (weights > 0).all():
        return None
    return np.asarray(weights / weights.sum())


def normalized(gram: Tensor, losses: Sequence[float], how: str) -> Tensor:
    """The Gram matrix of gradients that were divided by their length, their loss, or both.

    Args:
        gram: [t, t] of the gradients as they are.
        losses: [t].
        how: none, l2, loss or loss+, as in Sener & Koltun's code.
    """
    values = torch.tensor(list(losses), dtype=gram.dtype, device=gram.device).clamp(min=torch.finfo(gram.dtype).tiny)
    lengths = gram.diagonal().clamp(min=0).sqrt()
    sizes = {"none": torch.ones_like(values), "l2": lengths, "loss": values, "loss+": lengths * values}[how]
    # A gradient of length 0 stays what it is.
    sizes = torch.where(sizes > 0, sizes, torch.ones_like(sizes))
    return gram / sizes / sizes.unsqueeze(1)


def fixed(weights: Sequence[float]) -> Tensor:
    """Given weights as they are, [t], float64.

    Raises:
        UsageError: one is negative or not finite, or all are 0.
    """
    found = torch.tensor(list(weights), dtype=torch.float64)
    if not bool(found.isfinite().all()) or bool((found < 0).any()) or not float(found.sum()) > 0:
        raise UsageError(f"weights are at least 0, finite, and not all 0; these are {list(weights)}")
    return found


def gram_of(gradients: Sequence[Sequence[Tensor | None]]) -> Tensor:
    """Inner products of gradients, summed over the pieces that each comes in.

    Args:
        gradients: t lists of pieces, piece k of the same shape in all of them; None stands for zeros.

    Returns:
        [t, t], in float64 on the pieces' device; nothing is copied into one long vector.
    """
    tasks = len(gradients)
    device = next((piece.device for pieces in gradients for piece in pieces if piece is not None), None)
    gram = torch.zeros(tasks, tasks, dtype=torch.float64, device=device)
    for i in range(tasks):
        for j in range(i, tasks):
            pairs = zip(gradients[i], gradients[j], strict=True)
            products = [torch.vdot(a.flatten(), b.flatten()) for a, b in pairs if a is not None and b is not None]
            if products:
                gram[i, j] = gram[j, i] = torch.stack([p.double() for p in products]).sum()
    return gram
