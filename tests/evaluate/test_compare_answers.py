"""Several models by several signals: pairs, corrections, agreement and the table, on numbers computed by hand."""

from __future__ import annotations

import csv
import io
import random

import pytest

from prefloop.errors import UsageError
from prefloop.evaluate.compare import LONGEST, RANDOM, compare_answers, sentences, side_by_side, together
from prefloop.evaluate.contrasts import contrast, decide
from prefloop.evaluate.several import Comparer
from prefloop.records import completion_id, prompt_id
from prefloop.signals.base import Rating


def answered(question, *texts):
    prompt = [{"role": "user", "content": question}]
    name = prompt_id(prompt)
    completions = [
        {
            "id": completion_id(name, t, i),
            "text": t,
            "token_ids": None,
            "finish_reason": "stop",
            "sample_index": i,
        }
        for i, t in enumerate(texts)
    ]
    return {"id": name, "prompt": prompt, "completions": completions}


def model(*texts):
    """One answer to each of as many questions; a tuple is several answers to one."""
    return [answered(f"q{i}", *(t if isinstance(t, tuple) else (t,))) for i, t in enumerate(texts)]


class Number:
    """The number that an answer says; an answer without one has no score."""

    name, pairwise, identity = "number", False, {"type": "number"}

    def rate(self, row):
        texts = [c["text"].split()[0] for c in row["completions"]]
        return Rating([float(t) if t.isdigit() else None for t in texts])
        yield []


class Odds:
    """P(the second is better) = second / (first + second), of the numbers that the answers say."""

    name, pairwise, identity = "odds", True, {"type": "odds"}

    def rate(self, row):
        a, b = (float(c["text"].split()[0]) for c in row["completions"])
        return Rating([a / (a + b), b / (a + b)])
        yield []


class Criteria(Number):
    """A score by each of two criteria: the number, and ten times it."""

    def rate(self, row):
        numbers = [float(c["text"].split()[0]) for c in row["completions"]]
        parts = [{"name": f"x{k}", "scores": [k * n for n in numbers]} for k in (1, 10)]
        return Rating(numbers, parts=parts)
        yield []


class PairedCriteria(Odds):
    """P by two criteria."""

    def rate(self, row):
        rating = yield from super().rate(row)
        return Rating(rating.scores, parts=[{"name": "same", "scores": rating.scores}])


NUMBER, ODDS = Comparer("number", Number(), {}), Comparer("odds", Odds(), {})


def compare(answers, *comparers, resamples=400):
    return compare_answers(answers, comparers, resamples=resamples)


def test_models_are_joined_by_prompt_whatever_their_order():
    second = model("b0", "b1", "b2")
    random.Random(0).shuffle(second)
    rows = together({"a": model("a0", "a1", "a2"), "b": second, "c": model("c0", "c1", "c2")})
    assert [[c["text"] for c in r["completions"]] for r in rows] == [[f"{m}{i}" for m in "abc"] for i in range(3)]
    with pytest.raises(UsageError, match="b, prompt"):
        together({"a": model("1", "2"), "b": model("1")})
    with pytest.raises(UsageError, match="nothing to compare"):
        compare({"a": model("1")})


def test_scores_of_three_models_by_hand():
    found = compare({"x": model("1", "2"), "y": model("2", "2"), "z": model("3", "0 or so")}, NUMBER)
    said = found.summary["signals"]["number"]
    assert said["kind"] == "score"
    assert {m: f["value"] for m, f in said["models"].items()} == {"x": 1.5, "y": 2.0, "z": 1.5}
    of = {(p["a"], p["b"]): p for p in said["pairs"]}
    assert list(of) == [("x", "y"), ("x", "z"), ("y", "z")]
    assert of["x", "y"]["win_rate"]["value"] == 0.75
    assert of["x", "y"]["win_rate"]["ties"] == 1
    assert of["x", "y"]["difference"]["value"] == 0.5
    assert of["x", "z"]["difference"]["value"] == 0.0
    assert all(p["verdict"] == "no detectable difference" for p in said["pairs"])


