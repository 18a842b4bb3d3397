"""Where models come from and how they are loaded. Training, sampling and scoring all load through here.

Weights are read from safetensors only: loading other formats unpickles them. This module imports neither torch nor
transformers at the top.
"""

from __future__ import annotations

import importlib.resources
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefloop.config import ModelSection
from prefloop.errors import UsageError

if TYPE_CHECKING:
    import torch

SANDBOX = "sandbox"


def resolve_model_path(path: str) -> str:
    """What to load for a section's `path`: `sandbox` becomes the folder of the embedded model, the rest stays.

    Raises:
        UsageError: the installation lacks the embedded model.
    """
    if path != SANDBOX:
        return path
    # Package data by its place: importing the sandbox box from here would turn the import direction round.
    folder = importlib.resources.files("prefloop").joinpath("sandbox", "weights", "v1")
    if not folder.joinpath("config.json").is_file():
        raise UsageError("the embedded model is not installed", where=str(folder), fix="install prefloop from a wheel")
    return str(folder)


def adapter_base(path: str) -> tuple[str, str | None] | None:
    """(path, revision) of the base model of a folder that holds an unmerged adapter; None for any other path."""
    config = Path(path, "adapter_config.json")
    if not config.is_file():
        return None
    entries = json.loads(config.read_text(encoding="utf-8"))
    base = entries.get("base_model_name_or_path")
    if not base:
        raise UsageError("names no base model", where=str(config), fix="set base_model_name_or_path")
    return str(base), entries.get("revision")


def choose_device(setting: str) -> torch.device:
    """The device that a section's `device` means."""
    import torch

    if setting != "auto":
        try:
            return torch.device(setting)
        except RuntimeError as error:
            raise UsageError(f"unknown device {setting!r}", fix="give auto, cpu, cuda, cuda:1 or mps") from error
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def choose_dtype(setting: str, device: torch.device) -> Any:
    """The `dtype` argument of `from_pretrained` that a section's `dtype` means on a device."""
    import torch

    if setting == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    return getattr(torch, setting)


def load_model(section: ModelSection) -> Any:
    """The section's causal model on its device, in eval mode; with an unmerged adapter as a PEFT model.

    Raises:
        UsageError: nothing is there, it is no causal model, or weights are missing from the checkpoint.
    """
    from transformers import AutoModelForCausalLM

    path = resolve_model_path(section.path)
    base = adapter_base(path)
    device = choose_device(section.device)
    source, revision = (path, section.revision) if base is None else (resolve_model_path(base[0]), base[1])
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            source,
            revision=revision,
            dtype=choose_dtype(section.dtype, device),
            trust_remote_code=section.trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError) as error:
        raise UsageError(
            f"cannot be loaded as a causal language model: {error}",
            where=section.path,
            fix="give a hub id, or the folder of a model with config.json and *.safetensors, or of a LoRA adapter",
        ) from error
    missing = sorted(info["missing_keys"])
    if missing:  # transformers would go on with random weights in their place
        raise UsageError(
            f"the checkpoint lacks {len(missing)} weights, {missing[0]} first",
            where=section.path,
            fix="check that this is a causal model and that the download is complete",
        )
    if base is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, path)
    return model.to(device).eval()
