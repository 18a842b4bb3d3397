"""Merge: a plain folder that computes what the trained policy computed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint
from peft import PeftModel
from safetensors.torch import load_file
from training_runs import make_rows, run
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefloop.config import LoraSection, MergeSection, ModelSection
from prefloop.engine.load import load_model
from prefloop.errors import UsageError
from prefloop.train import adapters
from prefloop.train.run import merge
from tiny_models import copy_tiny_model, tiny_model_folder

ARCHITECTURES = ("llama", "qwen3", "mistral", "gemma3", "gpt_neox")
IDS = torch.tensor([[5, 80, 81, 82, 100, 101, 7, 200, 201, 90, 91, 92]])


def trained(folder: Path, model: Path, **settings: Any) -> Path:
    run(folder, model, make_rows(8), epochs=2, warmup_ratio=0.0, learning_rate=5e-3, **settings)
    return folder


def section(model: Path, **settings: Any) -> ModelSection:
    return ModelSection(path=str(model), device="cpu", **settings)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_merged_is_unmerged(arch: str, tmp_path: Path) -> None:
    base = tiny_model_folder(arch, spread=2.0)
    folder = trained(tmp_path / "t", base)
    info = merge(section(base), folder, tmp_path / "merged", MergeSection())
    unmerged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder / "adapter")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert not isinstance(merged, PeftModel)
    assert torch.allclose(logits(merged), logits(unmerged), atol=1e-5)
    assert not torch.allclose(logits(merged), logits(AutoModelForCausalLM.from_pretrained(base)), atol=1e-3)
    assert info == {"dtype": "float32", "parameters": sum(p.numel() for p in merged.parameters())}


@pytest.mark.parametrize("arch", ["llama", "gemma3"])  # gemma3's head is tied to its embeddings
def test_all_weights_go_the_same_way(arch: str, tmp_path: Path) -> None:
    base = tiny_model_folder(arch)
    folder = trained(tmp_path / "t", base, lora=False)
    merge(section(base), folder, tmp_path / "merged", MergeSection())
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    saved = load_file(folder / "model" / "model.safetensors")
    assert all(torch.equal(merged.state_dict()[name], value) for name, value in saved.items())
    assert merged.config.tie_word_embeddings == (arch == "gemma3")
    head = merged.get_output_embeddings().weight
    assert (head.data_ptr() == merged.get_input_embeddings().weight.data_ptr()) == (arch == "gemma3")


def test_the_folder_is_plain(tmp_path: Path) -> None:
    """Weights, configuration, tokenizer with its template, generation settings as they were; nothing else."""
    base = tiny_model_folder("llama")
    merge(section(base), trained(tmp_path / "t", base), tmp_path / "merged", MergeSection())
    names = {p.name for p in (tmp_path / "merged").iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not [n for n in names if "adapter" in n or n.endswith((".bin", ".pt"))]
    question = [{"role": "user", "content": "hello"}]
    said, expected = (
        AutoTokenizer.from_pretrained(p).apply_chat_template(question, tokenize=False)
        for p in (tmp_path / "merged", base)
    )
    assert said == expected
    ours, theirs = (json.loads((p / "generation_config.json").read_text()) for p in (tmp_path / "merged", base))
    assert {k: v for k, v in ours.items() if k != "transformers_version"} == {
        k: v for k, v in theirs.items() if k != "transformers_version"
    }


@pytest.mark.slow
def test_it_loads_where_peft_cannot_be_imported(tmp_path: Path) -> None:
    base = tiny_model_folder("llama")
    merge(section(base), trained(tmp_path / "t", base), tmp_path / "merged", MergeSection())
    code = (
        "import sys; sys.modules['peft'] = None\n"
        "from transformers import AutoModelForCausalLM\n"
        f"AutoModelForCausalLM.from_pretrained({str(tmp_path / 'merged')!r})"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_base_model_gets_the_template_it_was_trained_with(tmp_path: Path) -> None:
    base = tiny_model_folder("gpt_neox")
    merge(section(base), trained(tmp_path / "t", base), tmp_path / "merged", MergeSection())
    template = AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template
    assert template is not None
    assert "Assistant" in template


@pytest.mark.parametrize(
    ("trained_in", "asked", "expected"), [("bfloat16", "auto", "bfloat16"), ("float32", "float16", "float16")]
)
def test_dtype(trained_in: str, asked: str, expected: str, tmp_path: Path) -> None:
    base = tiny_model_folder("llama", spread=2.0)
    folder = trained(tmp_path / "t", base, dtype=trained_in)
    info = merge(section(base, dtype=trained_in), folder, tmp_path / "merged", MergeSection(dtype=asked))  # type: ignore[arg-type]
    assert info["dtype"] == expected
    assert {str(w.dtype) for w in load_file(tmp_path / "merged" / "model.safetensors").values()} == {
        f"torch.{expected}"
    }
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == expected
    # One rounding of the float32 sum, not a sum of rounded parts.
    exact = tmp_path / "exact"
    merge(section(base), folder, exact, MergeSection(dtype="float32"))
    rounded = load_file(tmp_path / "merged" / "model.safetensors")
    for name, value in load_file(exact / "model.safetensors").items():
        assert torch.equal(rounded[name], value.to(getattr(torch, expected)))


def test_shards_and_a_folder_in_the_way(tmp_path: Path) -> None:
    base = tiny_model_folder("llama")
    folder = trained(tmp_path / "t", base)
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "old.bin").write_bytes(b"old")
    merge(section(base), folder, tmp_path / "merged", MergeSection(max_shard_size="60KB"))
    assert len(list((tmp_path / "merged").glob("*.safetensors"))) > 1
    assert not (tmp_path / "merged" / "old.bin").exists()
    AutoModelForCausalLM.from_pretrained(tmp_path / "merged")


def test_a_foreign_adapter_merges_too(tmp_path: Path) -> None:
    base = tiny_model_folder("llama")
    folder = trained(tmp_path / "t", base)
    for place, out in ((folder, "a"), (folder / "adapter", "b")):
        merge(section(base), place, tmp_path / out, MergeSection())
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


def test_sampling_settings_without_sampling_are_kept(tmp_path: Path) -> None:
    """As some checkpoints on the hub have them; transformers refuses to save such settings once they are changed."""
    base = copy_tiny_model(tmp_path / "m", "llama")
    config = json.loads((base / "generation_config.json").read_text())
    (base / "generation_config.json").write_text(json.dumps({**config, "do_sample": False, "temperature": 0.6}))
    for lora in (True, False):
        folder = trained(tmp_path / f"t{lora}", base, lora=lora)
        merge(section(base), folder, tmp_path / f"merged{lora}", MergeSection())
        kept = json.loads((tmp_path / f"merged{lora}" / "generation_config.json").read_text())
        assert (kept["do_sample"], kept["temperature"]) == (False, 0.6)


def test_a_dated_template_keeps_its_clock(tmp_path: Path) -> None:
    base = copy_tiny_model(tmp_path / "m", "llama")
    template = "{{ bos_token }}{{ strftime_now('%d %b %Y') }}{% for m in messages %}{{ m.content }}{% endfor %}"
    (base / "chat_template.jinja").write_text(template)
    merge(section(base), trained(tmp_path / "t", base), tmp_path / "merged", MergeSection())
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template == template


def test_a_pickled_adapter_is_not_merged(tmp_path: Path) -> None:
    base = tiny_model_folder("llama")
    adapter = trained(tmp_path / "t", base) / "adapter"
    torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"no adapter_model\.safetensors"):
        merge(section(base), tmp_path / "t", tmp_path / "merged", MergeSection())
    assert not (tmp_path / "merged").exists()


def test_refusals(tmp_path: Path) -> None:
    base = tiny_model_folder("llama")
    with pytest.raises(UsageError, match="neither an adapter nor trained weights"):
        merge(section(base), tmp_path, tmp_path / "merged", MergeSection())
    folder = trained(tmp_path / "t", base)
    with pytest.raises(UsageError, match="does not fit the model"):
        merge(section(tiny_model_folder("llama", width=64)), folder, tmp_path / "merged", MergeSection())
    assert not (tmp_path / "merged").exists()


def test_a_quantised_base_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_model_folder("llama")
    folder = trained(tmp_path / "t", base)
    from prefloop.train import adapters
    from prefloop.train import run as module

    def quantised(settings: ModelSection, quantize: str | None = None) -> Any:
        model = AutoModelForCausalLM.from_pretrained(base)
        model.config.quantization_config = {"quant_method": "bitsandbytes"}
        return model

    monkeypatch.setattr(adapters, "load_model", quantised)
    with pytest.raises(UsageError, match="quantised"):
        merge(section(base), folder, tmp_path / "merged", MergeSection())
    monkeypatch.setattr(module, "load_model", quantised)
    with pytest.raises(UsageError, match="quantised"):
        run(tmp_path / "u", base)


def test_lora_settings_reach_the_adapter(tmp_path: Path) -> None:
    run(
        tmp_path / "t", tiny_model_folder("llama"), lora=LoraSection(r=3, alpha=5, target_modules=["q_proj", "v_proj"])
    )
    config = json.loads((tmp_path / "t" / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (3, 5, ["q_proj", "v_proj"])
    names = load_file(tmp_path / "t" / "adapter" / "adapter_model.safetensors")
    assert len(names) == 2 * 2 * 2  # layers, modules, matrices
    run(tmp_path / "pattern", tiny_model_folder("llama"), lora=LoraSection(target_modules=r".*\.[qk]_proj"))
    assert len(load_file(tmp_path / "pattern" / "adapter" / "adapter_model.safetensors")) == 2 * 2 * 2
    saved = json.loads((tmp_path / "pattern" / "adapter" / "adapter_config.json").read_text())
    assert saved["target_modules"] == r".*\.[qk]_proj"
    base = tiny_model_folder("llama")
    merge(section(base), tmp_path / "pattern", tmp_path / "merged", MergeSection())
    merged, own = (load_file(place / "model.safetensors") for place in (tmp_path / "merged", base))
    assert {name.split(".")[-2] for name in own if not torch.equal(own[name], merged[name])} == {"q_proj", "k_proj"}
    run(tmp_path / "all", tiny_model_folder("llama"), lora=LoraSection(r=2))
    everything = load_file(tmp_path / "all" / "adapter" / "adapter_model.safetensors")
    assert len(everything) == 2 * 7 * 2
    assert not [n for n in everything if "lm_head" in n or "embed" in n]


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("sharded", [True, False])
def test_a_checkpoint_is_merged_as_its_result_would_be(lora: bool, sharded: bool, tmp_path: Path) -> None:
    """The last checkpoint, here made the end: what a job that ran out of time leaves behind."""
    model = tiny_model_folder("llama")
    policy = load_model(section(model))
    if lora:
        policy = adapters.add_lora(policy, LoraSection(r=4))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    expected = logits(policy.eval())
    checkpoint = tmp_path / "checkpoint-5"
    if sharded:  # as accelerate writes the state of FSDP2, in one process
        adapters.save_configuration(policy, checkpoint)
        torch.distributed.checkpoint.save(
            {"model": policy.state_dict()}, checkpoint_id=checkpoint / adapters.SHARDS, no_dist=True
        )
    else:
        adapters.save(policy, checkpoint)
    merge(section(model), checkpoint, tmp_path / "merged", MergeSection())
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert torch.allclose(logits(merged), expected, atol=1e-5)
    assert not torch.allclose(logits(load_model(section(model))), expected, atol=1e-3)


def test_shards_of_another_model_are_refused(tmp_path: Path) -> None:
    other = load_model(section(tiny_model_folder("gpt_neox")))
    adapters.save_configuration(other, tmp_path / "c")
    torch.distributed.checkpoint.save(
        {"model": other.state_dict()}, checkpoint_id=tmp_path / "c" / adapters.SHARDS, no_dist=True
    )
    with pytest.raises(UsageError, match="do not fit the model"):
        merge(section(tiny_model_folder("llama")), tmp_path / "c", tmp_path / "merged", MergeSection())
