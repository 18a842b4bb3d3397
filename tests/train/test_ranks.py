"""Two processes train what one process trains. The group is started as users start it, by accelerate, with gloo."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import make_judged, make_rows, run, weights

from prefloop.config import LaunchSection, LoraSection
from prefloop.errors import Interrupted, PrefloopError, UsageError
from prefloop.train import checkpoints
from prefloop.train.launch import configuration, processes, shares_weights
from prefloop.train.meter import SPEEDS
from tiny_models import tiny_model_folder

GROUP = LaunchSection(config="cpu", processes=2)


@pytest.mark.parametrize(
    ("objective", "lora"),
    [
        ("dpo", True),
        pytest.param("kto", False, marks=pytest.mark.slow),
        pytest.param("bco", True, marks=pytest.mark.slow),  # its shift is the mean over both processes
        pytest.param("sft", True, marks=pytest.mark.slow),
        pytest.param("cut", True, marks=pytest.mark.slow),  # its totals are those of both processes
    ],
)
def test_two_processes_train_as_one(objective: str, lora: bool, tmp_path: Path) -> None:
    """13 pairs in steps of 4: the last step of an epoch has one pair, so one process has a filler."""
    make = make_judged if objective == "cut" else make_rows
    rows = make(13, weights=True)
    settings: dict[str, Any] = {
        "rows": rows,
        "validation": make(3, seed=1),
        "lora": LoraSection(r=4, alpha=8) if lora else None,  # without dropout, whose draws differ
        "objective": {"type": objective} | ({"normalize": "token"} if objective == "cut" else {}),
        "epochs": 2,
        "micro_batch_size": 1,
        "save_steps": 3,
    }
    found: dict[str, list[dict[str, Any]]] = {"one": [], "two": []}
    for name, records in found.items():
        launch = None if name == "one" else GROUP
        run(tmp_path / name, tiny_model_folder("llama"), records=records, launch=launch, **settings)
    assert [(r["kind"], r["step"]) for r in found["one"]] == [(r["kind"], r["step"]) for r in found["two"]]
    for one, two in zip(found["one"], found["two"], strict=True):
        for key in one.keys() - {*SPEEDS, "epoch"}:
            # Before the first step all rewards are 0 but for rounding, and their signs are chance.
            if isinstance(one[key], float) and not (one["step"] <= 1 and key.endswith("accuracies")):
                assert two[key] == pytest.approx(one[key], abs=1e-5, rel=1e-4), (key, one["step"])
    first, second = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert max(float((first[k] - second[k]).abs().max()) for k in first) < 1e-5
    start = {k: torch.zeros_like(v) for k, v in first.items() if "lora_B" in k}
    assert not start or any(not torch.equal(first[k], start[k]) for k in start), "something was learnt"


def test_a_finished_training_starts_no_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process finished what the group would: their fingerprint is the same."""
    settings: dict[str, Any] = {"rows": make_rows(4), "lora": False}
    one = run(tmp_path / "t", tiny_model_folder("llama"), **settings)
    monkeypatch.setattr("prefloop.train.run.launch", lambda *_, **__: pytest.fail("a group was started"))
    assert run(tmp_path / "t", tiny_model_folder("llama"), launch=GROUP, **settings) == one


def test_shipped_groups_take_a_free_port_and_say_how_they_hold_the_weights() -> None:
    found = {name: LaunchSection(config=name) for name in ("ddp", "fsdp2", "zero3", "cpu")}
    assert {name: shares_weights(section) for name, section in found.items()} == {
        "ddp": False, "fsdp2": True, "zero3": True, "cpu": False
    }  # fmt: skip
    assert [processes(found[name]) for name in ("ddp", "cpu")] == [8, 2]
    assert all(configuration(found[name])["main_process_port"] == 0 for name in ("ddp", "fsdp2", "zero3"))


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_stops_the_group_with_a_checkpoint(
    number: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It comes to the process that listens, and the group ends like one process does; its log reaches this one's."""
    caplog.set_level("INFO", logger="prefloop")
    model, settings = tiny_model_folder("llama"), {"rows": make_rows(16, weights=True), "lora": False, "epochs": 25}

    class Records(list[dict[str, Any]]):
        def append(self, record: dict[str, Any]) -> None:
            super().append(record)
            if record["step"] == 5:
                os.kill(os.getpid(), number)

    records, handler = Records(), signal.getsignal(number)
    with pytest.raises(Interrupted, match=r"stopped at step \d+ of 100, with a checkpoint"):
        run(tmp_path / "t", model, launch=GROUP, records=records, **settings)
    assert signal.getsignal(number) is handler
    stopped = records[-1]["step"]
    assert stopped < 100
    (checkpoint,) = (tmp_path / "t").glob("checkpoint-*")
    assert checkpoint.name == f"checkpoint-{stopped}"
    assert (checkpoint / checkpoints.MARK).exists()
    assert "effective sample size" in caplog.text
    more: list[dict[str, Any]] = []
    run(tmp_path / "t", model, records=more, **settings)
    assert more[0]["step"] == stopped + 1, "and a single process goes on from it"
    run(tmp_path / "one", model, **settings)
    first, second = weights(tmp_path / "one"), weights(tmp_path / "t")
    assert max(float((first[k] - second[k]).abs().max()) for k in first) < 1e-4


def test_what_a_process_finds_out_reaches_the_user(tmp_path: Path) -> None:
    """An error of the group is the same error, and not a traceback."""
    with pytest.raises(PrefloopError, match="loss is not finite at step"):
        run(tmp_path / "t", tiny_model_folder("llama"), learning_rate=1e30, launch=GROUP, max_grad_norm=1e30, epochs=3)


def test_an_unknown_launcher(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no accelerate configuration 'nowhere'"):
        run(tmp_path / "t", tiny_model_folder("llama"), launch=LaunchSection(config="nowhere"))
