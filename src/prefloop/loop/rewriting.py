"""Rewrites of passages: what the sample stage keeps of them, and what the measurement does with all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from prefloop.backends.base import Backend, GenerateRequest, Generation, Refusal, Sampling, freeze
from prefloop.config import SampleSection
from prefloop.evaluate.refusals import rule as refusal
from prefloop.inputs.rewriting import asked, decode, load, requests
from prefloop.inputs.rewritten import fault
from prefloop.loop.reading import reject
from prefloop.records import (
    CandidatesRow,
    Completion,
    PromptRow,
    RejectRow,
    Rewrite,
    canonical_json,
    completion_id,
    prompt_id,
)


@dataclass
class Rewritten:
    """Rewrites of some passages.

    Attributes:
        rows: passages with at least one usable rewrite; passages in = rows + rejects.
        rejects: passages without any, and those that the model could not be asked.
        refused: of the rejects, those that the model could not be asked.
        unread: documents with an answer in which no rewrite can be read.
        dropped: answers that are no usable rewrite, each with its reason (`inputs.rewritten.REASONS`).
        counts: answers, cut_off and tokens as of any sampling; rewrites (usable ones); dropped/<reason>.
    """

    rows: list[CandidatesRow] = field(default_factory=list)
    rejects: list[RejectRow] = field(default_factory=list)
    refused: list[RejectRow] = field(default_factory=list)
    unread: set[str] = field(default_factory=set)
    dropped: list[RejectRow] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class _Answer:
    """One answer to one wording; `text` is the rewrite in it, None where none can be read."""

    request: Rewrite
    index: int
    raw: Generation
    text: str | None
    fault: str | None


def rewrite(backend: Backend, rows: Sequence[PromptRow], section: SampleSection, seed: int, stage: str) -> Rewritten:
    """n rewrites of every passage in every wording; what cannot pass for one is left out with its reason."""
    found = Rewritten()
    for row, answers in _answers(backend, rows, section, seed, found, stage):
        completions = []
        for answer in answers:
            completion = _completion(row["id"], answer, answer.text or "")
            if answer.fault is None:
                completions.append(completion)
                continue
            found.counts[f"dropped/{answer.fault}"] += 1
            whole = canonical_json({"prompt": row["prompt"], "answer": answer.raw.text, "completion": completion})
            found.dropped.append(
                {"id": completion["id"], "stage": stage, "reason": answer.fault, "attempts": 1, "row": whole}
            )
        found.counts["rewrites"] += len(completions)
        if completions:
            found.rows.append({"id": row["id"], "prompt": row["prompt"], "completions": completions})
        else:
            reasons = Counter(answer.fault for answer in answers)
            found.rejects.append(reject(stage, row, f"no usable rewrite: {reasons.most_common(1)[0][0]}"))
    return found


def rewrite_to_measure(
    backend: Backend, rows: Sequence[PromptRow], section: SampleSection, seed: int, stage: str
) -> Rewritten:
    """Rewrites of every passage as they come, each row behind the request that was made.

    Nothing is left out, as a model is not to look better by what it fails at: an answer without a readable rewrite
    stands there word for word, and `counts` has its fault. Ids of the rows are those of the requests; a completion's
    `rewrite` says the document.
    """
    found = Rewritten()
    for row, answers in _answers(backend, rows, section, seed, found, stage):
        by_request: dict[str, list[_Answer]] = {}
        for answer in answers:
            by_request.setdefault(answer.request["variant"], []).append(answer)
            found.counts["rewrites"] += answer.fault is None
            if answer.text is None:
                found.unread.add(answer.request["document"])
            if answer.fault is not None:
                found.counts[f"faults/{answer.fault}"] += 1
        for same in by_request.values():
            prompt = asked(row["prompt"], same[0].request)
            name = prompt_id(prompt)
            texts = [answer.raw.text if answer.text is None else answer.text for answer in same]
            completions = [_completion(name, answer, text) for answer, text in zip(same, texts, strict=True)]
            found.rows.append({"id": name, "prompt": prompt, "completions": completions})
    return found


def wordings(section: SampleSection) -> int:
    """In how many wordings a passage is asked for."""
    assert section.rewrite is not None
    return 1 if section.rewrite.assign == "turn" else len(load(section.rewrite).variants)


def _answers(
    backend: Backend,
    rows: Sequence[PromptRow],
    section: SampleSection,
    seed: int,
    found: Rewritten,
    stage: str,
) -> list[tuple[PromptRow, list[_Answer]]]:
    """Each passage with all its answers; those that the model cannot be asked go to the rejects."""
    assert section.rewrite is not None
    sampling = Sampling(
        max_new_tokens=section.max_new_tokens,
        temperature=section.temperature,
        top_p=section.top_p,
        top_k=section.top_k,
        seed=seed,
    )
    bank = load(section.rewrite)
    wanted = {row["id"]: requests(bank, section.rewrite, row) for row in rows}
    results = iter(
        backend.answer(
            [
                GenerateRequest(freeze(asked(row["prompt"], request)), sampling, i)
                for row in rows
                for request in wanted[row["id"]]
                for i in range(section.n)
            ]
        )
    )
    whole = []
    for row in rows:
        answers, reason = [], None
        for index, request in enumerate(r for r in wanted[row["id"]] for _ in range(section.n)):
            result = next(results)
            if isinstance(result, Refusal):
                reason = result.reason
                continue
            assert isinstance(result, Generation)
            answers.append(_read(row, request, index, result, section))
            found.counts["answers"] += 1
            found.counts["cut_off"] += result.finish_reason == "length"
            found.counts["tokens"] += len(result.token_ids or ())
        if reason is None:
            whole.append((row, answers))
        else:
            refused = reject(stage, row, reason)
            found.refused.append(refused)
            found.rejects.append(refused)
    return whole


def _read(row: PromptRow, request: Rewrite, index: int, result: Generation, section: SampleSection) -> _Answer:
    assert section.rewrite is not None
    passage = row["prompt"][-1]["content"]
    text = decode(result.text, request)
    reason: str | None
    if result.finish_reason == "length":
        reason = "cut_off"
    elif text is None:
        # A model that declines does not do it in JSON.
        reason = "refusal" if refusal(result.text) is not None else "undecodable"
    else:
        reason = fault(text, passage, request["key"], section.rewrite)
        if refusal(text) is not None and refusal(passage) is None and reason in (None, "too_short", "too_long"):
            reason = "refusal"
    return _Answer(request, index, result, text, reason)


def _completion(row_id: str, answer: _Answer, text: str) -> Completion:
    same = answer.raw.text == text
    return {
        "id": completion_id(row_id, text, answer.index),
        "text": text,
        # Of text that was read out of something else there are no ids.
        "token_ids": answer.raw.token_ids if same else None,
        "finish_reason": answer.raw.finish_reason,
        "sample_index": answer.index,
        "rewrite": answer.request,
    }
