"""Answers of a model to prompts: what the sample stage and the measurement do alike."""

from __future__ import annotations

from collections.abc import Sequence

from prefloop.backends.base import Backend, GenerateRequest, Generation, Refusal, Sampling, freeze
from prefloop.config import SampleSection
from prefloop.reading import reject
from prefloop.records import CandidatesRow, Completion, PromptRow, RejectRow, completion_id


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
    requests = [GenerateRequest(freeze(r["prompt"]), sampling, i) for r in rows for i in range(section.n)]
    answers = iter(backend.answer(requests))
    kept: list[CandidatesRow] = []
    rejects: list[RejectRow] = []
    counts = {"answers": 0.0, "cut_off": 0.0, "tokens": 0.0}
    for row in rows:
        completions: list[Completion] = []
        for i in range(section.n):
            answer = next(answers)
            if isinstance(answer, Refusal):
                refusal = answer.reason
                continue
            assert isinstance(answer, Generation)
            completions.append(
                {
                    "id": completion_id(row["id"], answer.text, i),
                    "text": answer.text,
                    "token_ids": answer.token_ids,
                    "finish_reason": answer.finish_reason,
                    "sample_index": i,
                }
            )
            counts["answers"] += 1
            counts["cut_off"] += answer.finish_reason == "length"
            counts["tokens"] += len(answer.token_ids or ())
        if len(completions) < section.n:
            rejects.append(reject(stage, row, refusal))
        else:
            kept.append({"id": row["id"], "prompt": row["prompt"], "completions": completions})
    return kept, rejects, counts