def test_pairs_are_read_two_at_a_time():
    found = compare({"x": model("1", "1"), "y": model("3", "1"), "z": model("1", "3")}, ODDS)
    judged = found.judged["odds"]
    assert judged.preferences == {("x", "y"): [0.75, 0.5], ("x", "z"): [0.5, 0.75], ("y", "z"): [0.25, 0.75]}
    assert judged.scores == {"x": [0.375, 0.375], "y": [0.75, 0.375], "z": [0.375, 0.75]}
    said = found.summary["signals"]["odds"]
    assert said["kind"] == "win_probability"
    assert said["pairs"][0]["win_rate"]["value"] == 0.625
    assert said["pairs"][0]["difference"]["value"] == 0.125


def test_a_clear_difference_is_told_and_chance_is_not():
    rng = random.Random(1)
    low = [str(rng.randint(0, 5)) for _ in range(60)]
    same = [str(rng.randint(0, 5)) for _ in range(60)]
    high = [str(int(x) + 2) for x in low]
    found = compare({"low": model(*low), "same": model(*same), "high": model(*high)}, NUMBER, resamples=2000)
    pairs = {(p["a"], p["b"]): p for p in found.summary["signals"]["number"]["pairs"]}
    assert pairs["low", "high"]["verdict"] == "high is better"
    assert pairs["low", "high"]["difference"]["value"] == pytest.approx(2)
    assert pairs["same", "high"]["better"] == "high"
    assert pairs["low", "same"]["better"] is None
    p = [pairs[k]["difference"]["p_value"] for k in pairs]
    assert pairs["low", "same"]["difference"]["p_holm"] == max(p)
    assert pairs["low", "high"]["difference"]["p_holm"] == pytest.approx(3 * min(p))
    told = sentences(found.summary)
    assert told[0].startswith("number: no detectable difference between low and same: same scores ")
    assert told[1].startswith(
        "number: high is better than low: high scores +2 [+2, +2] against low on 60 prompts, p = 0.00"
    )


def test_what_has_no_verdict_counts_for_neither():
    found = compare({"x": model("1", "none", "3"), "y": model("2", "5", "none")}, NUMBER)
    said = found.summary["signals"]["number"]
    assert said["models"]["x"]["nulls"] == 1
    assert (said["models"]["x"]["value"], said["models"]["x"]["n"]) == (2.0, 2)
    pair = said["pairs"][0]
    assert pair["win_rate"]["n"] == 1
    assert pair["win_rate"]["nulls"] == 2
    assert pair["difference"]["value"] == 1
    mute = compare({"x": model("none"), "y": model("none")}, NUMBER)
    assert mute.summary["signals"]["number"]["pairs"][0]["verdict"] == "no verdicts"
    assert sentences(mute.summary) == ["number: no verdict on x and y"]


def test_samples_of_a_prompt_are_one_unit():
    found = compare({"x": model(("1", "2"), ("3", "3")), "y": model(("3", "2"), ("3", "5"))}, NUMBER)
    said = found.summary["signals"]["number"]
    assert (found.summary["prompts"], found.summary["samples"]) == (2, 2)
    assert said["models"]["y"]["n"] == 2
    assert said["pairs"][0]["win_rate"]["value"] == 0.75  # prompt means 3/4 and 3/4
    assert said["pairs"][0]["win_rate"]["ties"] == 2


def test_of_a_cost_less_is_better():
    answers = {"cheap": model(*["1"] * 9), "dear": model(*["5"] * 9)}
    found = compare_answers(answers, [NUMBER], lower_is_better=["number"], resamples=400).summary["signals"]["number"]
    assert found["kind"] == "cost"
    (pair,) = found["pairs"]
    assert pair["verdict"] == "cheap is better"
    assert (pair["win_rate"]["value"], pair["difference"]["value"]) == (0.0, 4.0)


def test_agreement_of_two_signals_and_with_the_longer_answer():
    answers = {"x": model("1", "20", "3", "4"), "y": model("2", "10 long", "3", "5")}
    found = compare(answers, NUMBER, ODDS)
    entries = {(e["first"], e["second"]): e for e in found.summary["agreement"]}
    assert entries["number", "odds"]["value"] == 1.0
    assert entries["number", "odds"]["n"] == 3  # the third is a tie
    # Lengths differ in the second only, and there the shorter answer has the higher number.
    assert (entries["number", LONGEST]["value"], entries["number", LONGEST]["n"]) == (0.0, 1)
    # A coin decides always; of trivial judges among themselves nothing is said.
    assert entries["number", RANDOM]["n"] == 3
    assert (LONGEST, RANDOM) not in entries
    assert entries == {(e["first"], e["second"]): e for e in compare(answers, NUMBER, ODDS).summary["agreement"]}


