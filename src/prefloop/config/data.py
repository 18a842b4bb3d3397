"""What comes in, how answers are sampled, and how they become pairs."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from prefloop.config.base import Section, path_shorthand
from prefloop.config.models import ModelSection


class PromptsSection(Section):
    """Where prompts come from."""

    path: str = Field(
        description="JSONL, JSON, CSV or Parquet file, `hub:ORG/NAME`, or `sandbox:questions/train` and the like."
    )
    format: Literal["auto", "jsonl", "json", "csv", "parquet", "lima", "hh", "hub", "sandbox"] = Field(
        "auto",
        description="auto goes by the path and, for JSONL, by the keys of the first row; hh: HH-RLHF's conversations, "
        "the last answer left out.",
    )
    column: str = Field("prompt", description="Column with the prompt: a text, or a list of messages.")
    ignore_columns: list[str] | Literal["all"] = Field(
        default_factory=list, description="Columns known to be there and not to be read; any other is an error."
    )
    split: str = Field("train", description="Split of a hub data set.")
    system: str | None = Field(None, description="System message put before every prompt that has none.")
    limit: int | None = Field(None, gt=0, description="Use the first N valid prompts.")
    max_words: int | None = Field(
        None, gt=0, description="Longer prompts, all turns together, are left out and counted; they stop nothing."
    )
    on_bad_row: Literal["stop", "reject"] = Field("stop", description="Stop at bad rows, or send them to rejects.")


class PreferencesSection(Section):
    """Preference data that is there already, in place of prompts, sample, rate and pair."""

    path: str = Field(
        description="JSONL, JSON, CSV or Parquet file, or `hub:ORG/NAME`, of pairs, of single good or bad answers, of "
        "demonstrations, or of answers with written judgments (docs/cut.md); `.gz` behind JSONL or CSV is read too."
    )
    format: Literal[
        "auto",
        "preference",
        "unpaired",
        "completion",
        "messages",
        "sharegpt",
        "sharegpt_pairs",
        "pku",
        "lima",
        "votes",
        "ratings",
        "argilla",
        "judgment",
        "cut",
        "shepherd",
        "critiques",
        "ultrafeedback",
    ] = Field("auto", description="What the columns mean (docs/inputs.md); auto goes by those of the first row.")
    ignore_columns: list[str] | Literal["all"] = Field(
        default_factory=list, description="Columns known to be there and not to be read."
    )
    split: str = Field("train", description="Split of a hub data set.")
    limit: int | None = Field(None, gt=0, description="Use the first N valid rows.")
    on_bad_row: Literal["stop", "reject"] = Field("stop", description="Stop at bad rows, or send them to rejects.")
    praise: Literal["satisfactory", "reject", "keep"] = Field(
        "satisfactory",
        description="A written judgment that only praises: its answer is satisfactory, is left out, or is criticised "
        "by it all the same.",
    )
    satisfactory_score: float | None = Field(
        7.0,
        description="An answer whose judgment comes with at least this score is satisfactory; null: by words alone.",
    )
    learn: Literal["answer", "critic"] = Field(
        "answer",
        description="What an answer with a written judgment teaches: answering, or judging, as the signal `critic` "
        "asks for it (objective sft).",
    )


class ContrastSection(Section):
    """Answers sampled for and against an attribute, by a note in the system message that training does not see."""

    attributes: tuple[str, ...] = Field(
        min_length=1,
        description="Shipped ones (`harmless`, `helpful`, `honest`, `concise`, and `kind` for the embedded model) or "
        "YAML files; each gives answers of its own.",
    )
    against: Literal["negative", "neutral"] = Field(
        "negative",
        description="Notes of the other answers: negative ones, or neutral ones that do not ask for the opposite.",
    )


class SampleSection(Section):
    """How answers are sampled."""

    model: ModelSection | None = Field(
        None,
        description="Who answers: another model, or the same one on a server; without it the one that is trained.",
    )
    n: int = Field(5, gt=0, description="Answers per prompt; with `contrast` on each side of each attribute.")
    temperature: float = Field(1.0, ge=0, description="0 is greedy.")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus: least probable tokens beyond this mass are cut.")
    top_k: int = Field(0, ge=0, description="0 switches it off.")
    max_new_tokens: int = Field(512, gt=0, description="Longer answers are cut off and say so (`length`).")
    contrast: ContrastSection | None = Field(
        None, description="Half of the answers under a positive note, half under its opposite (DLMA)."
    )

    @model_validator(mode="before")
    @classmethod
    def _model_path(cls, data: Any) -> Any:
        return path_shorthand(data, "model")

    @model_validator(mode="before")
    @classmethod
    def _contrast_attributes(cls, data: Any) -> Any:
        contrast = data.get("contrast") if isinstance(data, dict) else None
        if isinstance(contrast, str | list | tuple):
            return {**data, "contrast": {"attributes": [contrast] if isinstance(contrast, str) else contrast}}
        return data

    @property
    def answers(self) -> int:
        """Answers to a prompt in all."""
        return self.n * (1 if self.contrast is None else 2 * len(self.contrast.attributes))


class PairSection(Section):
    """How scored answers become pairs, and which are left out."""

    strategy: Literal["best_worst", "best_random", "all_pairs", "adjacent", "contrast"] = Field(
        "best_worst",
        description="best_worst: highest against lowest score; best_random: highest against a random lower one; "
        "all_pairs: every two answers; adjacent: neighbours in score; contrast: for each attribute (sample.contrast) "
        "the highest answer for it against the lowest against it, whichever has the higher score.",
    )
    margin: Literal["gap"] | None = Field(
        None,
        description="gap: the chosen answer's score minus the rejected one's becomes the pair's margin, which the "
        "loss uses (train.objective.margin_weight). Without it pairs have none.",
    )
    swap_negative: bool = Field(
        False, description="With strategy contrast: the answer with the higher score is chosen, whatever its side."
    )
    min_gap: float = Field(
        0.0,
        ge=0,
        description="Least score gap of a pair, either way with strategy contrast; with the others equal scores never "
        "make a pair.",
    )
    min_agree: int | None = Field(
        None, gt=0, description="Keep a pair only when this many judges of a panel prefer its chosen answer."
    )
    max_length_ratio: float | None = Field(
        None, gt=1, description="Drop pairs whose answers' lengths in characters differ by more than this factor."
    )
    drop_echo: bool = Field(
        False, description="Leave out answers that repeat their prompt's last turn or their note word for word."
    )
    drop_truncated: bool = Field(
        False,
        description="Leave out answers that were cut off at max_new_tokens. Those that stay are trained on without an "
        "end of turn, so that they do not teach to stop in mid-sentence.",
    )
