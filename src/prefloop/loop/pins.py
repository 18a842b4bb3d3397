"""Hub models at the commits that a run began with: "ORG/NAME@BRANCH" -> commit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from prefloop.config import ModelSection, RetrieverSection
from prefloop.config.retrieval import BM25

Commits = Mapping[str, str]
HubModel = TypeVar("HubModel", ModelSection, RetrieverSection)


def key(path: str, revision: str | None) -> str:
    """Under which name a commit is known."""
    return f"{path}@{revision or 'main'}"


def pin(section: HubModel, commits: Commits) -> HubModel:
    """The section at its commits, where they are known; of a retriever also the passages' encoder."""
    found = {"revision": commits.get(key(section.path, section.revision))}
    if isinstance(section, RetrieverSection) and section.passages is not None:
        found["passages_revision"] = commits.get(key(section.passages, section.passages_revision))
    known = {name: commit for name, commit in found.items() if commit is not None}
    return section.model_copy(update=known) if known else section


def models_of_retriever(section: RetrieverSection) -> list[RetrieverSection]:
    """A section for each model of a retriever, of path and revision; none of BM25."""
    if section.path == BM25:
        return []
    models = [section]
    if section.passages is not None:
        models.append(RetrieverSection(path=section.passages, revision=section.passages_revision))
    return models
