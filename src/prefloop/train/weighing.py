"""What the settings make of the examples' weights, margins and numbers before training."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from prefloop.config import TrainSection
from prefloop.errors import UsageError
from prefloop.train.examples import Examples

logger = logging.getLogger(__name__)


def weigh(examples: Examples, validation: Examples, section: TrainSection, without: int) -> dict[str, float]:
    """Raise and scale the weights where asked to, and say how much of the data they leave.

    Returns:
        power, mean, least and largest of the weights as they are used, and the effective sample size of n; empty where
        all are 1.
    """
    alpha = getattr(section.objective, "weight_alpha", None)
    if alpha is not None:
        _check_weights([examples, validation], alpha, without)
        examples.weight_power, validation.weight_power = alpha, 0.0  # a loss that is compared is not weighted
    weights = examples.weights**examples.weight_power
    if section.scale_weights:
        if not weights.mean() > 0:
            raise UsageError("all weights are 0", where="train.scale_weights", fix="give some rows a weight above 0")
        examples.weight_scale = float(1 / weights.mean())
        validation.weight_scale = examples.weight_scale if alpha is None else 1.0
    if (examples.weights == 1).all():
        return {}
    share = weights / max(weights.sum(), 1e-300)
    effective = float(1 / (share**2).sum()) if weights.any() else 0.0
    logger.info(
        "weights%s: mean %.3g, effective sample size %.0f of %d%s",
        "" if alpha is None else f" to the power {alpha:g}",
        weights.mean(),
        effective,
        len(weights),
        "; scaled to mean 1" if section.scale_weights else "",
    )
    return {
        "power": examples.weight_power,
        "mean": float(weights.mean()),
        "least": float(weights.min()),
        "largest": float(weights.max()),
        "effective_sample_size": effective,
        "n": len(weights),
    }


def _check_weights(parts: Sequence[Examples], alpha: float, without: int) -> None:
    """Weights that are raised to a power lie above 0 and reach 1 at most: they are shares of the largest gap."""
    if alpha and without:
        raise UsageError(
            f"{without} rows have no weight",
            where="train.objective.weight_alpha",
            fix="give every row one (pair.weight=gap where the loop makes the pairs), or set weight_alpha=0",
        )
    for examples in parts:
        bad = np.flatnonzero(~((examples.weights > 0) & (examples.weights <= 1)))
        if len(bad):
            example = examples[int(bad[0])]
            raise UsageError(
                f"{len(bad)} weights are not above 0 and at most 1; the first is {examples.weights[bad[0]]:g}",
                where=f"row {example.id}, field weight",
                fix="divide them by the largest, and leave out rows of weight 0; or take "
                "train.objective.weight_alpha out, and weights are taken as they are",
            )


def downsample(examples: Examples, objective: Any, seed: int) -> tuple[Examples, int]:
    """At most so many satisfactory examples for each criticised one as asked, in their order; and how many are left
    out."""
    share = getattr(objective, "downsample", None)
    fine, criticised = np.flatnonzero(~examples.judged), int(examples.judged.sum())
    keep = len(fine) if share is None else int(share * criticised)
    if keep >= len(fine):
        return examples, 0
    kept = random.Random(f"downsample {seed}").sample(fine.tolist(), keep)
    if not criticised + keep:
        raise UsageError(
            f"the answers that are left to train on ({len(fine):,}) are all satisfactory, so downsampling leaves none",
            where="train.objective.downsample",
            fix="set train.objective.downsample=null, give criticised answers, or see why they were rejected "
            "(prefloop inspect RUN --stage train --rejects)",
        )
    logger.info("%d of %d satisfactory answers kept beside %d criticised ones", keep, len(fine), criticised)
    places = np.sort([*np.flatnonzero(examples.judged).tolist(), *kept])
    return examples.only(places), len(fine) - keep


def measure_margins(examples: Examples, validation: Examples, objective: Any, without: int) -> None:
    """See to it that margins that are asked for are there, and divide them by their spread where that is asked."""
    if getattr(objective, "margin_weight", None) is None:
        return
    if without:
        raise UsageError(
            f"{without} rows have no margin",
            where="train.objective.margin_weight",
            fix="give every row one (pair.margin=gap where the loop makes the pairs), or take margin_weight out",
        )
    if objective.margin_unit == "mad":
        spread = float(np.median(np.abs(examples.margins - np.median(examples.margins))))
        if not spread > 0:
            raise UsageError(
                "half of the margins or more are one number: their median absolute deviation is 0",
                where="train.objective.margin_unit",
                fix="take them as they are, with margin_unit=nats",
            )
        examples.margin_scale = validation.margin_scale = 1 / spread
        logger.info("margins: divided by their median absolute deviation, %.4g", spread)
