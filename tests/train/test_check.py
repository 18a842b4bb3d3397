"""What a training would refuse is found before anything was sampled, from configuration alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import make_rows, run

from prefloop.config import LaunchSection, ModelSection, TrainSection
from prefloop.errors import UsageError
from prefloop.train.precision import Precision
from prefloop.train.run import check_trainable
from tiny_models import tiny_model_folder


def stub(folder: Path, **config: Any) -> Path:
    """A model's configuration without weights or tokenizer."""
    folder.mkdir()
    own = json.loads((tiny_model_folder("llama") / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**own, **config}))
    return folder


def check(folder: Path | str, **settings: Any) -> Precision:
    training = {name: settings.pop(name) for name in ("report_to", "launch") if name in settings}
    model = ModelSection(path=str(folder), **{"device": "cpu", **settings})
    return check_trainable(model, TrainSection(**training))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two devices that are never used."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)


def test_what_can_be_trained_passes_without_weights(tmp_path: Path) -> None:
    assert check(stub(tmp_path / "m")).name == "float32"
    assert check(tmp_path / "m", dtype="bfloat16").name == "bfloat16"
    assert check("sandbox").name == "float32"


@pytest.mark.usefixtures("gpu")
def test_float16_checkpoints_are_trained_in_bfloat16_on_a_gpu(tmp_path: Path) -> None:
    assert check(stub(tmp_path / "m", dtype="float16"), device="cuda").name == "bfloat16"
    with pytest.raises(UsageError, match="float16 is not supported"):
        check(tmp_path / "m", device="cuda", dtype="float16")


@pytest.mark.usefixtures("gpu")
def test_training_runs_on_the_first_gpu(tmp_path: Path) -> None:
    assert check(stub(tmp_path / "m"), device="cuda:0").device == torch.device("cuda:0")
    with pytest.raises(UsageError, match="CUDA_VISIBLE_DEVICES=1"):
        check(tmp_path / "m", device="cuda:1")
    with pytest.raises(UsageError, match="cuda:0 to cuda:1"):
        check(tmp_path / "m", device="cuda:2")


def test_quantised_models(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="quantised"):
        check(stub(tmp_path / "m", quantization_config={"quant_method": "gptq", "bits": 4}))


def test_no_such_model(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no model configuration"):
        check(tmp_path)


def test_an_unmerged_adapter_is_no_start(tmp_path: Path) -> None:
    run(tmp_path / "t", tiny_model_folder("llama"), make_rows(4))
    for refused in (check, lambda adapter: run(tmp_path / "u", adapter)):
        with pytest.raises(UsageError, match=r"merge it first, in Python.*\n?.*train\.run\.merge"):
            refused(tmp_path / "t" / "adapter")


def test_an_accelerate_configuration_must_be_there(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.touch()
    for known in ("ddp", "fsdp2", "zero3", "cpu", str(own)):
        check(tiny_model_folder("llama"), launch=LaunchSection(config=known))
    with pytest.raises(UsageError, match="no accelerate configuration 'dpp'"):
        check(tiny_model_folder("llama"), launch=LaunchSection(config="dpp"))


def test_trackers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.integrations.get_available_reporting_integrations", lambda: ["tensorboard"])
    folder = stub(tmp_path / "m")
    for known in (["tensorboard"], ["all"], ["none"], []):
        check(folder, report_to=known)
    for unknown in (["wandb"], ["tensorboard", "tensorbored"]):
        with pytest.raises(UsageError, match=rf"no tracker '{unknown[-1]}'(?s:.*)those here: tensorboard"):
            check(folder, report_to=unknown)
