"""Questions with reference answers, and what is done with retrieved documents."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from prefloop.config.base import Section, path_shorthand
from prefloop.config.models import ModelSection
from prefloop.config.signals import OneModelSection
from prefloop.config.training import TrainSection

QuestionsFormat = Literal["auto", "questions", "natural_questions", "triviaqa", "hotpotqa", "webqsp", "flashrag"]


class QuestionsSection(Section):
    """Questions with their reference answers."""

    path: str = Field(description="JSONL, JSON, CSV or Parquet file, or `hub:ORG/NAME` with its configuration behind.")
    format: QuestionsFormat = Field(
        "auto",
        description="questions: `question` and `answers`; the others as these data sets are published; auto goes by "
        "the columns of the first row (docs/dpa_rag.md).",
    )
    ignore_columns: list[str] | Literal["all"] = Field(
        default_factory=list, description="Columns known to be there and not to be read; any other is an error."
    )
    split: str = Field("train", description="Split of a hub data set.")
    limit: int | None = Field(None, gt=0, description="Use the first N valid questions.")
    on_bad_row: Literal["stop", "reject"] = Field("stop", description="Stop at bad rows, or send them to rejects.")


class ReaderSection(OneModelSection):
    """Which documents help the reader: it answers each question with and without each of them."""

    name: ClassVar[str] = "reader"
    type: Literal["reader"] = "reader"
    model: ModelSection | None = Field(None, description="The reader; without it the recipe's first model reads.")
    template: str | None = Field(
        None,
        description="The reader's prompt: a Jinja file with `question` and `documents`, or a shipped one (`default`, "
        "`sandbox`).",
    )
    ranks: tuple[Annotated[int, Field(gt=0)], ...] | Literal["all"] = Field(
        (1, 25, 50, 100), description="Ranks of the retrieved documents that are tried, from 1; or all of them."
    )
    label_rule: Literal["em_flip", "f1_sign", "f1_margin", "likelihood"] = Field(
        "em_flip",
        description="em_flip: the answer turns right or wrong (as published); f1_sign: its F1 rises or falls (as the "
        "published rows are labelled); f1_margin: by more than `margin`; likelihood: the log-probability of the "
        "reference answer rises or falls by more than `margin`, without any answer being sampled.",
    )
    right: Literal["exact_match", "containment"] = Field(
        "containment", description="What makes an answer right: it is a reference, or contains one."
    )
    margin: float = Field(0.0, ge=0, description="Of f1_margin, 0..1; of likelihood, nats.")
    references: Literal["first", "best"] = Field(
        "first", description="With likelihood: the first reference answer, or the most probable of all of them."
    )
    abstention: Literal["own", "wrong"] = Field(
        "own", description="An answer that says it does not know is a class of its own, or a wrong answer like others."
    )
    samples: int = Field(
        1, gt=0, description="Answers sampled under each condition; right by majority, F1 as their mean."
    )
    temperature: float = Field(0.0, ge=0, description="0 is greedy; more than one sample needs more.")
    max_new_tokens: int = Field(20, gt=0, description="Of an answer.")

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.ranks != "all" and list(self.ranks) != sorted(set(self.ranks)):
            raise ValueError(f"ranks must rise, without repeats (given: {list(self.ranks)})")
        if self.ranks != "all" and not self.ranks:
            raise ValueError("ranks is empty: name at least one, or `all`")
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("samples at temperature 0 are all the same; set temperature above 0, or samples=1")
        if self.samples == 1 and self.temperature > 0:
            raise ValueError(
                "one answer sampled at a temperature labels by chance; set samples above 1, or temperature 0"
            )
        if self.label_rule == "likelihood" and self.samples > 1:
            raise ValueError("likelihood samples no answers: set samples=1")
        if self.references != "first" and self.label_rule != "likelihood":
            raise ValueError(f"references means nothing to label_rule {self.label_rule}; take it out")
        if self.margin > 0 and self.label_rule not in ("f1_margin", "likelihood"):
            raise ValueError(f"margin means nothing to label_rule {self.label_rule}; take it out")
        if self.label_rule == "f1_margin" and self.margin == 0:
            raise ValueError("label_rule f1_margin needs a margin, for example margin=0.1")
        return self


Strategy = Literal["rephrase", "complexity", "decompose", "constrain", "sparql"]


class NliSection(Section):
    """Which rewritings contradict their question, by a classifier of natural language inference."""

    model: ModelSection = Field(
        ModelSection(path="MoritzLaurer/mDeBERTa-v3-base-xnli-multilingual-nli-2mil7"),
        description="Any sequence classifier with classes named entailment and contradiction in its configuration.",
    )
    bidirectional: bool = Field(
        False, description="Ask the other way round too; a contradiction in either direction counts."
    )
    whole_row: bool = Field(
        False,
        description="As published: look at the first three rewritings of a question alone, and drop all of its "
        "rewritings if one of them is a contradiction.",
    )

    @model_validator(mode="before")
    @classmethod
    def _model_path(cls, data: Any) -> Any:
        return path_shorthand(data, "model")

    @field_validator("model")
    @classmethod
    def _loaded_here(cls, model: ModelSection) -> ModelSection:
        if model.endpoint is not None:
            raise ValueError("a server is asked as a language model, and this one classifies; take endpoint out")
        return model


class AugmentSection(Section):
    """Questions written anew; each rewriting inherits its question's answers, documents and labels."""

    strategies: tuple[Strategy, ...] = Field(
        ("rephrase", "complexity", "decompose", "constrain", "sparql"),
        min_length=1,
        description="rephrase: other words; complexity: a harder question; decompose: several smaller ones; "
        "constrain: further conditions; sparql: a query.",
    )
    model: ModelSection | None = Field(None, description="Who rewrites; without it the recipe's first model.")
    temperature: float = Field(0.7, ge=0, description="0 is greedy.")
    max_new_tokens: int = Field(256, gt=0, description="Of a rewriting; one that is cut off is not taken.")
    retries: int = Field(1, ge=0, description="Further tries for a reply that cannot be used; greedy ones have none.")
    nli: NliSection | None = Field(NliSection(), description="The filter; null keeps every rewriting.")

    @model_validator(mode="before")
    @classmethod
    def _model_path(cls, data: Any) -> Any:
        return path_shorthand(data, "model")

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        if len(set(self.strategies)) < len(self.strategies):
            raise ValueError("strategies names one of them twice; take it out")
        if self.temperature == 0 and self.retries:
            raise ValueError(
                "retries at temperature 0 would say the same again; set retries=0, or temperature above 0"
            )
        return self


