"""Pairs from scored rows: by hand, and the laws that hold for any rows."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.config import PairSection
from prefloop.errors import UsageError
from prefloop.pairs.build import build_pairs
from prefloop.pairs.strategies import STRATEGIES
from prefloop.records import completion_id


def scored(name, *answers):
    """A scored row from (text, score) or (text, score, finish reason)."""
    answers = [a if len(a) == 3 else (*a, "stop") for a in answers]
    return {
        "id": name,
        "prompt": [{"role": "user", "content": f"question {name}"}],
        "completions": [
            {
                "id": completion_id(name, text, i),
                "text": text,
                "token_ids": None,
                "finish_reason": reason,
                "sample_index": i,
            }
            for i, (text, _, reason) in enumerate(answers)
        ],
        "scores": [score for _, score, _ in answers],
        "signal": "test",
        "evidence": [f"call-{name}"],
    }


def texts(pairs):
    return [(p["chosen"][0]["content"], p["rejected"][0]["content"]) for p in pairs]


def build(*rows, seed=0, **section):
    return build_pairs(rows, PairSection(**section), seed, "test")


FIVE = scored("p", ("three", 3.0), ("five", 5.0), ("one", 1.0), ("three too", 3.0), ("four", 4.0))


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("best_worst", [("five", "one")]),
        ("adjacent", [("five", "four"), ("four", "three"), ("three too", "one")]),
        (
            "all_pairs",
            [
                ("five", "four"),
                ("five", "three"),
                ("five", "three too"),
                ("five", "one"),
                ("four", "three"),
                ("four", "three too"),
                ("four", "one"),
                ("three", "one"),
                ("three too", "one"),
            ],
        ),
    ],
)
def test_strategies(strategy, expected):
    pairs, rejects, counts = build(FIVE, strategy=strategy)
    assert texts(pairs) == expected
    assert rejects == []
    assert counts.get("pairs_dropped/equal_scores", 0) == (0 if strategy == "best_worst" else 1)


def test_best_random_takes_the_best_and_any_lower_one():
    drawn = {texts(build(FIVE, strategy="best_random", seed=seed).pairs)[0] for seed in range(60)}
    assert drawn == {("five", other) for other in ("four", "three", "three too", "one")}


def test_a_random_draw_depends_on_its_prompt_and_the_seed_alone():
    rows = [FIVE | {"id": f"p{i}"} for i in range(40)]
    whole = texts(build(*rows, strategy="best_random").pairs)
    assert texts(build(*rows[::-1], strategy="best_random").pairs) == whole[::-1]
    assert [texts(build(row, strategy="best_random").pairs)[0] for row in rows] == whole
    assert len(set(whole)) == 4
    assert texts(build(*rows, strategy="best_random", seed=1).pairs) != whole


def test_a_pair_says_all_about_itself():
    (pair,), _, counts = build(FIVE)
    assert pair["prompt"] == FIVE["prompt"]
    assert pair["prompt_id"] == "p"
    assert pair["chosen"] == [{"role": "assistant", "content": "five"}]
    assert (pair["score_chosen"], pair["score_rejected"]) == (5.0, 1.0)
    # A judge's score gap is neither a weight nor a margin.
    assert (pair["weight"], pair["margin"]) == (None, None)
    assert (pair["chosen_id"], pair["rejected_id"]) == (FIVE["completions"][1]["id"], FIVE["completions"][2]["id"])
    assert (pair["source"], pair["strategy"], pair["evidence"]) == ("test", "best_worst", ["call-p"])
    assert (counts["mean_chars_chosen"], counts["mean_chars_rejected"]) == (4, 3)


@pytest.mark.parametrize(
    ("row", "section", "reason"),
    [
        (scored("r"), {}, "fewer_than_two_answers"),
        (scored("r", ("a", 1.0)), {}, "fewer_than_two_answers"),
        (scored("r", ("a", 1.0), ("b", None)), {}, "null_score"),
        (scored("r", ("a", 1.0), ("b", 2.0, "length")), {"drop_truncated": True}, "truncated"),
        (scored("r", ("a", 1.0), ("", 2.0, "length")), {"drop_truncated": False}, "empty_cut_off"),
        (scored("r", ("a", 1.0), ("", 2.0, "length")), {"drop_truncated": True}, "empty_cut_off"),
        (scored("r", ("a", 1.0), (" a\n", 2.0)), {}, "duplicate"),
        (scored("r", ("a", 1.0), ("b", 1.0)), {}, "equal_scores"),
        (scored("r", ("a", 1.0), ("b", 1.4)), {"min_gap": 0.5}, "min_gap"),
        (scored("r", ("a", 1.0), ("bbb", 2.0)), {"max_length_ratio": 2.0}, "length_ratio"),
        (scored("r", ("", 1.0), ("b", 2.0)), {"max_length_ratio": 2.0}, "length_ratio"),
        # Several things went wrong: the check that left fewer than two, and the last filter reached, give the reason.
        (scored("r", ("a", 1.0), ("b", None), ("c", 2.0, "length")), {"drop_truncated": True}, "truncated"),
        (
            scored("r", ("a", 1.0), ("b", 1.0), ("c", 1.2), ("dddd", 2.0)),
            {"strategy": "all_pairs", "min_gap": 0.5, "max_length_ratio": 2.0},
            "length_ratio",
        ),
    ],
)
def test_a_row_without_a_pair_is_rejected_for_one_reason(row, section, reason):
    pairs, rejects, counts = build(row, **section)
    assert pairs == []
    assert [(r["id"], r["stage"], r["reason"]) for r in rejects] == [("r", "pair", reason)]
    assert json.loads(rejects[0]["row"]) == row
    assert counts[f"rejected/{reason}"] == 1


def test_bounds_are_inclusive():
    row = scored("r", ("a", 1.0), ("bb", 1.5))
    assert len(build(row, min_gap=0.5, max_length_ratio=2.0).pairs) == 1


def test_truncated_answers_stay_when_they_may():
    row = scored("r", ("a", 1.0), ("b", 2.0, "length"))
    (pair,) = build(row, drop_truncated=False).pairs
    assert texts([pair]) == [("b", "a")]
    # Training leaves out the end of turn of an answer that did not reach it.
    assert (pair["chosen_finish"], pair["rejected_finish"]) == ("length", "stop")


def test_an_empty_answer_stays_unless_it_was_cut_off():
    """An empty turn has its end to train on; an empty answer that was cut off has no token at all."""
    row = scored("r", ("", 0.0), ("", 3.0, "length"), ("b", 2.0))
    pairs, _, counts = build(row, drop_truncated=False)
    assert texts(pairs) == [("b", "")]
    assert pairs[0]["rejected_finish"] == "stop"
    assert counts["answers_left_out/empty_cut_off"] == 1


def test_of_duplicates_the_first_usable_stays():
    row = scored("r", ("same", None), ("same ", 4.0), ("same", 1.0), ("other", 2.0))
    pairs, _, counts = build(row)
    assert texts(pairs) == [("same ", "other")]
    assert (counts["answers_left_out/null_score"], counts["answers_left_out/duplicate"]) == (1, 1)


@pytest.mark.parametrize("scores", [[1.0], [1.0, float("nan")], [1.0, float("inf")]])
def test_faulty_scores_name_the_row(scores):
    row = scored("r", ("a", 1.0), ("b", 2.0)) | {"scores": scores}
    with pytest.raises(UsageError, match="row r, field scores"):
        build(row)


ANSWERS = st.tuples(
    st.sampled_from(["a", "b", " a", "cc", "dddd", "eeeeeeee", "a ", ""]),
    st.one_of(st.none(), st.sampled_from([0.0, 0.5, 1.0, 2.0])),
    st.sampled_from(["stop", "stop", "length"]),
)
ROWS = st.lists(st.lists(ANSWERS, max_size=6), max_size=6).map(
    lambda rows: [scored(f"row-{i}", *answers) for i, answers in enumerate(rows)]
)
SECTIONS = st.builds(
    PairSection,
    strategy=st.sampled_from(sorted(STRATEGIES)),
    min_gap=st.sampled_from([0.0, 0.5, 1.0]),
    max_length_ratio=st.sampled_from([None, 2.0, 4.0]),
    drop_truncated=st.booleans(),
)


@given(ROWS, SECTIONS, st.integers(0, 3))
def test_every_pair_keeps_the_promises(rows, section, seed):
    pairs, rejects, counts = build_pairs(rows, section, seed, "test")
    score = {c["id"]: s for row in rows for c, s in zip(row["completions"], row["scores"], strict=True)}
    cut = {c["id"] for row in rows for c in row["completions"] if c["finish_reason"] == "length"}
    for pair in pairs:
        better, worse = score[pair["chosen_id"]], score[pair["rejected_id"]]
        assert better > worse
        assert better - worse >= section.min_gap
        chosen, rejected = texts([pair])[0]
        assert chosen.strip() != rejected.strip()
        if section.max_length_ratio:
            assert max(len(chosen), len(rejected)) <= section.max_length_ratio * min(len(chosen), len(rejected))
        if section.drop_truncated:
            assert not {pair["chosen_id"], pair["rejected_id"]} & cut
    assert len({p["id"] for p in pairs}) == len(pairs)
    # Nothing is lost: every row is paired or rejected, and the counts say so.
    paired = {p["prompt_id"] for p in pairs}
    assert not paired & {r["id"] for r in rejects}
    assert len(paired) + len(rejects) == len(rows) == counts["rows"]
    assert counts["rows_with_pairs"] == len(paired)
    assert sum(v for k, v in counts.items() if k.startswith("rejected/")) == len(rejects)


@given(ROWS, SECTIONS, st.integers(0, 3), st.randoms(use_true_random=False))
def test_a_row_gives_the_same_in_any_order_and_company(rows, section, seed, random):
    whole = build_pairs(rows, section, seed, "test")
    shuffled = []
    for row in random.sample(rows, len(rows)):
        order = random.sample(range(len(row["scores"])), len(row["scores"]))
        shuffled.append(
            row | {"completions": [row["completions"][i] for i in order], "scores": [row["scores"][i] for i in order]}
        )
    again = build_pairs(shuffled, section, seed, "test")
    by_id = {p["id"]: p for p in again.pairs}
    assert by_id == {p["id"]: p for p in whole.pairs}
    assert {(r["id"], r["reason"]) for r in again.rejects} == {(r["id"], r["reason"]) for r in whole.rejects}
    alone = [pair for row in rows for pair in build_pairs([row], section, seed, "test").pairs]
    assert alone == whole.pairs


@pytest.mark.parametrize(
    ("judges", "kept"),
    [([[4.0, 2.0], [6.0, 0.0]], True), ([[4.0, 2.0], [1.0, 2.0]], False), ([[4.0, 2.0], [1.0, None]], False)],
)
def test_a_pair_wants_enough_judges_of_a_panel(judges, kept):
    row = scored("p", ("good", 5.0), ("bad", 1.0))
    # What a judge says by one criterion is no verdict of its own.
    parts = [{"name": "judge/clarity", "scores": [5.0, 1.0]}]
    row["parts"] = parts + [{"name": f"judge{i}", "scores": scores} for i, scores in enumerate(judges)]
    built = build(row, min_agree=2)
    assert bool(built.pairs) is kept
    assert [r["reason"] for r in built.rejects] == ([] if kept else ["disagreement"])
    assert build(row, min_agree=1).pairs
