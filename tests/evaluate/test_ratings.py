"""Bradley-Terry ratings: known numbers, what they recover, and what is refused."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.errors import UsageError
from prefloop.evaluate.battles import read_battles
from prefloop.evaluate.ratings import SCALE, Battle, bradley_terry, expected


def values(found):
    return {name: figures["rating"]["value"] for name, figures in found.models.items()}


def test_two_models_by_hand():
    # 3 wins and a tie of 5: 3.5 to 1.5, so the strengths differ by ln(3.5 / 1.5).
    battles = [Battle(str(i), "a", "b", s) for i, s in enumerate((1, 1, 1, 0.5, 0))]
    found = values(bradley_terry(battles, anchor="b", resamples=1))
    assert found["b"] == 1000
    assert found["a"] == pytest.approx(1000 + SCALE * math.log(3.5 / 1.5), abs=1e-3)
    assert expected(found["a"], found["b"]) == pytest.approx(0.7, abs=1e-6)
    centred = values(bradley_terry(battles, resamples=1))
    assert (centred["a"] + centred["b"]) / 2 == pytest.approx(1000)
    assert centred["a"] - centred["b"] == pytest.approx(found["a"] - 1000)


def test_it_recovers_what_the_battles_were_made_from():
    rng = np.random.default_rng(0)
    truth = {"a": 1200.0, "b": 1050.0, "c": 1000.0, "d": 800.0}
    names, battles = list(truth), []
    for p in range(4000):
        x, y = rng.choice(names, 2, replace=False)
        battles.append(Battle(str(p), x, y, float(rng.random() < expected(truth[x], truth[y]))))
    found = bradley_terry(battles, anchor="c", resamples=100)
    assert list(found.models) == ["a", "b", "c", "d"]
    for name, figures in found.models.items():
        r = figures["rating"]
        assert r["value"] == pytest.approx(truth[name], abs=25)
        assert r["ci_low"] - 15 <= truth[name] <= r["ci_high"] + 15
    assert found.models["c"]["rating"] == {"value": 1000, "ci_low": 1000, "ci_high": 1000}
    assert (found.prompts, found.battles, found.unbounded, found.left_out) == (4000, 4000, [], 0)
    assert sum(f["battles"] for f in found.models.values()) == 8000


BATTLES = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc"), st.sampled_from([0, 0.25, 0.5, 1])))
CONNECTED = [Battle("x", a, b, s) for a, b in ("ab", "bc") for s in (0, 1)]


@given(BATTLES, st.randoms())
def test_order_and_seats_do_not_matter(more, rng):
    battles = CONNECTED + [Battle(str(i), a, b, s) for i, (a, b, s) in enumerate(more) if a != b]
    turned = [Battle(x.prompt, x.second, x.first, 1 - x.score) if rng.random() < 0.5 else x for x in battles]
    rng.shuffle(turned)
    one, other = (bradley_terry(b, resamples=1) for b in (battles, turned))
    assert values(one) == pytest.approx(values(other), abs=1e-6)


@given(st.lists(st.tuples(st.sampled_from([0, 0.5, 1]), st.sampled_from([1, 3])), min_size=1))
def test_against_one_baseline_it_is_the_mean_outcome(outcomes):
    # One win and one loss more, so that there is a maximum.
    battles = [Battle(str(i), "m", "base", s, w) for i, (s, w) in enumerate([*outcomes, (0, 1), (1, 1)])]
    found = values(bradley_terry(battles, anchor="base", resamples=1))
    mean = sum(b.weight * b.score for b in battles) / sum(b.weight for b in battles)
    assert expected(found["m"], 1000) == pytest.approx(mean, abs=1e-5)


def test_a_weight_of_three_is_three_battles():
    light = [Battle("p", "a", "b", 1), Battle("q", "a", "b", 0), Battle("r", "b", "c", 1), Battle("s", "b", "c", 0)]
    heavy = [b._replace(weight=3.0) if b.prompt == "p" else b for b in light]
    assert values(bradley_terry(heavy, resamples=1)) == pytest.approx(
        values(bradley_terry([*light, light[0], light[0]], resamples=1))
    )


def test_prompts_are_resampled_and_not_battles():
    rng = np.random.default_rng(3)
    once = [Battle(str(p), "a", "b", float(rng.random() < 0.6)) for p in range(50)]
    ten = bradley_terry(once * 10, resamples=300).models["a"]["rating"]
    one = bradley_terry(once, resamples=300).models["a"]["rating"]
    assert ten == pytest.approx(one, abs=1e-3)
    wide = one["ci_high"] - one["ci_low"]
    alone = [b._replace(prompt=str(i)) for i, b in enumerate(once * 10)]
    narrow = bradley_terry(alone, resamples=300).models["a"]["rating"]
    assert narrow["ci_high"] - narrow["ci_low"] < 0.5 * wide


def test_groups_that_never_met_are_refused_by_name():
    with pytest.raises(UsageError, match="2 groups that never met: a, b; c, d"):
        bradley_terry([Battle("p", "a", "b", 1), Battle("p", "d", "c", 0)])


def test_a_model_that_won_everything_is_told():
    battles = [*CONNECTED, *(Battle(str(i), "best", "a", 1) for i in range(5))]
    found = bradley_terry(battles, resamples=5)
    assert found.unbounded == ["best"]
    assert next(iter(found.models)) == "best"
    assert all(math.isfinite(v) for v in values(found).values())


def test_resamples_that_fall_apart_are_counted():
    battles = [Battle("p", "a", "b", s) for s in (0, 1)] + [Battle("q", "b", "c", s) for s in (0, 1)]
    found = bradley_terry(battles, resamples=200)
    # Both prompts are in a resample of two in half of the cases.
    assert 60 < found.left_out < 140
    assert found.models["a"]["rating"]["ci_low"] == pytest.approx(1000, abs=1e-3)
    apart = next(f for seed in range(20) if (f := bradley_terry(battles, resamples=1, seed=seed)).left_out)
    assert apart.models["a"]["rating"] == {"value": pytest.approx(1000, abs=1e-3), "ci_low": None, "ci_high": None}


@pytest.mark.parametrize(
    ("battles", "anchor", "message"),
    [
        ([], None, "no battles"),
        ([Battle("p", "a", "b", 1.5)], None, "battle 0, prompt p: score 1.5 is not in 0..1"),
        ([Battle("p", "a", "b", 1, 0)], None, "weight 0 is not above 0"),
        ([Battle("p", "a", "a", 1)], None, "'a' against itself"),
        ([Battle("p", "a", "b", 1)], "z", "'z' never fought"),
    ],
)
def test_what_cannot_be_rated(battles, anchor, message):
    with pytest.raises(UsageError, match=message):
        bradley_terry(battles, anchor=anchor)


def test_battles_of_all_forms_are_read_together(tmp_path):
    alpaca = tmp_path / "annotations.json"
    rows = [("q0", 1.75), ("q1", None), ("q2", 0)]
    alpaca.write_text(
        json.dumps([{"instruction": q, "generator_1": "base", "generator_2": "m", "preference": p} for q, p in rows])
    )
    arena = tmp_path / "arena.jsonl"
    games = [{"score": "B>>A"}, {"score": "A=B"}]
    arena.write_text(json.dumps({"uid": "u", "model": "n", "baseline": "base", "games": games}) + "\n")
    plain = tmp_path / "plain.jsonl"
    plain.write_text('{"prompt": "p", "model_a": "n", "model_b": "m", "score": 0.25, "weight": 2}\n')
    bench = [tmp_path / f"{name}.jsonl" for name in "mn"]
    for file, score in zip(bench, (7, -1), strict=True):
        file.write_text(
            "".join(
                json.dumps({"question_id": 1, "model": file.stem, "turn": t, "score": s}) + "\n"
                for t, s in ((1, 6), (2, score))
            )
        )
    battles, nulls = read_battles([alpaca, arena, plain, *bench])
    assert battles == [
        Battle("q0", "m", "base", 0.75),
        Battle("q2", "m", "base", 0.5),
        Battle("u", "n", "base", 1, 3),
        Battle("u", "n", "base", 0.5, 1),
        Battle("p", "n", "m", 0.25, 2),
        Battle("1", "m", "n", 0.5),
    ]
    assert nulls == 2
    for text, message in (
        ('{"what": 1}', "no verdicts that are known"),
        ('{"prompt": "p", "model_a": "n", "model_b": "m", "score": "x"}', "'x' is no score"),
        ('{"prompt": "p", "model_a": "n", "model_b": "m"}', "line 1: has no 'score'"),
        ("[", "is no JSON"),
        ("", "has no rows\nfix:"),
        ("\n7", "line 2: is no object"),
        (
            '\n\n{"prompt": "p", "model_a": "n", "model_b": "m", "score": 7}',
            "line 3: 7 is no score\nfix: give what model_a",
        ),
        ('{"prompt": "p", "model_a": "n", "model_b": "m", "score": 1, "weight": "x"}', "line 1: 'x' is no weight"),
        ('{"prompt": "p", "model_a": "n", "model_b": "n", "score": 1}', "line 1: 'n' against itself"),
    ):
        plain.write_text(text)
        with pytest.raises(UsageError, match=message):
            read_battles([plain])
    for name in ("none.jsonl", "none.json"):
        with pytest.raises(UsageError, match=rf"{name}: no such file\nfix: check the path"):
            read_battles([tmp_path / name])
    alpaca.write_text('[{"instruction": "q", "preference": 1}]')
    with pytest.raises(UsageError, match="row 0: has no generator_1, generator_2 or instruction"):
        read_battles([alpaca])
