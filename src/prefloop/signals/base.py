"""What a signal is: a pure generator from a row to scores.

For a row it yields lists of calls, is sent their results, may yield again (a judge that asks a second time, a
ranking that narrows), and returns a `Rating`. It does no input, output, batching, caching, retrying or counting:
`signals.driver.rate` does that once for all signals, across all rows.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from prefloop.backends.base import Request, Result
from prefloop.config import ModelSection, RetrieverSection
from prefloop.records import CandidatesRow, PartScores


@dataclass(frozen=True)
class Call:
    """A request to one of the signal's backends, by its name there ("judge" for the LLM judge)."""

    backend: str
    request: Request


@dataclass(frozen=True)
class Rating:
    """What a signal says of a row.

    Attributes:
        scores: one per completion, higher is better; None where no verdict could be had.
        counts: named counts that the driver sums over rows and prints (verdicts, nulls, first-seat wins, …).
        parts: what the scores are means of, by judge or criterion; empty where they are not.
        judgments: of a critic, what is wrong with each completion in words; None where nothing is, or without a score.
    """

    scores: list[float | None]
    counts: dict[str, float] = field(default_factory=dict)
    parts: list[PartScores] = field(default_factory=list)
    judgments: list[str | None] | None = None


@dataclass(frozen=True)
class Need:
    """A model that a signal calls.

    Attributes:
        model: None stands for the recipe's first model, or for the policy.
        kind: what it is: a `language` model, one that scores texts (`pairrm`, `reward`, `nli`), or a retriever's
            (`encoder`, `cross_encoder`, `bm25`; `retriever` for whichever its section says; `pairs` and `likeness`
            score pairs of texts by it, see `retrieve.pairs`).
        policy: without a model it is the one that is trained, as it is in the round whose answers are rated; an
            evaluation, which compares with the first model, is by that.
    """

    model: ModelSection | RetrieverSection | None
    kind: Literal[
        "language", "pairrm", "reward", "nli", "retriever", "encoder", "cross_encoder", "bm25", "pairs", "likeness"
    ] = "language"
    policy: bool = False


class Signal(Protocol):
    """A source of preference.

    Attributes:
        name: stands in every scored row and call; names the template or function too, so that records tell them apart.
        pairwise: True when a score is the mean win probability (0..1) against the row's other answers; with two
            answers that is the probability itself. False when a score says something of its answer alone.
        identity: everything about the signal, besides its models, that changes a score; JSON-able.
    """

    name: str
    pairwise: bool
    identity: dict[str, Any]

    def rate(self, row: CandidatesRow) -> Generator[list[Call], list[Result], Rating]:
        """Score the completions of one row."""
        ...
