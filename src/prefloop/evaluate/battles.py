"""Battles from the files that hold them: AlpacaEval's verdicts, Arena-Hard's games, MT-Bench's scores, plain lines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefloop.errors import UsageError
from prefloop.evaluate import arena_hard, mt_bench
from prefloop.evaluate.alpaca_eval import read_annotations
from prefloop.evaluate.jsonl import numbered, read_jsonl
from prefloop.evaluate.ratings import Battle

FORMS = (
    "AlpacaEval's annotations.json, Arena-Hard's or MT-Bench's judgments, or lines of prompt, model_a, model_b, score"
)

PLAIN = ("prompt", "model_a", "model_b", "score")


def read_battles(paths: Sequence[str | Path]) -> tuple[list[Battle], int]:
    """All battles of several files, and how many verdicts were null.

    MT-Bench's scores of all files are put together: two models meet where both were scored.

    Raises:
        UsageError: a file is of none of the known forms, or has a row that cannot be read.
    """
    battles: list[Battle] = []
    scores: list[dict[str, Any]] = []
    nulls = 0
    for path in paths:
        if Path(path).suffix == ".json":
            found, missing = from_annotations(read_annotations(path), str(path))
        else:
            rows = read_jsonl(path, ())
            if "games" in rows[0]:
                found, missing = arena_hard.battles(arena_hard.read_judgments(path))
            elif "question_id" in rows[0]:
                scores += mt_bench.read_judgments(path)
                continue
            elif "model_a" in rows[0]:
                found, missing = _plain(path)
            else:
                raise UsageError("no verdicts that are known", where=str(path), fix=f"give {FORMS}")
        battles += found
        nulls += missing
    if scores:
        found, missing = mt_bench.battles(scores)
        battles, nulls = battles + found, nulls + missing
    return battles, nulls


def from_annotations(rows: Sequence[Mapping[str, Any]], where: str) -> tuple[list[Battle], int]:
    """Verdicts of AlpacaEval as battles of generator_2 against generator_1, and how many are null."""
    battles, nulls = [], 0
    for i, row in enumerate(rows):
        model, base = row["generator_2"], row["generator_1"]
        if not (isinstance(model, str) and isinstance(base, str) and isinstance(row["instruction"], str)):
            raise UsageError(
                "has no generator_1, generator_2 or instruction", where=f"{where}, row {i}", fix="name the models"
            )
        if row["preference"] is None:
            nulls += 1
        elif model != base:
            battles.append(Battle(row["instruction"], model, base, row["preference"] - 1))
    return battles, nulls


def _plain(path: str | Path) -> tuple[list[Battle], int]:
    """Battles of plain lines, each checked where its line is known."""
    battles, nulls = [], 0
    for line, row in numbered(path, PLAIN):
        if row["score"] is None:
            nulls += 1
            continue
        a, b, score, weight = str(row["model_a"]), str(row["model_b"]), row["score"], row.get("weight", 1.0)
        where = f"{path}, line {line}"
        if not _is_number(score) or not 0 <= score <= 1:
            raise UsageError(f"{score!r} is no score", where=where, fix="give what model_a got, 0 to 1, or null")
        if not _is_number(weight) or not 0 < weight < math.inf:
            raise UsageError(f"{weight!r} is no weight", where=where, fix="give a number above 0, or leave it out")
        if a == b:
            raise UsageError(f"{a!r} against itself", where=where, fix="name two models, or take the line out")
        battles.append(Battle(str(row["prompt"]), a, b, score, weight))
    return battles, nulls


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
