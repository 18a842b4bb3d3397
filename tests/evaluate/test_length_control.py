"""Length control: AlpacaEval's published numbers, what it refuses, and what its regulariser is there for."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest

from prefloop.errors import UsageError
from prefloop.evaluate import length_control, length_files
from prefloop.evaluate.alpaca_prompts import DIGITS, in_order, position, positions, require_canonical
from prefloop.evaluate.length_control import (
    fit_logistic,
    fit_three,
    length_controlled,
    length_controlled_minimal,
    predicted_win_rate,
    standardised,
)
from prefloop.evaluate.length_files import Gamed, Weights, fetch_gamed, read_difficulties, read_gamed, read_weights

PUBLISHED = Path(__file__).parents[2].parent / "shared" / "data" / "alpaca_eval"
MODEL = "FuseChat-Llama-3.2-1B-Instruct"


def published(name):
    file = PUBLISHED / name
    if not file.is_file():
        pytest.skip(f"AlpacaEval's data (CC BY-NC 4.0) is not in this repository; {name} is not there")
    return file


@pytest.fixture(scope="module")
def annotations():
    return json.loads(published(f"{MODEL}__weighted_alpaca_eval_gpt4_turbo__annotations.json").read_text())


def test_the_published_number_from_published_weights(annotations):
    found = length_controlled(
        annotations,
        weights=published("lc_weights_baseline_gpt4_1106_preview.csv"),
        difficulties=published("instruction_difficulty_recovered.csv"),
    )
    assert found["length_controlled_winrate"] == pytest.approx(25.27098247880791, abs=1e-6)
    assert found["lc_standard_error"] == pytest.approx(0.6406636457433237, abs=1e-6)
    assert found["win_rate"] == pytest.approx(29.9219322658882, abs=1e-9)
    assert (found["C"], found["official"], found["warnings"]) == (None, None, [])
    assert len(found["glm_preference"]) == 805


def test_the_published_number_refitted(annotations):
    gamed = published("df_gamed_surrogate.csv")
    found = length_controlled(annotations, gamed=gamed)
    # The regulariser is a stand-in with the official one's sufficient statistics; 0.2 was asked for.
    assert found["length_controlled_winrate"] == pytest.approx(25.27098247880791, abs=1e-4)
    assert found["lc_standard_error"] == pytest.approx(0.6406636457433237, abs=1e-3)
    assert found["C"] == pytest.approx(2.782559402207126)
    assert found["official"] is False
    assert found["regulariser"] == hashlib.sha256(gamed.read_bytes()).hexdigest()
    fixed = length_controlled(annotations, gamed=gamed, C=100)
    assert fixed["length_controlled_winrate"] == pytest.approx(25.27098247880791, abs=0.2)


def test_a_null_verdict_is_left_out_of_the_fit_and_predicted_all_the_same(annotations):
    gamed = published("df_gamed_surrogate.csv")
    rows = [dict(row, preference=None if i % 5 == 0 else str(row["preference"])) for i, row in enumerate(annotations)]
    found = length_controlled(rows, gamed=gamed, C=2.78)
    assert found["n_total"] == 805 - 161
    assert len(found["glm_preference"]) == 805
    whole = length_controlled(annotations, gamed=gamed, C=2.78)
    assert found["length_controlled_winrate"] == pytest.approx(whole["length_controlled_winrate"], abs=3)
    assert found["length_controlled_winrate"] != whole["length_controlled_winrate"]


def test_the_baseline_against_itself_has_50(annotations):
    rows = [dict(row, generator_2=row["generator_1"], output_2=row["output_1"], preference=1.5) for row in annotations]
    found = length_controlled(rows, gamed=published("df_gamed_surrogate.csv"))
    assert (found["length_controlled_winrate"], found["lc_standard_error"]) == (50, 0)
    assert found["weights"] == (0, 0, 0)


def test_any_two_models_can_be_compared(annotations):
    weights = read_weights(published("lc_weights_baseline_gpt4_1106_preview.csv"))
    difficulties = published("instruction_difficulty_recovered.csv")
    against_baseline = predicted_win_rate(weights[MODEL], weights["gpt4_1106_preview"], difficulties)
    assert against_baseline == pytest.approx(25.27098247880791, abs=1e-6)
    one, other = weights[MODEL], weights["gpt4_1106_preview_verbose"]
    forth, back = (predicted_win_rate(a, b, difficulties) for a, b in ((one, other), (other, one)))
    assert forth + back == pytest.approx(100)
    assert forth < against_baseline  # the verbose baseline's own weight is above the baseline's


def test_other_prompts_are_refused(annotations):
    gamed = published("df_gamed_surrogate.csv")
    with pytest.raises(UsageError, match="another order") as error:
        length_controlled(annotations[::-1], gamed=gamed)
    assert "in_order" in str(error.value)
    with pytest.raises(UsageError, match=r"804 rows.*row 131 is the first to differ; 1 prompts are missing"):
        length_controlled(annotations[:131] + annotations[132:], gamed=gamed)
    with pytest.raises(UsageError, match="row 7 is the first to differ"):
        length_controlled(
            [dict(r, instruction="mine" if i == 7 else r["instruction"]) for i, r in enumerate(annotations)]
        )
    with pytest.raises(UsageError, match="806 rows"):
        length_controlled([*annotations, annotations[0]], gamed=gamed)
    with pytest.raises(UsageError, match="no output_2"):
        length_controlled([{**row, "output_2": None} for row in annotations], gamed=gamed)
    with pytest.raises(UsageError, match="no weights of 'nobody'"):
        length_controlled(
            annotations,
            weights=published("lc_weights_baseline_gpt4_1106_preview.csv"),
            difficulties=published("instruction_difficulty_recovered.csv"),
            model="nobody",
        )


def test_own_prompts_are_refused_with_no_data_at_hand():
    rows = [{"instruction": f"question {i}", "output_1": "a", "output_2": "b", "preference": 1} for i in range(805)]
    with pytest.raises(UsageError, match="none of the 805 prompts is AlpacaEval's") as error:
        length_controlled(rows)
    assert "length_controlled_minimal" in str(error.value)


def test_the_order_of_the_prompts(annotations):
    assert len(positions()) == 805
    assert all(len(digest) == DIGITS for digest in positions())
    shuffled = [annotations[i] for i in np.random.default_rng(0).permutation(805)]
    assert in_order(shuffled) == annotations
    assert position("  " + annotations[17]["instruction"] + "\n") == 17
    assert position("\ud800") is None
    with pytest.raises(UsageError, match="804 rows"):
        in_order(shuffled[1:])
    with pytest.raises(UsageError, match="none of the 0 prompts"):
        require_canonical([])


def gamed_rows(rng, per_length):
    """A regulariser made up: verdicts on a baseline told to be brief or wordy, where length alone is worth little."""
    g = rng.normal(0, 1, 805)
    d = np.concatenate([rng.normal(2.5, 0.3, 805), rng.normal(-2.5, 0.3, 805)])
    y = 1 / (1 + np.exp(-(per_length * np.tanh(d))))
    return Gamed(np.tanh(d), np.tile(g, 2), y, g, "")


def scored(delta, g, y, gamed):
    fit = fit_three(standardised(delta, delta), g, y, gamed)
    return 100 * float(np.mean(1 / (1 + np.exp(-(fit.weights_F[1] * g + fit.weights_F[2])))))


def test_without_the_regulariser_truncation_pays():
    """A model as good as the baseline cuts off all answers but the twentieth part that it is surest to win."""
    rng = np.random.default_rng(0)
    gamed = gamed_rows(rng, per_length=-0.8)
    g, quality, honest_delta = gamed.difficulties, rng.normal(0, 1.5, 805), rng.normal(0, 400, 805)
    honest_y = 1 / (1 + np.exp(-(quality - 0.8 * np.tanh(honest_delta / 400))))
    cut = honest_y < np.quantile(honest_y, 0.95)
    cut_delta, cut_y = np.where(cut, 2000 + honest_delta, honest_delta), np.where(cut, 0.02, honest_y)
    honest = [scored(honest_delta, g, honest_y, rule) for rule in (gamed, None)]
    truncated = [scored(cut_delta, g, cut_y, rule) for rule in (gamed, None)]
    assert honest == pytest.approx([50, 50], abs=1)
    assert cut_y.mean() < 0.1, "the win rate falls"
    assert truncated[1] > 90, "without the regulariser the score rises: all is blamed on length"
    assert truncated[0] < 30, "with it the score falls as well"


def test_a_fit_finds_what_the_data_were_made_from():
    rng = np.random.default_rng(1)
    X = np.stack([rng.normal(size=20_000), rng.normal(size=20_000), np.ones(20_000)], axis=1)
    y = 1 / (1 + np.exp(-(X @ [-1.0, 0.5, 0.3])))
    assert fit_logistic(X, y, np.ones(20_000), C=1e4).weights_F == pytest.approx([-1.0, 0.5, 0.3], abs=1e-3)
    # A weight of 2 is a row that stands there twice.
    twice = fit_logistic(np.concatenate([X[:50], X[:20]]), np.concatenate([y[:50], y[:20]]), np.ones(70), C=1.0)
    weighted = fit_logistic(X[:50], y[:50], np.where(np.arange(50) < 20, 2.0, 1.0), C=1.0)
    assert weighted.weights_F == pytest.approx(twice.weights_F, abs=1e-2)


def test_the_older_scikit_learn_is_told_l1_by_its_name(monkeypatch):
    import sklearn.linear_model

    told = []

    class Old:
        def __init__(
            self, penalty="l2", *, C=1.0, solver="lbfgs", fit_intercept=True, random_state=None, l1_ratio=None
        ):
            told.append((penalty, l1_ratio))

        def fit(self, X, y, sample_weight):
            self.coef_ = np.zeros((1, X.shape[1]))

    class New(Old):
        def __init__(self, *, C=1.0, solver="lbfgs", fit_intercept=True, random_state=None, l1_ratio=0.0):
            told.append(("", l1_ratio))

    for kind in (Old, New):
        monkeypatch.setattr(sklearn.linear_model, "LogisticRegression", kind)
        fit_logistic(np.ones((4, 1)), np.full(4, 0.5), np.ones(4), C=1.0)
    assert told == [("l1", None), ("", 1.0)]


def made(n, model, per_length, seed=0):
    """Rows of prompts of our own, with a known preference at equal length: sigmoid(model)."""
    rng = np.random.default_rng(seed)
    delta = rng.integers(-300, 300, n)
    p = 1 / (1 + np.exp(-(model + per_length * np.tanh(delta / delta.std(ddof=1)))))
    return [
        {"instruction": f"q{i}", "output_1": "x" * (400 + d), "output_2": "y" * 400, "preference": 1 + float(p[i])}
        for i, d in enumerate(delta.tolist())
    ]


def test_the_minimal_form_finds_the_win_rate_at_equal_length():
    found = length_controlled_minimal(made(400, 0.4, -1.5), resamples=100)
    figure = found["length_controlled_minimal"]
    assert figure["value"] == pytest.approx(100 / (1 + math.exp(-0.4)), abs=1)
    assert figure["ci_low"] < figure["value"] < figure["ci_high"]
    assert found["weights"]["length"] == pytest.approx(-1.5, abs=0.1)
    assert found["win_rate"] < 60  # other than at equal length
    assert "length_controlled_winrate" not in found
    again = length_controlled_minimal(made(400, 0.4, -1.5), resamples=100)
    assert again == found


def test_the_minimal_form_resamples_prompts_and_not_rows():
    rows = [dict(row, preference=float(1 + (i % 2))) for i, row in enumerate(made(60, 0, 0))]
    fourfold = length_controlled_minimal([row for row in rows for _ in range(4)], resamples=100)
    once = length_controlled_minimal(rows, resamples=100)
    wide, narrow = (
        f["length_controlled_minimal"]["ci_high"] - f["length_controlled_minimal"]["ci_low"] for f in (once, fourfold)
    )
    assert narrow > 0.8 * wide


def test_the_constant_is_not_shrunk_away():
    """Few prompts and soft verdicts: the penalty of the three-parameter form, chosen by its folds, leaves nothing."""
    rng = np.random.default_rng(3)
    rows = [
        dict(
            row,
            preference=1 + float(np.clip(rng.normal(0.58, 0.25), 0, 1)),
            output_2="y" * int(rng.integers(350, 450)),
        )
        for row in made(30, 0, 0)
    ]
    found = length_controlled_minimal(rows, resamples=200)
    figure = found["length_controlled_minimal"]
    assert found["win_rate"] > 54
    assert figure["value"] == pytest.approx(found["win_rate"], abs=3)
    assert figure["ci_low"] + 2 < figure["value"] < figure["ci_high"] - 2
    delta = np.array([float(len(r["output_1"]) - len(r["output_2"])) for r in rows])
    X = np.stack([standardised(delta, delta), np.ones(30)], axis=1)
    shrunk = fit_logistic(X, np.array([r["preference"] - 1 for r in rows]), np.ones(30))
    assert shrunk.weights_F == [0, 0], "what the penalty made of it"


@pytest.mark.parametrize("preferences", [[2, 2, 2, 1, 1], [1.2, 1.9, 1.55, 1.7, 1.03, 2]])
def test_at_equal_lengths_it_is_the_win_rate(preferences):
    rows = [
        {"instruction": f"q{i}", "output_1": "x" * (9 + i), "output_2": "y" * (9 + i), "preference": p}
        for i, p in enumerate(preferences * 4)
    ]
    found = length_controlled_minimal(rows, resamples=100)
    assert found["length_controlled_minimal"]["value"] == pytest.approx(found["win_rate"], abs=1e-4)
    assert found["weights"]["length"] == 0
    assert found["warnings"] == []


def test_the_minimal_form_at_its_ends():
    rows = [dict(row, preference=2) for row in made(20, 0, 0)]
    found = length_controlled_minimal(rows, resamples=20)
    assert found["length_controlled_minimal"]["value"] > 99
    assert any("all verdicts are for one side" in text for text in found["warnings"])
    same = [dict(row, output_2=row["output_1"], preference=1.5) for row in rows]
    assert length_controlled_minimal(same, resamples=20)["length_controlled_minimal"]["value"] == pytest.approx(50)
    with pytest.raises(UsageError, match="only 4 prompts have a verdict"):
        length_controlled_minimal([dict(row, preference=None if i > 3 else 1) for i, row in enumerate(rows)])


def test_what_cannot_be_fitted_is_said():
    # The longer answer always wins: any large weight of length fits as well as any other.
    decided = [dict(row, preference=1.0 + (len(row["output_1"]) < 400)) for row in made(40, 0, 0)]
    found = length_controlled_minimal(decided, resamples=50)
    assert any("no weights fit best" in text for text in found["warnings"])
    # Nothing of equal length was seen: the interval is wide, and it is said why.
    longer = [dict(row, output_2="y" * (900 + 7 * i)) for i, row in enumerate(made(40, 0.4, 0))]
    found = length_controlled_minimal(longer, resamples=50)
    assert any("all answers of the model are longer" in text for text in found["warnings"])
    found = length_controlled_minimal(made(40, 0.4, -0.5), resamples=50)
    assert found["warnings"] == []


def test_a_large_move_is_warned_of():
    found = {"win_rate": 20.0, "length_controlled_winrate": 41.0}
    assert "from 20.0 % to 41.0 %" in length_control._warnings(found)[0]
    # 20 + (100 - 20) / 4 = 40 and 20 - 10 = 10 are the ends.
    assert length_control._warnings(found | {"length_controlled_winrate": 40.0}) == []
    assert length_control._warnings(found | {"length_controlled_winrate": 10.0}) == []
    assert length_control._warnings(found | {"length_controlled_winrate": 9.9})


def test_lengths_that_all_differ_alike_say_nothing():
    assert standardised(np.full(4, 7.0), np.full(4, 7.0)).tolist() == [0, 0, 0, 0]
    # ddof 1: sd of 0 and 2 is sqrt 2.
    found = standardised(np.array([0.0, 2.0]), np.array([0.0, 2.0]))
    assert found.tolist() == pytest.approx([0, math.tanh(math.sqrt(2))])


def test_the_hub_is_said_to_be_out_of_reach():
    with pytest.raises(UsageError, match="is not in the local cache") as error:
        fetch_gamed()
    assert "hf download --repo-type dataset tatsu-lab/alpaca_eval df_gamed.csv" in str(error.value)


def test_a_file_of_the_hub_that_is_not_the_published_one_is_refused(monkeypatch, tmp_path):
    import huggingface_hub

    file = tmp_path / "df_gamed.csv"
    file.write_text("index\n0\n")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *a, **k: str(file))
    with pytest.raises(UsageError, match="is not the published file"):
        fetch_gamed()
    monkeypatch.setattr(length_files, "OFFICIAL_SHA256", hashlib.sha256(file.read_bytes()).hexdigest())
    assert fetch_gamed() == file


def test_files_that_are_not_what_they_should_be(tmp_path):
    file = tmp_path / "x.csv"
    with pytest.raises(UsageError, match="cannot be read"):
        read_difficulties(file)
    file.write_text("index,instruction_difficulty\n0,0.5\n1,x\n")
    with pytest.raises(UsageError, match="line 3, instruction_difficulty: 'x' is no number"):
        read_difficulties(file)
    file.write_text("index,instruction_difficulty\n0,0.5\n")
    with pytest.raises(UsageError, match="1 difficulties, not one for each"):
        read_difficulties(file)
    with pytest.raises(UsageError, match="no column 'std_delta_len'"):
        read_gamed(_write(file, "index,preference,instruction_difficulty\n0,0.5,1\n"))
    with pytest.raises(UsageError, match="has no rows"):
        read_weights(_write(file, ",np.tanh(std_delta_len),instruction_difficulty,not_gamed_baseline.astype(float)\n"))


def test_difficulties_are_looked_up_by_their_index(tmp_path):
    lines = [f"{i},{i / 10}" for i in reversed(range(805))]
    found = read_difficulties(_write(tmp_path / "d.csv", "index,instruction_difficulty\n" + "\n".join(lines)))
    assert found.tolist() == [i / 10 for i in range(805)]
    rows = [f"m,{i},0.5,{d},{i / 10},False" for d in (1, -1) for i in range(805)]
    head = "model,index,preference,std_delta_len,instruction_difficulty,not_gamed_baseline\n"
    gamed = read_gamed(_write(tmp_path / "g.csv", head + "\n".join(rows)))
    assert gamed.difficulties.tolist() == found.tolist()
    assert (len(gamed.y_G), gamed.z_G[0], gamed.z_G[-1]) == (1610, math.tanh(1), math.tanh(-1))


def test_weights_are_read_by_name(tmp_path):
    head = ",np.tanh(std_delta_len),instruction_difficulty,not_gamed_baseline.astype(float)\n"
    assert read_weights(_write(tmp_path / "w.csv", head + "m,-1,2,3.5\n")) == {"m": Weights(-1, 2, 3.5)}


def _write(file, text):
    file.write_text(text)
    return file
