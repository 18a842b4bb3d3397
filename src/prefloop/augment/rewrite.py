"""Rewritings of questions by any language model, one for each strategy (DPA-RAG's augmentation)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prefloop.augment import prompts, replies
from prefloop.backends.base import Backend, GenerateRequest, Generation, Result, Sampling
from prefloop.config.rag import AugmentSection
from prefloop.records import AugmentedRow, CallRow, QuestionRow, RejectRow, canonical_json, content_id
from prefloop.signals.base import Call
from prefloop.signals.driver import drive

NAME = "augment"
BACKEND = "rewriter"


@dataclass
class Rewritten:
    """What came of some questions; questions times strategies = rows + rejects.

    Attributes:
        calls: every call that was made for them.
        counts: kept rewritings by strategy.
    """

    rows: list[AugmentedRow] = field(default_factory=list)
    rejects: list[RejectRow] = field(default_factory=list)
    calls: list[CallRow] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def identity(section: AugmentSection, seed: int) -> dict[str, Any]:
    """All that changes a rewriting, besides the model."""
    asked = {name: prompts.request(name, "") for name in section.strategies}
    return section.model_dump(exclude={"model", "nli"}) | {"prompts": asked, "seed": seed}


def rewrite(
    section: AugmentSection, rows: Sequence[QuestionRow], backends: Mapping[str, Backend], seed: int
) -> Rewritten:
    """Rewrite questions by every strategy of the section.

    A rewriting that is empty, cut off, no query, or the same as its question or as another one of it is asked for
    again (`retries`) and then rejected with its reason.

    Args:
        backends: the model that writes, under `BACKEND`.
        seed: of sampling.
    """
    made = Rewritten()
    jobs = [(row["id"], _ask(section, row["question"], seed)) for row in rows]
    for row, done in zip(rows, drive(NAME, jobs, backends), strict=True):
        made.calls += done.calls.values()
        for strategy, (reply, attempts, last) in done.value.items():
            name = content_id(NAME, row["id"], strategy)
            if reply.text is None:
                whole = canonical_json({"question": row["question"], "strategy": strategy, "reply": last})
                reason = f"{strategy}: {reply.reason}"
                made.rejects.append({"id": name, "stage": NAME, "reason": reason, "attempts": attempts, "row": whole})
                continue
            made.counts[strategy] += 1
            made.rows.append(
                {
                    "id": name,
                    "question_id": row["id"],
                    "strategy": strategy,
                    "text": reply.text,
                    "inference": None,
                    "inference_back": None,
                    "evidence": list(done.calls),
                }
            )
    return made


_Found = dict[str, tuple[replies.Reply, int, str]]


def _ask(section: AugmentSection, question: str, seed: int) -> Generator[list[Call], list[Result], _Found]:
    """By strategy: the reply as it was read, the tries that it took, and the last one's text."""
    how = Sampling(section.max_new_tokens, section.temperature, seed=seed)
    found: _Found = {}
    for attempt in range(1 + section.retries):
        open_ = [s for s in section.strategies if s not in found or found[s][0].text is None]
        if not open_:
            break
        results = yield [
            Call(BACKEND, GenerateRequest((("user", prompts.request(s, question)),), how, attempt)) for s in open_
        ]
        for strategy, result in zip(open_, results, strict=True):
            reply, said = _read(strategy, question, result)
            taken = {replies.same(r.text) for s, (r, *_) in found.items() if r.text is not None and s != strategy}
            if reply.text is not None and replies.same(reply.text) in taken:
                reply = replies.Reply(None, "repeats another rewriting")
            found[strategy] = (reply, attempt + 1, said)
    return {strategy: found[strategy] for strategy in section.strategies}


def _read(strategy: str, question: str, result: Result) -> tuple[replies.Reply, str]:
    if not isinstance(result, Generation):
        reason = getattr(result, "reason", type(result).__name__)
        return replies.Reply(None, f"refused: {reason}"), ""
    return replies.read(strategy, question, result.text, cut=result.finish_reason == "length"), result.text
