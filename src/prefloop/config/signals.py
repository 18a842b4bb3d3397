"""Signals: who says which answer is better."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from prefloop.config.base import Section, path_shorthand
from prefloop.config.models import ModelSection
from prefloop.config.retrieval import RetrieverSection


class _SignalSection(Section):
    @property
    def models(self) -> dict[str, ModelSection | None]:
        """The models that it calls, by its names for them; None stands for the recipe's first model."""
        return {}

    def with_models(self, change: Callable[[ModelSection], ModelSection]) -> Self:
        """The same section with its models changed."""
        return self

    def comparing(self) -> Self:
        """The same signal as an evaluation asks it: where it can give a win probability, that is its score."""
        return self


class OneModelSection(_SignalSection):
    """A signal with one model, in a field `model`; `name` is the signal's name for it."""

    name: ClassVar[str]
    model: ModelSection | None

    @model_validator(mode="before")
    @classmethod
    def _model_path(cls, data: Any) -> Any:
        return path_shorthand(data, "model")

    @property
    def models(self) -> dict[str, ModelSection | None]:
        return {self.name: self.model}

    def with_models(self, change: Callable[[ModelSection], ModelSection]) -> Self:
        return self if self.model is None else self.model_copy(update={"model": change(self.model)})


class FunctionSignalSection(_SignalSection):
    """Scores from any Python function."""

    type: Literal["function"]
    callable: str = Field(
        description="`module:name` of f(prompt: list of messages, completion: str) -> float or None.",
        pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$",
    )


