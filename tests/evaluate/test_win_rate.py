"""Win rates: AlpacaEval's published numbers, and comparisons computed by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.backends.base import Backend, Choice, Refusal
from prefloop.errors import PrefloopError, UsageError
from prefloop.evaluate import win_rate
from prefloop.evaluate.win_rate import compare, summarize
from prefloop.intervals import wilson
from prefloop.records import prompt_id
from prefloop.signals.base import Rating
from prefloop.signals.judge import JudgeSignal

PUBLISHED = Path(__file__).parents[2].parent / "shared" / "data" / "alpaca_eval"


def published(name):
    file = PUBLISHED / name
    if not file.is_file():
        pytest.skip(f"AlpacaEval's data (CC BY-NC 4.0) is not in this repository; {name} is not there")
    return [row["preference"] for row in json.loads(file.read_text())]


def test_the_published_numbers_of_a_model():
    found = summarize(published("FuseChat-Llama-3.2-1B-Instruct__weighted_alpaca_eval_gpt4_turbo__annotations.json"))
    assert found["win_rate"] == pytest.approx(29.9219322658882, abs=1e-9)
    assert found["standard_error"] == pytest.approx(1.3934584328741797, abs=1e-9)
    assert found["discrete_win_rate"] == pytest.approx(29.068322981366464, abs=1e-9)
    assert (found["n_wins"], found["n_wins_base"], found["n_draws"], found["n_total"]) == (233, 570, 2, 805)


def test_the_published_win_rate_of_another():
    found = summarize(published("alpaca-7b_judge_logprobs.json"))
    assert found["win_rate"] == pytest.approx(2.591450540223603, abs=1e-9)


def test_summarize_by_hand():
    found = summarize([1, 2.0, 1.5, 0, "1.8", None, float("nan"), 2.5, -1])
    # Counted: 0, 1, .5, .5 (code 0) and .8; mean .56.
    assert found["win_rate"] == pytest.approx(56)
    deviations = (0.56**2 + 0.44**2 + 2 * 0.06**2 + 0.24**2) / 4
    assert found["standard_error"] == pytest.approx(100 * math.sqrt(deviations / 5))
    assert found["discrete_win_rate"] == pytest.approx(100 * (2 + 1) / 5)
    counts = {k: v for k, v in found.items() if k.startswith("n_")}
    assert counts == {"n_wins": 2, "n_wins_base": 1, "n_draws": 2, "n_total": 5, "n_excluded": 4}


def test_summarize_without_enough_says_none():
    assert summarize([None])["win_rate"] is None
    assert summarize([]) == summarize([None]) | {"n_excluded": 0}
    assert summarize([2])["win_rate"] == 100
    assert summarize([2])["standard_error"] is None
    with pytest.raises(UsageError, match="preference 1: 'model' is no number"):
        summarize([1, "model"])


@given(st.lists(st.floats(1, 2), min_size=2))
def test_swapping_the_models_mirrors_the_win_rate(preferences):
    ours, theirs = summarize(preferences), summarize([3 - p for p in preferences])
    assert ours["win_rate"] + theirs["win_rate"] == pytest.approx(100)
    assert ours["standard_error"] == pytest.approx(theirs["standard_error"], abs=1e-6)


def row(name, base, aligned):
    prompt = [{"role": "user", "content": f"question {name.split('/')[0]}"}]
    return {
        "id": name,
        "prompt": prompt,
        "completions": [
            {
                "id": f"{prompt_id(prompt)}-{i}",
                "text": t,
                "token_ids": None,
                "finish_reason": "stop",
                "sample_index": 0,
            }
            for i, t in enumerate((base, aligned))
        ],
    }


class Number:
    """The number that an answer says; an answer without one has no score."""

    name, pairwise, identity = "number", False, {}

    def rate(self, row):
        texts = [c["text"].split()[0] for c in row["completions"]]
        return Rating([float(t) if t.isdigit() else None for t in texts])
        yield []


def test_scores_compare_as_win_tie_or_loss():
    rows = [
        row("a", "1", "2"),
        row("b", "3", "2"),
        row("c", "4 x", "4 yes"),
        row("d", "1", "?"),
        row("e", "1", "9 long"),
    ]
    found = compare(rows, Number(), {}, resamples=200)
    assert found.preferences == [1.0, 0.0, 0.5, None, 1.0]
    summary = found.summary
    assert summary["value"] == pytest.approx(2.5 / 4)
    assert summary["ci_low"] < summary["value"] < summary["ci_high"]
    counts = {k: summary[k] for k in ("n", "wins", "losses", "ties", "nulls", "identical")}
    assert counts == {"n": 4, "wins": 2, "losses": 1, "ties": 1, "nulls": 1, "identical": 0}
    # Decided rows of different lengths: only e.
    assert summary["longer_wins"] == 1.0
    assert "consistency" not in summary


def test_identical_answers_tie_without_a_call():
    class Never:
        name, pairwise, identity = "never", False, {}

        def rate(self, row):
            pytest.fail("asked")
            yield []

    found = compare([row("a", "x", " x\n")], Never(), {})
    assert (found.preferences, found.summary["identical"], found.summary["ties"]) == ([0.5], 1, 1)
    assert found.rows[0]["scores"] == [None, None]


def test_samples_of_a_prompt_are_one_unit():
    rows = [
        row("a/0", "1", "2"),
        row("a/1", "3", "2"),
        row("a/2", "1", "?"),
        row("b/0", "1", "2"),
        row("c/0", "1", "?"),
    ]
    summary = compare(rows, Number(), {}, resamples=500).summary
    # Prompt a: mean of 1 and 0; prompt b: 1; prompt c has no verdict.
    assert (summary["value"], summary["n"], summary["nulls"]) == (0.75, 2, 2)
    assert (summary["ci_low"], summary["ci_high"]) == (0.5, 1.0)


def test_parts_change_nothing(monkeypatch):
    rows = [row(str(i), str(i % 5), str(i % 3) + ("" if i % 4 else " more")) for i in range(30)]
    whole, seen = compare(rows, Number(), {}, resamples=200), []
    monkeypatch.setattr(win_rate, "PART_ROWS", 7)
    parts = compare(rows, Number(), {}, resamples=200, on_progress=lambda *x: seen.append(x))
    assert parts == whole
    assert seen[-1] == (30, 30)
    assert [r["id"] for r in parts.rows] == [r["id"] for r in rows]


def test_no_verdict_at_all_is_a_failure():
    with pytest.raises(PrefloopError, match="none of 1 comparisons got a verdict"):
        compare([row("a", "x", "y")], Number(), {})


class Reader(Backend):
    """A judge that says P(A) by the pair of texts in the seats; None refuses."""

    def __init__(self, table):
        self.identity = {"model": "reader"}
        self.table, self.asked = table, 0

    def plan(self, requests):
        return [list(range(len(requests)))]

    def run(self, requests):
        self.asked += len(requests)
        return [self._verdict(r.messages[0][1]) for r in requests]

    def _verdict(self, prompt):
        seats = next((a, b) for a, b in self.table if -1 < prompt.find(f"]\n{a}\n[") < prompt.find(f"]\n{b}\n["))
        p = self.table[seats]
        return Refusal("too long") if p is None else Choice([math.log(p), math.log(1 - p)], [1, 1])


def test_a_judge_reads_both_orders():
    table = {
        ("base1", "new1"): 0.2,  # q1 = .8 for the new answer
        ("new1", "base1"): 0.6,  # q2 = .6 -> p = .7, consistent
        ("base2", "new2 longer"): 0.7,  # .3
        ("new2 longer", "base2"): 0.9,  # .9 -> p = .6, inconsistent: the first seat twice
        ("base3", "new3"): 0.1,
        ("new3", "base3"): None,
    }
    rows = [row("1", "base1", "new1"), row("2", "base2", "new2 longer"), row("3", "base3", "new3"), row("4", "y", "y")]
    backend = Reader(table)
    found = compare(rows, JudgeSignal("pairwise", None, 0.0), {"judge": backend}, resamples=500)
    assert found.preferences == [pytest.approx(0.7), pytest.approx(0.6), None, 0.5]
    assert found.summary["value"] == pytest.approx(0.6)
    assert backend.asked == len(found.calls) == 6
    assert (found.summary["n"], found.summary["nulls"], found.summary["identical"]) == (3, 1, 1)
    assert found.summary["consistency"] == pytest.approx(0.5)
    # Seats: .2 second, .6 first, .7 first, .9 first, .1 second.
    assert found.summary["first_seat"] == wilson(3, 5).json()
    # base1 and new1 differ in length too; the new answer is the shorter one there.
    assert found.summary["longer_wins"] == pytest.approx(0.5)
    assert found.rows[3]["scores"] == [0.5, 0.5]
    assert found.rows[0]["evidence"] == [c["id"] for c in found.calls if c["row_id"] == "1"]


@given(st.floats(0.02, 0.98))
def test_a_judge_that_prefers_a_seat_finds_no_difference(bias):
    table = {("old", "new"): bias, ("new", "old"): bias}
    found = compare(
        [row("1", "old", "new")], JudgeSignal("pairwise", None, 0.0), {"judge": Reader(table)}, resamples=100
    )
    assert (found.summary["value"], found.summary["ties"]) == (0.5, 1)
