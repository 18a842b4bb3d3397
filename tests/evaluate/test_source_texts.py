"""Lengths, words and copies of rewrites."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.evaluate.source_texts import describe, is_copy, length_matched, length_ratio, overlap


def test_by_hand():
    assert length_ratio("one two three four", "one two") == 0.5
    assert length_ratio("", "one two") == 2
    assert overlap("a b c", "b c d") == 0.5
    assert overlap("", "!") == 1
    assert is_copy("It's  HERE.", "it's here")
    assert not is_copy("a b", "b a")


def test_a_description():
    human = {"1": "a b c d e f g h i j", "2": "x y", "3": "one two"}
    other = {"1": "a b c d e f g h i k", "2": "x y", "3": "one two three"}
    found = describe(human, other, lambda pairs: [float(a == b) for a, b in pairs], ["1", "2"])
    assert (found["passages"], found["length_matched"]) == (3, 2)
    assert found["length_ratio"]["value"] == pytest.approx((1 + 1 + 1.5) / 3)
    assert found["copied"]["value"] == pytest.approx(1 / 3)
    assert (found["similarity"]["value"], found["similarity"]["n"]) == (0.5, 2)
    assert "similarity" not in describe(human, other)
    assert length_matched(human, other) == {"1", "2"}


@given(st.text(), st.text())
def test_overlap_is_symmetric_and_a_share(a, b):
    assert overlap(a, b) == overlap(b, a)
    assert 0 <= overlap(a, b) <= 1
    assert overlap(a, a) == 1
    assert is_copy(a, a)
