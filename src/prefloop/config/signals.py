"""Signals: who says which answer is better."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from prefloop.config.base import Section, path_shorthand
from prefloop.config.models import ModelSection


class _SignalSection(Section):
    @property
    def models(self) -> dict[str, ModelSection | None]:
        """The models that it calls, by its names for them; None stands for the recipe's first model."""
        return {}

    def with_models(self, change: Callable[[ModelSection], ModelSection]) -> Self:
        """The same section with its models changed."""
        return self


class _OneModelSection(_SignalSection):
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


class JudgeSignalSection(_OneModelSection):
    """Scores from a language model that reads the answers."""

    name: ClassVar[str] = "judge"
    type: Literal["judge"]
    mode: Literal["pointwise", "pairwise"] = Field(
        "pointwise",
        description="pointwise: expected rating 1..5, one call an answer; pairwise: mean win probability against the "
        "other answers, every pair in both orders.",
    )
    model: ModelSection | None = Field(None, description="The judge; without it the recipe's first model judges.")
    template: str | None = Field(
        None, description="The judge's prompt: a Jinja file, or a shipped set (`default`, `sandbox`)."
    )
    min_label_mass: float = Field(
        0.0,
        ge=0,
        le=1,
        description="A verdict is null when the judge gives all labels together less probability than this.",
    )
    max_null_share: float = Field(0.05, ge=0, le=1, description="Stop when more verdicts than this share are null.")


class PairRmSignalSection(_OneModelSection):
    """Scores from PairRM (Jiang et al. 2023), which reads two answers side by side."""

    name: ClassVar[str] = "pairrm"
    type: Literal["pairrm"]
    model: ModelSection = Field(
        ModelSection(path="llm-blender/PairRM"), description="A PairRM checkpoint in either of its formats."
    )


class RewardModelSignalSection(_OneModelSection):
    """Scores from a reward model: a sequence classifier that reads a conversation."""

    name: ClassVar[str] = "reward"
    type: Literal["reward_model"]
    model: ModelSection = Field(description="A sequence-classification checkpoint.")
    head: str | None = Field(
        None, description="Which of several outputs is the score, by its label or number; needed where there are more."
    )


class HumanSignalSection(_SignalSection):
    """Votes and ratings of people, from a file."""

    type: Literal["human"]
    path: str = Field(description="CSV or JSONL file of votes, or Argilla's ranking records.")


SignalSection = Annotated[
    FunctionSignalSection | HumanSignalSection | JudgeSignalSection | PairRmSignalSection | RewardModelSignalSection,
    Field(discriminator="type"),
]