class JudgeSignalSection(OneModelSection):
    """Scores from a language model that reads the answers, or from a panel of several."""

    name: ClassVar[str] = "judge"
    type: Literal["judge"]
    mode: Literal["pointwise", "pairwise", "listwise", "ranking"] = Field(
        "pointwise",
        description="pointwise: expected rating, one call an answer; pairwise: mean win probability against the other "
        "answers, every pair in both orders; listwise: a rating for each of all answers in one reply; ranking: all "
        "answers put in order by one reply.",
    )
    model: ModelSection | None = Field(None, description="The judge; without it the recipe's first model judges.")
    panel: tuple[ModelSection, ...] | None = Field(
        None,
        min_length=2,
        description="Several judges in place of one: a score is the mean of theirs, and their agreement is told.",
    )
    template: str | None = Field(
        None, description="The judge's prompt: a Jinja file, or a shipped set (`default`, `sandbox`)."
    )
    rubric: str | None = Field(
        None,
        description="Criteria and scale: a YAML file, or a shipped one (`default`, `helpfulness`, `harmlessness`).",
    )
    by_criterion: bool = Field(
        False, description="A verdict by each criterion of the rubric; a score is their weighted mean, all are kept."
    )
    references: str | None = Field(
        None, description="File of right answers to compare with: rows of `prompt` and `reference` (JSONL, CSV, …)."
    )
    verdict: Literal["auto", "choose", "json", "text"] = Field(
        "auto",
        description="How the judge says it: choose (by the labels' probabilities), json (held to a schema), text "
        "(reasons, then the verdict); auto takes the first that its backend can serve.",
    )
    samples: int = Field(1, gt=0, description="Written replies to one question, whose mean counts; json and text.")
    temperature: float = Field(0.0, ge=0, description="Of written replies; more than one sample needs more than 0.")
    max_new_tokens: int = Field(512, gt=0, description="Of a written reply with its reasons.")
    orders: int = Field(
        2, ge=2, description="In how many shuffled orders a list is shown (listwise and ranking); the mean counts."
    )
    min_label_mass: float = Field(
        0.0,
        ge=0,
        le=1,
        description="A verdict is null when the judge gives all labels together less probability than this.",
    )
    max_null_share: float = Field(0.05, ge=0, le=1, description="Stop when more verdicts than this share are null.")
    force: bool = Field(
        False,
        description="Train on the scores although the orders disagree too often, or the longer answer always wins.",
    )

    @model_validator(mode="before")
    @classmethod
    def _panel_paths(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(panel := data.get("panel"), list | tuple):
            return {**data, "panel": [{"path": m} if isinstance(m, str) else m for m in panel]}
        return data

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.panel is not None and self.model is not None:
            raise ValueError("model and panel exclude each other: put the model into the panel, or take one out")
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("samples at temperature 0 are all the same; set temperature above 0, or samples=1")
        if self.verdict == "choose" and (self.samples > 1 or self.mode in ("listwise", "ranking")):
            what = "samples" if self.samples > 1 else f"mode {self.mode}"
            raise ValueError(f"{what} needs written verdicts: set verdict to auto, json or text")
        return self

    @property
    def models(self) -> dict[str, ModelSection | None]:
        """As of others; a panel's judges are called judge, judge2, judge3, …"""
        if self.panel is None:
            return super().models
        return {self.name if i == 1 else f"{self.name}{i}": model for i, model in enumerate(self.panel, 1)}

    def with_models(self, change: Callable[[ModelSection], ModelSection]) -> Self:
        if self.panel is None:
            return super().with_models(change)
        return self.model_copy(update={"panel": tuple(change(model) for model in self.panel)})


EMBEDDED_PAIRRM = "sandbox:pairrm"


class PairRmSignalSection(OneModelSection):
    """Scores from PairRM (Jiang et al. 2023), which reads two answers side by side."""

    name: ClassVar[str] = "pairrm"
    type: Literal["pairrm"]
    model: ModelSection = Field(
        ModelSection(path="llm-blender/PairRM"),
        description="A PairRM checkpoint in either of its formats: hub id, folder, or `sandbox` for the embedded one.",
    )

    score: Literal["logit", "win"] = Field(
        "logit",
        description="logit: mean over the row's answers of the difference of both orders' logits; win: mean "
        "probability of winning against another answer, 0..1. An evaluation always takes win.",
    )

    @field_validator("model", mode="after")
    @classmethod
    def _its_own_sandbox(cls, model: ModelSection) -> ModelSection:
        if model.endpoint is not None:
            raise ValueError("endpoint: a PairRM is loaded here, not asked of a server; take it out")
        return model.model_copy(update={"path": EMBEDDED_PAIRRM}) if model.path == "sandbox" else model

    def comparing(self) -> Self:
        return self.model_copy(update={"score": "win"})


class RewardModelSignalSection(OneModelSection):
    """Scores from a reward model: a sequence classifier that reads a conversation."""

    name: ClassVar[str] = "reward"
    type: Literal["reward_model"]
    model: ModelSection = Field(
        description="A sequence-classification checkpoint. `template: auto` is its own chat template; an encoder "
        "without one is given the prompt and the answer as a pair of texts, any other model the plain form."
    )
    head: str | None = Field(
        None, description="Which of several outputs is the score, by its label or number; needed where there are more."
    )

    @field_validator("head", mode="before")
    @classmethod
    def _head_number(cls, head: Any) -> Any:
        return str(head) if isinstance(head, int) and not isinstance(head, bool) else head

    @model_validator(mode="after")
    def _loaded_here(self) -> RewardModelSignalSection:
        if self.model.endpoint is not None:
            raise ValueError("model.endpoint: a reward model is loaded here, not asked of a server; take it out")
        return self


class SelfRewardSignalSection(OneModelSection):
    """Scores without labels or a judge: how much likelier an answer is under a positive than under a negative note.

    With answers sampled by `sample.contrast`, and `pair.strategy: contrast`, this is DLMA (Liu et al. 2024).
    """

    name: ClassVar[str] = "self"
    type: Literal["self_reward"]
    model: ModelSection | None = Field(
        None, description="Who scores; without it the model that is trained, in later rounds as it then is."
    )
    attributes: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="By which notes answers are scored: shipped attributes or YAML files, the mean over them. Without "
        "it by the notes that each answer was sampled with (sample.contrast).",
    )
    against: Literal["negative", "neutral"] = Field(
        "negative", description="With `attributes`: the notes that stand against the positive ones."
    )
    average: Literal["sum", "tokens"] = Field(
        "sum", description="sum: of an answer's log-probabilities, as published; tokens: their mean over its tokens."
    )

    @field_validator("attributes", mode="before")
    @classmethod
    def _one_attribute(cls, attributes: Any) -> Any:
        return (attributes,) if isinstance(attributes, str) else attributes

    @model_validator(mode="after")
    def _loaded_here(self) -> Self:
        if self.model is not None and self.model.endpoint is not None:
            raise ValueError("model.endpoint: answers are scored here, not by a server; take it out")
        if self.attributes is None and self.against != "negative":
            raise ValueError("against needs attributes; without them the notes are those of sample.contrast")
        return self


