"""The lines that a run ends with."""

from __future__ import annotations

from typing import Any

import pytest

from prefloop.ui.summary import headline


def win(value: float, low: float, high: float, n: int) -> dict[str, Any]:
    return {"value": value, "ci_low": low, "ci_high": high, "n": n}


@pytest.mark.parametrize(
    ("figure", "words"),
    [
        (win(0.8, 0.7, 0.9, 100), "better"),
        (win(0.2, 0.1, 0.3, 100), "worse"),
        (win(0.6, 0.4, 0.8, 100), "no detectable difference"),
        (win(1.0, 1.0, 1.0, 12), "all 12 equal; the interval says nothing"),
        (win(1.0, 1.0, 1.0, 300), "better"),
        (win(0.2, 0.0, 0.45, 10), "worse (of 10 prompts only: below 30 such intervals are too narrow)"),
    ],
)
def test_the_win_rate_in_words(figure: dict[str, Any], words: str) -> None:
    (line,) = headline({"evaluate": {"win_rate": figure}})
    assert line.endswith(f"on {figure['n']} held-out prompts: {words}")


def test_what_rounds_to_zero_has_no_sign() -> None:
    change = {"value": -0.0001, "ci_low": -0.02, "ci_high": 0.0}
    (line,) = headline({"evaluate": {"mine": {"kind": {"base": 0.5, "aligned": 0.5, "n": 99, "difference": change}}}})
    assert "(change 0.0 [-2.0, 0.0] points" in line


def test_a_checker_that_says_nothing() -> None:
    figure = {"base": 0.0, "aligned": 0.0, "n": 5, "difference": {"value": 0.0, "ci_low": 0.0, "ci_high": 0.0}}
    (line,) = headline({"evaluate": {"mine": {"kind": figure}}})
    assert line.endswith("n = 5): all 5 equal; the interval says nothing")


@pytest.mark.parametrize(("lower", "words"), [(False, "worse"), (True, "better")])
def test_a_falling_rate_is_better_where_lower_is(lower: bool, words: str) -> None:
    change = {"value": -0.2, "ci_low": -0.3, "ci_high": -0.1}
    figure = {"base": 0.4, "aligned": 0.2, "n": 100, "difference": change, "lower_is_better": lower}
    (line,) = headline({"evaluate": {"mine": {"mistake": figure}}})
    assert line.endswith(f"n = 100): {words}")
