"""Held-out judged answers under two models, by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from prefloop.backends.base import Backend, Refusal, Score
from prefloop.evaluate.judged import Probabilities, chosen, compare, score
from prefloop.train.judged import JudgedPrompt


def row(name: str, text: str, judgment: str | None) -> Any:
    prompt = [{"role": "user", "content": name}]
    return {"prompt_id": name, "prompt": prompt, "completion": [{"role": "assistant", "content": text}],
            "judgment": judgment}  # fmt: skip


def logs(*probabilities: float) -> list[float]:
    return [math.log(p) for p in probabilities]


class Recorder(Backend):
    """Says how many characters a prompt has; refuses prompts that hold `long`."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def plan(self, requests: Any) -> Any:
        return [list(range(len(requests)))]

    def run(self, requests: Any) -> Any:
        self.asked += requests
        return [
            Refusal("too long") if "long" in r.messages[-1][1] else Score([float(len(r.messages[-1][1]))])
            for r in requests
        ]


def test_a_criticised_answer_is_scored_behind_both_prompts() -> None:
    backend, form = Recorder(), JudgedPrompt("sandbox")
    behind_a_tool = row("tool", "z", "bad")
    behind_a_tool["prompt"].append({"role": "tool", "content": "3"})
    rows = [row("ab", "x", None), behind_a_tool, row("abc", "y", "bad"), row("long", "z", None)]
    found = score(rows, backend, form)
    assert [r.messages[-1][1] for r in backend.asked] == ["ab", "abc", "abc\nJudgment: bad", "long"]
    assert found == [Probabilities([2.0], [2.0]), None, Probabilities([3.0], [17.0]), None]


def test_the_figures_by_hand() -> None:
    rows = [row("a", "x", None), row("b", "x", None), row("c", "x", "bad"), row("d", "x", "bad"), row("e", "x", None)]
    good, good_after = logs(0.4, 0.1), logs(0.9, 0.4)
    base = [
        Probabilities(good, good),
        Probabilities(logs(0.5), logs(0.5)),
        Probabilities(logs(0.2, 0.5), logs(0.4, 0.5)),  # the first token is flagged
        Probabilities(logs(0.5), logs(0.5)),  # none is
        None,
    ]
    aligned = [
        Probabilities(good_after, good_after),
        Probabilities(logs(0.5), logs(0.5)),
        Probabilities(logs(0.1, 0.1), logs(0.4, 0.4)),
        Probabilities(logs(0.5), logs(0.5)),
        Probabilities(logs(0.5), logs(0.5)),
    ]
    found = compare(rows, base, aligned, 1.5, resamples=200)
    text = found["satisfactory_text"]
    assert (text["base"], text["aligned"]) == (pytest.approx((0.2 + 0.5) / 2), pytest.approx((0.6 + 0.5) / 2))
    assert (text["n"], text["excluded"]) == (2, 1)
    assert "lower_is_better" not in text
    tokens = found["criticised_tokens"]
    assert (tokens["base"], tokens["aligned"], tokens["n"]) == (pytest.approx(0.2), pytest.approx(0.1), 1)
    assert tokens["difference"]["value"] == pytest.approx(-0.1)
    assert tokens["flag_rate"] == {"base": pytest.approx(0.25), "aligned": pytest.approx(0.5)}
    assert tokens["lower_is_better"] is True


def test_some_of_each_kind_are_scored_and_no_empty_answer() -> None:
    rows = [row(str(n), "" if n == 0 else "x", "bad" if n % 2 else None) for n in range(9)]
    assert [r["prompt_id"] for r in chosen(rows, 2)] == ["2", "4", "1", "3"]
    assert compare([], [], [], 1.1) == {}
