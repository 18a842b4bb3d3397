"""What this machine has, and whether the tool can work on it."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from prefloop import __version__
from prefloop.errors import PrefloopError

Check = dict[str, str]


def examine(cache_path: Path) -> list[Check]:
    """All checks, each with `what`, `found` and `state` (ok, warn or fail)."""
    return [
        _check("prefloop", f"{__version__}, Python {platform.python_version()}", "ok" if _python() else "fail"),
        *_packages(),
        _devices(),
        _memory(),
        _disk(),
        _cache(cache_path),
        _hub(),
        _sandbox(),
    ]


def _check(what: str, found: str, state: str) -> Check:
    return {"what": what, "found": found, "state": state}


def _python() -> bool:
    return sys.version_info >= (3, 11)


def _packages() -> list[Check]:
    names = ("torch", "transformers", "peft", "datasets", "accelerate")
    return [_package(name) for name in names]


def _package(name: str) -> Check:
    try:
        return _check(name, version(name), "ok")
    except PackageNotFoundError:
        return _check(name, "not installed: pip install prefloop brings it", "fail")


def _devices() -> Check:
    import torch

    if torch.cuda.is_available():
        names = [
            f"{torch.cuda.get_device_name(i)} ({torch.cuda.get_device_properties(i).total_memory / 2**30:.0f} GiB)"
            for i in range(torch.cuda.device_count())
        ]
        return _check("device", ", ".join(names), "ok")
    if torch.backends.mps.is_available():
        return _check("device", "Apple GPU (mps)", "ok")
    return _check("device", f"CPU only, {torch.get_num_threads()} threads: enough for the sandbox", "warn")


def _memory() -> Check:
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return _check("memory", f"{pages:.0f} GiB", "ok" if pages >= 4 else "warn")


def _disk() -> Check:
    free = shutil.disk_usage(".").free / 2**30
    return _check("disk", f"{free:.0f} GiB free in {Path.cwd()}", "ok" if free >= 2 else "warn")


def _cache(path: Path) -> Check:
    from prefloop.store.cache import ELSEWHERE, Cache, refuse_place

    try:
        if not path.exists():
            # Looked at only: a check-up leaves nothing behind.
            refuse_place(path)
            folder = next(p for p in path.absolute().parents if p.exists())
            if not (folder.is_dir() and os.access(folder, os.W_OK)):
                return _check("cache", f"nothing can be written in {folder}; {ELSEWHERE}", "fail")
            return _check("cache", f"{path}: not there yet, the first run makes it", "ok")
        with Cache(path) as cache:
            groups = cache.ls()
    except PrefloopError as error:
        return _check("cache", str(error), "fail")
    return _check("cache", f"{path}: {sum(g['count'] for g in groups)} entries", "ok")


def _hub() -> Check:
    from huggingface_hub import constants

    state = "offline (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else "online when asked"
    return _check("hub", f"{state}, cache {constants.HF_HUB_CACHE}", "ok")


def _sandbox() -> Check:
    from prefloop.backends.base import GenerateRequest, Generation, Sampling
    from prefloop.backends.hf import HfBackend
    from prefloop.config import ModelSection

    try:
        backend = HfBackend.load(ModelSection(path="sandbox"))
    except PrefloopError as error:
        return _check("embedded model", str(error), "fail")
    request = GenerateRequest((("user", "Hello!"),), Sampling(max_new_tokens=16, temperature=0.0))
    answer = backend.answer([request])[0]
    said = answer.text if isinstance(answer, Generation) else answer
    return _check("embedded model", f"answers {said!r}", "ok" if isinstance(answer, Generation) else "fail")
