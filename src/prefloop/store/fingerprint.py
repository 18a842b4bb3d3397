"""Hashes that say whether something kept on disk is still valid: of values, files, model folders and our own code.

Hashing a 16 GB model takes a minute; planning must take milliseconds. So file digests are remembered under the file's
path, size and times (see `Memo`). This module imports neither torch nor network code.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from pathlib import Path
from typing import Any, Protocol

from prefloop.errors import UsageError
from prefloop.records import canonical_json

_SOURCE_SUFFIXES = {".py", ".j2"}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
# A file may change twice within one tick of the file system's clock; younger files are hashed again (as git does).
_SETTLED_SECONDS = 2.0


class Memo(Protocol):
    """A memory of file digests, kept by `store.cache.Cache`. `stamp` is the file's size and times."""

    def digest_get(self, path: str, stamp: str) -> str | None: ...

    def digest_put(self, path: str, stamp: str, digest: str) -> None: ...


def digest(value: Any) -> str:
    """SHA-256 (64 hex digits) of a JSON-able value; the order of keys does not matter, everything else does."""
    return hashlib.sha256(canonical_json(value).encode("utf-8", "surrogatepass")).hexdigest()


def file_digest(path: str | Path, memo: Memo | None = None) -> str:
    """SHA-256 of a file's content."""
    # The real path: the hub's snapshots are links, and several may share one file.
    real = os.path.realpath(path)
    stat = os.stat(real)
    # Size and mtime miss a file put in place by a tool that keeps times; ctime cannot be set by a program.
    stamp = f"{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}"
    known = memo.digest_get(real, stamp) if memo is not None else None
    if known is not None:
        return known
    with open(real, "rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if memo is not None and time.time() - max(stat.st_mtime, stat.st_ctime) > _SETTLED_SECONDS:
        memo.digest_put(real, stamp, found)
    return found


def folder_files(path: str | Path) -> list[Path]:
    """The files that make up a folder's content, sorted: all but hidden ones and training checkpoints."""
    files: list[Path] = []
    seen: set[str] = set()
    for folder, folders, names in os.walk(path, followlinks=True):
        # A link that points upwards must not be walked for ever.
        seen.add(os.path.realpath(folder))
        folders[:] = [
            f
            for f in folders
            if not f.startswith((".", "checkpoint-")) and os.path.realpath(os.path.join(folder, f)) not in seen
        ]
        files += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted(files, key=lambda file: file.relative_to(path).as_posix())


def folder_digest(path: str | Path, memo: Memo | None = None, without: tuple[str, ...] = ()) -> str:
    """SHA-256 of the names and contents of `folder_files`.

    Args:
        without: paths in the folder that do not count.

    Raises:
        UsageError: there is no such folder, or nothing in it.
    """
    files = {file.relative_to(path).as_posix(): file for file in folder_files(path)}
    if not files:
        raise UsageError("there is no such folder, or it is empty", where=str(path))
    return digest([[name, file_digest(file, memo)] for name, file in files.items() if name not in without])


def code_digest(*boxes: str, root: str | Path | None = None) -> str:
    """SHA-256 of the package's source files (`*.py`, `*.j2`) in the named boxes.

    Args:
        boxes: folders or files of the package: "backends", "signals/judge", "records.py".
        root: the package's folder; prefloop's own unless given.
    """
    base = Path(__file__).parents[1] if root is None else Path(root)
    files: set[Path] = set()
    for box in boxes:
        place = base / box
        found = [place] if place.is_file() else [p for p in place.rglob("*") if p.suffix in _SOURCE_SUFFIXES]
        if not found:
            raise ValueError(f"no source files in {place}")
        files.update(found)
    return digest(
        [[f.relative_to(base).as_posix(), hashlib.sha256(f.read_bytes()).hexdigest()] for f in sorted(files)]
    )


def model_digest(path: str, revision: str | None = None, memo: Memo | None = None) -> str:
    """What identifies a model's content: a folder's hash, or the hub's commit.

    Nothing is downloaded. A hub model that is not in the local cache, and a branch that was never fetched, have no
    commit yet; the text then ends in `?unresolved` and changes once the model is here.

    Returns:
        64 hex digits for a folder, `hub:ORG/NAME@COMMIT` for a hub model. An adapter's folder is followed by its base.

    Raises:
        UsageError: neither a folder nor the id of a hub model.
    """
    if os.path.isdir(path):
        own = folder_digest(path, memo, without=("README.md",))  # a card says what a model is, and changes no answer
        adapter = Path(path, "adapter_config.json")
        if not adapter.is_file():
            return own
        # An unmerged adapter says nothing without its base, which lies elsewhere.
        config = json.loads(adapter.read_text(encoding="utf-8"))
        base, base_revision = config.get("base_model_name_or_path"), config.get("revision")
        return f"{own}+{model_digest(base, base_revision, memo)}" if base else own
    if not _HUB_ID.fullmatch(path):
        raise UsageError("no such model folder", where=path, fix="give a folder, or the hub id ORG/NAME of a model")
    commit = hub_commit(path, revision)
    return f"hub:{path}@{commit}" if commit else f"hub:{path}@{revision or 'main'}?unresolved"


def hub_commit(path: str, revision: str | None = None) -> str | None:
    """The commit that a revision of a hub model means in the local hub cache, or None when that is not known here."""
    if revision is not None and _COMMIT.fullmatch(revision):
        return revision
    # constants is the one light module of huggingface_hub: it reads HF_HOME and HF_HUB_CACHE, and imports no client.
    from huggingface_hub import constants

    folder = constants.REPO_ID_SEPARATOR.join(["models", *path.split("/")])
    reference = Path(constants.HF_HUB_CACHE, folder, "refs", revision or constants.DEFAULT_REVISION)
    return reference.read_text(encoding="utf-8").strip() if reference.is_file() else None


def resolve_commit(path: str, revision: str | None = None) -> str | None:
    """The commit to use for a hub model: what the local cache has, else what the hub says now. None for a folder.

    Raises:
        UsageError: the hub does not know the model or the revision, or cannot be reached.
    """
    if os.path.isdir(path) or not _HUB_ID.fullmatch(path):
        return None
    known = hub_commit(path, revision)
    if known is not None:
        return known
    from huggingface_hub import HfApi

    try:
        return HfApi().model_info(path, revision=revision).sha
    except Exception as error:  # of whatever kind the HTTP client's is: there is no commit, and the user must know why
        raise UsageError(
            f"the hub gives no commit for it: {error}",
            where=f"{path}@{revision or 'main'}",
            fix="check the name and the network; for a gated model accept its terms and run `hf auth login`; offline, "
            "give the folder of a downloaded model",
        ) from error
