"""The page of `prefloop compare` and `prefloop evaluate safety`: models, pairs and answers, one HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prefloop.evaluate.compare import COST, WIN, Compared, sentences
from prefloop.evaluate.perplexity import sentences as said
from prefloop.report.charts import interval
from prefloop.report.render import render

SHOWN = 20


def render_comparison(title: str, parts: Sequence[tuple[str, Compared]], left_out: Mapping[str, Any]) -> str:
    """The page as HTML.

    Args:
        title: over the page.
        parts: (heading, comparison); a single one needs no heading.
        left_out: what was not compared and why, name -> number, text or mapping; empty values are passed over.
    """
    drawn = [{"heading": heading, **_part(compared)} for heading, compared in parts]
    missing = [(name.replace("_", " "), str(value)) for name, value in left_out.items() if value]
    return render({"title": title, "parts": drawn, "left_out": missing}, "comparison.html.j2")


def _part(compared: Compared) -> dict[str, Any]:
    summary = compared.summary
    return {
        "models": compared.models,
        "prompts": summary["prompts"],
        "samples": summary["samples"],
        "sentences": sentences(summary),
        "signals": [_signal(name, found) for name, found in summary["signals"].items()],
        "lengths": summary["lengths"],
        "perplexity": said(summary["perplexity"]) if "perplexity" in summary else [],
        "agreement": [entry for entry in summary["agreement"] if entry["n"]],
        "answers": _answers(compared),
    }


def _signal(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """A signal's models and pairs, drawn on one axis each."""
    kind = found["kind"]
    models = [{"name": m, **figure} for m, figure in found["models"].items() if "value" in figure]
    pairs = [dict(p) for p in found["pairs"] if "difference" in p]
    ends = [figure[end] for figure in models for end in ("ci_low", "ci_high")] or [0.0, 1.0]
    low, high = min(ends), max(ends)
    axis = (0.0, 1.0) if low >= 0 and high <= 1 else (low, high if high > low else low + 1)
    reach = max([abs(p["difference"][end]) for p in pairs for end in ("ci_low", "ci_high")], default=0.0) or 1.0
    for figure in models:
        centre = 0.5 if kind == WIN else axis[0] - 1  # of a mean nothing is a middle
        label = f"{figure['name']}: {figure['value']:.3g}"
        figure["picture"] = interval(
            figure["value"], figure["ci_low"], figure["ci_high"], label, axis=axis, centre=centre
        )
    for pair in pairs:
        d = pair["difference"]
        label = f"{pair['b']} against {pair['a']}: {d['value']:+.3g}"
        pair["picture"] = interval(d["value"], d["ci_low"], d["ci_high"], label, axis=(-reach, reach), centre=0.0)
    means = {
        WIN: "Mean probability of being better than the other models; 50 % is in the middle.",
        COST: "Mean cost; less is better.",
        "rate": "Rate of answers.",
    }.get(kind, "Mean score; more is better.")
    return {"name": name, "share": kind in (WIN, "rate"), "means": means, "models": models, "pairs": pairs}


def _answers(compared: Compared) -> list[dict[str, Any]]:
    """Some prompts, taken evenly from all, with every model's answer and scores."""
    step = max(1, len(compared.rows) // SHOWN)
    shown = []
    for number in list(range(0, len(compared.rows), step))[:SHOWN]:
        row = compared.rows[number]
        shown.append(
            {
                "prompt": row["prompt"],
                "answers": [
                    {
                        "model": model,
                        "text": row["completions"][seat]["text"],
                        "scores": [
                            (signal, score)
                            for signal, judged in compared.judged.items()
                            if (score := judged.scores[model][number]) is not None
                        ],
                    }
                    for seat, model in enumerate(compared.models)
                ],
            }
        )
    return shown
