"""Hub models at the commits that a run began with: "ORG/NAME@BRANCH" -> commit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from prefloop.config import (
    ModelSection,
    RagRecipe,
    Recipe,
    RetrieverSection,
    RetrieverSignalSection,
    SourceBiasSection,
)
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


def models_of(recipe: Recipe) -> list[ModelSection | RetrieverSection]:
    """Every model of a recipe; of a retriever path and revision are what counts."""
    rated = [way.rate for way in recipe.ways.values()]
    signals = [s for s in (*rated, recipe.evaluate.judge, *recipe.evaluate.also) if s is not None]
    others = [model for signal in signals for model in signal.models.values()]
    if recipe.sample is not None:
        others.append(recipe.sample.model)
    found: list[RetrieverSection] = []
    for section in (*rated, recipe.source_bias):
        if isinstance(section, RetrieverSignalSection | SourceBiasSection):
            found += [*(section.retrievers or ()), *([section.similarity] if section.similarity else [])]
    retrievers = [model for retriever in found for model in models_of_retriever(retriever)]
    return [recipe.model, *(model for model in others if model is not None), *retrievers]


def pinned(recipe: Recipe, commits: Commits) -> Recipe:
    """The recipe with every hub model at its commit, where that is known."""

    def pin_models(section: Any) -> Any:
        if isinstance(section, RetrieverSignalSection | SourceBiasSection):
            retrievers = section.retrievers and tuple(pin(one, commits) for one in section.retrievers)
            similarity = section.similarity and pin(section.similarity, commits)
            return section.model_copy(update={"retrievers": retrievers, "similarity": similarity})
        return section and section.with_models(lambda model: pin(model, commits))

    also = [pin_models(section) for section in recipe.evaluate.also]
    measured = {"judge": pin_models(recipe.evaluate.judge), "source_bias": pin_models(recipe.evaluate.source_bias)}
    evaluate = recipe.evaluate.model_copy(update=measured | {"also": also})
    branches = {n: b.model_copy(update={"rate": pin_models(b.rate)}) for n, b in recipe.branches.items()}
    sample = recipe.sample
    if sample is not None and sample.model is not None:
        sample = sample.model_copy(update={"model": pin(sample.model, commits)})
    changed = {"model": pin(recipe.model, commits), "sample": sample, "rate": pin_models(recipe.rate)}
    return recipe.model_copy(update=changed | {"branches": branches, "evaluate": evaluate})


def rag_models_of(recipe: RagRecipe) -> list[ModelSection | RetrieverSection]:
    """Every model of a recipe; of retriever and reranker path and revision are what counts."""
    augment = recipe.augment
    others = [recipe.rate.model, augment and augment.model, augment and augment.nli and augment.nli.model]
    models = [recipe.model, *(model for model in others if isinstance(model, ModelSection))]
    reranker = RetrieverSection(path=recipe.rerank.model, revision=recipe.rerank.revision)
    return [*models, *models_of_retriever(recipe.retrieve.retriever), reranker]


def rag_pinned(recipe: RagRecipe, commits: Commits) -> RagRecipe:
    """The recipe with every hub model at its commit, where that is known."""
    augment = recipe.augment
    if augment is not None:
        nli = augment.nli
        if nli is not None:
            nli = nli.model_copy(update={"model": pin(nli.model, commits)})
        model = None if augment.model is None else pin(augment.model, commits)
        augment = augment.model_copy(update={"model": model, "nli": nli})
    rerank = recipe.rerank
    commit = commits.get(key(rerank.model, rerank.revision), rerank.revision)
    changed = {
        "model": pin(recipe.model, commits),
        "retrieve": recipe.retrieve.model_copy(update={"retriever": pin(recipe.retrieve.retriever, commits)}),
        "rate": recipe.rate.with_models(lambda section: pin(section, commits)),
        "rerank": rerank.model_copy(update={"revision": commit}),
        "augment": augment,
    }
    return recipe.model_copy(update=changed)