def test_a_coin_agrees_half_the_time_whatever_the_order_of_the_rows():
    answers = {"x": model(*["1"] * 400), "y": model(*["2"] * 400)}
    (entry,) = [e for e in compare(answers, NUMBER).summary["agreement"] if e["second"] == RANDOM]
    assert 0.4 < entry["value"] < 0.6
    turned = {name: rows[::-1] for name, rows in answers.items()}
    (again,) = [e for e in compare(turned, NUMBER).summary["agreement"] if e["second"] == RANDOM]
    assert again["value"] == entry["value"]


def test_every_signal_has_a_name_of_its_own():
    answers = {"x": model("1"), "y": model("2")}
    for names in (("longest",), ("random",), ("a", "a")):
        with pytest.raises(UsageError, match="is taken"):
            compare(answers, *(NUMBER._replace(name=name) for name in names))


def test_a_signal_is_looked_at_before_the_next_is_asked():
    told = []

    class Untouched(Number):
        def rate(self, row):
            raise AssertionError("asked")

    def stop(name, counts):
        told.append((name, counts["rows"]))
        raise ZeroDivisionError

    answers = {"x": model("1", "1"), "y": model("2", "1")}
    with pytest.raises(ZeroDivisionError):
        compare_answers(answers, [NUMBER, Comparer("next", Untouched(), {})], resamples=100, on_judged=stop)
    assert told == [("number", 2)]
    assert compare(answers, NUMBER).summary["signals"]["number"]["counts"]["rows"] == 2


def test_the_table_side_by_side():
    found = compare({"x": model('1, "quoted"', "2\nlines"), "y": model("3", "none")}, NUMBER)
    rows = list(csv.DictReader(io.StringIO(side_by_side(found))))
    assert list(rows[0]) == ["id", "prompt", "sample", "answer: x", "answer: y", "number: x", "number: y"]
    assert [r["answer: x"] for r in rows] == ['1, "quoted"', "2\nlines"]
    assert [r["number: y"] for r in rows] == ["3", ""]
    assert rows[0]["prompt"] == "q0"


def test_answers_are_no_formulas_in_a_spreadsheet():
    found = compare({"x": model("=1+1"), "@y": model("-2 and text")}, NUMBER)
    text = side_by_side(found)
    assert text.endswith("\r\n")
    (row,) = csv.DictReader(io.StringIO(text, newline=""))
    assert (row["answer: x"], row["answer: @y"]) == ("'=1+1", "'-2 and text")


def test_criteria_have_columns_of_their_own():
    answers = {"x": model("1", "2"), "y": model("3", "2"), "z": model("1", "2 too")}
    found = compare(answers, Comparer("c", Criteria(), {}), Comparer("p", PairedCriteria(), {}))
    rows = list(csv.DictReader(io.StringIO(side_by_side(found))))
    assert [rows[0][f"c/x10: {m}"] for m in "xyz"] == ["10", "30", "10"]
    assert rows[0]["p: y"] == rows[0]["p/same: y"] == "0.75"
    # Equal answers are not asked about: the mean of x's tie with z has no part.
    assert (rows[0]["p: x"], rows[0]["p/same: x"]) == ("0.375", "0.25")


def test_lengths_have_intervals_and_tokens_only_where_known():
    found = compare({"x": model("1", "222"), "y": model("1", "1")}, NUMBER)
    chars = found.summary["lengths"]["x"]["chars"]
    assert (chars["value"], chars["ci_low"], chars["ci_high"]) == (2, 1, 3)
    assert "tokens" not in found.summary["lengths"]["x"]
    assert found.summary["lengths"]["y"]["truncated"]["value"] == 0


def test_progress_reaches_the_end():
    told = []
    compare_answers(
        {m: model("1", "2", "3") for m in "xyz"},
        [ODDS, NUMBER],
        resamples=100,
        on_progress=lambda done, total: told.append((done, total)),
    )
    assert told[-1] == (18, 18)
    assert [d for d, _ in told] == sorted(d for d, _ in told)


def test_few_equal_differences_need_six_to_be_a_verdict():
    six, five = contrast([0.0] * 6, [1.0] * 6), contrast([0.0] * 5, [1.0] * 5)
    decide([six])
    decide([five])
    assert (six["verdict"], five["verdict"]) == ("higher", "no detectable difference")
