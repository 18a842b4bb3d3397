"""Contrastive pairs: which answers stand against each other, their margins, and what is left out, counted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.config import PairSection
from prefloop.pairs.build import build_pairs
from prefloop.records import completion_id

PROMPT = "Tell me how one gets from here to the sea."
NOTES = {"positive": "Be kind to everybody here.", "negative": "Be rude."}


def scored(*answers, name="p"):
    """A scored row of (text, score, side), of an attribute `kind` unless the side names another, or of any finish."""
    completions = []
    for i, (text, _, side, *finish) in enumerate(answers):
        attribute, _, side = side.rpartition("/")
        row = {
            "id": completion_id(name, text, i),
            "text": text,
            "token_ids": None,
            "finish_reason": finish[0] if finish else "stop",
            "sample_index": i,
        }
        completions.append(row | {"contrast": {"attribute": attribute or "kind", "side": side, **NOTES}})
    return {
        "id": name,
        "prompt": [{"role": "user", "content": PROMPT}],
        "completions": completions,
        "scores": [score for _, score, *_ in answers],
        "signal": "self_reward",
        "evidence": [],
    }


def build(*rows, **section):
    return build_pairs(rows, PairSection(**{"strategy": "contrast", "margin": "gap"} | section), 0, "self_reward")


def sides(built):
    return [(p["chosen"][0]["content"], p["rejected"][0]["content"], p["margin"]) for p in built.pairs]


def test_the_published_pair_keeps_its_orientation_whatever_its_margin():
    assert sides(build(scored(("kind", 6.1, "positive"), ("rude", -3.2, "negative")))) == [
        ("kind", "rude", pytest.approx(9.3))
    ]
    turned = build(scored(("kind", -1.0, "positive"), ("rude", 2.0, "negative")))
    assert sides(turned) == [("kind", "rude", -3.0)]
    assert turned.counts["negative_margins"] == 1
    equal = build(scored(("kind", 1.0, "positive"), ("rude", 1.0, "negative")))
    assert sides(equal) == [("kind", "rude", 0.0)]


def test_of_several_samples_the_pair_of_the_largest_margin():
    row = scored(("a", 1.0, "positive"), ("b", 4.0, "positive"), ("c", 2.0, "negative"), ("d", -5.0, "negative"))
    assert sides(build(row)) == [("b", "d", 9.0)]


def test_each_attribute_has_its_own_pair():
    kind = ("a", 1.0, "kind/positive"), ("b", 0.0, "kind/negative")
    row = scored(*kind, ("c", 5.0, "brief/positive"), ("a", 9.0, "brief/negative"))
    # The text "a" is no duplicate where it was asked for with other notes.
    assert sides(build(row)) == [("c", "a", -4.0), ("a", "b", 1.0)]


def test_swap_and_least_margin():
    rows = [
        scored(("kind", -1.0, "positive"), ("rude", 2.0, "negative"), name="a"),
        scored(("kind", 1.0, "positive"), ("rude", 0.5, "negative"), name="b"),
    ]
    swapped = build(*rows, swap_negative=True)
    assert sides(swapped) == [("rude", "kind", 3.0), ("kind", "rude", 0.5)]
    assert swapped.counts["pairs_swapped"] == 1
    sure = build(*rows, min_gap=1)
    assert sides(sure) == [("kind", "rude", -3.0)]
    assert sure.counts["rejected/min_gap"] == 1


@pytest.mark.parametrize(
    ("answers", "section", "reason"),
    [
        ([("kind", 1.0, "positive"), ("", None, "negative")], {}, "empty"),
        ([("kind", 1.0, "positive"), ("rude", None, "negative")], {}, "null_score"),
        ([("same", 1.0, "positive"), (" same\n", -1.0, "negative")], {}, "duplicate"),
        ([("a", 1.0, "positive"), ("b", 1.0, "positive")], {}, "one_sided"),
        ([("a", 1.0, "positive"), ("b", 0.0, "negative", "length")], {"drop_truncated": True}, "truncated"),
        ([("a", 1.0, "positive"), (f"You ask: {PROMPT}", 0.0, "negative")], {"drop_echo": True}, "echo"),
        ([("be kind to everybody  here. Yes!", 1.0, "positive"), ("b", 0.0, "negative")], {"drop_echo": True}, "echo"),
        ([("Be rude.", 1.0, "positive"), ("b", 0.0, "negative")], {"drop_echo": True}, "echo"),
    ],
)
def test_what_is_left_out_has_its_reason(answers, section, reason):
    built = build(scored(*answers), **section)
    assert (built.pairs, [r["reason"] for r in built.rejects]) == ([], [reason])


def test_kept_unless_asked():
    """A cut-off answer keeps its finish, by which training puts no end of turn behind it; a short echo is no echo."""
    (pair,) = build(scored(("a", 1.0, "positive"), ("b", 0.0, "negative", "length"))).pairs
    assert pair["rejected_finish"] == "length"
    row = scored(("Do not be rude. Go on.", 1.0, "positive"), (PROMPT, 0.0, "negative"))
    assert len(build(row).pairs) == 1
    (reject,) = build(row, drop_echo=True).rejects
    assert reject["reason"] == "echo"


def test_counts_tell_margin_from_length():
    rows = [
        scored(("a" * n, float(n), "positive"), ("b" * n, -float(n), "negative"), name=f"r{n}") for n in range(1, 6)
    ]
    counts = build(*rows).counts
    assert counts["margin_length_correlation"] == pytest.approx(1.0)
    assert (counts["mean_margin"], counts["median_margin"], counts["negative_margins"]) == (6, 6, 0)


ANSWERS = st.lists(
    st.tuples(
        st.text(max_size=3),
        st.none() | st.floats(-50, 50),
        st.sampled_from(["positive", "negative", "brief/positive"]),
    ),
    min_size=1,
    max_size=6,
)


@given(st.lists(ANSWERS, max_size=4), st.booleans(), st.booleans(), st.floats(0, 5))
def test_every_row_gives_a_pair_or_a_reason(rows, swap, echo, gap):
    section = {"swap_negative": swap, "drop_echo": echo, "min_gap": gap}
    built = build(*(scored(*row, name=f"r{i}") for i, row in enumerate(rows)), **section)
    with_pairs = {p["prompt_id"] for p in built.pairs}
    assert len(with_pairs) + len(built.rejects) == len(rows)
    assert not with_pairs & {r["id"] for r in built.rejects}
    for pair in built.pairs:
        assert pair["margin"] == pair["score_chosen"] - pair["score_rejected"]
        assert abs(pair["margin"]) >= gap
        assert pair["margin"] >= 0 or not swap
