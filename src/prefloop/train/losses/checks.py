"""What every loss refuses: settings and columns with which its formula means nothing.

Checks of values read them, which on a GPU waits for the forward pass once; a training step does that anyway when it
logs its loss.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def positive(**settings: float) -> None:
    """ValueError unless every setting is a finite number above 0."""
    for name, value in settings.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"{name} must be above 0, not {value}")


def not_negative(**settings: float) -> None:
    """ValueError unless every setting is a finite number of at least 0."""
    for name, value in settings.items():
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name} must be at least 0, not {value}")


def smoothing(value: float) -> None:
    """ValueError unless `label_smoothing` is a share of wrong labels below one half."""
    if not 0 <= value < 0.5:
        raise ValueError(f"label_smoothing must be in [0, 0.5), not {value}")


def same_length(**vectors: Tensor | None) -> None:
    """ValueError unless all that are given are [n], with one n."""
    _same_shape({name: vector for name, vector in vectors.items() if vector is not None}, dimensions=1)


def same_table(**tables: Tensor | None) -> None:
    """ValueError unless all that are given are [n, K], with one n and one K."""
    _same_shape({name: table for name, table in tables.items() if table is not None}, dimensions=2)


def _same_shape(tensors: dict[str, Tensor], dimensions: int) -> None:
    shapes = {tuple(tensor.shape) for tensor in tensors.values()}
    if len(shapes) > 1 or len(next(iter(shapes))) != dimensions:
        wanted = "vectors of one length" if dimensions == 1 else "tables [n, K] of one shape"
        got = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise ValueError(f"expected {wanted}, got {got}")


def finite(**columns: Tensor | None) -> None:
    """ValueError that names the first row where a column is not a finite number."""
    for name, column in columns.items():
        if column is not None:
            _refuse(name, column, column.isfinite(), "is not a finite number")


def shares(**columns: Tensor | None) -> None:
    """ValueError that names the first row where a column is not a probability."""
    for name, column in columns.items():
        if column is not None:
            _refuse(name, column, (column >= 0) & (column <= 1), "is not within 0..1")


def token_counts(**columns: Tensor) -> None:
    """ValueError that names the first row with an answer of no token: it has no mean log-probability."""
    for name, column in columns.items():
        _refuse(name, column, column >= 1, "is not a number of tokens, at least 1")


def lengths_of_both(lengths: Sequence[Tensor] | Tensor) -> tuple[Tensor, Tensor]:
    """The checked (chosen, rejected) token counts."""
    chosen_n, rejected_n = lengths
    token_counts(lengths_chosen=chosen_n, lengths_rejected=rejected_n)
    return chosen_n, rejected_n


def baseline(policy_n: Tensor, **value: Tensor | float) -> Tensor:
    """A number, a scalar tensor or an [n] that the loss measures against: checked, detached, as a tensor.

    ValueError when it is not finite or of another shape.
    """
    ((name, given),) = value.items()
    level = torch.as_tensor(given, dtype=policy_n.dtype, device=policy_n.device).detach()
    if level.ndim > 0:
        same_length(policy=policy_n, **{name: level})
    if not bool(level.isfinite().all()):
        raise ValueError(f"{name} is not a finite number")
    return level


def _refuse(name: str, column: Tensor, good: Tensor, complaint: str) -> None:
    if not bool(good.all()):
        row = int(good.logical_not().nonzero()[0, 0])
        raise ValueError(f"{name} {complaint} in row {row}: {column[row].tolist()}")
