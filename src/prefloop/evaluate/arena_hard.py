"""Arena-Hard-Auto (Li et al. 2024): its files read and written, and its scores with and without control of style.

A row of judgments has two games: in the first the baseline is A, in the second the model. A label of five says who
won; one of the strong ones (A>>B) counts three times. A model's score is the weighted mean of what it got. Intervals
resample prompts; the benchmark's own resamples games that stand there up to three times, and comes out too narrow.

Suffixes: B games, P prompts, F features.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prefloop.errors import UsageError
from prefloop.evaluate.jsonl import read_jsonl, write_jsonl
from prefloop.evaluate.ratings import Battle, newton
from prefloop.evaluate.stats import bootstrap_means, expanded_percentiles

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

STRONG = 3.0

# What A gets by each label, and what the verdict counts.
LABELS: dict[str, tuple[float, float]] = {
    **{"A>>B": (1.0, STRONG), "A>B": (1.0, 1.0), "A=B": (0.5, 1.0), "B>A": (0.0, 1.0), "B>>A": (0.0, STRONG)},
    # The same said the other way round, which judges do.
    **{"B<<A": (1.0, STRONG), "B<A": (1.0, 1.0), "B=A": (0.5, 1.0), "A<B": (0.0, 1.0), "A<<B": (0.0, STRONG)},
}
_IN_BRACKETS = (re.compile(r"\[\[([AB<>=]+)\]\]"), re.compile(r"\[([AB<>=]+)\]"))
_CODE = re.compile(r"```[^`]*```")

Rows = list[dict[str, Any]]
Style = Literal["length", "markdown"]


def read_questions(path: str | Path) -> Rows:
    """Questions: uid, category, prompt, and cluster or subcategory."""
    return read_jsonl(path, ("uid", "category", "prompt"))


def read_answers(path: str | Path) -> Rows:
    """Answers of one model: uid, model, messages (the last with the content {"answer": …}), metadata."""
    return read_jsonl(path, ("uid", "model", "messages"))


def answer_row(
    question: Mapping[str, Any], model: str, text: str, *, tokens: int, ans_id: str, tstamp: float
) -> dict[str, Any]:
    """One answer as the benchmark keeps it.

    Args:
        question: a row of the questions.
        model, text: who answered, and what.
        tokens: the answer's length by the benchmark's tokenizer (tiktoken's of gpt-4o); style control compares it with
            other models', so it must be the same for all.
        ans_id, tstamp: the answer's id and time.
    """
    messages = [{"role": "user", "content": question["prompt"]}, {"role": "assistant", "content": {"answer": text}}]
    found = {"uid": question["uid"], "ans_id": ans_id, "model": model, "messages": messages, "tstamp": tstamp}
    return found | {"metadata": style(text, tokens)}


def write_answers(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write answers, one a line."""
    write_jsonl(path, rows)


def style(text: str, tokens: int) -> dict[str, Any]:
    """What style control looks at: token_len as given, and counts of Markdown outside of code blocks."""
    bare = _CODE.sub("", text)

    def count(pattern: str) -> int:
        return len(re.findall(pattern, bare, re.MULTILINE))

    return {
        "token_len": tokens,
        "header_count": {f"h{n}": count(rf"^#{{{n}}}\s") for n in range(1, 7)},
        "list_count": {"ordered": count(r"^\s*\d+\.\s"), "unordered": count(r"^\s*[-*+]\s")},
        "bold_count": {"**": count(r"\*\*[^*\n]+\*\*"), "__": count(r"__[^_\n]+__")},
    }


def verdict(judgment: str) -> str | None:
    """The label that a judge came to: the last in double square brackets, else in single ones; None: none."""
    for pattern in _IN_BRACKETS:
        if matches := pattern.findall(judgment.upper()):
            return matches[-1] if matches[-1] in LABELS else None
    return None


def read_judgments(path: str | Path) -> Rows:
    """Judgments of one model: uid, category, judge, model, baseline, games (two of {score, judgment, prompt} or null).

    Raises:
        UsageError: a row has not two games, or a score is none of the labels.
    """
    rows = read_jsonl(path, ("uid", "model", "baseline", "games"))
    for row in rows:
        where = f"{path}, {row['uid']}"
        if not isinstance(row["games"], list) or len(row["games"]) != 2:
            raise UsageError("has not two games", where=where, fix="judge both orders")
        for score in (game["score"] for game in row["games"] if game is not None):
            if score is not None and score not in LABELS:
                raise UsageError(f"{score!r} is no label", where=where, fix=f"one of: {', '.join(LABELS)}, or null")
    return rows


def write_judgments(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write judgments, one a line."""
    write_jsonl(path, rows)


def battles(judgments: Sequence[Mapping[str, Any]]) -> tuple[list[Battle], int]:
    """Both games of every row as battles of the model against the baseline, and how many rows are null.

    A row with a game that has no verdict is left out whole: one seat alone would be biased.
    """
    found, nulls = [], 0
    for row in judgments:
        labels = [game["score"] for game in row["games"] if game is not None and game["score"] is not None]
        if len(labels) < 2:
            nulls += 1
            continue
        first, second = (LABELS[label] for label in labels)
        for score, weight in ((1 - first[0], first[1]), second):
            found.append(Battle(row["uid"], row["model"], row["baseline"], score, weight))
    return found, nulls


def scores(
    judgments: Sequence[Mapping[str, Any]], *, resamples: int = 10_000, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Score of every model: the weighted mean of what it got against the baseline, in percent (the baseline has 50).

    This is what the Bradley-Terry fit of version 0.1 comes to, and version 2.0's mean.

    Args:
        judgments: of one category; rows of any number of models.
        resamples, seed: of the bootstrap over prompts.

    Returns:
        model -> {value, ci_low, ci_high, n (prompts that count), nulls (rows that do not)}.

    Raises:
        UsageError: no row of a model has both verdicts.
    """
    import numpy as np

    found = {}
    for model in dict.fromkeys(row["model"] for row in judgments):
        fought, nulls = battles([row for row in judgments if row["model"] == model])
        if not fought:
            raise UsageError(f"none of {nulls} rows has both verdicts", where=model, fix="look at the judgments")
        won: dict[str, list[float]] = {}
        for battle in fought:
            sums = won.setdefault(battle.prompt, [0.0, 0.0])
            sums[0] += battle.weight * battle.score
            sums[1] += battle.weight
        interval = bootstrap_means(np.array(list(won.values())), lambda m: 100 * m[:, 0] / m[:, 1], resamples, seed)
        found[model] = interval.json() | {"n": len(won), "nulls": nulls}
    return found


def style_controlled(
    judgments: Sequence[Mapping[str, Any]],
    answers: Mapping[str, Mapping[str, Mapping[str, Any]]],
    *,
    control: Sequence[Style] = ("length", "markdown"),
    resamples: int = 100,
    seed: int = 0,
) -> dict[str, Any]:
    """Version 2.0's scores with style held constant: Bradley-Terry with style as covariates.

    The covariates of a game are (a - b) / (a + b) of the token lengths, and (a - b) / (a + b + 1) of the densities
    (count per token) of headers, list items and bold text; each is standardised over the games. They are centred, so
    models are compared at the *average* style of those in the file: with a single model nothing is controlled for.

    Args:
        judgments: of one category and one baseline, of two models or more.
        answers: model -> uid -> the answer's metadata, the baseline's too.
        control: which covariates.
        resamples, seed: of the bootstrap over prompts.

    Returns:
        {"models": {model: {value, ci_low, ci_high} in percent}, "coefficients": {covariate: value}}.

    Raises:
        UsageError: fewer than two models, several baselines, an unknown control, or an answer without metadata.
    """
    import numpy as np

    fought, _ = battles(judgments)
    names = sorted({battle.first for battle in fought})
    baselines = sorted({battle.second for battle in fought})
    unknown = [name for name in control if name not in ("length", "markdown")]
    if len(names) < 2 or len(baselines) != 1 or unknown or not control:
        raise UsageError(
            f"{len(names)} models against {len(baselines)} baselines, control of {list(control)}",
            fix="style control needs two models or more, one baseline, and length or markdown or both",
        )
    columns = [c for c, kind in enumerate(("length", *["markdown"] * 3)) if kind in control]
    style_BF = np.array([_difference(answers, battle) for battle in fought])[:, columns]
    weight_B, score_B = np.array([b.weight for b in fought]), np.array([b.score for b in fought])
    mean_F = np.average(style_BF, axis=0, weights=weight_B)
    spread_F = np.sqrt((weight_B @ (style_BF - mean_F) ** 2) / (weight_B.sum() - 1))
    style_BF = (style_BF - mean_F) / np.where(spread_F > 0, spread_F, 1)
    model_BM = np.array([[float(battle.first == name) for name in names] for battle in fought])
    design_BF = np.concatenate([model_BM, style_BF], axis=1)
    prompts = {name: p for p, name in enumerate(dict.fromkeys(battle.prompt for battle in fought))}
    prompt_B = np.array([prompts[battle.prompt] for battle in fought])

    def fit(count_P: Array) -> Array:
        weights = weight_B * count_P[prompt_B]
        return newton(design_BF, weights * score_B, weights)

    def percent(w_F: Array) -> Array:
        shares: Array = 100 / (1 + np.exp(-w_F[: len(names)]))
        return shares

    rng = np.random.default_rng(seed)
    fitted = fit(np.ones(len(prompts)))
    again = [
        percent(fit(np.bincount(rng.integers(0, len(prompts), len(prompts)), minlength=len(prompts)).astype(float)))
        for _ in range(resamples)
    ]
    models = {}
    for m, name in enumerate(names):
        low, high = expanded_percentiles([shares[m] for shares in again], len(prompts))
        models[name] = {"value": float(percent(fitted)[m]), "ci_low": low, "ci_high": high}
    labels = [("length", "headers", "lists", "bold")[c] for c in columns]
    return {"models": models, "coefficients": dict(zip(labels, fitted[len(names) :].tolist(), strict=True))}


def _difference(answers: Mapping[str, Mapping[str, Mapping[str, Any]]], battle: Battle) -> list[float]:
    sides = []
    for name in (battle.first, battle.second):
        found = answers.get(name, {}).get(battle.prompt)
        if found is None:
            raise UsageError(
                f"{name} has no metadata of its answer", where=battle.prompt, fix="write answers with answer_row"
            )
        counts = [sum(found[key].values()) for key in ("header_count", "list_count", "bold_count")]
        sides.append((found["token_len"], [count / (found["token_len"] + 1) for count in counts]))
    (a, densities_a), (b, densities_b) = sides
    length = (a - b) / (a + b) if a + b else 0.0
    return [length, *((x - y) / (x + y + 1) for x, y in zip(densities_a, densities_b, strict=True))]
