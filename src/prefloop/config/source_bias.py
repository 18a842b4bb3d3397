"""How much retrievers prefer a model's rewrites to human text, before and after alignment."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from prefloop.config.base import Section
from prefloop.config.retrieval import RetrieverSection


class SourceBiasSection(Section):
    """Held-out passages in three versions, human, by the base and by the aligned model, in one search (Cocktail)."""

    judgments: str | None = Field(
        None, description="BEIR folder or its zip with queries and judgments; without it the rate section's."
    )
    split: str | None = Field(None, description="Which judgments; without it the rate section's.")
    retrievers: tuple[RetrieverSection, ...] | None = Field(
        None, min_length=1, description="Who searches; without it the rate section's retrievers."
    )
    similarity: RetrieverSection | None = Field(
        None, description="Encoder of the versions' cosines; without it the rate section's."
    )
    no_hit: Literal["drop", "zero"] = Field(
        "zero", description="A query without any hit: left out, as published, or 0."
    )
    unread: Literal["raw", "drop"] = Field(
        "raw",
        description="An answer in which no rewrite can be read: raw: it stands in the corpus word for word; drop: its "
        "passage is left out of all versions. Counted either way, and never replaced by the human text.",
    )

    @field_validator("retrievers", mode="before")
    @classmethod
    def _one_retriever(cls, given: Any) -> Any:
        return (given,) if isinstance(given, str | dict) else given
