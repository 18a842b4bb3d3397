"""What a training would refuse, found from settings and configuration alone: no weights are read."""

from __future__ import annotations

import os
from typing import Any

import torch

from prefloop.config import ModelSection, TrainSection
from prefloop.engine.load import adapter_base, choose_device, choose_dtype, load_config, resolve_model_path
from prefloop.errors import UsageError
from prefloop.train.precision import Precision


def check_trainable(model: ModelSection, section: TrainSection) -> Precision:
    """The precision in which the model would be trained. Training begins with this; the loop asks before it samples.

    Raises:
        UsageError: the model is an unmerged adapter or quantised, or cannot be found; no training in this dtype or on
            this device; a tracker that is not installed; several processes.
    """
    if adapter_base(resolve_model_path(model.path)) is not None:
        raise UsageError(
            "is an unmerged adapter: is the reference its base, or the adapted model?",
            where=model.path,
            fix="merge it first, in Python, and train the merged model: prefloop.train.run.merge("
            "ModelSection(path=BASE), Path(ADAPTER), Path(MERGED), MergeSection())",
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("training runs in one process", fix="start it without torchrun or accelerate launch")
    _check_trackers(section.report_to)
    device = choose_device(model.device)
    refuse_quantised(load_config(model), model.path)
    dtype = choose_dtype(model, device)
    assert isinstance(dtype, torch.dtype), "a quantised model was refused above"
    return Precision.choose(device, dtype)


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
