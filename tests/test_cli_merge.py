"""`prefloop merge --trained` and `prefloop estimate`, through the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.tiny_models import tiny_model_folder

from prefloop.config import LoraSection, ModelSection
from prefloop.engine.load import load_model
from prefloop.train import adapters


def prefloop(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "prefloop", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_an_adapter_becomes_a_model_folder(tmp_path: Path) -> None:
    model = tiny_model_folder("llama")
    adapters.save(adapters.add_lora(load_model(ModelSection(path=str(model))), LoraSection(r=2)), tmp_path / "adapter")
    settings = ["merge", "judge-dpo", f"model={model}", "prompts.path=none.jsonl", "--trained", "adapter"]
    said = prefloop(tmp_path, *settings)
    assert said.returncode == 2
    assert "--out FOLDER" in said.stderr
    said = prefloop(tmp_path, *settings, "--out", "merged", "--json")
    assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout)["dtype"] == "float32"
    assert "Loading weights" not in said.stderr
    assert (tmp_path / "merged" / "model.safetensors").is_file()


def test_an_estimate_needs_no_weights(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text((tiny_model_folder("llama") / "config.json").read_text())
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a question"}\n')
    settings = ["estimate", "judge-dpo", "model=model", "prompts.path=prompts.jsonl"]
    said = prefloop(tmp_path, *settings)
    assert said.returncode == 2
    assert "--pairs" in said.stderr
    said = prefloop(tmp_path, *settings, "--pairs", "500", "--json")
    assert said.returncode == 0, said.stderr
    found = json.loads(said.stdout)
    assert found["peak"] > found["weights"] > 0
    assert found["assumed_rows"] is True
    assert "memory of one process at its peak" in said.stderr
