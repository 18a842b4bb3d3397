"""Loading: folders, adapters, precision, devices, and what is refused."""

import importlib.resources
import json
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tests.tiny_models import copy_tiny_model, load_tiny, tiny_model_folder

from prefloop.config import ModelSection
from prefloop.engine.load import adapter_base, choose_device, choose_dtype, load_model, resolve_model_path
from prefloop.engine.tokens import load_tokenizer
from prefloop.errors import UsageError


@pytest.fixture
def adapter(tmp_path):
    """A folder with a LoRA adapter of the tiny llama and no tokenizer."""
    model, _ = load_tiny("llama")
    peft = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    peft.peft_config["default"].base_model_name_or_path = str(tiny_model_folder("llama"))
    peft.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def section(path, **settings):
    return ModelSection(path=str(path), device="cpu", **settings)


def test_loads_a_folder_in_eval_mode():
    model = load_model(section(tiny_model_folder("llama")))
    assert not model.training
    assert model.dtype == torch.float32
    assert load_model(section(tiny_model_folder("llama"), dtype="bfloat16")).dtype == torch.bfloat16


def test_loads_base_and_adapter(adapter):
    model, base = load_model(section(adapter)), load_model(section(tiny_model_folder("llama")))
    ids = torch.tensor([[1, 5, 6]])
    with torch.no_grad():
        assert isinstance(model, PeftModel)
        assert (model(input_ids=ids).logits - base(input_ids=ids).logits).abs().max() > 1e-3
        with model.disable_adapter():
            torch.testing.assert_close(model(input_ids=ids).logits, base(input_ids=ids).logits)
    assert load_tokenizer(section(adapter)).eos_token == "<|eos|>"  # the base's


def test_adapter_base(adapter):
    assert adapter_base(str(adapter)) == (str(tiny_model_folder("llama")), None)
    assert adapter_base(str(tiny_model_folder("llama"))) is None
    assert adapter_base("some/hub-id") is None
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(UsageError, match="names no base model"):
        adapter_base(str(adapter))


def test_what_is_not_there_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="cannot be loaded as a causal language model"):
        load_model(section(tmp_path))


def test_missing_weights_are_an_error_not_random(tmp_path):
    folder = copy_tiny_model(tmp_path / "model", "llama")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"lacks 1 weights, model\.layers\.1\.mlp\.up_proj\.weight first"):
        load_model(section(folder))


def test_pickled_weights_are_not_read(tmp_path):
    folder = copy_tiny_model(tmp_path / "model", "llama")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UsageError, match="cannot be loaded"):
        load_model(section(folder))


def test_dtype_rule():
    assert choose_dtype("auto", torch.device("cpu")) == torch.float32
    assert choose_dtype("auto", torch.device("cuda")) == "auto"
    assert choose_dtype("float16", torch.device("cpu")) == torch.float16


def test_device_rule(monkeypatch):
    assert choose_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto").type in ("cpu", "mps")
    with pytest.raises(UsageError, match="unknown device 'gpu'"):
        choose_device("gpu")


def test_sandbox_resolves_to_package_data(tmp_path, monkeypatch):
    assert resolve_model_path("org/name") == "org/name"
    assert resolve_model_path("./sandbox") == "./sandbox"  # a folder of that name
    monkeypatch.setattr(importlib.resources, "files", lambda package: tmp_path)
    with pytest.raises(UsageError, match="embedded model is not installed"):
        resolve_model_path("sandbox")
    weights = tmp_path / "sandbox" / "weights" / "v1"
    weights.mkdir(parents=True)
    (weights / "config.json").write_text("{}")
    assert resolve_model_path("sandbox") == str(weights)


def test_resolving_imports_nothing_heavy():
    code = (
        "import sys, prefloop.engine.tokens\n"
        "from prefloop.engine.load import adapter_base, resolve_model_path\n"
        "resolve_model_path('org/name'); adapter_base('org/name')\n"
        "bad = {'torch', 'transformers', 'jinja2', 'prefloop.sandbox'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
