"""Signal `reader`: which retrieved documents help a language model to answer a question, and which lead it astray.

The reader answers once without and once with each document alone (Dong et al. 2024, DPA-RAG); a document that turns a
wrong answer right is aligned with it, one that turns a right answer wrong is unaligned. The question stands before the
document, so that all prompts of a question begin alike.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prefloop.backends.base import (
    AnswerScoreRequest,
    Backend,
    GenerateRequest,
    Generation,
    Refusal,
    Result,
    Sampling,
    Score,
)
from prefloop.config.rag import ReaderSection
from prefloop.errors import PrefloopError
from prefloop.records import CallRow, LabelledRow, ReadRow, RejectRow, RetrievedRow, canonical_json, content_id
from prefloop.signals import qa, reader_prompt
from prefloop.signals.base import Call, Need
from prefloop.signals.driver import drive

ALIGNED, UNALIGNED = "aligned", "unaligned"
BOTH_CORRECT, BOTH_INCORRECT, ABSTAINED = "both_correct", "both_incorrect", "abstained"
LABELS = (ALIGNED, UNALIGNED, BOTH_CORRECT, BOTH_INCORRECT, ABSTAINED)


@dataclass(frozen=True)
class Condition:
    """How the reader answered a question under one condition: without documents, or with one.

    Attributes:
        exact_match, containment, f1: means over the samples.
        abstained: whether more than half of the samples abstained.
        answers: what was said, one text a sample.
    """

    exact_match: float
    containment: float
    f1: float
    abstained: bool
    answers: tuple[str, ...]

    @classmethod
    def of(cls, answers: Sequence[str], references: Sequence[str]) -> Condition:
        judged = [qa.judge(answer, references) for answer in answers]
        n = len(judged)
        return cls(
            exact_match=sum(j.exact_match for j in judged) / n,
            containment=sum(j.containment for j in judged) / n,
            f1=sum(j.f1 for j in judged) / n,
            abstained=2 * sum(j.abstained for j in judged) > n,
            answers=tuple(answers),
        )


def verdict(section: ReaderSection, alone: Condition, read: Condition) -> tuple[str, float]:
    """The label and the score of a document by the answers without (`alone`) and with it (`read`).

    The score is what the document adds, -1..1: to the share of right answers (em_flip) or to the F1.
    """
    right = [getattr(side, section.right) > 0.5 for side in (alone, read)]
    if section.label_rule == "em_flip":
        gain, flip = getattr(read, section.right) - getattr(alone, section.right), int(right[1]) - int(right[0])
    else:
        gain = read.f1 - alone.f1
        flip = 0 if abs(gain) <= section.margin else int(math.copysign(1, gain))
    if read.abstained and section.abstention == "own":
        return ABSTAINED, gain
    if flip:
        return (ALIGNED if flip > 0 else UNALIGNED), gain
    return (BOTH_CORRECT if right[0] and right[1] else BOTH_INCORRECT), gain


def likelihood_verdict(margin: float, alone: float, read: float) -> tuple[str, float]:
    """As `verdict`, by the log-probabilities of the reference answer in nats.

    Where they hardly differ, both are right if the answer has more than half of the probability: no other answer can
    then have more.
    """
    gain = read - alone
    if abs(gain) > margin:
        return (ALIGNED if gain > 0 else UNALIGNED), gain
    return (BOTH_CORRECT if min(alone, read) > math.log(0.5) else BOTH_INCORRECT), gain


@dataclass
class Reading:
    """What the reader says of a question's documents.

    Attributes:
        row: without its evidence, which the driver knows; None where the question itself could not be asked.
        reads: an answer under each condition and sample.
        counts: labels, and `unread` documents that do not fit the reader.
        refusal: why there is no row.
    """

    row: LabelledRow | None
    reads: list[ReadRow] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    refusal: str | None = None


class ReaderSignal:
    """Asks the reader about each question without and with each of its documents, all at once."""

    def __init__(self, section: ReaderSection, seed: int = 0) -> None:
        self.section, self.seed = section, seed
        self.prompt = reader_prompt.load(section.template)
        self.name = f"reader-{section.label_rule}@{self.prompt.sha[:8]}"
        self.identity: dict[str, Any] = section.model_dump(exclude={"model", "template"}) | {
            "template_sha": self.prompt.sha,
            "seed": seed if section.temperature > 0 else 0,
        }

    @property
    def needs(self) -> dict[str, Need]:
        """The models that it calls."""
        return {self.section.name: Need(self.section.model)}

    def rate(self, row: RetrievedRow) -> Generator[list[Call], list[Result], Reading]:
        """Label the documents of one question that stand at the section's ranks.

        Args:
            row: documents in the order of their ranks; may have fewer than the ranks ask for.
        """
        ranks = row["ranks"]
        places = [i for i, rank in enumerate(ranks) if self.section.ranks == "all" or rank in self.section.ranks]
        if self.section.label_rule == "likelihood":
            return (yield from self._by_likelihood(row, places))
        return (yield from self._by_answers(row, places))

    def _by_answers(self, row: RetrievedRow, places: list[int]) -> Generator[list[Call], list[Result], Reading]:
        how = Sampling(self.section.max_new_tokens, self.section.temperature, seed=self.seed)
        conditions = [(), *((row["documents"][i],) for i in places)]
        asked = [self.prompt.messages(row["query"], documents) for documents in conditions]
        each = range(self.section.samples)
        results = yield [Call(self.section.name, GenerateRequest(m, how, k)) for m in asked for k in each]
        found: list[Condition | str] = []
        for first in range(0, len(results), self.section.samples):
            found.append(_condition(results[first : first + self.section.samples], row["answers"]))
        alone, *read = found
        if isinstance(alone, str):
            return Reading(None, refusal=alone)
        verdicts = [None if isinstance(c, str) else verdict(self.section, alone, c) for c in read]
        reads = _reads(row, None, alone)
        for i, condition in zip(places, read, strict=True):
            reads += [] if isinstance(condition, str) else _reads(row, row["document_ids"][i], condition)
        return self._reading(row, places, verdicts, reads)

    def _by_likelihood(self, row: RetrievedRow, places: list[int]) -> Generator[list[Call], list[Result], Reading]:
        references = row["answers"][:1] if self.section.references == "first" else row["answers"]
        conditions = [(), *((row["documents"][i],) for i in places)]
        asked = [self.prompt.messages(row["query"], documents) for documents in conditions]
        results = yield [Call(self.section.name, AnswerScoreRequest(m, text)) for m in asked for text in references]
        found: list[float | str] = []
        for first in range(0, len(results), len(references)):
            found.append(_best(results[first : first + len(references)]))
        alone, *read = found
        if isinstance(alone, str):
            return Reading(None, refusal=alone)
        verdicts = [
            None if isinstance(value, str) else likelihood_verdict(self.section.margin, alone, value) for value in read
        ]
        return self._reading(row, places, verdicts, [])

    def _reading(
        self, row: RetrievedRow, places: list[int], verdicts: Sequence[tuple[str, float] | None], reads: list[ReadRow]
    ) -> Reading:
        counts = Counter("unread" if v is None else v[0] for v in verdicts)
        labelled: LabelledRow = {
            "id": row["id"],
            "query": row["query"],
            "answers": row["answers"],
            "document_ids": [row["document_ids"][i] for i in places],
            "documents": [row["documents"][i] for i in places],
            "ranks": [row["ranks"][i] for i in places],
            "retrieval_scores": [row["scores"][i] for i in places],
            "labels": [None if v is None else v[0] for v in verdicts],
            "scores": [None if v is None else v[1] for v in verdicts],
            "signal": self.name,
            "evidence": [],
        }
        return Reading(labelled, reads, counts)


def _condition(results: Sequence[Result], references: Sequence[str]) -> Condition | str:
    """A condition, or why there is none."""
    texts = []
    for result in results:
        if isinstance(result, Refusal):
            return result.reason
        if not isinstance(result, Generation):
            raise PrefloopError(f"the reader gave a {type(result).__name__.lower()} and no answer")
        texts.append(result.text)
    return Condition.of(texts, references)


def _best(results: Sequence[Result]) -> float | str:
    """The log-probability of the most probable reference that the reader could score, or why there is none."""
    scores = [result.total for result in results if isinstance(result, Score)]
    return max(scores) if scores else next(r.reason for r in results if isinstance(r, Refusal))


def _reads(row: RetrievedRow, document: str | None, condition: Condition) -> list[ReadRow]:
    found: list[ReadRow] = []
    for sample, answer in enumerate(condition.answers):
        judged = qa.judge(answer, row["answers"])
        found.append(
            {
                "id": content_id("read", row["id"], document, sample),
                "row_id": row["id"],
                "document_id": document,
                "sample": sample,
                "answer": answer,
                "exact_match": judged.exact_match,
                "containment": judged.containment,
                "f1": judged.f1,
                "abstained": judged.abstained,
            }
        )
    return found


@dataclass
class Read:
    """What reading some rows gave; rows in = rows + rejects.

    Attributes:
        calls: every call that was made for these rows; `evidence` of a row lists the ids of its own.
        counts: labels, summed, and `documents`.
    """

    rows: list[LabelledRow] = field(default_factory=list)
    reads: list[ReadRow] = field(default_factory=list)
    calls: list[CallRow] = field(default_factory=list)
    rejects: list[RejectRow] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def read(signal: ReaderSignal, rows: Sequence[RetrievedRow], backends: Mapping[str, Backend], stage: str) -> Read:
    """Label the documents of all rows.

    Holds all calls of these rows in memory: give it parts of a few hundred rows.

    Args:
        backends: the reader, by the name that the signal calls it.
        stage: named in the rejects.

    Raises:
        PrefloopError: as `driver.drive`.
    """
    made = Read()
    finished = drive(signal.name, [(row["id"], signal.rate(row)) for row in rows], backends)
    for row, done in zip(rows, finished, strict=True):
        made.calls += done.calls.values()
        if done.value.row is None:
            reason = f"the reader cannot take the question: {done.value.refusal}"
            whole = canonical_json({"query": row["query"], "answers": row["answers"]})
            made.rejects.append({"id": row["id"], "stage": stage, "reason": reason, "attempts": 1, "row": whole})
            continue
        made.rows.append({**done.value.row, "evidence": list(done.calls)})
        made.reads += done.value.reads
        made.counts += done.value.counts
        made.counts["documents"] += len(done.value.row["labels"])
    return made


def card(counts: Mapping[str, float]) -> str:
    """The labels in one line."""
    total = sum(counts.get(label, 0) for label in LABELS)
    shares = [f"{label.replace('_', ' ')} {counts.get(label, 0) / max(total, 1):.0%}" for label in LABELS]
    unread = f"; {counts['unread']:,.0f} do not fit the reader" if counts.get("unread") else ""
    return f"{total:,.0f} documents read: {', '.join(shares)}{unread}"
