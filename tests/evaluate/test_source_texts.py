"""Lengths, words and copies of rewrites."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.evaluate.source_texts import compare, describe


def test_by_hand():
    assert compare("one two three four", "one two") == (0.5, 0.5, False)
    assert compare("", "one two").ratio == 2
    assert compare("a b c", "b c d").overlap == 0.5
    assert compare("", "!") == (0, 1, True)
    assert compare("It's  HERE.", "it's here").copied
    assert not compare("a b", "b a").copied


def test_a_description():
    human = {"1": "a b c d e f g h i j", "2": "x y", "3": "one two"}
    other = {"1": "a b c d e f g h i k", "2": "x y", "3": "one two three"}
    found = describe(human, other, lambda pairs: [float(a == b) for a, b in pairs], ["1", "2"])
    assert (found["passages"], found["length_matched"]) == (3, 2)
    assert found["length_ratio"]["value"] == pytest.approx((1 + 1 + 1.5) / 3)
    assert found["copied"]["value"] == pytest.approx(1 / 3)
    assert (found["similarity"]["value"], found["similarity"]["n"]) == (0.5, 2)
    assert "similarity" not in describe(human, other)
    known = {name: compare(human[name], other[name]) for name in human}
    assert describe(human, other, likeness=known) == describe(human, other)
    assert {name for name, one in known.items() if one.length_matched} == {"1", "2"}


@given(st.text(), st.text())
def test_overlap_is_symmetric_and_a_share(a, b):
    assert compare(a, b).overlap == compare(b, a).overlap
    assert 0 <= compare(a, b).overlap <= 1
    assert compare(a, a).overlap == 1
    assert compare(a, a).copied
