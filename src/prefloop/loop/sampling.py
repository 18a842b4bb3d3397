"""Answers of a model to prompts: what the sample stage and the measurement do alike."""

from __future__ import annotations

from collections.abc import Sequence

from prefloop.backends.base import Backend, GenerateRequest, Generation, Refusal, Sampling, freeze
from prefloop.config import SampleSection
from prefloop.loop.reading import reject
from prefloop.records import CandidatesRow, Completion, Contrast, Message, PromptRow, RejectRow, completion_id
from prefloop.signals.attribute import contrasts, load_all, with_note


def sample(
    backend: Backend, rows: Sequence[PromptRow], section: SampleSection, seed: int, stage: str
) -> tuple[list[CandidatesRow], list[RejectRow], dict[str, float]]:
    sampling = Sampling(
        max_new_tokens=section.max_new_tokens,
        temperature=section.temperature,
        top_p=section.top_p,
        top_k=section.top_k,
        seed=seed,
    )
    kinds = _kinds(rows, section, seed)
    requests = [
        GenerateRequest(freeze(_asked(row, kind)), sampling, i)
        for row in rows
        for kind in kinds[row["id"]]
        for i in range(section.n)
    ]
    answers = iter(backend.answer(requests))
    kept: list[CandidatesRow] = []
    rejects: list[RejectRow] = []
    counts = {"answers": 0.0, "cut_off": 0.0, "tokens": 0.0}
    for row in rows:
        completions: list[Completion] = []
        for i in range(section.answers):
            answer = next(answers)
            if isinstance(answer, Refusal):
                refusal = answer.reason
                continue
            assert isinstance(answer, Generation)
            completion: Completion = {
                "id": completion_id(row["id"], answer.text, i),
                "text": answer.text,
                "token_ids": answer.token_ids,
                "finish_reason": answer.finish_reason,
                "sample_index": i,
            }
            if (kind := kinds[row["id"]][i // section.n]) is not None:
                completion["contrast"] = kind
            completions.append(completion)
            counts["answers"] += 1
            counts["cut_off"] += answer.finish_reason == "length"
            counts["tokens"] += len(answer.token_ids or ())
        if len(completions) < section.answers:
            rejects.append(reject(stage, row, refusal))
        else:
            kept.append({"id": row["id"], "prompt": row["prompt"], "completions": completions})
    return kept, rejects, counts


def _kinds(rows: Sequence[PromptRow], section: SampleSection, seed: int) -> dict[str, list[Contrast | None]]:
    """What each row's answers are asked with, `section.n` answers each: None for its prompt as it is."""
    if section.contrast is None:
        return {row["id"]: [None] for row in rows}
    attributes, against = load_all(section.contrast.attributes), section.contrast.against
    # The row's id and the seed, so that a prompt has the same notes whatever stands beside it.
    drawn = {row["id"]: contrasts(attributes, [seed, row["id"]], against) for row in rows}
    return {name: [side for both in pairs for side in both] for name, pairs in drawn.items()}


def _asked(row: PromptRow, kind: Contrast | None) -> list[Message]:
    """The prompt as the model is asked it."""
    if kind is None:
        return row["prompt"]
    return with_note(row["prompt"], kind["positive"] if kind["side"] == "positive" else kind["negative"])
