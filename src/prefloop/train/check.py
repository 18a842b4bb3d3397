"""What a training would refuse, found from settings and configuration alone: no weights are read."""

from __future__ import annotations

import os
from typing import Any

import torch

from prefloop.config import ModelSection, TrainSection
from prefloop.engine.load import adapter_base, choose_device, choose_dtype, load_config, resolve_model_path
from prefloop.errors import UsageError
from prefloop.train.launch import launcher
from prefloop.train.precision import Precision


def check_trainable(model: ModelSection, section: TrainSection) -> Precision:
    """The precision in which the model would be trained. Training begins with this; the loop asks before it samples.

    Raises:
        UsageError: the model is an unmerged adapter or quantised, or cannot be found; no training in this dtype or on
            this device; a tracker or an accelerate configuration that is not there.
    """
    if adapter_base(resolve_model_path(model.path)) is not None:
        raise UsageError(
            "is an unmerged adapter: is the reference its base, or the adapted model?",
            where=model.path,
            fix="merge it first, in Python, and train the merged model: prefloop.train.run.merge("
            "ModelSection(path=BASE), Path(ADAPTER), Path(MERGED), MergeSection())",
        )
    if section.launch is not None:
        launcher(section.launch)
    if section.lora is not None and section.lora.quantize is not None:
        _check_bitsandbytes()
        if is_sharded() or (section.launch is not None and section.launch.config in ("fsdp2", "zero3")):
            raise UsageError(
                "a quantised base is not shared out over processes",
                where="train.lora.quantize",
                fix="take train.launch=ddp, or leave train.lora.quantize out",
            )
    _check_trackers(section.report_to)
    device = choose_device(model.device)
    rank, _ = in_group()
    if rank is not None and device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    refuse_quantised(load_config(model), model.path)
    dtype = choose_dtype(model, device)
    assert isinstance(dtype, torch.dtype), "a quantised model was refused above"
    return Precision.choose(device, dtype, grouped=rank is not None)


def in_group() -> tuple[int | None, int]:
    """(this process's place, processes) in a group that accelerate or torchrun started; (None, 1) outside of one."""
    rank = os.environ.get("RANK")
    return (None, 1) if rank is None else (int(rank), int(os.environ["WORLD_SIZE"]))


def is_sharded(*kinds: str) -> bool:
    """Whether accelerate shares the model's weights out over this group's processes, by FSDP or DEEPSPEED."""
    return any(os.environ.get(f"ACCELERATE_USE_{kind}") == "true" for kind in kinds or ("FSDP", "DEEPSPEED"))


def refuse_quantised(config: Any, name: str) -> None:
    """Quantised weights cannot take up a trained difference.

    Raises:
        UsageError: the model's configuration says that it is quantised.
    """
    if getattr(config, "quantization_config", None) is not None:
        raise UsageError(
            "the weights are quantised; training them, or merging into them, would lose what was learnt",
            where=name,
            fix="use the checkpoint that it was quantised from",
        )


def _check_bitsandbytes() -> None:
    from importlib.util import find_spec

    if find_spec("bitsandbytes") is None:
        raise UsageError(
            "bitsandbytes is not installed",
            where="train.lora.quantize",
            fix="pip install bitsandbytes (or prefloop[qlora])",
        )


def _check_trackers(names: list[str]) -> None:
    from transformers.integrations import get_available_reporting_integrations

    if names in (["all"], ["none"]):
        return
    installed = sorted(get_available_reporting_integrations())
    for name in names:
        if name not in installed:
            raise UsageError(
                f"no tracker {name!r} is installed",
                where="train.report_to",
                fix=f"install its package, or give one of those here: {', '.join(installed) or 'there is none'}",
            )
