"""Any number of models on the same prompts, by any number of signals: every two of them, with intervals and tests.

The unit is the prompt: several answers to one are averaged first. Probabilities are Holm-corrected over all pairs of
models, signal by signal.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

from prefloop.errors import UsageError
from prefloop.evaluate import contrasts
from prefloop.evaluate.agreement import TRIVIAL, coin, sign
from prefloop.evaluate.answers import by_prompt, join
from prefloop.evaluate.diversity import lengths
from prefloop.evaluate.several import Comparer
from prefloop.evaluate.sheet import Cell, csv_text
from prefloop.evaluate.stats import bootstrap_means, mean_interval
from prefloop.evaluate.win_rate import PART_ROWS
from prefloop.evaluate.win_rate import compare as win_rate
from prefloop.records import CallRow, CandidatesRow, content_id, message_text
from prefloop.signals.bias import rates
from prefloop.signals.driver import rate

Rows = Sequence[CandidatesRow]
Pair = tuple[str, str]
Verdicts = list[float | None]


@dataclass(frozen=True)
class Judged:
    """What one signal says of all models.

    Attributes:
        scores: model -> one per row: the signal's score, or, of a signal that reads pairs, the mean probability that
            the answer is better than the others'. None without a verdict.
        preferences: (a, b) -> P(b's answer is better) of each row; None without a verdict.
        calls, counts: the signal's, of all comparisons.
        parts: criterion, or judge of a panel -> model -> as `scores`; empty where the signal has none.
    """

    scores: dict[str, Verdicts]
    preferences: dict[Pair, Verdicts]
    calls: list[CallRow]
    counts: dict[str, float]
    parts: dict[str, dict[str, Verdicts]] = field(default_factory=dict)


@dataclass(frozen=True)
class Compared:
    """Several models compared.

    Attributes:
        summary: see `compare_answers`.
        models: their names, in the order of every row's completions.
        rows: one per prompt and sample, one completion per model.
        judged: signal's name -> what it says.
    """

    summary: dict[str, Any]
    models: list[str]
    rows: list[CandidatesRow]
    judged: dict[str, Judged]


def compare_answers(
    answers: Mapping[str, Rows],
    comparers: Sequence[Comparer],
    *,
    lower_is_better: Collection[str] = (),
    resamples: int = 10_000,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
    on_judged: Callable[[str, Mapping[str, float]], None] | None = None,
) -> Compared:
    """Compare every two models' answers to the same prompts.

    Args:
        answers: model's name -> its answers, at least two models; joined by prompt and sample index.
        comparers: who compares, each under a name of its own. A checker is a function signal.
        lower_is_better: names of those whose scores are costs.
        resamples: of each bootstrap over prompts, and flips of each randomisation test.
        seed: of both, and of the trivial judge `random`.
        on_progress: told (comparisons done, comparisons in all); a score of an answer counts as one.
        on_judged: told a signal's name and its summed counts as soon as it has said all, before the next is asked;
            what it raises stops the comparison.

    Returns:
        `summary` has `models`, `prompts`, `samples` (answers of each model to a prompt), `lengths` (model -> chars,
        truncated, and tokens where known, each value, ci_low, ci_high), `signals` (name -> see `_say`) and
        `agreement` (of every two signals, and of each with the trivial judges, see `_agreements`).

    Raises:
        UsageError: fewer than two models, or they do not answer the same prompts the same number of times; or two
            signals have one name, or one has a trivial judge's.
    """
    models = list(answers)
    if len(models) < 2:
        raise UsageError(
            f"there is nothing to compare with {models[0] if models else 'nothing'}", fix="give two models"
        )
    names = [comparer.name for comparer in comparers]
    if taken := [name for name in names if name in TRIVIAL or names.count(name) > 1]:
        raise UsageError(f"the name {taken[0]!r} is taken", where="signals", fix="give every signal another name")
    rows = together(answers)
    pairs = list(combinations(range(len(models)), 2))
    steps = {c.name: len(rows) * (len(pairs) if c.signal.pairwise else len(models)) for c in comparers}
    before = 0
    judged: dict[str, Judged] = {}
    for comparer in comparers:

        def tell(done: int, before: int = before) -> None:
            if on_progress is not None:
                on_progress(before + done, sum(steps.values()))

        by = _by_pairs if comparer.signal.pairwise else _by_scores
        found = by(models, rows, comparer, tell)
        if _kind(comparer, lower_is_better) == COST:
            turned = {pair: [None if p is None else 1 - p for p in ps] for pair, ps in found.preferences.items()}
            found = replace(found, preferences=turned)
        judged[comparer.name] = found
        before += steps[comparer.name]
        if on_judged is not None:
            on_judged(comparer.name, found.counts)
    summary = {
        "models": models,
        "prompts": len(by_prompt(rows, rows)),
        "samples": len(rows) / len(by_prompt(rows, rows)),
        "lengths": {m: lengths(answers[m], resamples, seed) for m in models},
        "signals": {
            c.name: _say(judged[c.name], rows, _kind(c, lower_is_better), resamples, seed)
            | {"signal": c.signal.identity}
            for c in comparers
        },
        "agreement": _agreements(models, rows, judged, seed),
    }
    return Compared(summary, models, rows, judged)


def together(answers: Mapping[str, Rows]) -> list[CandidatesRow]:
    """One row per prompt and sample with one completion per model, in the models' order and in the first one's rows.

    Raises:
        UsageError: they do not answer the same prompts the same number of times.
    """
    (_, first), *others = answers.items()
    joined = []
    for name, rows in others:
        try:
            joined.append(join(first, rows))
        except UsageError as error:
            raise UsageError(error.what, where=f"{name}, {error.where}", fix=error.fix) from error
    together: list[CandidatesRow] = []
    for parts in zip(*joined, strict=True):
        completions = [parts[0]["completions"][0], *(part["completions"][1] for part in parts)]
        together.append({"id": parts[0]["id"], "prompt": parts[0]["prompt"], "completions": completions})
    return together


def _seats(rows: Rows, seats: Sequence[int]) -> list[CandidatesRow]:
    return [
        {"id": r["id"], "prompt": r["prompt"], "completions": [r["completions"][seat] for seat in seats]} for r in rows
    ]


WIN, SCORE, COST = "win_probability", "score", "cost"


def _kind(comparer: Comparer, lower_is_better: Collection[str]) -> str:
    return WIN if comparer.signal.pairwise else COST if comparer.name in lower_is_better else SCORE


def _by_pairs(models: list[str], rows: Rows, comparer: Comparer, tell: Callable[[int], None]) -> Judged:
    """A signal that reads pairs: two models at a time, in both orders."""
    preferences: dict[Pair, Verdicts] = {}
    calls: list[CallRow] = []
    counts: dict[str, float] = {}
    # "" is the score itself, other names are its parts.
    won: dict[str, dict[str, list[list[float]]]] = {"": {model: [[] for _ in rows] for model in models}}
    for number, (i, j) in enumerate(combinations(range(len(models)), 2)):
        found = win_rate(
            _seats(rows, (i, j)),
            comparer.signal,
            comparer.backends,
            resamples=100,  # of its own interval, which nobody reads here
            on_progress=lambda done, _, number=number: tell(number * len(rows) + done),  # type: ignore[misc]
        )
        preferences[models[i], models[j]] = found.preferences
        calls += found.calls
        counts = {name: counts.get(name, 0) + found.counts.get(name, 0) for name in {**counts, **found.counts}}
        for place, row in enumerate(found.rows):
            for part in ({"name": "", "scores": row["scores"]}, *row.get("parts", ())):
                mine = won.setdefault(part["name"], {model: [[] for _ in rows] for model in models})
                for seat, p in zip((i, j), part["scores"], strict=True):
                    if p is not None:
                        mine[models[seat]][place].append(p)
    means = {
        name: {model: [sum(w) / len(w) if w else None for w in places] for model, places in of_model.items()}
        for name, of_model in won.items()
    }
    return Judged(means.pop(""), preferences, calls, counts, means)


def _by_scores(models: list[str], rows: Rows, comparer: Comparer, tell: Callable[[int], None]) -> Judged:
    """A signal that scores each answer alone: all models at once."""
    scores: dict[str, Verdicts] = {model: [] for model in models}
    parts: dict[str, dict[str, Verdicts]] = {}
    calls: list[CallRow] = []
    counts: dict[str, float] = {}
    for start in range(0, len(rows), PART_ROWS):
        part = rows[start : start + PART_ROWS]
        rated = rate(comparer.signal, part, comparer.backends)
        for place, row in enumerate(rated.rows, start):
            for model, score in zip(models, row["scores"], strict=True):
                scores[model].append(score)
            for piece in row.get("parts", ()):
                mine = parts.setdefault(piece["name"], {model: [None] * len(rows) for model in models})
                for model, score in zip(models, piece["scores"], strict=True):
                    mine[model][place] = score
        calls += rated.calls
        counts = {name: counts.get(name, 0) + rated.counts.get(name, 0) for name in {**counts, **rated.counts}}
        tell((start + len(part)) * len(models))
    preferences = {
        (a, b): [None if x is None or y is None else _wins(x, y) for x, y in zip(scores[a], scores[b], strict=True)]
        for a, b in combinations(models, 2)
    }
    return Judged(scores, preferences, calls, counts, parts)


def _wins(a: float, b: float) -> float:
    return 1.0 if b > a else 0.0 if b < a else 0.5


def _units(rows: Rows, *columns: Verdicts) -> list[list[float]]:
    """Means by prompt of the rows in which all columns have a value; one list per column."""
    whole = [values if None not in values else None for values in zip(*columns, strict=True)]
    groups = [[v for v in group if v is not None] for group in by_prompt(rows, whole)]
    means = [[sum(side) / len(group) for side in zip(*group, strict=True)] for group in groups if group]
    return [list(side) for side in zip(*means, strict=True)] or [[] for _ in columns]


def _say(judged: Judged, rows: Rows, kind: str, resamples: int, seed: int) -> dict[str, Any]:
    """One signal's figures.

    Returns:
        `kind`: win_probability (mean probability of being better than the other models), score, or cost (a score of
        which less is better); `models`: model -> value, ci_low, ci_high, n (prompts), nulls (rows without a verdict),
        or only nulls where nothing has one; `pairs`: a, b, `win_rate` of b over a (value, ci_low, ci_high, n, wins,
        losses, ties, nulls), `difference` (of scores, b - a; of a signal that reads pairs, the win rate - 0.5) with
        value, ci_low, ci_high, standard_error, p_value, p_holm and n, `better` (a model or None) and `verdict` in
        words; `counts`: the signal's own, summed; `judge`: a judge's rates.
    """
    models: dict[str, Any] = {}
    for model, scores in judged.scores.items():
        (values,) = _units(rows, scores)
        models[model] = {"nulls": sum(s is None for s in scores)}
        if values:
            models[model] |= mean_interval(values, resamples, seed).json() | {"n": len(values)}
    pairs: list[dict[str, Any]] = []
    for (a, b), preferences in judged.preferences.items():
        (wins,) = _units(rows, preferences)
        counted = [p for p in preferences if p is not None]
        entry: dict[str, Any] = {"a": a, "b": b, "win_rate": {"nulls": len(preferences) - len(counted)}}
        if wins:
            sides = ([0.5] * len(wins), wins) if kind == WIN else _units(rows, judged.scores[a], judged.scores[b])
            entry["win_rate"] |= mean_interval(wins, resamples, seed).json() | {
                "n": len(wins),
                "wins": sum(p > 0.5 for p in counted),
                "losses": sum(p < 0.5 for p in counted),
                "ties": sum(p == 0.5 for p in counted),
            }
            entry["difference"] = contrasts.contrast(*sides, resamples=resamples, seed=seed)
        pairs.append(entry)
    contrasts.decide([entry["difference"] for entry in pairs if "difference" in entry])
    for entry in pairs:
        said = entry["difference"].pop("verdict") if "difference" in entry else "no verdicts"
        higher, lower = (entry["b"], entry["a"]) if kind != COST else (entry["a"], entry["b"])
        better = {contrasts.HIGHER: higher, contrasts.LOWER: lower}.get(said)
        entry["better"] = better
        entry["verdict"] = said if better is None else f"{better} is better"
    return {"kind": kind, "models": models, "pairs": pairs, "counts": judged.counts} | (
        {"judge": card} if (card := rates(judged.counts)) else {}
    )


LONGEST, RANDOM = TRIVIAL


def _agreements(models: list[str], rows: Rows, judged: Mapping[str, Judged], seed: int) -> list[dict[str, Any]]:
    """How often two judges of the same comparisons decide alike. Beside them stand two that do not read: `longest`
    goes by length, `random` tosses a coin.

    Returns:
        first, second, value (of the comparisons that both decide, the share with the same winner, 0..1, with its
        interval over prompts), n (those comparisons); of those without any, n = 0 and no value.
    """
    verdicts = {name: [p for pair in found.preferences.values() for p in pair] for name, found in judged.items()}
    compared = [(row, i, j) for i, j in combinations(range(len(models)), 2) for row in rows]
    verdicts[LONGEST] = [
        _wins(len(row["completions"][i]["text"]), len(row["completions"][j]["text"])) for row, i, j in compared
    ]
    verdicts[RANDOM] = [*coin([content_id(row["id"], models[i], models[j]) for row, i, j in compared], seed)]
    asked = list(rows) * (len(models) * (len(models) - 1) // 2)
    entries = []
    for first, second in combinations(verdicts, 2):
        if first in TRIVIAL:
            continue  # what trivial judges say of each other says nothing
        alike: Verdicts = [
            None if p is None or q is None or not sign(p) * sign(q) else float(sign(p) == sign(q))
            for p, q in zip(verdicts[first], verdicts[second], strict=True)
        ]
        entry: dict[str, Any] = {"first": first, "second": second, "n": sum(x is not None for x in alike)}
        if entry["n"]:
            # The comparisons of a prompt are one unit, whichever models they are of; the value counts each once.
            groups = [[x for x in group if x is not None] for group in by_prompt(asked, alike)]
            entry |= _share([group for group in groups if group])
        entries.append(entry)
    return entries


def _share(groups: list[list[float]]) -> dict[str, float]:
    table = [[sum(group), float(len(group))] for group in groups]
    return bootstrap_means(table, lambda means_RC: means_RC[:, 0] / means_RC[:, 1]).json()


def side_by_side(compared: Compared) -> str:
    """All answers as CSV: id, prompt, sample, an answer column for each model, a score column for each signal and
    model, and one for each criterion of a signal (`signal/criterion: model`).

    A cell without a verdict is empty. See `Judged.scores` for what a score is, and `sheet.csv_text` for what is done
    to answers that a spreadsheet would run.
    """
    columns: dict[str, Verdicts] = {}
    for signal, judged in compared.judged.items():
        for name, scores in {signal: judged.scores, **{f"{signal}/{k}": v for k, v in judged.parts.items()}}.items():
            columns |= {f"{name}: {model}": scores[model] for model in compared.models}
    table: list[list[Cell]] = [
        [
            row["id"],
            "\n\n".join(message_text(message) for message in row["prompt"]),
            row["completions"][0]["sample_index"],
            *(completion["text"] for completion in row["completions"]),
            *(column[number] for column in columns.values()),
        ]
        for number, row in enumerate(compared.rows)
    ]
    return csv_text(["id", "prompt", "sample", *(f"answer: {model}" for model in compared.models), *columns], table)


def sentences(summary: Mapping[str, Any]) -> list[str]:
    """What every signal says of every two models, in plain words."""
    lines = []
    for signal, found in summary["signals"].items():
        for pair in found["pairs"]:
            lines.append(f"{signal}: {_sentence(pair, found['kind'])}")
    return lines


def _sentence(pair: Mapping[str, Any], kind: str) -> str:
    a, b, rate = pair["a"], pair["b"], pair["win_rate"]
    if "value" not in rate:
        return f"no verdict on {a} and {b}"
    p = pair["difference"]["p_holm"]
    tested = f"p {'< 0.001' if p < 0.001 else f'= {p:.3f}'} after Holm's correction"
    if kind == WIN:
        figure = f"{b} wins {100 * rate['value']:.1f} % [{100 * rate['ci_low']:.1f}, {100 * rate['ci_high']:.1f}]"
    else:
        d = pair["difference"]
        figure = f"{b} scores {d['value']:+.3g} [{d['ci_low']:+.3g}, {d['ci_high']:+.3g}] against {a}"
    better = pair["better"]
    if better is not None:
        said = f"{better} is better than {a if better == b else b}"
    else:  # of a rate the verdict says who has more of it
        said = f"{pair['verdict']}{' between' if pair['verdict'] == contrasts.SAME else ', of'} {a} and {b}"
    return f"{said}: {figure} on {rate['n']:,} prompts, {tested}"
