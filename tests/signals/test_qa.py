"""Measures of a short answer: known values, and those that were recovered from published judgements."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.config.rag import ReaderSection
from prefloop.signals.qa import abstains, containment, exact_match, judge, normalised, token_f1
from prefloop.signals.reader import ALIGNED, BOTH_CORRECT, BOTH_INCORRECT, UNALIGNED, Condition, verdict

PARITY = Path(__file__).parents[2].parent / "shared" / "data" / "parity" / "dpa_rag.json"


def test_normal_form():
    assert normalised("The  Eiffel-Tower, (a) 'landmark'!") == "eiffeltower landmark"
    assert normalised("a an the") == ""


@pytest.mark.parametrize(
    ("answer", "references", "exact", "contained", "f1"),
    [
        ("Paris", ["paris."], 1, 1, 1),
        ("It is Paris", ["Paris"], 0, 1, 2 / 4),
        ("Paris", ["Paris France"], 0, 0, 2 / 3),
        ("Parisian", ["Paris"], 0, 0, 0),  # words, not characters
        ("New old York", ["New York"], 0, 0, 4 / 5),  # in a row
        ("London", ["Paris", "The London"], 1, 1, 1),
        ("the the cat", ["cat cat"], 0, 0, 2 / 3),  # counted as often as it stands
        ("", ["Paris"], 0, 0, 0),
        ("The", ["a"], 1, 1, 1),
        ("something", ["the"], 0, 0, 0),
    ],
)
def test_three_measures(answer, references, exact, contained, f1):
    assert exact_match(answer, references) == exact
    assert containment(answer, references) == contained
    assert token_f1(answer, references) == pytest.approx(f1)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ("Unknown", True),
        ("I don't know.", True),
        ("The document does not mention her home.", True),
        ("It is not stated in the text", True),
        ("This cannot be determined", True),
        ("", True),
        ("Oslo", False),
        ("She did not live in Oslo", False),
    ],
)
def test_abstentions(answer, says):
    assert abstains(answer) is says


def test_a_right_answer_is_no_abstention():
    assert not judge("It is unknown to most, but Oslo", ["Oslo"]).abstained
    assert judge("It is unknown to most", ["Oslo"]).abstained


@pytest.mark.skipif(not PARITY.is_file(), reason="the published values are not on this machine")
def test_published_judgements():
    published = json.loads(PARITY.read_text())
    # One of ten words is the reference; one word in common of a reference and an answer of seven in all.
    long = judge("one two three four five six seven eight nine Oslo", ["Oslo"])
    assert [long.containment, long.f1] == published["judge_contain"]["value"]
    part = judge("Oslo and all of it", ["Oslo Norway"])
    assert [part.containment, part.f1] == pytest.approx(published["judge_partial"]["value"])
    rule = ReaderSection(label_rule="f1_sign", abstention="wrong")
    wanted = {1: ALIGNED, 2: UNALIGNED, None: BOTH_CORRECT}
    cases = [("Oslo", "it is in Oslo"), ("Lima", "Oslo"), ("Oslo", "Oslo")]
    found = [verdict(rule, *(Condition.of([text], ["Oslo"]) for text in case))[0] for case in cases]
    assert found == [wanted[value] for value in published["category"]["value"]]


TEXTS = st.text("ab the.,", max_size=12)


@given(answer=TEXTS, references=st.lists(TEXTS, min_size=1, max_size=3))
def test_the_measures_are_ordered(answer, references):
    judged = judge(answer, references)
    assert judged.exact_match <= judged.containment
    assert judged.exact_match <= judged.f1 <= 1
    assert judged.f1 == token_f1(answer, list(reversed(references)))


@given(
    words=st.lists(st.sampled_from("abcd"), min_size=1, max_size=6),
    other=st.lists(st.sampled_from("abcd"), max_size=6),
)
def test_f1_is_that_of_precision_and_recall(words, other):
    """The form with precision and recall, where it is defined."""
    words, other = [w * 2 for w in words], [w * 2 for w in other]
    common = sum(min(words.count(w), other.count(w)) for w in set(words))
    precision, recall = common / len(words), common / max(len(other), 1)
    wanted = 2 * precision * recall / (precision + recall) if common else 0.0
    assert token_f1(" ".join(words), [" ".join(other)]) == pytest.approx(wanted)


def test_no_reference_at_all_is_no_right_answer():
    assert verdict(ReaderSection(), Condition.of(["x"], []), Condition.of(["y"], []))[0] == BOTH_INCORRECT
