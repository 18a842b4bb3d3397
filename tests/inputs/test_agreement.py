"""Agreement of raters against published numbers, another library, and properties."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from prefloop.inputs.agreement import cohen_kappa, krippendorff_alpha

# Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), section C: four observers, twelve units.
OBSERVERS = ("123321412...", "1233224125.3", ".3332342251.", "12332441251.")


def test_krippendorffs_own_example():
    units = [[v for v in unit if v != "."] for unit in zip(*OBSERVERS)]
    assert krippendorff_alpha(units) == pytest.approx(0.743, abs=5e-4)


def test_two_observers_by_hand():
    # Krippendorff 2011, section A: ten units, 0 and 1; o01 = 4, n0 = 14, n1 = 6, alpha = 1 - 19 * 4 / (14 * 6).
    first, second = "0100000010", "1110010000"
    units = list(zip(first, second))
    assert krippendorff_alpha(units) == pytest.approx(1 - 19 * 4 / (14 * 6))
    assert krippendorff_alpha(units) == pytest.approx(0.095, abs=5e-4)


def test_nothing_to_agree_on():
    assert krippendorff_alpha([]) is None
    assert krippendorff_alpha([["a"], ["b"]]) is None
    assert krippendorff_alpha([["a", "a"], ["a", "a"]]) is None
    assert cohen_kappa([], []) is None
    assert cohen_kappa(["a"], ["a"]) is None
    with pytest.raises(ValueError, match="2 verdicts"):
        cohen_kappa(["a", "b"], ["a"])


@given(st.lists(st.tuples(st.sampled_from("abt"), st.sampled_from("abt")), min_size=2, max_size=40))
def test_kappa_is_scikit_learns(pairs):
    first, second = zip(*pairs)
    found = cohen_kappa(first, second)
    if len({*first, *second}) > 1:
        assert found == pytest.approx(cohen_kappa_score(first, second))
    else:
        assert found is None


@given(st.lists(st.lists(st.sampled_from("abt"), min_size=2, max_size=5), min_size=1, max_size=20))
def test_alpha_is_one_where_all_agree_and_never_above(units):
    found = krippendorff_alpha(units)
    assert found is None or found <= 1
    agreeing = [[unit[0]] * len(unit) for unit in units]
    assert krippendorff_alpha(agreeing) in (None, 1)


@given(st.lists(st.lists(st.sampled_from("abt"), max_size=5), max_size=20), st.randoms())
def test_alpha_depends_on_no_order(units, random):
    shuffled = [random.sample(unit, len(unit)) for unit in units]
    random.shuffle(shuffled)
    before, after = krippendorff_alpha(units), krippendorff_alpha(shuffled)
    assert after == (None if before is None else pytest.approx(before))
