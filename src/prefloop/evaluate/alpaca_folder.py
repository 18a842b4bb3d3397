"""All of AlpacaEval's files of one model in one folder, with what they say.

model_outputs.json, reference_outputs.json, annotations.json, leaderboard.csv
annotator/<name>/   configs.yaml, prompt.txt and the cache of verdicts, for the stock CLI
summary.json        the figures, under evaluate.alpaca_eval
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefloop.errors import UsageError
from prefloop.evaluate import alpaca_eval
from prefloop.evaluate.alpaca_prompts import in_order
from prefloop.evaluate.length_control import length_controlled, length_controlled_minimal
from prefloop.store import atomic


def write_folder(
    out: Path,
    annotations: Sequence[Mapping[str, Any]],
    *,
    prompt: str,
    gamed: Path | None = None,
    difficulties: Path | None = None,
    weights: Path | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Write the folder and measure.

    AlpacaEval's 805 prompts are put in their order, and on them the length-controlled win rate is measured, from the
    files that are given or from the hub; where it cannot be reached, `not_measured` says so. On other prompts the
    two-parameter form is, under its own name, and files for the other are refused.

    Args:
        out: the folder; made where it is not there.
        annotations: verdicts on one model against one baseline.
        prompt: what the judge was asked, for people.
        gamed, difficulties, weights: files, as for `length_controlled`.
        resamples, seed: of the bootstrap of the two-parameter form.

    Returns:
        model, baseline, annotator; what `summarize` says; avg_length; of length control what was measured,
        weights, warnings, and of the three-parameter form C and official; not_measured {figure: why};
        stock_command, AlpacaEval's own that repeats the win rate.

    Raises:
        UsageError: several models in one file; files for other prompts; what `length_controlled` raises for files.
    """
    names = {key: _only(annotations, key) for key in ("generator_2", "generator_1", "annotator")}
    files = {"gamed": gamed, "difficulties": difficulties, "weights": weights}
    other_prompts = None
    try:
        annotations = in_order(annotations)
    except UsageError as error:
        if any(files.values()):
            raise
        other_prompts = str(error)
    if other_prompts is None:
        controlled, found = _controlled(annotations, files)
    else:
        controlled, found = None, _minimal(annotations, other_prompts, resamples, seed)
    row = alpaca_eval.leaderboard_row(annotations, controlled)
    rows = [dict(r) for r in annotations]
    if controlled is not None:
        rows = [r | {"glm_preference": q} for r, q in zip(rows, controlled["glm_preference"], strict=True)]
    # One step down and no hidden one: a judge may be called `..`.
    name = re.sub(r"[^\w.@+-]+", "_", names["annotator"] or "").lstrip(".")
    folder = out / "annotator" / (name or "prefloop")
    out.mkdir(parents=True, exist_ok=True)
    alpaca_eval.write_outputs(out / "reference_outputs.json", alpaca_eval.outputs(annotations, 1))
    alpaca_eval.write_outputs(out / "model_outputs.json", alpaca_eval.outputs(annotations, 2))
    alpaca_eval.write_annotations(out / "annotations.json", rows)
    alpaca_eval.write_leaderboard(out / "leaderboard.csv", {names["generator_2"] or "model": row})
    alpaca_eval.write_annotator(folder, annotations, prompt=prompt)
    summary = {
        "model": names["generator_2"],
        "baseline": names["generator_1"],
        "annotator": names["annotator"],
        **{name: value for name, value in row.items() if value is not None and name != "mode"},
        "n_excluded": len(annotations) - row["n_total"],
        **found,
        "stock_command": stock_command(out, folder),
    }
    atomic.write_json(out / "summary.json", {"evaluate": {"alpaca_eval": summary}})
    return summary


def stock_command(out: Path, annotator: Path) -> str:
    """The stock CLI's command that repeats the win rate from the folder's files, offline."""
    arguments = {
        "model_outputs": out / "model_outputs.json",
        "reference_outputs": out / "reference_outputs.json",
        # Absolute: a bare name is looked up inside the alpaca_eval package.
        "annotators_config": annotator.resolve(),
        "output_path": out / "stock",
        "precomputed_leaderboard": None,
        "fn_metric": "get_winrate",
        "sort_by": "win_rate",
    }
    return "alpaca_eval evaluate " + " ".join(f"--{name} {shlex.quote(str(v))}" for name, v in arguments.items())


def _controlled(
    annotations: Sequence[Mapping[str, Any]], files: dict[str, Path | None]
) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """What `length_controlled` returned (None where the hub is out of reach), and what the summary says about it."""
    try:
        full = length_controlled(
            annotations, gamed=files["gamed"], difficulties=files["difficulties"], weights=files["weights"]
        )
    except UsageError as error:
        if any(files.values()):
            raise
        return None, {"not_measured": {"length_controlled_winrate": str(error)}}
    said = {name: full[name] for name in ("C", "official", "warnings")}
    return full, {"weights": full["weights"]._asdict(), **said}


def _minimal(annotations: Sequence[Mapping[str, Any]], why: str, resamples: int, seed: int) -> dict[str, Any]:
    other = {"length_controlled_winrate": why}
    try:
        found = length_controlled_minimal(annotations, resamples=resamples, seed=seed)
    except UsageError as error:
        return {"not_measured": other | {"length_controlled_minimal": str(error)}}
    return {name: found[name] for name in ("length_controlled_minimal", "weights", "warnings")} | {
        "not_measured": other
    }


def _only(annotations: Sequence[Mapping[str, Any]], key: str) -> str | None:
    names = sorted({str(row[key]) for row in annotations if row.get(key) is not None})
    if len(names) > 1:
        raise UsageError(f"{key} has {len(names)} names: {', '.join(names)}", fix="one model and one judge a file")
    return names[0] if names else None
