"""How far a signal's scores agree with labels that are there: to be looked at before anything is trained on them.

Beside every signal stand the trivial judges of `evaluate.agreement`: the longer answer, and a coin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prefloop.backends.base import Backend
from prefloop.errors import UsageError
from prefloop.evaluate.agreement import table
from prefloop.evaluate.win_rate import compare
from prefloop.records import CandidatesRow, Completion, Message, PreferenceRow, completion_id, content_id, message_text
from prefloop.signals.base import Signal


def against_labels(
    pairs: Sequence[PreferenceRow],
    signals: Mapping[str, tuple[Signal, Mapping[str, Backend]]],
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, Any]:
    """Let signals compare the answers of labelled pairs.

    Which answer stands first is a coin's throw by the pair's id, so that no signal earns anything by its seat.

    Args:
        pairs: chosen and rejected answers; rows with one answer are left out.
        signals: name -> signal and its models. A self-reward needs attributes: these answers have no notes.
        resamples, seed: of the bootstrap over pairs.

    Returns:
        `pairs`, `left_out`, and `signals`: name -> accuracy {value, ci_low, ci_high} and more (`agreement.table`).

    Raises:
        UsageError: no pair has two answers.
    """
    rows: list[CandidatesRow] = []
    gold: list[float] = []
    for pair in pairs:
        if pair["chosen"] is None or pair["rejected"] is None:
            continue
        swapped = int(content_id("seat", pair["id"]), 16) % 2 == 1
        sides = (pair["rejected"], pair["chosen"]) if swapped else (pair["chosen"], pair["rejected"])
        answers = [_completion(pair["prompt_id"], side[-1], i) for i, side in enumerate(sides)]
        rows.append({"id": pair["id"], "prompt": pair["prompt"], "completions": answers})
        gold.append(float(swapped))
    if not rows:
        raise UsageError("no pair has two answers", fix="give pairs of a chosen and a rejected answer")
    verdicts = {
        name: compare(rows, signal, backends, resamples=100, seed=seed).preferences
        for name, (signal, backends) in signals.items()
    }
    lengths = [(len(row["completions"][0]["text"]), len(row["completions"][1]["text"])) for row in rows]
    ids = [row["id"] for row in rows]
    found = table(verdicts, gold, lengths, ids, resamples=resamples, seed=seed)
    return {"pairs": len(rows), "left_out": len(pairs) - len(rows), "signals": found}


def _completion(prompt: str, answer: Message, place: int) -> Completion:
    text = message_text(answer)
    return {
        "id": completion_id(prompt, text, place),
        "text": text,
        "token_ids": None,
        "finish_reason": "stop",
        "sample_index": place,
    }