class CriticSignalSection(OneModelSection):
    """Written judgments, for the objective `cut`: what is wrong with an answer, or that nothing is (score 0 or 1)."""

    name: ClassVar[str] = "critic"
    type: Literal["critic"]
    model: ModelSection | None = Field(None, description="The critic; without it the recipe's first model criticises.")
    callable: str | None = Field(
        None,
        description="In place of a model: `module:name` of f(prompt: list of messages, completion: str) -> what is "
        "wrong as a text, or None.",
        pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$",
    )
    template: str | None = Field(
        None, description="The critic's prompt: a Jinja file with `instruction`, `answer` and `reply`."
    )
    max_new_tokens: int = Field(512, gt=0, description="Of a judgment; one that is longer is asked for again.")
    retries: int = Field(2, ge=0, description="Further tries for a reply that cannot be read.")
    max_null_share: float = Field(
        0.05, ge=0, le=1, description="Stop when more answers than this share get no judgment."
    )

    @model_validator(mode="after")
    def _one_critic(self) -> Self:
        if self.callable is not None and (self.model is not None or self.template is not None):
            what = "model" if self.model is not None else "template"
            raise ValueError(
                f"callable and {what} exclude each other: a function or a model criticises; to use the function, take "
                f"the {what} out with {what}=null in the same section, such as rate.{what}=null"
            )
        return self

    @property
    def models(self) -> dict[str, ModelSection | None]:
        return {} if self.callable is not None else super().models


class RetrieverSignalSection(_SignalSection):
    """By how much retrievers put a rewrite above the human text, for the queries that it is relevant to (LLM-SBM)."""

    type: Literal["retriever"]
    retrievers: tuple[RetrieverSection, ...] = Field(
        min_length=1,
        description="Encoders, cross-encoders or `bm25`; the scores of several are z-normalised and averaged.",
    )
    judgments: str = Field(
        description="BEIR folder or its zip with queries and judgments, joined with the passages by their ids."
    )
    split: str = Field("test", description="Which judgments: `qrels/<split>.tsv`.")
    min_grade: int = Field(1, description="Least grade of a judgment that counts; 0 takes all, as published.")
    similarity: RetrieverSection | None = Field(
        RetrieverSection(path="BAAI/bge-base-en-v1.5"),
        description="Encoder of the semantic filter: cosine of a rewrite to the human text (pair.min_similarity); "
        "null: none.",
    )
    by: Literal["score", "rank"] = Field("score", description="rank: places in the run of `top_k` in place of scores.")
    top_k: int | None = Field(
        None,
        gt=0,
        description="Compare inside the best so many of a run over human texts and one wording's rewrites, as "
        "published (100); a text that is not among them makes the difference 0. Without it pairs are scored directly.",
    )

    @field_validator("retrievers", mode="before")
    @classmethod
    def _one_retriever(cls, given: Any) -> Any:
        return (given,) if isinstance(given, str | dict) else given

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.by == "rank" and self.top_k is None:
            raise ValueError("by rank needs a run: set top_k, for example top_k=100")
        if self.similarity is not None and (self.similarity.path == "bm25" or self.similarity.kind == "cross_encoder"):
            raise ValueError("similarity is the cosine of two passages: name an encoder")
        return self

    @property
    def names(self) -> list[str]:
        """The signal's names for its retrievers."""
        return [f"retriever{number}" for number in range(1, len(self.retrievers) + 1)]


class HumanSignalSection(_SignalSection):
    """Votes and ratings of people on these very answers, from a file (docs/human.md)."""

    type: Literal["human"]
    path: str = Field(description="JSONL, JSON, CSV or Parquet file of votes, ratings or Argilla's ranking records.")


SignalSection = Annotated[
    CriticSignalSection
    | FunctionSignalSection
    | HumanSignalSection
    | JudgeSignalSection
    | PairRmSignalSection
    | RetrieverSignalSection
    | RewardModelSignalSection
    | SelfRewardSignalSection,
    Field(discriminator="type"),
]
