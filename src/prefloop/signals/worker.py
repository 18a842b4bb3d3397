"""One of a model's workers (`backends.pool`), run as `python -m prefloop.signals.worker` by the parent."""

from __future__ import annotations

from prefloop.backends.base import Backend
from prefloop.backends.worker import Message, serve
from prefloop.config import ModelSection
from prefloop.signals.build import open_backend
from prefloop.store.cache import Cache


def _open(first: Message) -> Backend:
    """The model of the section that the parent sent, on this worker's device."""
    from prefloop.engine.load import quiet

    quiet()
    section = ModelSection.model_validate(first["section"])
    section = section.model_copy(update={"device": _device(section.device, first["number"], first["of"])})
    # For the digests of files that another run or worker has taken; it is closed with the process.
    memo = None if first["cache"] is None else Cache(first["cache"])
    return open_backend(section, first["kind"], memo)


def _device(setting: str, number: int, of: int) -> str:
    """Where a worker's model goes: on the GPUs in turn, unless one is named, or on its part of the threads."""
    import torch

    from prefloop.engine.load import choose_device

    kind = choose_device(setting).type
    if kind == "cuda" and setting in ("auto", "cuda"):
        gpu = number % torch.cuda.device_count()
        torch.cuda.set_device(gpu)
        return f"cuda:{gpu}"
    if kind == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads() // of))
    return setting


if __name__ == "__main__":
    serve(_open)
