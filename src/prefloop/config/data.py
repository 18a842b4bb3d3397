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
    format: Literal["auto", "jsonl", "json", "csv", "parquet", "lima", "hh", "hub", "sandbox", "passages"] = Field(
        "auto",
        description="auto goes by the path and, for JSONL, by the keys of the first row; hh: HH-RLHF's conversations, "
        "the last answer left out; passages: each text of a BEIR folder, its zip, or a file of such rows, for "
        "sample.rewrite.",
    )
    column: str = Field("prompt", description="Column with the prompt: a text, or a list of messages.")
    ignore_columns: list[str] | Literal["all"] = Field(
        default_factory=list, description="Columns known to be there and not to be read; any other is an error."
    )
    split: str = Field("train", description="Split of a hub data set.")
    system: str | None = Field(None, description="System message put before every prompt that has none.")
    limit: int | None = Field(None, gt=0, description="Use the first N valid prompts.")
    source: str = Field("human", description="Of passages: which `corpus/<source>.jsonl`, where there are several.")
    judged: str | None = Field(
        None, description="Of passages: only those judged relevant by `qrels/<judged>.tsv`, with a grade of 1 or more."
    )
    max_words: int | None = Field(
        None, gt=0, description="Longer prompts, all turns together, are left out and counted; they stop nothing."
    )
    on_bad_row: Literal["stop", "reject"] = Field("stop", description="Stop at bad rows, or send them to rejects.")


class PreferencesSection(Section):
    """Preference data that is there already, in place of prompts, sample, rate and pair."""

    path: str = Field(
        description="JSONL, JSON, CSV or Parquet file, or `hub:ORG/NAME`, of pairs, of single good or bad answers, of "
        "demonstrations, or of answers with written judgments (docs/cut.md); `.gz` behind JSONL or CSV is read too. "
        "Or LLaMA-Factory's `dataset_info.json`, which names a file and its columns."
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
    name: str | None = Field(
        None, description="Which data set, where `path` is LLaMA-Factory's dataset_info.json with several."
    )
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


class RewriteSection(Section):
    """Answers are rewrites of passages, asked for in several wordings (LLM-SBM)."""

    bank: str = Field(
        "default",
        description="The wordings: shipped (`default`, seven of them, or `sandbox` for the embedded model), or a YAML "
        "file.",
    )
    variants: tuple[str, ...] | None = Field(
        None, min_length=1, description="Ids of the bank's wordings that are used; without it all."
    )
    answer: Literal["json", "text"] = Field(
        "json",
        description="json: an object with one key, which is read out, repaired where it must be; text: the answer is "
        "the rewrite.",
    )
    assign: Literal["all", "turn"] = Field(
        "all",
        description="all: every passage in every wording; turn: each in one of them, by its id. A measurement is "
        "always by turn.",
    )
    length_ratio: tuple[float, float] | None = Field(
        (0.7, 1.3),
        description="Least and largest ratio of a rewrite's words to its passage's; outside it is left out.",
    )

    @model_validator(mode="after")
    def _range(self) -> RewriteSection:
        if self.length_ratio is not None and not 0 <= self.length_ratio[0] < self.length_ratio[1]:
            low, high = self.length_ratio
            raise ValueError(f"length_ratio is an empty range, {low:g} to {high:g}: give the lower end first")
        return self


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

    rewrite: RewriteSection | None = Field(
        None, description="Prompts are passages, and answers rewrites of them (LLM-SBM); n of each wording."
    )

    @model_validator(mode="before")
    @classmethod
    def _model_path(cls, data: Any) -> Any:
        return path_shorthand(data, "model")

    @model_validator(mode="after")
    def _one_way_of_asking(self) -> SampleSection:
        if self.contrast is not None and self.rewrite is not None:
            raise ValueError("contrast and rewrite exclude each other: take one of them out")
        return self

    @model_validator(mode="before")
    @classmethod
    def _contrast_attributes(cls, data: Any) -> Any:
        contrast = data.get("contrast") if isinstance(data, dict) else None
        if isinstance(contrast, str | list | tuple):
            return {**data, "contrast": {"attributes": [contrast] if isinstance(contrast, str) else contrast}}
        return data

    @property
    def answers(self) -> int:
        """Answers to a prompt in all; of rewrites, to a wording."""
        return self.n * (1 if self.contrast is None else 2 * len(self.contrast.attributes))


class PairSection(Section):
    """How scored answers become pairs, and which are left out."""

    strategy: Literal["best_worst", "best_random", "all_pairs", "adjacent", "contrast", "straddle"] = Field(
        "best_worst",
        description="best_worst: highest against lowest score; best_random: highest against a random lower one; "
        "all_pairs: every two answers; adjacent: neighbours in score; contrast: for each attribute (sample.contrast) "
        "the highest answer for it against the lowest against it, whichever has the higher score; straddle: for each "
        "query a rewrite that the retriever puts below the human text against one that it puts above (rate.type "
        "retriever).",
    )
    threshold: float = Field(
        0.0,
        ge=0,
        description="Of straddle: how far from the human text both must be, more than this, in rate's units.",
    )
    min_similarity: float | None = Field(
        0.92,
        ge=-1,
        le=1,
        description="Of straddle: least cosine to the human text of both (rate.similarity); null: any.",
    )
    weight: Literal["gap"] | None = Field(
        None,
        description="Of straddle: gap: how far chosen and rejected are apart, divided by the largest such gap, is the "
        "pair's weight (train.objective.weight_alpha).",
    )
    largest: Literal["kept", "proposed"] = Field(
        "kept",
        description="The gap that weights are divided by: the largest of the pairs that are kept, or of all before "
        "the semantic filter, as published.",
    )
    replicate: Literal["own", "all"] = Field(
        "own",
        description="Of straddle: own: a pair's prompt is the wording that its chosen rewrite was asked with; all: "
        "every pair stands behind each wording, as published.",
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
