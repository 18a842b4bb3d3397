"""DPO weighted by w^alpha: known numbers, another implementation's values, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from training_runs import make_rows, run

from prefloop.config import DpoObjectiveSection, KtoObjectiveSection
from prefloop.errors import UsageError
from prefloop.train.losses import dpo, reduce
from prefloop.train.objectives import OBJECTIVES, Scored
from tiny_models import tiny_model_folder

PARITY = Path(__file__).parents[3] / "shared" / "data" / "parity" / "sbm.json"
M, W = [0.0, 5.0, -3.0, 20.0], [1.0, 0.5, 0.25, 0.0]


def test_known_numbers() -> None:
    chosen = torch.tensor(M, dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(4, dtype=torch.float64)
    weight = torch.tensor(W, dtype=torch.float64) ** 2
    base = dpo(chosen, zero, zero, zero, beta=0.1)
    assert base.tolist() == pytest.approx([0.693147181, 0.474076984, 0.854355244, 0.126928011], abs=1e-9)
    loss = reduce(base, weight)
    assert loss.item() == pytest.approx(0.216265907, abs=1e-9)
    assert reduce(base).item() == pytest.approx(0.537126855, abs=1e-9)
    (gradient,) = torch.autograd.grad(loss, chosen)
    assert gradient.tolist() == pytest.approx([-0.0125, -0.00235962918, -0.000897566433, 0], abs=1e-11)


def test_large_gaps_stay_finite() -> None:
    zero = torch.zeros(2)
    assert dpo(torch.tensor([1e4, -1e4]), zero, zero, zero, beta=0.1).tolist() == pytest.approx([0, 1000])


@pytest.mark.skipif(not PARITY.is_file(), reason="the parity data is not here")
@pytest.mark.parametrize(
    ("kind", "alpha", "smoothing"),
    [*((kind, alpha, 0.0) for kind in ("sigmoid", "hinge") for alpha in (0.0, 0.5, 1.0, 2.0)), ("sigmoid", 2.0, 0.1)],
)
def test_the_published_code_gives_the_same(kind: Any, alpha: float, smoothing: float) -> None:
    """Not ipo: the published code averages it over tokens, whose numbers the data does not have."""
    known = json.loads(PARITY.read_text())["loss"]
    policy, reference = (torch.tensor(known[f"sum_logps_{side}"]) for side in ("policy", "ref"))
    weight, n = torch.tensor(known["weight"]) ** alpha, known["n"]
    sides = policy[:n], policy[n:], reference[:n], reference[n:]
    found = reduce(dpo(*sides, beta=known["beta"], kind=kind, label_smoothing=smoothing), weight)
    expected = known["losses"][kind][f"train_mean_alpha{alpha}"]
    if smoothing:
        expected = known["losses"]["sigmoid_smooth0.1_alpha2_mean"]
    assert found.item() == pytest.approx(expected, rel=2e-6)


def test_the_likelihood_term_stands_beside_the_weights() -> None:
    scored = Scored(
        policy=torch.tensor([-8.0, -9.0, -6.0, -7.0]),
        reference=torch.tensor([-8.0, -9.0, -6.0, -7.0]),
        tokens=torch.tensor([4, 4, 2, 2]),
        counts=(2, 2),
        weight=torch.tensor([1.0, 0.1]),
        margin=torch.zeros(2),
        label=torch.ones(2),
    )
    section = DpoObjectiveSection(sft_weight=0.3, weight_alpha=2)
    objective = OBJECTIVES["dpo"]
    assert objective.losses(scored, section).tolist() == pytest.approx([math.log(2)] * 2)
    beside = objective.beside(scored, section)
    assert beside is not None
    assert beside.tolist() == pytest.approx([0.6, 0.9])
    # Without weight_alpha it is part of the row's loss, and weighted with it.
    plain = DpoObjectiveSection(sft_weight=0.3)
    assert objective.beside(scored, plain) is None
    assert objective.losses(scored, plain).tolist() == pytest.approx([math.log(2) + 0.6, math.log(2) + 0.9])


def rows(weights: list[float | None], seed: int = 0) -> list[dict[str, Any]]:
    return [{**row, "weight": w} for row, w in zip(make_rows(len(weights), seed=seed), weights, strict=True)]


def trained(folder: Path, weights: list[float | None], **settings: Any) -> tuple[dict[str, Any], dict[str, float]]:
    """The result, and the first losses by kind of record."""
    records: list[dict[str, Any]] = []
    settings = {"batch_size": 4, "validation": rows([0.5, 0.5], seed=1)} | settings
    result = run(folder, tiny_model_folder("llama"), rows(weights), records=records, **settings)
    return result, {kind: next(r["loss"] for r in records if r["kind"] == kind) for kind in ("validation", "train")}


@pytest.mark.parametrize("alpha", [0, 1, 2])
def test_a_training_weighs_its_steps_and_not_its_validation(alpha: int, tmp_path: Path) -> None:
    weights = [1.0, 0.5, 0.25, 0.5]
    result, losses = trained(tmp_path / "t", list(weights), objective={"type": "dpo", "weight_alpha": alpha})
    powers = [w**alpha for w in weights]
    assert losses["train"] == pytest.approx(math.log(2) * sum(powers) / 4, abs=1e-6)
    assert losses["validation"] == pytest.approx(math.log(2), abs=1e-6)
    said = result["weighting"]
    assert said["effective_sample_size"] == pytest.approx(sum(powers) ** 2 / sum(p**2 for p in powers))
    assert (said["power"], said["n"], said["least"], said["largest"]) == (alpha, 4, min(powers), max(powers))


def test_the_likelihood_in_a_step_is_not_weighted(tmp_path: Path) -> None:
    """However the step is cut: what it has beside the preference's loss is the same with any weights."""
    found = []
    for name, weights, cut in (("a", [1.0, 0.5, 0.25, 0.5], None), ("b", [0.1] * 4, 2)):
        objective = {"type": "dpo", "weight_alpha": 2, "sft_weight": 0.5}
        _, losses = trained(tmp_path / name, list(weights), objective=objective, micro_batch_size=cut)
        found.append(losses["train"] - math.log(2) * sum(w**2 for w in weights) / 4)
    assert found[0] > 0.1
    assert found[0] == pytest.approx(found[1], rel=1e-5)


@pytest.mark.parametrize(
    ("weights", "said"),
    [([1.0, 0.0], "above 0"), ([1.0, 1.5], "at most 1"), ([0.5, None], "1 rows have no weight")],
)
def test_other_weights_are_refused(weights: list[float | None], said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        trained(tmp_path / "t", weights, objective={"type": "dpo", "weight_alpha": 2})


def test_single_answers_take_no_pair_weights() -> None:
    with pytest.raises(ValidationError, match="kto learns from each answer by itself"):
        KtoObjectiveSection.model_validate({"type": "kto", "weight_alpha": 2})
