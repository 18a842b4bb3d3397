"""The passages of a recipe's corpus."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefloop.config.rag_recipe import CorpusSection
from prefloop.errors import UsageError
from prefloop.retrieve.corpus import HUMAN, Passage, read_collection
from prefloop.store.fingerprint import Memo, code_digest, file_digest, folder_digest

SANDBOX = "sandbox:library"


def read_passages(section: CorpusSection) -> list[Passage]:
    """The passages, in the order of their file.

    Raises:
        UsageError: there is no such corpus, it is broken, or none of its several versions is named.
    """
    if section.path.startswith("sandbox:"):
        return _library(section)[: section.limit]
    found = read_collection(section.path, sources=None if section.source is None else [section.source])
    if len(found.sources) > 1:
        raise UsageError(
            f"has several versions of its passages: {', '.join(found.sources)}",
            where=section.path,
            fix="name one with corpus.source",
        )
    return found.passages[found.sources[0]][: section.limit]


def _library(section: CorpusSection) -> list[Passage]:
    from prefloop.sandbox import library

    if section.path != SANDBOX:
        raise UsageError("the sandbox has no such corpus", where=section.path, fix=f"set corpus.path to {SANDBOX}")
    return [Passage(document.id, HUMAN, "", document.text) for document in library.documents()]


def identity(section: CorpusSection, memo: Memo | None = None) -> dict[str, Any]:
    """Everything about a corpus that changes what is retrieved from it: its content, not its name.

    Raises:
        UsageError: there is no such file or folder.
    """
    settings = section.model_dump(exclude={"path"})
    if section.path.startswith("sandbox:"):
        return settings | {"path": section.path, "code": code_digest("sandbox")}
    path = Path(section.path)
    if not path.exists():
        raise UsageError(
            "there is no such corpus", where=section.path, fix=f"check the path (looked from {Path.cwd()})"
        )
    return settings | {"content": folder_digest(path, memo) if path.is_dir() else file_digest(path, memo)}
