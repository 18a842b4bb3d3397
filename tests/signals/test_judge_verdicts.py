"""What is a verdict in a reply, and what is none."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.signals.judge.verdicts import Ranks, Ratings, json_schema, rating, read, reply, seats

FIVE = rating((1, 2, 3, 4, 5))
LIST = Ratings((1, 2, 3, 4, 5), 3)


def text(verdict, said, *, bare=False, cut=False):
    return read("text", verdict, said, bare=bare, cut=cut)


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("It is fine. [[4]]", [4.0]),
        ("The answer says [[5]], which is no verdict.\n**[[ 2 ]]**", [2.0]),  # the last one counts
        ("[[5]] and then [[7]]", None),  # out of range: not the one before it
        ("[[5]] and then [[great]]", None),
        ("[[4.0]]", [4.0]),
        ("[[4/5]]", [4.0]),
        ("[[4.0 / 5.0]]", [4.0]),
        ("[[4.5]]", None),
        ("[[4/10]]", None),  # of another scale
        ("[[6/5]]", None),
        ("[[4/]]", None),
        ("[[-1]]", None),
        ("[[]]", None),
        ("Rating: 4", None),  # reasons without a mark may speak of any number
        ("4", None),
        ("", None),
    ],
)
def test_a_rating_is_the_last_mark(said, found):
    assert text(FIVE, said) == found


def test_a_reply_that_was_cut_off_has_not_said_its_last_word():
    assert text(FIVE, "The answer claims [[5]] for itself, but", cut=True) is None
    assert text(FIVE, "[[5]]", bare=True, cut=True) == [5.0]


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("4", [4.0]),
        (" **4**.\n\nBecause 1 2 3", [4.0]),
        ("Rating: 4", [4.0]),
        ("[[4]]", [4.0]),
        ("4 5", None),
        ("4/5", [4.0]),
        ("4/5/5", None),
        ("4/6", None),
        ("6", None),
        ("I would say 4", None),
        ("", None),
    ],
)
def test_a_bare_verdict_stands_alone_on_its_line(said, found):
    assert text(FIVE, said, bare=True) == found


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("[[A]]", [1, 0]),
        ("[[B]]", [0, 1]),
        ("[[tie]]", [0.5, 0.5]),
        ("[[C]]", None),
        ("[[a]]", [1, 0]),
        ("[[Tie]]", [0.5, 0.5]),
        ("[[TIE]]", [0.5, 0.5]),
        ("[[A, B]]", None),
    ],
)
def test_which_of_two(said, found):
    assert text(seats(), said) == found


def test_a_sentence_that_begins_with_an_article_is_no_verdict():
    assert text(seats(), "A good answer has three parts", bare=True) is None
    assert text(seats(), "Answer: A", bare=True) == [1, 0]


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("[[4, 1, 5]]", [4, 1, 5]),
        ("[[4 1 5]]", [4, 1, 5]),
        ("[[4, 1]]", None),
        ("[[4, 1, 5, 5]]", None),
        ("[[4.0, 1/5, 5]]", [4, 1, 5]),
        ("[[4, 1, 6]]", None),
        ("[[4, 1, 5/6]]", None),
        ("[[4]] [[1]] [[5]]", None),
    ],
)
def test_a_list_of_ratings_has_one_for_each(said, found):
    assert text(LIST, said) == found


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("[[2, 3, 1]]", [0, 2, 1]),
        ("[[2 > 3 > 1]]", [0, 2, 1]),
        ("[[2, 2, 1]]", None),
        ("[[2, 3]]", None),
        ("[[0, 1, 2]]", None),
    ],
)
def test_an_order_has_every_answer_once(said, found):
    assert text(Ranks(3), said) == found


@pytest.mark.parametrize(
    ("verdict", "said", "found"),
    [
        (FIVE, '{"reasoning": "[[5]]", "verdict": "2"}', [2]),
        (FIVE, '{"verdict": 2}', [2]),
        (FIVE, '{"verdict": true}', None),
        (FIVE, '{"verdict": 2.0}', [2]),
        (FIVE, '{"verdict": 2.5}', None),
        (FIVE, '{"verdict": 1e999}', None),
        (seats(), '{"verdict": "b"}', [0, 1]),
        (FIVE, '{"verdict": 9}', None),
        (FIVE, '{"reasoning": "verdict: 2"}', None),
        (FIVE, '{"verdict": "2"', None),
        (FIVE, "[" * 5000, None),
        (FIVE, '"2"', None),
        (seats(), '{"reasoning": "", "verdict": "tie"}', [0.5, 0.5]),
        (LIST, '{"verdict": [3, 3, 1]}', [3, 3, 1]),
        (LIST, '{"verdict": [3, [3], 1]}', None),
        (Ranks(2), '{"verdict": [2, 1]}', [0, 1]),
    ],
)
def test_json(verdict, said, found):
    assert read("json", verdict, said, bare=False, cut=False) == found


@given(
    st.text() | st.lists(st.sampled_from(["[[", "]]", "1", "3", "9", "A", ",", " ", "\n", "tie", "{"])).map("".join),
    st.sampled_from(["json", "text"]),
    st.booleans(),
    st.booleans(),
)
def test_no_reply_breaks_the_reading(said, form, bare, cut):
    for verdict, n in ((FIVE, 1), (seats(), 2), (LIST, 3), (Ranks(3), 3)):
        found = read(form, verdict, said, bare=bare, cut=cut)
        assert found is None or (len(found) == n and all(0 <= number <= 5 for number in found))


@pytest.mark.parametrize("verdict", [FIVE, seats(), LIST, Ranks(3)], ids=["rating", "seats", "ratings", "ranks"])
@pytest.mark.parametrize("bare", [True, False])
def test_the_schema_asks_for_reasons_first_and_allows_only_verdicts(verdict, bare):
    schema = json.loads(json_schema(verdict, bare=bare))
    assert list(schema["properties"]) == schema["required"] == (["verdict"] if bare else ["reasoning", "verdict"])
    assert schema["additionalProperties"] is False
    allowed = schema["properties"]["verdict"]
    values = allowed.get("enum") or [[1, 2, 3]]
    for value in values:
        assert read("json", verdict, json.dumps({"verdict": value}), bare=True, cut=False) is not None


def test_what_the_judge_is_told_is_what_is_read():
    """Every mark that a reply names is a verdict."""
    for verdict in (FIVE, seats()):
        for mark in verdict.marked.replace(" or ", ", ").split(", "):
            assert text(verdict, mark) is not None
    assert (
        reply("choose", FIVE, bare=False) == reply("text", FIVE, bare=True) == "Reply with one digit and nothing else."
    )
