"""Habits of a judge: rates by hand, the correlation with length, and when noise is refused."""

from __future__ import annotations

import pytest
from judge_script import judged, row, shown

from prefloop.config import FunctionSignalSection, JudgeSignalSection
from prefloop.errors import PrefloopError
from prefloop.signals.bias import has_list, length_correlation, rates
from prefloop.signals.build import card, check_noise, remark
from prefloop.signals.judge import JudgeSignal

PAIRWISE = JudgeSignalSection(type="judge", mode="pairwise")


def counts(consistent, longer_wins, cases=100):
    return {
        **{"verdicts": 2 * cases, "pairs": cases, "consistent": consistent},
        **{"longer_decided": cases, "longer_wins": longer_wins},
    }


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (counts(60, 80), None),
        (counts(59, 50), "only 59% of the pairs alike"),
        (counts(90, 81), "longer answer wins 81%"),
        (counts(59, 81), "mostly noise .*; the longer"),
        (counts(0, 19, cases=19), None),  # too few to say
        ({"verdicts": 500}, None),  # pointwise, nothing decided
    ],
)
def test_noise_is_not_trained_on_unless_forced(found, words):
    assert (remark(PAIRWISE, found) is None) == (words is None)
    check_noise(PAIRWISE.model_copy(update={"force": True}), found)
    if words is None:
        check_noise(PAIRWISE, found)
        return
    with pytest.raises(PrefloopError, match=words) as caught:
        check_noise(PAIRWISE, found)
    assert caught.value.exit_code == 1
    assert "rate.force=true" in caught.value.fix


def test_other_signals_are_not_refused():
    check_noise(FunctionSignalSection(type="function", callable="m:f"), counts(0, 100))


def test_pairs_that_no_order_decides_say_nothing_of_consistency():
    found = rates({"pairs": 10, "null_pairs": 2, "undecided_pairs": 3, "consistent": 4})
    assert found["consistency"] == 4 / 5


def test_a_judge_of_single_answers_that_reads_length_is_found_out():
    def by_length(request, prompt):
        return [float(min(len(shown(prompt)[0]), 5) == r) for r in range(1, 6)]

    found = judged(JudgeSignal("pointwise", None, 0.0), ["x", "xx", "yy", "xxx"], by_length)[1]
    # Six pairs, one of equal length and score.
    assert (found["compared"], found["ties"], found["longer_decided"], found["longer_wins"]) == (6, 1, 5, 5)
    assert "consistency" not in rates(found)
    with pytest.raises(PrefloopError, match="longer answer wins 100%"):
        check_noise(JudgeSignalSection(type="judge"), {name: 10 * n for name, n in found.items()})


@pytest.mark.parametrize(
    ("text", "is_list"),
    [
        ("- one\n- two", True),
        ("First:\n 1. one\n 2) two", True),
        ("* one\n\ntext\n* two", True),
        ("- one", False),
        ("-one\n-two", False),
        ("2024. A year.\n100 - 2", False),
        ("a - b\nc - d", False),
    ],
)
def test_what_a_list_is(text, is_list):
    assert has_list(text) == is_list


def test_answers_with_a_list_are_counted():
    texts = ["- a\n- b", "plain", "- c\n- d\n- e"]

    def likes_lists(request, prompt):
        return [0, 0, 0, 0, 1] if "- " in shown(prompt)[0] else [1, 0, 0, 0, 0]

    found = judged(JudgeSignal("pointwise", None, 0.0), texts, likes_lists)[1]
    assert (found["list_decided"], found["list_wins"], found["ties"]) == (2, 2, 1)
    assert rates(found)["list_wins"] == 1.0
    assert "the answer with a list wins 100%" in card(JudgeSignalSection(type="judge"), found)


def scored(lengths, scores):
    return {**row(*("x" * n for n in lengths)), "scores": scores, "signal": "s", "evidence": []}


def test_the_correlation_of_length_and_score():
    rows = [scored([n, 0], [p, 1 - p]) for n, p in zip(range(1, 21), [i / 20 for i in range(20)], strict=True)]
    assert length_correlation(rows) == pytest.approx(1.0)
    turned = [scored([n, 0], [1 - p, p]) for n, p in zip(range(1, 21), [i / 20 for i in range(20)], strict=True)]
    assert length_correlation(turned) == pytest.approx(-1.0)
    assert length_correlation(rows[:19]) is None
    assert length_correlation([scored([1, 2], [0.1, None])] * 30) is None
    assert length_correlation([scored([1, 2], [0.1, 0.9])] * 30) is None
    # One swap of neighbours among 20 ranks: 1 - 6 * 2 / (20 * 399).
    rows[4]["scores"], rows[5]["scores"] = rows[5]["scores"], rows[4]["scores"]
    assert length_correlation(rows) == pytest.approx(1 - 12 / 7980)
    assert "length and score correlate by +1.00" in card(PAIRWISE, counts(80, 60), rows)


def test_the_card_has_wilsons_interval():
    # Wilson 1927 by hand for 8 of 10, z = 1.96: 0.4902 to 0.9433.
    line = card(PAIRWISE, {"verdicts": 10, "first_decided": 10, "first_wins": 8})
    assert "the answer shown first wins 80% (49% to 94%)" in line


def test_counts_add_up_over_rows():
    """What is told of two rows together is made from the sums of their counts."""
    signal = JudgeSignal("pairwise", None, 0.0)
    one = judged(signal, ["x", "yy"], lambda r, p: [0.9, 0.1])[1]
    two = judged(signal, ["x", "yy"], lambda r, p: [0.9, 0.1] if shown(p)[0] == "x" else [0.1, 0.9])[1]
    both = {name: one.get(name, 0) + two.get(name, 0) for name in {**one, **two}}
    assert rates(both) == pytest.approx(
        {
            **{"null_rate": 0, "label_mass": 1, "consistency": 0.5, "first_seat": 0.75},
            **{"tie_rate": 0.5, "longer_wins": 0},
        }
    )
