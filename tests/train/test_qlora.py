"""A quantised base: less memory, a reference of its own, and a merge into the unquantised weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import make_rows, run, weights
from transformers import AutoModelForCausalLM

from prefloop.config import LaunchSection, LoraSection, MergeSection, ModelSection
from prefloop.engine.flops import ModelShape
from prefloop.engine.load import load_model
from prefloop.engine.logprob import parts
from prefloop.errors import UsageError
from prefloop.train.run import merge
from tiny_models import copy_tiny_model, tiny_model_folder

bitsandbytes = pytest.importorskip("bitsandbytes")


WIDE = {"width": 64}  # bitsandbytes quantises 64 weights of a row together


def test_a_quantised_base_is_trained_upon(tmp_path: Path) -> None:
    model = tiny_model_folder("llama", **WIDE)
    records: list[dict[str, Any]] = []
    settings: dict[str, Any] = {"epochs": 4, "learning_rate": 5e-3, "records": records}
    result = run(tmp_path / "t", model, make_rows(12), lora=LoraSection(r=4, alpha=8, quantize="nf4"), **settings)
    assert records[0]["loss"] == pytest.approx(math.log(2), abs=1e-3), "the reference is quantised too"
    assert records[-1]["rewards/margins"] > records[0]["rewards/margins"]
    assert result["reference"]["weights"] == "nf4"
    plain = load_model(ModelSection(path=str(model), device="cpu"))
    assert result["parameters"] == plain.num_parameters() + result["trainable_parameters"]
    assert all(value.dtype == torch.float32 for value in weights(tmp_path / "t").values())
    merge(ModelSection(path=str(model), device="cpu"), tmp_path / "t", tmp_path / "merged", MergeSection())
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert getattr(merged.config, "quantization_config", None) is None


def test_its_operations_are_those_of_the_plain_model() -> None:
    section = ModelSection(path=str(tiny_model_folder("llama", **WIDE)), device="cpu")
    plain, packed = (ModelShape.of(*parts(load_model(section, how))) for how in (None, "nf4"))
    assert packed == plain


def test_it_is_the_training_of_the_rounded_weights(tmp_path: Path) -> None:
    """Losses and adapter are those of a plain model that holds what the four bits stand for."""
    section = ModelSection(path=str(tiny_model_folder("llama", **WIDE)), device="cpu")
    rounded, quantised = load_model(section), load_model(section, "nf4")
    with torch.no_grad():
        for name, module in quantised.named_modules():
            if isinstance(module, bitsandbytes.nn.Linear4bit):
                plain = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
                rounded.get_submodule(name).weight.copy_(plain)
    folder = copy_tiny_model(tmp_path / "rounded", "llama", **WIDE)
    rounded.save_pretrained(folder)
    found: dict[str, list[dict[str, Any]]] = {"plain": [], "nf4": []}
    for name, records in found.items():
        lora = LoraSection(r=4, alpha=8, quantize="nf4" if name == "nf4" else None)
        path = folder if name == "plain" else section.path
        run(tmp_path / name, path, make_rows(12), lora=lora, epochs=2, learning_rate=5e-3, records=records)
    assert [r["loss"] for r in found["nf4"]] == pytest.approx([r["loss"] for r in found["plain"]], abs=1e-3)
    ours, theirs = weights(tmp_path / "nf4"), weights(tmp_path / "plain")
    assert max(float((ours[k] - theirs[k]).abs().max()) for k in ours) < 2e-3
    assert max(float(v.abs().max()) for k, v in ours.items() if "lora_B" in k) > 5e-3, "something was learnt"


def test_it_is_smaller() -> None:
    section = ModelSection(path=str(tiny_model_folder("llama", **WIDE)), device="cpu")

    def size(quantize: str | None) -> int:
        return sum(p.numel() * p.element_size() for p in load_model(section, quantize).model.layers.parameters())

    assert size("nf4") < 0.2 * size(None)


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lora = LoraSection(quantize="nf4")
    with pytest.raises(UsageError, match="not shared out over processes"):
        run(tmp_path / "t", tiny_model_folder("llama"), lora=lora, launch=LaunchSection(config="fsdp2"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="bitsandbytes is not installed"):
        run(tmp_path / "t", tiny_model_folder("llama"), lora=lora)
