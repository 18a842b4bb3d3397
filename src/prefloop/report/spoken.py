"""The page of `prefloop inspect-cut`: answers with each token coloured by how much its judgment speaks of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prefloop.report.render import render


def render_spoken(
    model: str, threshold: float, answers: Sequence[Mapping[str, Any]], sweep: Sequence[Mapping[str, float]]
) -> str:
    """The page as HTML.

    Args:
        answers: `prompt`, `judgment` and `tokens`, each with `text`, `ratio` and `flagged`.
        sweep: `threshold`, `rate` and `answers` of each threshold.
    """
    shown = [{**answer, "tokens": [_token(token) for token in answer["tokens"]]} for answer in answers]
    data = {"model": model, "threshold": threshold, "answers": shown, "sweep": sweep}
    return render(data, "spoken.html.j2")


def _token(token: Mapping[str, Any]) -> dict[str, Any]:
    """The strength of a flagged token's colour: full from ten times the probability on."""
    strength = min(90, 20 + round(7 * (token["ratio"] - 1))) if token["flagged"] else 0
    return {
        "text": token["text"],
        "strength": strength,
        "title": f"ratio {token['ratio']:.3g}, p {token['plain']:.3g}",
    }
