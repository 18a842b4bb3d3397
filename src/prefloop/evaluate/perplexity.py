"""Perplexity of answers under the base model: whether alignment cost the language its form.

    nll = - sum of log p(token) / number of tokens          perplexity = exp(nll)

over all answers of a model, p being the base's probability behind the prompt, in natural logarithms and without the
end of turn. Low is not good by itself, a model that repeats itself is most predictable of all: it is the distance from
the base's own answers that tells.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from prefloop.backends.base import AnswerScoreRequest, Backend, Score, freeze
from prefloop.evaluate.stats import bootstrap_means
from prefloop.intervals import Interval
from prefloop.records import CandidatesRow, prompt_id

BASE = "base"


def perplexity(
    answers: Mapping[str, Sequence[CandidatesRow]],
    backend: Backend,
    *,
    first: str = BASE,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, Any]:
    """Perplexity of every model's answers under one model, and by how much their nll is above the first one's.

    An answer without a token counts for nothing. A prompt with an answer that the model cannot score counts for none.

    Args:
        answers: model -> its answers, of all the same prompts; the first one is compared with.
        backend: the model whose probabilities count.
        first: name of the first one.
        resamples, seed: of the bootstrap over prompts; of a difference the prompts of both are drawn together.

    Returns:
        models: name -> value, ci_low, ci_high (perplexity), nll (mean, nats a token, with its interval), tokens;
        differences: name of another -> nll of its answers minus the first one's, with its interval; n, the prompts;
        excluded, the prompts with an answer that could not be scored.
        A figure is None where there is no token.
    """
    places: list[tuple[str, str]] = []
    requests: list[AnswerScoreRequest] = []
    prompts: dict[str, None] = {}
    for model, rows in answers.items():
        for row in rows:
            key = prompt_id(row["prompt"])
            prompts[key] = None
            messages = freeze(row["prompt"])
            for completion in row["completions"]:
                if completion["text"]:
                    ids = tuple(completion["token_ids"] or ())
                    requests.append(AnswerScoreRequest(messages, completion["text"], ids))
                    places.append((model, key))
    sums = {model: {key: [0.0, 0.0] for key in prompts} for model in answers}
    for (model, key), result in zip(places, backend.answer(requests) if requests else [], strict=True):
        if not isinstance(result, Score):
            prompts.pop(key, None)
            continue
        of = sums[model][key]
        of[0] -= result.total
        of[1] += len(result.token_logps)
    table = {model: [by[key] for key in prompts] for model, by in sums.items()}
    found: dict[str, Any] = {}
    for model, rows_N2 in table.items():
        nll = _nll(rows_N2, resamples, seed)
        tokens = int(sum(count for _, count in rows_N2))
        found[model] = None if nll is None else _exp(nll) | {"nll": nll.json(), "tokens": tokens}
    others = {
        model: None if found[first] is None or found[model] is None else _change(table[first], rows, resamples, seed)
        for model, rows in table.items()
        if model != first
    }
    total = len(next(iter(sums.values()), {}))
    return {"models": found, "differences": others, "n": len(prompts), "excluded": total - len(prompts)}


def of_pair(found: Mapping[str, Any], model: str) -> dict[str, Any]:
    """What `perplexity` says of one model and the base, in the form of summary.json."""
    return {
        "base": found["models"][BASE],
        "aligned": found["models"][model],
        "difference": found["differences"][model],
        "n": found["n"],
        "excluded": found["excluded"],
    }


def in_words(figure: Mapping[str, Any], who: str = "the answers", under: str = "the base") -> str:
    """A pair's change, for people."""
    change = figure["difference"]
    if change is None:
        return f"no perplexity of {who}: no token could be scored"
    low, high = (f"{change[end]:+.3f}" for end in ("ci_low", "ci_high"))
    return (
        f"perplexity of {who} under {under}: {figure['base']['value']:.2f} → {figure['aligned']['value']:.2f} "
        f"({change['value']:+.3f} [{low}, {high}] nats a token, n = {figure['n']})"
    )


def sentences(found: Mapping[str, Any]) -> list[str]:
    """What `perplexity` says, with `under`, the name of the first model: a line for each of the others."""
    first = found["under"]
    return [
        in_words(
            {"base": found["models"][first], "aligned": found["models"][name], "difference": change, "n": found["n"]},
            f"{name}'s answers against {first}'s own",
            first,
        )
        for name, change in found["differences"].items()
    ]


def _ratio(sums_RC: Any, over: int) -> Any:
    import numpy as np

    with np.errstate(divide="ignore", invalid="ignore"):
        ratio_R = sums_RC[:, over] / sums_RC[:, over + 1]
    return np.where(sums_RC[:, over + 1] > 0, ratio_R, np.nan)


def _nll(rows_N2: Sequence[Sequence[float]], resamples: int, seed: int) -> Interval | None:
    if not any(tokens for _, tokens in rows_N2):
        return None
    return bootstrap_means(rows_N2, lambda sums_RC: _ratio(sums_RC, 0), resamples, seed)


def _change(
    first: Sequence[Sequence[float]], other: Sequence[Sequence[float]], resamples: int, seed: int
) -> dict[str, float]:
    both_N4 = [[*a, *b] for a, b in zip(first, other, strict=True)]
    return bootstrap_means(both_N4, lambda s_RC: _ratio(s_RC, 2) - _ratio(s_RC, 0), resamples, seed).json()


def _exp(nll: Interval) -> dict[str, float]:
    return {name: math.exp(value) for name, value in nll.json().items()}
