"""The few lines that a person reads when a run ends."""

from __future__ import annotations

from typing import Any

from prefloop.evaluate.perplexity import in_words
from prefloop.evaluate.stats import says_nothing
from prefloop.evaluate.writers import lines as writer_lines

FEW = 30
"""Held-out prompts below which a bootstrap interval covers the truth clearly less often than it says."""


def headline(summary: dict[str, Any]) -> list[str]:
    """What was measured, one line a figure, with its interval and in plain words."""
    evaluate = dict(summary.get("evaluate", {}))
    lines = []
    win = evaluate.pop("win_rate", None)
    if win:
        lines.append(
            f"win rate against the base: {_share(win['value'])} "
            f"[{_share(win['ci_low'])}, {_share(win['ci_high'])}] on {win['n']} held-out prompts: {_verdict(win, 0.5)}"
        )
    bias, texts = (evaluate.pop(name, {}) for name in ("source_bias", "source_texts"))
    lines += writer_lines(bias, texts)
    lines += _several(evaluate)
    missing = evaluate.pop("not_measured", {})
    if "win_rate" in missing:
        lines.append(f"no win rate: {missing['win_rate']}")
        lines += _validation(summary)
    if likely := evaluate.get("perplexity"):
        lines.append(in_words(likely))
    for group in evaluate.values():
        for name, figure in group.items() if isinstance(group, dict) else ():
            if not isinstance(figure, dict) or "difference" not in figure:
                continue
            change = figure["difference"]
            value, low, high = (_points(change[key]) for key in ("value", "ci_low", "ci_high"))
            lines.append(
                f"{name}: {_share(figure['base' if 'base' in figure else 'plain'])} → {_share(figure['aligned'])} "
                f"(change {value} [{low}, {high}] points, n = {figure['n']}): "
                f"{_verdict({**change, 'n': figure['n']}, 0.0, lower=figure.get('lower_is_better', False))}"
            )
    if costs := summary.get("cost"):
        each = ", ".join(f"{model} {cost:.6g}" for model, cost in costs.items())
        lines.append(f"paid for calls of servers: {sum(costs.values()):.6g} ({each})")
    computed = summary.get("computed")
    if computed is not None:
        lines.append(
            f"computed: {', '.join(computed)}" if computed else "everything was done before; nothing computed"
        )
    return lines


def _several(evaluate: dict[str, Any]) -> list[str]:
    """Of several models: each one's win rate, by each signal, and what there is between them."""
    lines = []
    for name, said in evaluate.get("branches", {}).items():
        mark = ", the better one" if name == evaluate["winner"] else ""
        others = {f" by {signal.partition('@')[0]}": other for signal, other in said.get("also", {}).items()}
        for by, other in ({"": said} | others).items():
            if (win := other.get("win_rate")) is None:
                continue
            alike = other.get("agreement", {}).get("decided")
            agree = "" if alike is None else f"; decides as the first on {_share(alike['value'])}"
            lines.append(
                f"  {name}{mark if not by else ''}{by}: {_share(win['value'])} "
                f"[{_share(win['ci_low'])}, {_share(win['ci_high'])}]: {_verdict(win, 0.5)}{agree}"
            )
    for d in evaluate.get("differences", []):
        value, low, high = (_points(d[key]) for key in ("value", "ci_low", "ci_high"))
        lines.append(
            f"  {d['b']} - {d['a']} by {d['signal'].partition('@')[0]}: "
            f"{value} [{low}, {high}] points: {_difference(d)}"
        )
    for name, said in evaluate.get("unmerged", {}).items():
        lines.append(f"  {name} unmerged: {_share(said['identical'])} of its answers are the merged model's")
    return lines


def _difference(figure: dict[str, Any]) -> str:
    tested = f"p = {figure['p_holm']:.2g} after Holm's correction"
    if figure["verdict"].startswith("no "):
        return f"{figure['verdict']} ({tested})"
    return f"{'better' if figure['value'] > 0 else 'worse'} ({tested})"


def _validation(summary: dict[str, Any]) -> list[str]:
    """Loss and reward accuracy on what was kept from training, of the last round that has them."""
    trained = [s["train"].get("validation") for s in summary.get("stages", {}).values() if "train" in s]
    found = next((v for v in reversed(trained) if v), None)
    if found is None:
        return []
    before, after = found["before"], found["after"]
    text = f"rows kept from training: loss {before['loss']:.4f} → {after['loss']:.4f}"
    if (accuracy := "rewards/accuracies") in after:
        text += f", reward accuracy {_share(before[accuracy])} → {_share(after[accuracy])}"
    return [text]


def _points(value: float) -> str:
    """A difference of shares in points; what rounds to 0 has no sign."""
    return f"{100 * value:+.1f}" if round(100 * value, 1) else "0.0"


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _verdict(figure: dict[str, Any], neutral: float, *, lower: bool = False) -> str:
    """In words; lower: less is better."""
    if says_nothing(figure):
        return f"all {figure['n']} equal; the interval says nothing"
    few = f" (of {figure['n']} prompts only: below {FEW} such intervals are too narrow)" if figure["n"] < FEW else ""
    if figure["ci_low"] > neutral:
        return f"{'worse' if lower else 'better'}{few}"
    if figure["ci_high"] < neutral:
        return f"{'better' if lower else 'worse'}{few}"
    return f"no detectable difference{few}"
