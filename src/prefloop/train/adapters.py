"""LoRA on a model, trained weights to disk, and the merge into a plain Hugging Face folder."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prefloop.config import LoraSection, ModelSection
from prefloop.engine.load import load_adapter, load_model
from prefloop.engine.tokens import load_tokenizer
from prefloop.errors import UsageError
from prefloop.store import atomic
from prefloop.train.check import refuse_quantised

ADAPTER, MODEL = "adapter", "model"
"""Folders below a training's result: an adapter, or all weights."""
SHARDS = "pytorch_model_fsdp_0"
"""Folder in a sharded checkpoint, as accelerate names it."""
_ADAPTER_CONFIG = "adapter_config.json"


def switch_off_dropout(model: nn.Module) -> None:
    """Set every dropout rate that the model came with to 0, in its modules; its configuration stays as it is.

    Log-ratios against a reference without dropout would otherwise carry noise, and the first loss would not be the
    formula's. LoRA's own dropout, which the recipe asks for by name, is added afterwards and works.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name, value in vars(module).items():
            # Attention modules keep a rate as a plain number and hand it to the kernel.
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def add_lora(model: Any, section: LoraSection) -> Any:
    """The model with a fresh adapter, its base frozen. Draws the adapter's weights from torch's global generator.

    `all-linear` means every linear layer but the output head. The adapter's weights are float32 whatever the base is.

    Raises:
        UsageError: no module has such a name, or the output head is among them.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=section.r,
        lora_alpha=section.alpha,
        lora_dropout=section.dropout,
        target_modules=section.target_modules,
        bias="none",
    )
    head = model.get_output_embeddings()
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        raise UsageError(
            f"no LoRA with target_modules {section.target_modules!r}: {error}",
            where="train.lora.target_modules",
            fix="all-linear, or names of linear modules such as [q_proj, v_proj]",
        ) from error
    if adapted.get_output_embeddings() is not head:
        raise UsageError(
            "the output head is no target: where it is tied to the embeddings, a merge would change both",
            where="train.lora.target_modules",
            fix="leave the head out, or use all-linear, which does",
        )
    # peft keeps a set, whose order changes from process to process and would change the saved file.
    own = adapted.peft_config["default"]
    if not isinstance(own.target_modules, str):
        own.target_modules = sorted(own.target_modules)
    return adapted


def count_parameters(model: nn.Module, *, trained: bool = False) -> int:
    """How many weights a model has, or how many of them are trained: in four bits and shared out too."""

    def size(parameter: Any) -> int:
        packed = getattr(parameter, "quant_state", None)  # in four bits two weights are one number
        return int(packed.shape.numel() if packed is not None else getattr(parameter, "ds_numel", parameter.numel()))

    return sum(size(p) for p in model.parameters() if p.requires_grad or not trained)


def save_configuration(model: Any, folder: Path) -> None:
    """Write what says how to read a sharded checkpoint: the adapter's configuration, or the model's."""
    folder.mkdir(parents=True, exist_ok=True)
    if hasattr(model, "peft_config"):
        for config in model.peft_config.values():
            config.save_pretrained(folder)
    else:
        model.config.save_pretrained(folder)


