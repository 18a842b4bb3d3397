"""DLMA's margins: the published numbers, the published code's values, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_runs import make_rows, run

from prefloop.config import DpoObjectiveSection, TrainSection
from prefloop.errors import UsageError
from prefloop.train.losses import dpo, scale_margin
from prefloop.train.objectives import OBJECTIVES, Scored
from tiny_models import tiny_model_folder

PUBLISHED: dict[str, Any] = {"type": "dpo", "beta": 0.1, "margin_weight": 0.2, "margin_clip": [-40, 40]}
PARITY = Path(__file__).parents[3] / "shared" / "data" / "parity" / "dlma.npz"


def scored(margins: list[float], policy: torch.Tensor | None = None) -> Scored:
    n = len(margins)
    zero = torch.zeros(2 * n)
    return Scored(
        policy=zero if policy is None else policy,
        reference=zero,
        tokens=torch.full((2 * n,), 4),
        counts=(2,) * n,
        weight=torch.ones(n),
        margin=torch.tensor(margins),
        label=torch.ones(n),
    )


def test_the_published_numbers_at_the_start() -> None:
    policy = torch.zeros(6, requires_grad=True)
    section = DpoObjectiveSection(**PUBLISHED)
    losses = OBJECTIVES["dpo"].losses(scored([90.0, 0.0, -40.0], policy), section)
    assert losses.tolist() == pytest.approx([1.1711, 0.6931, 0.3711], abs=5e-5)
    (gradient,) = torch.autograd.grad(losses.sum(), policy)
    # d loss / d h = -beta * weight of the pair.
    assert (-gradient.view(-1, 2)[:, 0] / 0.1).tolist() == pytest.approx([0.690, 0.5, 0.310], abs=5e-4)


def test_metrics_say_how_many_margins_are_clipped() -> None:
    section = DpoObjectiveSection(**PUBLISHED)
    found = OBJECTIVES["dpo"].metrics(scored([90.0, 40.0, 10.0, -41.0]), section)
    assert found["margins/clipped"].tolist() == [1, 1, 0, 1]
    assert found["margins/used"].tolist() == pytest.approx([8, 8, 2, -8])
    assert "margins/used" not in OBJECTIVES["dpo"].metrics(scored([1.0]), DpoObjectiveSection())


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("default_w=.2_clamp40", {}),
        ("yaml_clamp20", {"low": -20, "high": 20}),
        ("label_smoothing_.1", {"label_smoothing": 0.1}),
        ("reference_free", {"reference_free": True}),
        ("plain_dpo", {"plain": True}),
    ],
)
def test_the_published_code_gives_the_same(name: str, settings: dict[str, Any]) -> None:
    if not PARITY.exists():
        pytest.skip("the parity data is not in this checkout")
    data = {key: torch.from_numpy(value) for key, value in np.load(PARITY).items()}
    rc, rr = (torch.zeros_like(data[k]) if settings.get("reference_free") else data[k] for k in ("rc", "rr"))
    low, high = settings.get("low", -40), settings.get("high", 40)
    margin = None if settings.get("plain") else scale_margin(data["margin"], 0.2, low, high)
    smoothing = settings.get("label_smoothing", 0.0)
    found = dpo(data["pc"], data["pr"], rc, rr, beta=0.1, margin=margin, label_smoothing=smoothing)
    torch.testing.assert_close(found, data[name], rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"margin_weight": 0.0}, "greater than 0"),
        ({"margin_weight": -0.2}, "greater than 0"),
        ({"margin_clip": [40, -40]}, "empty range"),
        ({"margin_clip": [3, 3]}, "empty range"),
        ({"kind": "ipo"}, "kind ipo with margin_weight"),
        ({"margin_weight": None}, "margin_clip without margin_weight"),
        ({"margin_weight": None, "margin_clip": None, "margin_unit": "mad"}, "margin_unit without margin_weight"),
    ],
)
def test_what_means_nothing_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TrainSection(objective={**PUBLISHED, **settings})


def test_a_row_without_a_margin_is_refused(tmp_path: Path) -> None:
    rows = make_rows(6, margins=True)
    rows[2]["margin"] = None
    with pytest.raises(UsageError, match="1 rows have no margin"):
        run(tmp_path / "t", tiny_model_folder("llama"), rows, objective=PUBLISHED)


@pytest.mark.parametrize("unit", ["nats", "mad"])
def test_training_starts_at_the_margins_loss(unit: str, tmp_path: Path) -> None:
    rows = make_rows(6, margins=True)
    records: list[dict[str, Any]] = []
    objective = {**PUBLISHED, "margin_clip": [-3, 3], "margin_unit": unit}
    result = run(tmp_path / "t", tiny_model_folder("llama"), rows, objective=objective, batch_size=6, records=records)
    margins = np.array([row["margin"] for row in rows])
    if unit == "mad":
        margins = margins / np.median(np.abs(margins - np.median(margins)))
    expected = np.log1p(np.exp(0.1 * 0.2 * np.clip(margins, -3, 3))).mean()
    assert result["first_loss"] == pytest.approx(expected, abs=1e-4)
    assert not math.isclose(expected, math.log(2), abs_tol=1e-4)
    assert records[0]["margins/clipped"] == pytest.approx(np.mean(np.abs(margins) >= 3), abs=1e-6)


def test_equal_margins_have_no_spread(tmp_path: Path) -> None:
    rows = make_rows(6)
    for row in rows:
        row["margin"] = 2.0
    with pytest.raises(UsageError, match="median absolute deviation is 0"):
        run(tmp_path / "t", tiny_model_folder("llama"), rows, objective={**PUBLISHED, "margin_unit": "mad"})
