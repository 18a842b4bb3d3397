"""Questions with reference answers, and what is done with retrieved documents."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from prefloop.config.base import Section

QuestionsFormat = Literal["auto", "questions", "natural_questions", "triviaqa", "hotpotqa", "webqsp", "flashrag"]


class QuestionsSection(Section):
    """Questions with their reference answers."""

    path: str = Field(description="JSONL, JSON, CSV or Parquet file, or `hub:ORG/NAME` with its configuration behind.")
    format: QuestionsFormat = Field(
        "auto",
        description="questions: `question` and `answers`; the others as these data sets are published (docs/dpa_rag.md);"
        " auto goes by the columns of the first row.",
    )
    ignore_columns: list[str] | Literal["all"] = Field(
        default_factory=list, description="Columns known to be there and not to be read; any other is an error."
    )
    split: str = Field("train", description="Split of a hub data set.")
    limit: int | None = Field(None, gt=0, description="Use the first N valid questions.")
    on_bad_row: Literal["stop", "reject"] = Field("stop", description="Stop at bad rows, or send them to rejects.")