def save(model: Any, folder: Path, state: Mapping[str, torch.Tensor] | None = None) -> None:
    """Write the adapter, or without one all weights, as safetensors with their configuration.

    Args:
        state: the weights of a sharded model, gathered; None where the model holds them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if hasattr(model, "peft_config"):
        for config in model.peft_config.values():
            # peft keeps a set and would write it in the order of this process's hash seed; a pattern is a string.
            if not isinstance(config.target_modules, str):
                config.target_modules = sorted(config.target_modules)
        # Otherwise peft asks the hub whether the base's vocabulary was changed.
        model.save_pretrained(folder, save_embedding_layers=False, state_dict=state)
        # peft's card names the base's folder on this machine; `publish` writes one that can be shown.
        (folder / "README.md").unlink(missing_ok=True)
    else:
        _save_weights(model, folder, state=state)


def merge(
    base: ModelSection, trained: Path, out: Path, *, dtype: torch.dtype, max_shard_size: str = "5GB"
) -> Mapping[str, Any]:
    """Write a plain model folder: weights, configuration, generation configuration, tokenizer with its chat template.

    It loads with `AutoModelForCausalLM` and needs no peft. The sum of weights and adapter is taken in float32 and
    rounded once, to `dtype`. All weights from a training without LoRA go the same way, without a sum.

    Args:
        base: the model that was trained; tokenizer and template come from it.
        trained: the result of a training (`adapter` or `model` in it), one of its checkpoints, sharded or not, or any
            adapter's own folder.
        out: put in place whole, at the end; a folder that is there is replaced.

    Returns:
        {"dtype", "parameters"}.

    Raises:
        UsageError: `trained` holds no weights, the base is quantised, or the adapter belongs to another architecture.
    """
    adapter = next((p for p in (trained / ADAPTER, trained) if (p / _ADAPTER_CONFIG).is_file()), None)
    full = next((p for p in (trained / MODEL, trained) if (p / "config.json").is_file()), None)
    if adapter is None and full is None:
        raise UsageError(
            "holds neither an adapter nor trained weights",
            where=str(trained),
            fix="give the result of a training, or a checkpoint of one",
        )
    source = base.model_copy(update={"dtype": "float32", "device": "cpu"})
    shards = trained / SHARDS
    if adapter is None and not shards.is_dir():
        source = source.model_copy(update={"path": str(full), "revision": None})
    model = load_model(source)
    refuse_quantised(model.config, base.path)
    if shards.is_dir():
        model = _with_shards(model, shards, adapter)
    elif adapter is not None:
        model = load_adapter(model, adapter)
    if adapter is not None:
        model = model.merge_and_unload()
    model = model.to(dtype)
    model.config.dtype = dtype
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic.directory(out) as folder:
        _save_weights(model, folder, max_shard_size)
        load_tokenizer(base).save_pretrained(folder)
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def _with_shards(model: Any, shards: Path, adapter: Path | None) -> Any:
    """The model with the weights of a sharded checkpoint, gathered from its files; with its adapter, if it has one."""
    from accelerate.utils import merge_fsdp_weights
    from safetensors.torch import load_file

    if adapter is not None:
        from peft import PeftConfig, get_peft_model

        model = get_peft_model(model, PeftConfig.from_pretrained(str(adapter)))
    with tempfile.TemporaryDirectory(dir=shards.parent) as gathered:
        merge_fsdp_weights(str(shards), gathered)
        state = load_file(Path(gathered) / "model.safetensors")
    missing, unknown = model.load_state_dict(state, strict=False)
    # Of tied weights one name is kept, and a frozen base is the one that was just loaded.
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    lost = [name for name in missing if name not in tied and (adapter is None or ".lora_" in name)]
    if unknown or lost:
        raise UsageError(
            f"the shards do not fit the model: {len(unknown)} weights are unknown, {len(lost)} missing "
            f"({', '.join([*unknown, *lost][:3])} …)",
            where=str(shards),
            fix="give the model that was trained",
        )
    return model


def _save_weights(
    model: Any, folder: Path, max_shard_size: str = "5GB", state: Mapping[str, torch.Tensor] | None = None
) -> None:
    """`save_pretrained` with the generation configuration as it came.

    Some checkpoints on the hub hold sampling settings without `do_sample`; transformers loads them, but some versions
    refuse to save them (tests/train/test_adapters.py::test_sampling_settings_without_sampling_are_kept).
    """
    own = model.generation_config
    model.generation_config = type(own)()
    try:
        model.save_pretrained(folder, max_shard_size=max_shard_size, state_dict=state)
    finally:
        model.generation_config = own
    own.to_json_file(folder / "generation_config.json")
