"""Joining two models' answers, checkers, lengths, and the summary that they make."""

from __future__ import annotations

import random
import sys

import pytest

from prefloop.config import EvaluateSection
from prefloop.errors import UsageError
from prefloop.evaluate.answers import join, mean_lengths
from prefloop.evaluate.checkers import check, preflight
from prefloop.evaluate.run import evaluate
from prefloop.records import completion_id, prompt_id
from prefloop.signals.function import FunctionSignal

MODULE = """
def yes(prompt, completion):
    return completion.startswith("yes")
def known(prompt, completion):
    return None if "?" in completion else len(completion) / 10
def large(prompt, completion):
    return 2
def broken(prompt, completion):
    prompt.clear()
    return 1 / len(prompt)
def never(prompt, completion):
    return None
def length(prompt, completion):
    return len(completion)
"""


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "my_checkers.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("my_checkers", None)


def answered(question, *texts):
    prompt = [{"role": "user", "content": question}]
    name = prompt_id(prompt)
    return {
        "id": name,
        "prompt": prompt,
        "completions": [
            {
                "id": completion_id(name, t, i),
                "text": t,
                "token_ids": [0] * len(t.split()),
                "finish_reason": "stop" if len(t) < 9 else "length",
                "sample_index": i,
            }
            for i, t in enumerate(texts)
        ],
    }


def test_answers_are_joined_by_id_and_sample():
    base = [answered(q, f"{q} base 0", f"{q} base 1") for q in "abc"]
    aligned = [answered(q, f"{q} new 0", f"{q} new 1") for q in "abc"]
    random.Random(0).shuffle(aligned)
    for row in aligned:
        row["completions"].reverse()
    rows = join(base, aligned)
    assert [[c["text"] for c in r["completions"]] for r in rows] == [
        [f"{q} base {i}", f"{q} new {i}"] for q in "abc" for i in (0, 1)
    ]
    assert len({r["id"] for r in rows}) == 6
    # One answer each: the row keeps the prompt's id.
    assert join([answered("a", "x")], [answered("a", "y")])[0]["id"] == answered("a", "x")["id"]


@pytest.mark.parametrize(
    ("base", "aligned"),
    [
        ([answered("a", "x")], []),
        ([], [answered("a", "x")]),
        ([answered("a", "x")], [answered("a", "x", "y")]),
        ([answered("a", "x"), answered("a", "x")], [answered("a", "x")]),
    ],
)
def test_what_does_not_match_is_an_error(base, aligned):
    with pytest.raises(UsageError, match="same n"):
        join(base, aligned)


def test_sample_indices_must_differ():
    row = answered("a", "x", "y")
    row["completions"][1]["sample_index"] = 0
    with pytest.raises(UsageError, match="same sample index"):
        join([row], [row])


def joined(*pairs):
    return join(
        [answered(str(i), b) for i, (b, _) in enumerate(pairs)],
        [answered(str(i), a) for i, (_, a) in enumerate(pairs)],
    )


def test_checkers_give_both_rates_and_a_paired_difference():
    rows = joined(("no", "yes"), ("yes", "yes"), ("no", "no"), ("no", "yes"))
    found = check({"agrees": "my_checkers:yes"}, rows, resamples=300)["agrees"]
    assert (found["base"], found["aligned"], found["n"], found["excluded"]) == (0.25, 0.75, 4, 0)
    assert found["difference"]["value"] == pytest.approx(0.5)
    assert 0 <= found["difference"]["ci_low"] <= 0.5 <= found["difference"]["ci_high"] <= 1


def test_a_cost_is_told_apart_and_its_figures_are_as_they_are():
    rows = joined(("no", "yes"), ("no", "yes"))
    functions = {"agrees": "my_checkers:yes", "known": "my_checkers:known"}
    found = check(functions, rows, lower_is_better=["agrees"], resamples=300)
    assert found["agrees"]["lower_is_better"] is True
    assert found["agrees"]["difference"]["value"] == 1
    assert "lower_is_better" not in found["known"]


def test_a_prompt_without_a_value_for_both_counts_for_neither():
    rows = joined(("aa", "bbbb"), ("?", "bbbbbbbb"), ("aaaaaaaa", "?"), ("cccc", "dddd"))
    found = check({"known": "my_checkers:known"}, rows, resamples=300)["known"]
    assert found["base"] == pytest.approx((0.2 + 0.4) / 2)
    assert found["aligned"] == pytest.approx((0.4 + 0.4) / 2)
    assert (found["n"], found["excluded"]) == (2, 2)


def test_samples_are_averaged_within_their_prompt():
    rows = join(
        [answered("a", "no", "no"), answered("b", "no", "no")], [answered("a", "yes", "no"), answered("b", "no", "no")]
    )
    found = check({"agrees": "my_checkers:yes"}, rows, resamples=300)["agrees"]
    assert (found["n"], found["aligned"]) == (2, 0.25)
    assert (found["difference"]["ci_low"], found["difference"]["ci_high"]) == (0.0, 0.5)


def test_faulty_checkers_are_named():
    rows = joined(("a", "b"))
    with pytest.raises(UsageError, match=rf"prompt {rows[0]['id']}: my_checkers:large returned 2"):
        check({"x": "my_checkers:large"}, rows)
    line = MODULE.splitlines().index("    return 1 / len(prompt)") + 1
    place = rf"prompt {rows[0]['id']}, .*my_checkers.py, line {line}: my_checkers:broken failed: ZeroDivisionError"
    with pytest.raises(UsageError, match=place):
        check({"x": "my_checkers:broken"}, rows)
    assert rows[0]["prompt"]
    with pytest.raises(UsageError, match=r"checker x \(my_checkers:never\) applies to none of the 1"):
        check({"x": "my_checkers:never"}, rows)


def test_preflight_finds_missing_checkers():
    preflight({"agrees": "my_checkers:yes"})
    with pytest.raises(UsageError, match="has no 'absent'"):
        preflight({"agrees": "my_checkers:yes", "gone": "my_checkers:absent"})


def test_mean_lengths():
    rows = joined(("two words", "one"), ("one", "three of them"))
    assert mean_lengths(rows) == {
        "base": {"chars": 6.0, "tokens": 1.5, "truncated": 0.5},
        "aligned": {"chars": 8.0, "tokens": 2.0, "truncated": 0.5},
    }
    rows[0]["completions"][0]["token_ids"] = None
    assert "tokens" not in mean_lengths(rows)["base"]


def test_the_summary():
    section = EvaluateSection(checkers={"sandbox": {"agrees": "my_checkers:yes"}}, bootstrap=200)
    base = [answered("a", "no"), answered("b", "maybe")]
    aligned = [answered("b", "yes"), answered("a", "yes")]
    found = evaluate(base, aligned, section, FunctionSignal("my_checkers:length"), {}, seed=1)
    assert list(found.summary) == ["win_rate", "lengths", "sandbox"]
    assert found.summary["win_rate"]["value"] == 0.5
    assert found.summary["win_rate"]["n"] == 2
    assert found.summary["win_rate"]["signal"]["callable"] == "my_checkers:length"
    assert found.summary["sandbox"]["agrees"]["difference"] == {"value": 1.0, "ci_low": 1.0, "ci_high": 1.0}
    again = evaluate(base, aligned, section, FunctionSignal("my_checkers:length"), {}, seed=1)
    assert again.summary == found.summary