class RankingSection(Section):
    """How the reader's labels become rows that a reranker learns from."""

    labels: Literal["flips", "outcomes"] = Field(
        "flips",
        description="flips: documents that turn the answer right are positive, those that turn it wrong negative, the "
        "others neither (as published); outcomes: a right answer with the document is positive, a wrong one or none "
        "negative, whatever the answer without it.",
    )
    retriever_share: float = Field(
        0.3,
        ge=0,
        le=1,
        description="Weight of the retriever's score in the order of the documents; the rest is the reader's. Both "
        "run from 0 to 1 within a question.",
    )


class PrealignSection(Section):
    """Stage one of the reader's alignment: to say whether the document at some position helps."""

    documents: int = Field(3, gt=0, description="Documents in a prompt, the judged one among them.")
    aligned: str = Field("Document {position} helps.", description="What is said of a document that helps.")
    unaligned: str = Field("Document {position} misleads.", description="What is said of one that leads astray.")
    mixed: bool = Field(
        False, description="Train both tasks together in one stage, for comparison, in place of one after the other."
    )
    train: TrainSection | None = Field(
        None, description="Training of this stage; without it as the recipe's `train` section."
    )

    @field_validator("aligned", "unaligned")
    @classmethod
    def _names_the_position(cls, text: str) -> str:
        if "{position}" not in text or "{" in text.replace("{position}", ""):
            raise ValueError("must hold {position}, and no other braces")
        return text

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.aligned == self.unaligned:
            raise ValueError("aligned and unaligned say the same")
        if self.mixed and self.train is not None:
            raise ValueError("mixed has one training, which is the recipe's `train`; take prealign.train out")
        return self
