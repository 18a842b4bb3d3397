"""The answers of two models to the same prompts, side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from prefloop.errors import UsageError
from prefloop.records import CandidatesRow, Completion, content_id, prompt_id


def join(base: Iterable[CandidatesRow], aligned: Iterable[CandidatesRow]) -> list[CandidatesRow]:
    """One row per prompt and sample, its completions [base, aligned]; joined by id and sample index, in base's order.

    The row's id is the prompt's where each model gave one answer, else a hash of prompt and sample.

    Raises:
        UsageError: the two do not answer the same prompts the same number of times.
    """
    other = {row["id"]: row for row in aligned}
    rows: list[CandidatesRow] = []
    for row in base:
        partner = other.pop(row["id"], None)
        ours = _by_sample(row)
        theirs = {} if partner is None else _by_sample(partner)
        if ours.keys() != theirs.keys():
            raise UsageError(
                f"the base gave samples {sorted(ours)}, the aligned model {sorted(theirs)}",
                where=f"prompt {row['id']}",
                fix="sample both models on the same prompts with the same n",
            )
        for index in sorted(ours):
            name = row["id"] if len(ours) == 1 else content_id("sample", row["id"], index)
            rows.append({"id": name, "prompt": row["prompt"], "completions": [ours[index], theirs[index]]})
    if other:
        raise UsageError(
            f"{len(other)} prompts have an answer of the aligned model only",
            where=f"prompt {next(iter(other))}",
            fix="sample both models on the same prompts with the same n",
        )
    return rows


def _by_sample(row: CandidatesRow) -> dict[int, Completion]:
    samples = {completion["sample_index"]: completion for completion in row["completions"]}
    if len(samples) < len(row["completions"]):
        raise UsageError(
            "two completions have the same sample index", where=f"prompt {row['id']}", fix="number the samples"
        )
    return samples


def by_prompt(rows: Sequence[CandidatesRow], values: Sequence[Any]) -> list[list[Any]]:
    """Values of joined rows grouped by prompt: samples of one prompt are one unit of the bootstrap, not several."""
    groups: dict[str, list[Any]] = {}
    for row, value in zip(rows, values, strict=True):
        groups.setdefault(prompt_id(row["prompt"]), []).append(value)
    return list(groups.values())


def mean_lengths(rows: Sequence[CandidatesRow]) -> dict[str, dict[str, float]]:
    """Mean lengths of both models' answers: {"base", "aligned"} -> {"chars", "tokens", "truncated"}.

    `tokens` only where every answer has the sampler's ids; `truncated` is the share that was cut off, 0..1.
    """
    return {
        name: _lengths([row["completions"][seat] for row in rows]) for seat, name in enumerate(("base", "aligned"))
    }


def _lengths(completions: Sequence[Completion]) -> dict[str, float]:
    n = len(completions)
    lengths = {
        "chars": sum(len(c["text"]) for c in completions) / n,
        "truncated": sum(c["finish_reason"] == "length" for c in completions) / n,
    }
    counted = [len(c["token_ids"]) for c in completions if c["token_ids"] is not None]
    return lengths | {"tokens": sum(counted) / n} if len(counted) == n else lengths
