"""The judge loop by its command, on freshly made tiny models of real architectures with their own templates."""

from __future__ import annotations

import json

import pytest
from tests.loop.conftest import write_prompts
from tests.tiny_models import tiny_model_folder
from typer.testing import CliRunner

from prefloop.cli.commands import app
from prefloop.engine.templates import PLAIN


@pytest.mark.parametrize("arch", ["llama", "qwen3", "mistral", "gemma3", "gpt_neox"])
def test_judge_dpo_runs_on(arch, tmp_path, monkeypatch):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.chdir(tmp_path)
    folder = tiny_model_folder(arch)
    write_prompts(tmp_path / "prompts.jsonl", range(10))
    done = CliRunner().invoke(
        app, ["run", "judge-dpo", f"model={folder}", "prompts.path=prompts.jsonl", "--out", "out", "--json"]
    )
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["evaluate"]["win_rate"]["n"] == 1
    assert summary["stages"]["pair"]["rows"]["kept"] == 9
    losses = [m["loss"] for m in map(json.loads, (tmp_path / "out" / "metrics.jsonl").open()) if m["kind"] == "train"]
    assert losses[0] == pytest.approx(0.6931, abs=1e-3)
    assert losses[-1] < losses[0]
    before, after = (AutoModelForCausalLM.from_pretrained(f) for f in (folder, tmp_path / "out" / "model"))
    assert type(after) is type(before)
    assert any((a != b).any() for a, b in zip(before.state_dict().values(), after.state_dict().values(), strict=True))
    own, merged = (AutoTokenizer.from_pretrained(f).chat_template for f in (folder, tmp_path / "out" / "model"))
    assert merged == (own or PLAIN)  # GPT-NeoX is a base model without one
