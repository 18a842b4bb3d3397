"""Runs any signal over many rows: all generators advance in lock-step waves.

A wave collects the calls of all rows that are still alive and asks each backend once per verb, so a backend sees as
many requests together as there are rows and can batch them well. Caching is the backend's business.
tests/signals/test_driver.py guards that a wave makes one `answer` call per backend and verb.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, TypeVar

from prefloop.backends.base import Backend, Refusal, Result, request_json
from prefloop.errors import PrefloopError, UsageError
from prefloop.records import CallRow, CandidatesRow, ScoredRow, canonical_json, content_id
from prefloop.signals.base import Call, Rating, Signal

R = TypeVar("R")


@dataclass
class Rated:
    """What rating a part of the rows gave.

    Attributes:
        rows: one scored row per input row, in their order; `evidence` lists the ids of its calls in `calls`.
        calls: every call that was made for these rows, with its result.
        counts: the signal's own counts, summed over rows, and `rows`, `answers` and `unscored` (those without a
            score).
    """

    rows: list[ScoredRow] = field(default_factory=list)
    calls: list[CallRow] = field(default_factory=list)
    counts: dict[str, float] = field(default_factory=dict)


@dataclass
class Finished(Generic[R]):
    """What a generator returned, and every call that it made, by the call's id."""

    value: R
    calls: dict[str, CallRow]


@dataclass
class _Live(Generic[R]):
    """A row whose generator has not returned yet."""

    row_id: str
    generator: Generator[list[Call], list[Result], R]
    asked: list[Call] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    calls: dict[str, CallRow] = field(default_factory=dict)


def rate(
    signal: Signal,
    rows: Sequence[CandidatesRow],
    backends: Mapping[str, Backend],
    on_progress: Callable[[int, int], None] | None = None,
) -> Rated:
    """Score the completions of all rows.

    Holds all calls of these rows in memory: give it parts of a few hundred rows.

    Args:
        signal: the source of scores.
        rows: candidates; ids should be unique.
        backends: the models, by the names that the signal calls them.
        on_progress: told (rows done, rows in all) after each wave.

    Raises:
        PrefloopError: as `drive`, or a rating that is not one finite score or null for each answer.
    """
    jobs = [(row["id"], _checked(signal, row)) for row in rows]
    return _collect(signal, rows, drive(signal.name, jobs, backends, on_progress))


def _checked(signal: Signal, row: CandidatesRow) -> Generator[list[Call], list[Result], Rating]:
    rating = yield from signal.rate(row)
    if len(rating.scores) != len(row["completions"]):
        raise PrefloopError(f"{len(rating.scores)} scores for {len(row['completions'])} answers")
    if any(score is not None and not math.isfinite(score) for score in rating.scores):
        raise PrefloopError(f"a score that is not finite: {rating.scores}")
    return rating


def drive(
    name: str,
    jobs: Sequence[tuple[str, Generator[list[Call], list[Result], R]]],
    backends: Mapping[str, Backend],
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Finished[R]]:
    """Run generators to their ends in lock-step waves, each with a row's id; what each returned, in order.

    Args:
        name: of what asks; stands in every call and error.
        jobs: a row's id and its generator each.
        backends: the models, by the names that the generators call them.
        on_progress: told (rows done, rows in all) after each wave.

    Raises:
        PrefloopError: a generator failed; the message names `name` and the row. A UsageError stays one, and a fix
            stays with its message.
    """
    live = [_Live(row_id, generator) for row_id, generator in jobs]
    finished: dict[int, Finished[R]] = {}
    waiting = dict(enumerate(live))
    started: set[int] = set()
    while waiting:
        for index, state in list(waiting.items()):
            value = _advance(name, state, first=index not in started)
            started.add(index)
            if value is not None:
                finished[index] = Finished(value, state.calls)
                del waiting[index]
        _answer(name, list(waiting.values()), backends)
        if on_progress is not None:
            on_progress(len(finished), len(live))
    return [finished[i] for i in range(len(live))]


def _advance(name: str, state: _Live[R], first: bool) -> R | None:
    """Let one generator run to its next calls (None) or to its end (what it returns)."""
    where = f"signal {name}, row {state.row_id}"
    try:
        state.asked = next(state.generator) if first else state.generator.send(state.results)
    except StopIteration as end:
        value: R = end.value
        return value
    except PrefloopError as error:
        kind = UsageError if isinstance(error, UsageError) else PrefloopError
        inner = f"{where}, {error.where}" if error.where else where
        raise kind(error.what, where=inner, fix=error.fix) from error
    except Exception as error:
        raise PrefloopError(f"{type(error).__name__}: {error}", where=where) from error
    return None


def _answer(name: str, states: Sequence[_Live[R]], backends: Mapping[str, Backend]) -> None:
    """Ask what all live rows ask for: one `answer` per backend and verb; leave the results and call rows in place."""
    groups: dict[tuple[str, str], list[tuple[_Live[R], int]]] = {}
    for state in states:
        state.results = [Refusal("not answered")] * len(state.asked)
        for position, call in enumerate(state.asked):
            groups.setdefault((call.backend, call.request.verb), []).append((state, position))
    for (backend, verb), members in groups.items():
        if backend not in backends:
            raise PrefloopError(
                f"signal {name} calls a backend named {backend!r}; it was given {sorted(backends) or 'none'}"
            )
        results = backends[backend].answer([state.asked[position].request for state, position in members])
        for (state, position), result in zip(members, results, strict=True):
            state.results[position] = result
            record = call_row(state.row_id, name, backend, verb, state.asked[position], result)
            state.calls[record["id"]] = record


def call_row(row_id: str, signal: str, backend: str, verb: str, call: Call, result: Result) -> CallRow:
    """The record of one call; its id is the hash of all of it. `result` names its kind: choice, refusal, …"""
    request = canonical_json({"backend": backend, **request_json(call.request)})
    answer = canonical_json(_finite({"kind": type(result).__name__.lower(), **asdict(result)}))
    return {
        "id": content_id("call", row_id, signal, request, answer),
        "row_id": row_id,
        "signal": signal,
        "verb": verb,
        "request": request,
        "result": answer,
    }


def _finite(value: Any) -> Any:
    """JSON has no infinities, but a log-probability may be one: written as text ("-inf")."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _collect(signal: Signal, rows: Sequence[CandidatesRow], finished: Sequence[Finished[Rating]]) -> Rated:
    counts: defaultdict[str, float] = defaultdict(float, rows=0, answers=0, unscored=0)
    rated = Rated()
    for row, (rating, calls) in zip(rows, ((done.value, done.calls) for done in finished), strict=True):
        scored: ScoredRow = {
            "id": row["id"],
            "prompt": row["prompt"],
            "completions": row["completions"],
            "scores": rating.scores,
            "signal": signal.name,
            "evidence": list(calls),
        }
        if rating.parts:
            scored["parts"] = rating.parts
        if rating.judgments is not None:
            scored["judgments"] = rating.judgments
        rated.rows.append(scored)
        rated.calls.extend(calls.values())
        counts["rows"] += 1
        counts["answers"] += len(rating.scores)
        counts["unscored"] += sum(score is None for score in rating.scores)
        for name, value in rating.counts.items():
            counts[name] += value
    rated.counts = dict(counts)
    return rated
