"""Warnings while a training runs: what its curves say that its loss does not."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping
from typing import Any

logger = logging.getLogger(__name__)

WINDOW = 10  # records
FALLEN = 0.15
"""Share of its log-probability that the chosen answer may lose before it is said."""
LEAST = 5.0  # nats
FEW_FLAGS, MANY_FLAGS = 0.002, 0.7
"""Share of a criticised answer's tokens that is flagged, outside of which it is said."""
CUT_OFF = 0.1
"""Share of answers without an end of turn from which on it is said."""


class Watch:
    """Looks at the training records, and says once what is wrong.

    A preference loss sees the difference of two answers. It also falls when both become unlikely and the rejected one
    faster; the policy then writes neither (Pal et al. 2024, arXiv 2402.13228).

    Args:
        beta: nats lost since the reference are rewards over this. None where an objective has no reference: they are
            counted from the first `WINDOW` records.
    """

    def __init__(self, beta: float | None) -> None:
        self._beta = beta
        self._said = False
        self._flags: deque[float] = deque(maxlen=WINDOW)
        self._start: tuple[float, float] | None = None
        self._recent: deque[tuple[float, float, float, float]] = deque(maxlen=WINDOW)

    def __call__(self, record: dict[str, Any]) -> None:
        """Take note of one record of `PreferenceTrainer`."""
        self._look_at_flags(record)
        if self._said or record["kind"] != "train" or "logps/rejected" not in record:
            return
        sides = ("rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected")
        self._recent.append(tuple(record[name] for name in sides))  # type: ignore[arg-type]
        if len(self._recent) < WINDOW:
            return
        *rewards, chosen, rejected = (sum(column) / WINDOW for column in zip(*self._recent, strict=True))
        if self._beta is not None:
            lost_chosen, lost_rejected = (-reward / self._beta for reward in rewards)
        else:
            self._start = self._start or (chosen, rejected)
            lost_chosen, lost_rejected = self._start[0] - chosen, self._start[1] - rejected
        if lost_rejected > 0 and lost_chosen > max(LEAST, FALLEN * abs(chosen)):
            self._said = True
            logger.warning(
                "the answers become unlikely, chosen and rejected together: chosen ones have lost %.1f nats on "
                "average by step %d, and stand at %.0f. The loss does not see that. Lower train.learning_rate, %s",
                lost_chosen,
                record["step"],
                chosen,
                _WITHOUT_REFERENCE if self._beta is None else _WITH_REFERENCE,
            )

    def _look_at_flags(self, record: dict[str, Any]) -> None:
        """Of objective `cut`: a threshold that flags nothing teaches nothing, one that flags most destroys."""
        if record["kind"] != "train" or "flags/rate" not in record or self._flags.maxlen == len(self._flags):
            return
        self._flags.append(record["flags/rate"])
        if len(self._flags) < WINDOW:
            return
        rate = sum(self._flags) / WINDOW
        if not FEW_FLAGS <= rate <= MANY_FLAGS:
            logger.warning(
                "the judgments flag %.1f %% of the tokens that they speak of: %s train.objective.threshold (prefloop "
                "inspect-cut shows what each would flag)",
                100 * rate,
                "lower" if rate < FEW_FLAGS else "raise",
            )


_WITH_REFERENCE = "raise beta, add objective.sft_weight, or take the objective apo_zero, which holds the chosen answer"
_WITHOUT_REFERENCE = "or weigh the chosen answer's likelihood more (sft_weight, nll_weight, a lower odds_weight)"


def look_at_rows(cut_off: int, responses: int, unread: Mapping[str, int]) -> None:
    """Say what of the rows is lost on a training.

    Args:
        cut_off: of the responses, those without an end of turn: the policy hardly learns to end from them.
        unread: column that the objective does not read -> rows that have one.
    """
    for column, rows in unread.items():
        logger.warning("%d rows have a %s, which this objective does not read", rows, column)
    if responses and cut_off > CUT_OFF * responses:
        logger.warning(
            "%.0f %% of the answers were cut off and are trained on without an end of turn: raise "
            "sample.max_new_tokens, or leave them out (pair.drop_truncated)",
            100 * cut_off / responses,
        )
