"""The model that a run ends with, and why."""

from __future__ import annotations

import pytest

from prefloop.loop.rounds import chosen


@pytest.mark.parametrize(
    ("rates", "reason"),
    [
        ((0.5, 0.6), "of its branches b has the highest win rate"),
        ((0.5, 0.5), "its branches have one and the same win rate, and b is the first of them"),
        ((None, None), "of its branches b is the first, as no win rate was measured"),
    ],
)
def test_why_a_branch_is_chosen(rates: tuple[float | None, ...], reason: str) -> None:
    said = [{} if rate is None else {"win_rate": {"value": rate}} for rate in rates]
    found = chosen(None, [{"winner": "b", "branches": dict(zip("ab", said, strict=True))}])
    assert (found.round, found.branch) == (1, "b")
    assert found.reason == f"the last round; {reason}"
