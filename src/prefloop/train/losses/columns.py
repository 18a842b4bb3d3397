"""Around the losses: a margin made from a score before them, and the one reduction after them."""

from __future__ import annotations

from torch import Tensor

from prefloop.train.losses import checks


def scale_margin(margin: Tensor, weight: float, low: float, high: float) -> Tensor:
    """weight * clamp(margin, low, high), [n]: a self-reward difference made into a margin for a loss.

    Liu et al. 2024 (DLMA, arXiv 2402.11907) use weight 0.2 and the range -40..40.

    Raises:
        ValueError: weight not above 0 (the margins would have no effect, or the opposite one), an empty range, or a
            margin that is not a number.
    """
    if not weight > 0:
        raise ValueError(f"the weight of margins must be above 0, not {weight}")
    if not low < high:
        raise ValueError(f"the range of margins is empty: {low} .. {high}")
    if bool(margin.isnan().any()):
        raise ValueError("a margin is not a number")
    return weight * margin.clamp(low, high)


def reduce(losses: Tensor, weight: Tensor | None = None) -> Tensor:
    """sum(weight * losses) / n, a scalar. Weights are taken as given and never rescaled within a batch.

    Dividing by n and not by the sum of weights keeps the result the same however a batch is split: the sums of the
    parts add up (tests/train/test_trainer.py::test_a_batch_is_the_sum_of_its_parts).

    Raises:
        ValueError: no losses, or shapes that differ.
    """
    if losses.numel() == 0:
        raise ValueError("no losses to reduce")
    if weight is None:
        return losses.sum() / losses.numel()
    checks.same_length(losses=losses, weight=weight)
    return (weight * losses).sum() / losses.numel()
