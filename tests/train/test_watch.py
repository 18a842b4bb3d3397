"""Warnings while training: said when they should be, once, and not otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from training_runs import make_rows, run

from prefloop.train.watch import LEAST, WINDOW, Watch
from tiny_models import tiny_model_folder

BETA = 0.1


def records(
    lost: float, logps: float, count: int = WINDOW, *, rejected: float = 50.0, kind: str = "train"
) -> list[dict[str, Any]]:
    """`lost` and `rejected`: nats that the two answers have lost."""
    rewards = {"rewards/chosen": -BETA * lost, "rewards/rejected": -BETA * rejected}
    return [{"kind": kind, "step": i, **rewards, "logps/chosen": logps, "logps/rejected": logps} for i in range(count)]


def falling(chosen: float, rejected: float) -> list[dict[str, Any]]:
    """Records of an objective without a reference: log-probabilities that lose so many nats in all."""
    shares = [0.0] * WINDOW + [i / WINDOW for i in range(WINDOW)] + [1.0] * WINDOW
    rewards = {"rewards/chosen": 0.0, "rewards/rejected": 0.0}
    return [
        {"kind": "train", "step": i, **rewards, "logps/chosen": -20 - s * chosen, "logps/rejected": -20 - s * rejected}
        for i, s in enumerate(shares)
    ]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (records(LEAST + 1, -20.0), 1),
        (records(LEAST - 1, -20.0), 0),  # too little in nats
        (records(LEAST + 1, -200.0), 0),  # too little of so long an answer
        (records(40.0, -200.0, 5 * WINDOW), 1),  # once
        (records(40.0, -200.0, WINDOW - 1), 0),  # too early
        (records(40.0, -200.0, kind="validation"), 0),
        (records(-2.0, -20.0, rejected=500.0), 0),  # the rejected one alone: what a preference loss is for
        (records(40.0, -20.0, rejected=-3.0), 0),  # the chosen one alone: the loss sees it
    ],
)
def test_answers_that_become_unlikely(given: Any, said: int, caplog: pytest.LogCaptureFixture) -> None:
    watch = Watch(BETA)
    for record in given:
        watch(record)
    assert caplog.text.count("become unlikely") == said


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (falling(20.0, 40.0), 1),
        (falling(3.0, 40.0), 0),
        (falling(20.0, -1.0), 0),
        (falling(-5.0, 40.0), 0),
    ],
)
def test_without_a_reference_they_are_compared_with_the_start(
    given: Any, said: int, caplog: pytest.LogCaptureFixture
) -> None:
    watch = Watch(None)
    for record in given:
        watch(record)
    assert caplog.text.count("become unlikely") == said


@pytest.mark.parametrize("objective", ["dpo", "simpo", "cpo", "orpo", "plackett_luce"])
def test_a_training_too_hot_is_told(objective: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows, settings = make_rows(16), {"objective": {"type": objective}}
    if objective == "cpo":
        settings["objective"]["nll_weight"] = 0.0
    run(tmp_path / "calm", tiny_model_folder("llama"), rows, epochs=4, learning_rate=1e-5, **settings)
    assert "become unlikely" not in caplog.text
    run(tmp_path / "hot", tiny_model_folder("llama"), rows, epochs=16, learning_rate=0.05, lora=False, **settings)
    assert caplog.text.count("become unlikely") == (objective != "orpo"), "ORPO's likelihood term holds them"


def test_cut_off_answers_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = make_rows(8)
    run(tmp_path / "a", tiny_model_folder("llama"), rows)
    assert "cut off" not in caplog.text
    for row in rows[:4]:
        row["chosen_finish"] = "length"
    run(tmp_path / "b", tiny_model_folder("llama"), rows)
    assert "25 % of the answers were cut off" in caplog.text


@pytest.mark.parametrize(("rate", "said"), [(0.0, "lower"), (0.1, ""), (0.9, "raise")])
def test_a_threshold_that_flags_nothing_or_most(rate: float, said: str, caplog: pytest.LogCaptureFixture) -> None:
    watch = Watch(None)
    for step in range(3 * WINDOW):
        watch({"kind": "train", "step": step, "flags/rate": rate})
        watch({"kind": "train", "step": step})  # of satisfactory answers alone
    assert len(caplog.records) == bool(said)
    assert said in caplog.text
