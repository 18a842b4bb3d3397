"""When rounds end early, and whose model the run's is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from prefloop.config import StopSection


class Chosen(NamedTuple):
    """A model of the run: its round, from 1, its branch, and why it and no other."""

    round: int
    branch: str
    reason: str


def broken(stop: StopSection | None, evaluated: Sequence[dict[str, Any]]) -> str | None:
    """Which rule the last of the rounds so far broke, in words; None where it broke none.

    Args:
        stop: the rules; None: there are none.
        evaluated: `evaluate` of the summary, of each round from the first on.
    """
    if stop is None or not evaluated:
        return None
    last = evaluated[-1]
    before = evaluated[-2].get("win_rate") if len(evaluated) > 1 else None
    win = last.get("win_rate")
    if stop.win_rate_falls and win and before and win["value"] < before["ci_low"]:
        return (
            f"its win rate of {win['value']:.1%} is below that of the round before, "
            f"{before['value']:.1%} [{before['ci_low']:.1%}, {before['ci_high']:.1%}]"
        )
    lengths = last.get("lengths") or {}
    if stop.length_growth is not None and lengths:
        first, now = (lengths[who]["chars"] for who in ("base", "aligned"))
        if first and now > (1 + stop.length_growth) * first:
            return f"its answers are {now / first - 1:.0%} longer than the first model's"
    return None


def chosen(stop: StopSection | None, evaluated: Sequence[dict[str, Any]]) -> Chosen:
    """The model that a run ends with: of the last round, or of the one before it where the last broke a rule."""
    number, reason = len(evaluated), "the last round"
    if (rule := broken(stop, evaluated)) is not None and number > 1:
        reason = f"round {number} broke a rule: {rule}"
        number -= 1
    branch = evaluated[number - 1].get("winner", "")
    if len(evaluated[number - 1].get("branches", ())) > 1:
        rates = {(said.get("win_rate") or {}).get("value") for said in evaluated[number - 1]["branches"].values()}
        if None in rates:
            reason += f"; of its branches {branch} is the first, as no win rate was measured"
        elif len(rates) == 1:
            reason += f"; its branches have one and the same win rate, and {branch} is the first of them"
        else:
            reason += f"; of its branches {branch} has the highest win rate"
    return Chosen(number, branch, reason)
