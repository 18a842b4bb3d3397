"""Agreement of judges with people and each other, with the trivial judges beside them."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.errors import UsageError
from prefloop.evaluate.agreement import (
    agreement,
    between_judges,
    coin,
    human_agreement,
    longest,
    prefers_longer,
    sign,
    table,
)
from prefloop.evaluate.votes import compare_votes, mode, read_votes


def test_agreement_by_hand():
    gold = [1, 1, 0, 0, 0.5, 0.5, None, 1]
    judge = [0.9, 0.2, 0.1, 0.5, 0.5, 0.7, 1, None]
    found = agreement(judge, gold, resamples=200)
    # Signs equal on pairs 0, 2 and 4 of six; both decided on 0, 1 and 2.
    assert found["accuracy"]["value"] == pytest.approx(3 / 6)
    assert found["decided"]["value"] == pytest.approx(2 / 3)
    assert (found["n"], found["n_decided"], found["n_null"]) == (6, 3, 2)
    # Two of each sign in both: chance 1/3, kappa (1/2 - 1/3) / (2/3).
    assert found["kappa"] == pytest.approx(0.25)
    assert found["accuracy"]["ci_low"] < 0.5 < found["accuracy"]["ci_high"]


def test_kappa_is_that_of_scikit_learn():
    from sklearn.metrics import cohen_kappa_score

    rng = random.Random(0)
    a, b = ([rng.choice([0, 0.5, 1]) for _ in range(50)] for _ in range(2))
    b = [x if rng.random() < 0.5 else y for x, y in zip(a, b, strict=True)]
    theirs = cohen_kappa_score([sign(x) for x in a], [sign(x) for x in b])
    assert agreement(a, b, resamples=10)["kappa"] == pytest.approx(theirs)


def test_nothing_to_agree_on():
    found = agreement([None, 0.5], [1, 0.5], resamples=10)
    assert (found["n"], found["decided"], found["kappa"]) == (1, None, None)
    assert agreement([], [], resamples=10)["accuracy"] is None


def test_the_trivial_judges():
    assert longest([(1, 2), (2, 1), (3, 3)]) == [1, 0, 0.5]
    ids = [str(i) for i in range(1000)]
    tossed = coin(ids)
    assert 430 < sum(tossed) < 570
    assert coin(ids[::-1]) == tossed[::-1]
    assert coin(ids, seed=1) != tossed


def test_the_trivial_judges_stand_beside_the_real_ones():
    rng = random.Random(1)
    ids = [str(i) for i in range(400)]
    lengths = [(rng.randint(1, 500), rng.randint(1, 500)) for _ in ids]
    gold = [float(rng.random() < (0.8 if second > first else 0.2)) for first, second in lengths]
    good = [g if rng.random() < 0.9 else 1 - g for g in gold]
    found = table({"good": good}, gold, lengths, ids, resamples=100)
    assert list(found) == ["good", "longest", "random"]
    assert found["good"]["accuracy"]["value"] > found["longest"]["accuracy"]["value"] > 0.7
    assert found["random"]["accuracy"]["value"] == pytest.approx(0.5, abs=0.08)
    assert found["longest"]["prefers_longer"] == 1
    assert abs(found["random"]["kappa"]) < 0.15
    with pytest.raises(UsageError, match="a judge is called 'longest'"):
        table({"longest": good}, gold, lengths, ids)


def test_longer_by_thirty_characters_or_less_does_not_count():
    lengths = [(100, 130), (100, 131), (131, 100), (300, 10), (10, 300)]
    assert prefers_longer([1, 1, 1, None, 0.5], lengths) == 0.5
    assert prefers_longer([1], [(1, 2)]) is None


def test_human_agreement_as_alpaca_eval_documents_it():
    # Its docstring: four people, [1, 1, 1, 1] and [2, 2, 2, 1]; one against the mode of three: 87.5 %.
    people = [[0, 1], [0, 1], [0, 1], [0, 0]]
    assert human_agreement(people, people) == pytest.approx(0.875)
    # A judge that says 2 of the second pair: right four times, or against [2, 2, 1] and [2, 2, 2] four times.
    assert human_agreement([[0, 1]], people) == 1
    assert human_agreement([[0, 0]], people) == 0.5
    # Modes of the others tie: of [1], [2] one half counts.
    assert human_agreement([[0]], [[0], [1], [0.5]]) == pytest.approx((0 + 0.5 + 0.5) / 3)
    # Missing votes: the pair is left out for whom it is missing.
    assert human_agreement([[0, None]], people) == 1
    with pytest.raises(UsageError, match="1 people"):
        human_agreement([[0]], [[0]])
    with pytest.raises(UsageError, match="no pair has a verdict"):
        human_agreement([[None]], [[0], [1]])


@given(st.lists(st.lists(st.sampled_from([0, 0.5, 1]), min_size=4, max_size=4), min_size=1))
def test_a_unanimous_crowd_agrees_with_itself(columns):
    votes = [[column[0] for column in columns]] * 4
    assert human_agreement(votes, votes) == 1
    mixed = [list(person) for person in zip(*columns, strict=True)]
    assert 0 <= human_agreement(mixed, mixed) <= 1


def test_judges_are_compared_with_each_other():
    a, b, c = [0.9, 0.8, 0.1, None], [0.6, 0.3, 0.2, 1], [0.5, 0.5, 0.5, 0.5]
    found = between_judges({"a": a, "b": b, "c": c}, ["w", "x", "y", "z"])
    assert [row["judges"] for row in found] == [["a", "b"], ["a", "c"], ["b", "c"]]
    first = found[0]
    assert (first["agreement"], first["n"], first["disagree"]) == (pytest.approx(2 / 3), 3, ["x"])
    assert first["spearman"] == pytest.approx(1)
    assert found[1]["spearman"] is None


def test_mode():
    assert [mode([1, 0.7, 0]), mode([0, 1]), mode([0.5, 0.5, 1]), mode([None])] == [1, 0.5, 0.5, None]
    assert mode([0, 0, 1, None]) == 0


def rows(votes, **more):
    return [
        {"instruction": f"q{i}", "output_1": "a" * (i + 1), "output_2": "bbb", "preference": p, **more}
        for i, p in enumerate(votes)
    ]


def test_votes_from_files(tmp_path):
    people = tmp_path / "people.json"
    votes = [[1, 2, 0], [1, 2, 2], [1, 1, 2]]
    people.write_text(json.dumps([r for n, v in enumerate(votes) for r in rows(v, annotator_index=n)]))
    judge, other = tmp_path / "judge.json", tmp_path / "other.json"
    judge.write_text(json.dumps([*rows([1.2, 1.9, None], annotator="j"), *rows([1] * 5)[4:]]))
    other.write_text(json.dumps(rows([2, 2, 2])))
    with pytest.raises(UsageError, match="has 2 raters"):
        compare_votes(people, {"judge": judge})
    judge.write_text(json.dumps([*rows([1.2, 1.9, None], annotator="j"), *rows([1] * 5, annotator="j")[4:]]))
    found = compare_votes(people, {"judge": judge, "other": other}, resamples=50)
    assert list(found["judges"]) == ["judge", "other", "longest", "random"]
    mine = found["judges"]["judge"]
    assert (mine["accuracy"]["value"], mine["n"], mine["n_null"], mine["unknown"]) == (1, 2, 1, 1)
    # Pair 0: 3 of 3; pair 1: against [2,1] one half, [2,1] one half, [2,2] one.
    assert mine["human_agreement"] == pytest.approx((0.75 + 0.75 + 1) / 3)
    assert found["people"]["n"] == 3
    assert 0 < found["people"]["alpha"] < 1
    assert found["between"][0]["judges"] == ["judge", "other"]
    one = compare_votes(other, {"judge": judge}, resamples=10)
    assert one["people"] == {"n": 1, "pairs": 3, "alpha": None, "human_agreement": None}


def test_votes_that_cannot_be_read(tmp_path):
    file, other = tmp_path / "v.json", tmp_path / "o.json"
    file.write_text(json.dumps(rows([1]) + rows([2])))
    with pytest.raises(UsageError, match="votes on this pair again"):
        read_votes(file)
    file.write_text(json.dumps([{"instruction": "q", "preference": 1}]))
    with pytest.raises(UsageError, match="row 0: has no instruction or answer"):
        read_votes(file)
    file.write_text(json.dumps(rows([1])))
    other.write_text(json.dumps(rows([1, 1])[1:]))
    with pytest.raises(UsageError, match="judges none of the pairs"):
        compare_votes(file, {"o": other})
