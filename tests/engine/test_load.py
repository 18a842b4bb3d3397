"""Loading: folders, adapters, precision, devices, and what is refused."""

import importlib.resources
import json
import subprocess
import sys
from unittest.mock import Mock

import pytest
import torch
import transformers
from huggingface_hub import errors as hub
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tests.tiny_models import copy_tiny_model, load_tiny, tiny_model_folder

from prefloop.config import ModelSection
from prefloop.engine.load import (
    adapter_base,
    choose_device,
    choose_dtype,
    load_adapter,
    load_config,
    load_model,
    resolve_model_path,
)
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


@pytest.mark.parametrize("load", [load_model, load_tokenizer, load_config])
@pytest.mark.parametrize(
    ("error", "fix"),
    [
        (hub.GatedRepoError("403", response=Mock()), r"terms at https://huggingface.co/org/name.*`hf auth login`"),
        (hub.RepositoryNotFoundError("401", response=Mock()), r"give a hub id.*private.*`hf auth login`"),
        (hub.RevisionNotFoundError("404", response=Mock()), r"branch, tag or commit"),
        (ImportError("needs sentencepiece"), r"sentencepiece\nfix: install the package"),
    ],
)
def test_errors_of_the_hub_and_of_packages_say_what_to_do(load, error, fix, monkeypatch):
    def fail(*_, **__):
        raise OSError(str(error)) from error

    for auto in (transformers.AutoModelForCausalLM, transformers.AutoTokenizer, transformers.AutoConfig):
        monkeypatch.setattr(auto, "from_pretrained", fail)
    with pytest.raises(UsageError, match=f"(?s)org/name: .*{fix}"):
        load(section("org/name"))


@pytest.mark.parametrize("load", [load_model, load_tokenizer, load_config])
def test_offline_says_how_to_fetch(load):
    with pytest.raises(UsageError, match=r"`hf download org/never-fetched`.*HF_HUB_OFFLINE"):
        load(section("org/never-fetched"))


def test_a_missing_package_is_a_usage_error(monkeypatch):
    def fail(*_, **__):
        raise ImportError("this quantisation needs the package xyz")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(UsageError, match=r"(?s)package xyz.*fix: install"):
        load_model(section(tiny_model_folder("llama")))


def test_a_cut_off_weights_file_is_a_usage_error(tmp_path, adapter):
    folder = copy_tiny_model(tmp_path / "model", "llama")
    for place, file in ((folder, "model.safetensors"), (adapter, "adapter_model.safetensors")):
        content = (place / file).read_bytes()
        (place / file).write_bytes(content[: len(content) // 2])
        with pytest.raises(UsageError, match=r"cannot be (loaded|read)") as error:
            load_model(section(place))
        assert "download" in str(error.value) or "fetch it again" in str(error.value)


def test_a_pickled_adapter_is_not_read(adapter):
    weights = load_file(adapter / "adapter_model.safetensors")
    torch.save(weights, adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"no adapter_model\.safetensors"):
        load_model(section(adapter))
    with pytest.raises(UsageError, match=r"no adapter_model\.safetensors"):
        load_adapter(load_tiny("llama")[0], adapter)


def test_adapters_of_the_hub_are_not_loaded_by_the_way(adapter, monkeypatch):
    """transformers would load base and adapter of such an id by itself, from pickled weights too."""
    monkeypatch.setattr(
        "transformers.utils.peft_utils.cached_file", lambda *_, **__: str(adapter / "adapter_config.json")
    )
    with pytest.raises(UsageError, match=r"org/lora is an adapter(?s:.*)hf download org/lora"):
        load_model(section("org/lora"))


def test_an_adapter_upon_an_adapter_is_refused(adapter, tmp_path):
    entries = json.loads((adapter / "adapter_config.json").read_text())
    upper = tmp_path / "upper"
    upper.mkdir()
    (upper / "adapter_config.json").write_text(json.dumps({**entries, "base_model_name_or_path": str(adapter)}))
    with pytest.raises(UsageError, match="upon plain models"):
        load_model(section(upper))


CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("stored", "native_bfloat16", "on_gpu"),
    [
        (None, True, torch.float32),
        ("float32", True, torch.float32),
        ("bfloat16", False, torch.bfloat16),
        ("float16", True, torch.bfloat16),
        ("float16", False, torch.float32),
    ],
)
def test_dtype_rule(stored, native_bfloat16, on_gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native_bfloat16)
    folder = copy_tiny_model(tmp_path / "model", "llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": stored}))
    assert choose_dtype(section(folder), CUDA) == on_gpu
    assert choose_dtype(section(folder), CPU) == torch.float32
    assert choose_dtype(section(folder, dtype="float16"), CUDA) == torch.float16
    quantised = {**config, "dtype": stored, "quantization_config": {"quant_method": "gptq", "bits": 4}}
    (folder / "config.json").write_text(json.dumps(quantised))
    assert choose_dtype(section(folder), CUDA) == "auto"


def test_devices_that_are_not_there_are_usage_errors(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="finds no GPU"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(UsageError, match="cuda:0 to cuda:1"):
        choose_device("cuda:7")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UsageError, match="has none"):
        choose_device("mps")


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


def test_names_that_are_paths_or_typos():
    for name, said in (
        ("runs/nothere", "there is no folder runs/nothere here"),
        ("/no/such/thing", "there is no folder /no/such/thing here"),
        ("sandbx", "did you mean sandbox?"),
    ):
        with pytest.raises(UsageError) as told:
            load_config(ModelSection(path=name))
        assert said in (told.value.fix or "")


def test_a_stages_folder_says_where_its_adapter_is(tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(UsageError) as told:
        load_config(ModelSection(path=str(tmp_path)))
    assert told.value.fix == f"the model is one folder below: give {tmp_path / 'adapter'}"
