"""BCO's running shift: what it is the mean of, and that it survives cuts, a stop and a resume."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import make_rows, run, weights

from prefloop.train.shift import FILE, RewardShift
from tiny_models import tiny_model_folder

SETTINGS: dict[str, Any] = {"objective": {"type": "bco", "beta": 0.5}, "learning_rate": 5e-3, "epochs": 2}


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def test_the_loss_is_measured_from_the_mean_of_all_rewards_before(tmp_path: Path) -> None:
    """20 steps of one pair, each against the formula of Jung et al. with the mean kept here."""
    records: list[dict[str, Any]] = []
    run(tmp_path / "t", tiny_model_folder("llama"), make_rows(10), batch_size=1, records=records, **SETTINGS)
    assert len(records) == 20
    before: list[float] = []
    for record in records:
        shift = sum(before) / len(before) if before else 0.0
        chosen, rejected = record["rewards/chosen"], record["rewards/rejected"]
        assert record["rewards/shift"] == pytest.approx(shift, abs=1e-6)
        assert record["loss"] == pytest.approx(-log_sigmoid(chosen - shift) - log_sigmoid(shift - rejected), abs=1e-5)
        before += [chosen, rejected]
    assert abs(records[-1]["rewards/shift"]) > 0.05, "the shift is of some size"


def test_the_cut_of_a_step_does_not_matter(tmp_path: Path) -> None:
    found = {}
    for micro in (1, 4):
        run(tmp_path / str(micro), tiny_model_folder("llama"), make_rows(13), lora=False, micro_batch_size=micro,
            **SETTINGS)  # fmt: skip
        found[micro] = weights(tmp_path / str(micro))
    assert max(float((found[1][k] - found[4][k]).abs().max()) for k in found[1]) < 1e-5


def test_a_resumed_training_has_the_same_shift(tmp_path: Path) -> None:
    class Stops(list[dict[str, Any]]):
        def append(self, record: dict[str, Any]) -> None:
            super().append(record)
            if record["step"] == 6:
                raise KeyboardInterrupt

    model, settings = tiny_model_folder("llama"), {"rows": make_rows(16), "save_steps": 3, **SETTINGS}
    first: list[dict[str, Any]] = []
    run(tmp_path / "whole", model, records=first, **settings)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "t", model, records=Stops(), **settings)
    assert (tmp_path / "t" / "checkpoint-3" / FILE).exists()
    more: list[dict[str, Any]] = []
    run(tmp_path / "t", model, records=more, **settings)
    assert [r["rewards/shift"] for r in more] == [r["rewards/shift"] for r in first if r["step"] >= more[0]["step"]]
    assert more[0]["step"] == 4
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "t")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_sums_are_kept_to_the_bit(tmp_path: Path) -> None:
    shift = RewardShift(0.1 + 0.2, 3)
    shift.save(tmp_path)
    assert RewardShift.load(tmp_path).total == 0.1 + 0.2
    assert RewardShift().mean == 0.0
