"""The recipe of retrieval-augmented answering: a reranker that learns what helps a reader, and a reader that learns to
use it (DPA-RAG, Dong et al. 2024)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from prefloop.config.base import Section, path_shorthand
from prefloop.config.models import ModelSection
from prefloop.config.rag import AugmentSection, PrealignSection, QuestionsSection, RankingSection, ReaderSection
from prefloop.config.recipe import StopSection
from prefloop.config.rerank import RerankSection
from prefloop.config.retrieval import RetrieverSection
from prefloop.config.training import MergeSection, TrainSection

Ablation = Literal["self_alignment", "reranker", "prealign", "pointwise", "pairwise", "contrastive"]


class CorpusSection(Section):
    """The passages that are searched."""

    path: str = Field(
        description="BEIR folder or zip, JSONL, Parquet, DPR's `psgs_w100.tsv` (packed or not), or `sandbox:library`."
    )
    source: str | None = Field(None, description="Of several versions of the passages, this one.")
    with_title: bool = Field(True, description="Put a passage's title before its text, as DPR does.")
    limit: int | None = Field(None, gt=0, description="Use the first N passages.")


class RetrieveSection(Section):
    """Which passages of the corpus a question gets."""

    retriever: RetrieverSection = Field(
        RetrieverSection(path="bm25"), description="`bm25`, an encoder, or encoders of their own for both sides."
    )
    k: int = Field(100, gt=0, description="Passages for each question.")


class RagEvaluateSection(Section):
    """Questions that nothing was trained on: retrieved, reranked, read; against plain retrieval and without parts."""

    questions: QuestionsSection | None = Field(None, description="Held-out ones; without it `holdout` is split off.")
    holdout: float = Field(0.1, gt=0, lt=1, description="Share of the questions kept out, when no others are given.")
    temperature: float = Field(0.0, ge=0, description="Of the answers, of all readers alike; 0 is greedy.")
    max_new_tokens: int = Field(20, gt=0, description="Of an answer.")
    accuracy: Literal["containment", "exact_match"] = Field(
        "containment", description="What makes an answer right in `accuracy`; all measures are told."
    )
    ablations: tuple[Ablation, ...] = Field(
        ("self_alignment", "reranker", "prealign"),
        description="What is left out, one at a time: self_alignment: the first reader with the reranker; reranker: "
        "the aligned reader with the retriever's order; prealign: a reader trained on answers alone; pointwise, "
        "pairwise, contrastive: a reranker trained without this loss. The last four are trained for it.",
    )
    bootstrap: int = Field(10_000, ge=100, description="Resamples of the questions for each 95 % interval.")
    side_by_side: int = Field(20, ge=0, description="Answers of both systems shown in the report.")

    @model_validator(mode="before")
    @classmethod
    def _questions_path(cls, data: Any) -> Any:
        return path_shorthand(data, "questions")

    @field_validator("ablations")
    @classmethod
    def _each_once(cls, names: tuple[Ablation, ...]) -> tuple[Ablation, ...]:
        if len(set(names)) < len(names):
            raise ValueError("names one part twice; take it out")
        return names


class RagRecipe(Section):
    """One run: a reader says which retrieved documents help it, a reranker learns that, and the reader to use it."""

    rounds: ClassVar[int] = 1
    branches: ClassVar[dict[str, Any]] = {}
    stop: ClassVar[StopSection | None] = None
    first: ClassVar[None] = None

    name: str = Field(pattern=r"^[\w.-]+$", description="Of the run; it is in `runs/NAME` unless --out says else.")
    model: ModelSection = Field(description="The reader: it says what helps it, and is trained.")
    questions: QuestionsSection
    corpus: CorpusSection
    seed: int = Field(0, description="Of sampling, splits, positions and training.")
    retrieve: RetrieveSection = RetrieveSection()
    augment: AugmentSection | None = Field(None, description="Questions written anew, for training alone.")
    rate: ReaderSection = ReaderSection()
    rank: RankingSection = RankingSection()
    rerank: RerankSection
    top_k: int = Field(3, gt=0, description="Documents that the reader gets in the end.")
    prealign: PrealignSection | None = Field(PrealignSection(), description="null: the reader learns answers alone.")
    train: TrainSection = Field(
        TrainSection.model_validate({"objective": "sft"}), description="Of the reader on answers; objective sft."
    )
    merge: MergeSection = MergeSection()
    evaluate: RagEvaluateSection = RagEvaluateSection()

    @model_validator(mode="before")
    @classmethod
    def _paths(cls, data: Any) -> Any:
        data = path_shorthand(data, "model", "questions", "corpus")
        if not isinstance(data, dict):
            return data
        if isinstance(data.get("rerank"), str):
            data = data | {"rerank": {"model": data["rerank"]}}
        if isinstance(train := data.get("train"), dict):
            data = data | {"train": {"objective": {"type": "sft"}, **train}}
        prealign = data.get("prealign")
        if isinstance(prealign, dict) and isinstance(train := prealign.get("train"), dict):
            data = data | {"prealign": prealign | {"train": {"objective": {"type": "sft"}, **train}}}
        return data

    @model_validator(mode="after")
    def _sound(self) -> RagRecipe:
        if self.model.endpoint is not None:
            raise ValueError(
                "model.endpoint: the reader is trained, so it is loaded here; a server can rewrite (augment.model)"
            )
        own = None if self.prealign is None else self.prealign.train
        for name, train in (("train", self.train), ("prealign.train", own)):
            if train is not None and train.objective.type != "sft":
                raise ValueError(
                    f"{name}.objective: demonstrations are learned by sft (given: {train.objective.type})"
                )
        if self.rate.ranks != "all" and self.rate.ranks[-1] > self.retrieve.k:
            raise ValueError(f"rate.ranks goes to {self.rate.ranks[-1]} and retrieve.k is {self.retrieve.k}")
        if self.top_k > self.retrieve.k:
            raise ValueError(f"top_k is {self.top_k} and retrieve.k is {self.retrieve.k}")
        off = set(self.evaluate.ablations)
        if "prealign" in off and (self.prealign is None or self.prealign.mixed):
            raise ValueError("evaluate.ablations names prealign, and there is no stage of its own to leave out")
        for loss in off & {"pointwise", "pairwise", "contrastive"}:
            if loss not in self.rerank.losses or len(self.rerank.losses) == 1:
                raise ValueError(f"evaluate.ablations names {loss}; rerank.losses is {list(self.rerank.losses)}")
        return self

    @property
    def stage_one(self) -> TrainSection | None:
        """Training of the pre-aligned task, where it has a stage of its own."""
        if self.prealign is None or self.prealign.mixed:
            return None
        return self.prealign.train or self.train
