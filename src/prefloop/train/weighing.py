"""What the settings make of the examples' weights, margins and numbers before training."""

from __future__ import annotations

import logging
import random
from typing import Any

import numpy as np

from prefloop.config import TrainSection
from prefloop.errors import UsageError
from prefloop.train.examples import Examples

logger = logging.getLogger(__name__)


def weigh(examples: Examples, validation: Examples, section: TrainSection) -> None:
    """Scale the weights where asked to, and say how much of the data they leave."""
    weights = examples.weights
    if section.scale_weights:
        if not weights.mean() > 0:
            raise UsageError("all weights are 0", where="train.scale_weights", fix="give some rows a weight above 0")
        examples.weight_scale = validation.weight_scale = float(1 / weights.mean())
    if (weights != 1).any():
        share = weights / max(weights.sum(), 1e-300)
        effective = float(1 / (share**2).sum()) if weights.any() else 0.0
        logger.info(
            "weights: mean %.3g, effective sample size %.0f of %d%s",
            weights.mean(),
            effective,
            len(weights),
            "; scaled to mean 1" if section.scale_weights else "",
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
            f"all {len(fine):,} answers are satisfactory, so downsampling leaves none",
            where="train.objective.downsample",
            fix="take it out, or give criticised answers",
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
