"""Rates by program: functions that know the truth judge both models' answers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from prefloop.errors import UsageError
from prefloop.evaluate.answers import by_prompt
from prefloop.evaluate.stats import paired_difference
from prefloop.records import CandidatesRow
from prefloop.signals.function import Scorer, ask, load


def check(
    functions: Mapping[str, str],
    rows: Sequence[CandidatesRow],
    *,
    lower_is_better: Collection[str] = (),
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Rates of both models, and their difference paired over prompts.

    A row counts where the function gives a value for both answers; a prompt's value is the mean over its rows.

    Args:
        functions: name -> `module:name` of f(prompt: list of messages, completion: str) -> 0..1 or None.
        rows: two completions each, [base, aligned] (`answers.join` makes them).
        lower_is_better: names of those whose rate is better when lower.
        resamples, seed: of the bootstrap over prompts.

    Returns:
        name -> {"base", "aligned" (mean over prompts), "n" (prompts that count), "excluded" (rows that do not),
        "difference": {"value", "ci_low", "ci_high"}} with aligned - base, whichever is better; `lower_is_better` is
        among them, as true, where that is so.

    Raises:
        UsageError: a function is not there, fails, gives anything but 0..1 or None, or applies to no row at all.
    """
    found = {name: _check(name, path, rows, resamples, seed) for name, path in functions.items()}
    for name in lower_is_better:
        found[name]["lower_is_better"] = True
    return found


def preflight(functions: Mapping[str, str]) -> None:
    """Import every checker, to find a missing one before hours of work and not after.

    Args:
        functions: name -> `module:name`, one group of the recipe's `evaluate.checkers`.

    Raises:
        UsageError: a module or function is not there, or cannot be imported.
    """
    for path in functions.values():
        load(path)


def _check(name: str, path: str, rows: Sequence[CandidatesRow], resamples: int, seed: int) -> dict[str, Any]:
    function = load(path)
    values: list[tuple[float, float] | None] = []
    for row in rows:
        base, aligned = (_rate(function, path, row, c["text"]) for c in row["completions"])
        values.append(None if base is None or aligned is None else (base, aligned))
    groups = [[pair for pair in group if pair is not None] for group in by_prompt(rows, values)]
    units = [tuple(sum(side) / len(group) for side in zip(*group, strict=True)) for group in groups if group]
    if not units:
        raise UsageError(
            f"checker {name} ({path}) applies to none of the {len(rows)} answered prompts",
            where="evaluate.checkers",
            fix="take it out, or evaluate on prompts that it knows",
        )
    base_N, aligned_N = ([unit[seat] for unit in units] for seat in (0, 1))
    return {
        "base": sum(base_N) / len(units),
        "aligned": sum(aligned_N) / len(units),
        "n": len(units),
        "excluded": sum(value is None for value in values),
        "difference": paired_difference(base_N, aligned_N, resamples, seed).json(),
    }


def _rate(function: Scorer, path: str, row: CandidatesRow, text: str) -> float | None:
    where = f"prompt {row['id']}"
    try:
        rate = ask(function, path, row["prompt"], text)
    except UsageError as error:
        inner = f"{where}, {error.where}" if error.where else where
        raise UsageError(error.what, where=inner, fix=error.fix) from error
    if rate is not None and not 0 <= rate <= 1:
        raise UsageError(f"{path} returned {rate:g}", where=where, fix="return 0 to 1, or None")
    return rate
