"""What a run directory says, as the data of its report. Parts of an unfinished run are simply not there."""

from __future__ import annotations

import math
from itertools import islice
from typing import Any

from prefloop.report.figures import curves, histograms, measures
from prefloop.report.remarks import remarks
from prefloop.signals.judge import rates
from prefloop.store.rundir import RunDir
from prefloop.store.stagedir import StageDir

# Judge's rates: what they mean, and what an unbiased judge has.
CARD = {
    "consistency": ("Consistency", "pairs judged alike in both orders", 1.0),
    "first_seat": ("First seat", "verdicts for the answer shown first; 50 % is unbiased", 0.5),
    "longer_wins": ("Longer wins", "decided pairs won by the longer answer; 50 % is unbiased", 0.5),
    "null_rate": ("No verdict", "calls without a verdict, left out and counted", 0.0),
    "label_mass": ("Label mass", "mean probability of the labels together", 1.0),
}
ORDER = ("prompts", "sample", "rate", "pair", "train", "merge", "heldout", "evaluate")
UNITS = {
    "prompts": "prompts",
    "heldout": "held-out prompts",
    "sample": "prompts sampled",
    "rate": "prompts rated",
    "pair": "pairs",
    "evaluate": "prompts compared",
}


def collect(run: RunDir) -> dict[str, Any]:
    """The data of a run's report.

    Reads manifest.json, summary.json, metrics.jsonl, events.jsonl (kinds `warning` and `model_loaded`) and the
    stages: their _SUCCESS.json, the rows of rate, pair and evaluate. Nothing is kept of the rows but numbers and as
    many answers as the recipe's `evaluate.side_by_side` says.
    """
    manifest = run.read_manifest() or {}
    recipe = manifest.get("recipe") or {}
    stages = run.stages()
    successes = {stage.name: stage.success() for stage in stages}
    evaluate = _evaluation(run, successes)
    planned = [s["name"] for s in manifest.get("stages", [])] or list(successes)
    unfinished = [name for name in planned if successes.get(name) is None and name != "report"]
    data = {
        "name": manifest.get("name") or recipe.get("name") or run.path.name,
        "created": manifest.get("created"),
        "unfinished": unfinished,
        "facts": _facts(manifest, recipe, list(run.events())),
        "win": _win(evaluate.get("win_rate")),
        "measures": measures(evaluate),
        "lengths": evaluate.get("lengths"),
        "rounds": _rounds(run, successes),
        "flow": _flow(stages, successes, planned),
        "curves": curves(list(run.metrics())),
        "histograms": histograms(stages),
        "judges": _judges(successes),
        "samples": _samples(stages, (recipe.get("evaluate") or {}).get("side_by_side", 20)),
        "repeat": _repeat(manifest, recipe, successes),
    }
    return data | {"remarks": remarks(data, run, recipe)}


def split_name(stage: str) -> tuple[int, str]:
    """`r2-train` as (2, "train"), `train` as (1, "train")."""
    head, _, verb = stage.partition("-")
    return (int(head[1:]), verb) if verb and head[:1] == "r" and head[1:].isdigit() else (1, stage)


def _last(successes: dict[str, dict[str, Any] | None], verb: str) -> dict[str, Any] | None:
    """The last finished stage of a verb."""
    found = [(split_name(name)[0], s) for name, s in successes.items() if s and split_name(name)[1] == verb]
    return max(found, key=lambda item: item[0])[1] if found else None


def _evaluation(run: RunDir, successes: dict[str, dict[str, Any] | None]) -> dict[str, Any]:
    """`evaluate` of the stage itself: the summary is written when the loop ends, the report before that."""
    last = _last(successes, "evaluate")
    found = (last or {}).get("extra", {}).get("evaluate") or (run.read_summary() or {}).get("evaluate") or {}
    return dict(found)


def _facts(manifest: dict[str, Any], recipe: dict[str, Any], events: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """The header: what ran on what."""
    versions = manifest.get("versions") or {}
    loaded = [e for e in events if e["kind"] == "model_loaded" and e.get("device")]
    devices = [str(d) for d in (manifest.get("devices") or {}).values()] + [str(e["device"]) for e in loaded]
    model = recipe.get("model") or {}
    rate = recipe.get("rate") or {}
    facts = [
        ("Model", model.get("path")),
        ("Signal", " ".join(str(rate[k]) for k in ("type", "mode", "callable") if rate.get(k))),
        ("Objective", ((recipe.get("train") or {}).get("objective") or {}).get("type")),
        ("Device", ", ".join(dict.fromkeys(devices))),
        ("Seed", manifest.get("seed")),
        ("prefloop", versions.get("prefloop")),
        ("torch", versions.get("torch")),
        ("transformers", versions.get("transformers")),
        ("Started", str(manifest.get("created") or "").replace("T", " ").replace("+00:00", " UTC")),
    ]
    return [(name, str(value)) for name, value in facts if value not in (None, "")]


def _win(win: dict[str, Any] | None) -> dict[str, Any] | None:
    """The headline in words: better, worse or undecided by the interval, not by the value."""
    if not win:
        return None
    verdict = "better" if win["ci_low"] > 0.5 else "worse" if win["ci_high"] < 0.5 else "same"
    words = {
        "better": "The aligned model is better than the base",
        "worse": "The aligned model is worse than the base",
        "same": "No detectable difference from the base",
    }
    return {**win, "verdict": verdict, "words": words[verdict]}


def _rounds(run: RunDir, successes: dict[str, dict[str, Any] | None]) -> list[dict[str, Any]]:
    """Win rate of every round against the recipe's first model; empty for a run of one round."""
    found = [
        {"round": split_name(name)[0], **s["extra"]["evaluate"]["win_rate"]}
        for name, s in successes.items()
        if s and split_name(name)[1] == "evaluate" and "win_rate" in s.get("extra", {}).get("evaluate", {})
    ]
    return sorted(found, key=lambda r: r["round"]) if len(found) > 1 else []


def _flow(
    stages: list[StageDir], successes: dict[str, dict[str, Any] | None], planned: list[str]
) -> list[dict[str, Any]]:
    """One entry per round: its steps with counts, rejects and seconds."""
    folders = {stage.name: stage for stage in stages}
    rounds: dict[int, list[dict[str, Any]]] = {}
    for name in planned:
        number, verb = split_name(name)
        if verb == "report":
            continue
        success = successes.get(name)
        step: dict[str, Any] = {"name": verb, "state": "done" if success else "waits", "count": None, "unit": ""}
        if success is None and name in folders and (so_far := folders[name].count()):
            step |= {"state": "running", "count": so_far, "unit": UNITS.get(verb, "rows") + " so far"}
        rounds.setdefault(number, []).append(step | _counted(verb, success or {}))
    for steps in rounds.values():
        # Read early, so that no training prompt is among them; what they are for is the measurement.
        steps.sort(key=lambda s: ORDER.index(s["name"]) if s["name"] in ORDER else len(ORDER))
    return [{"round": number, "steps": steps} for number, steps in sorted(rounds.items())]


def _counted(verb: str, success: dict[str, Any]) -> dict[str, Any]:
    rows, counts, extra = (success.get(k) or {} for k in ("rows", "counts", "extra"))
    step: dict[str, Any] = {
        "rejected": rows.get("rejected", 0),
        "reasons": sorted((success.get("reject_reasons") or {}).items(), key=lambda item: -item[1]),
        "seconds": success.get("seconds"),
        "detail": "",
    }
    if rows:
        step |= {"count": rows["kept"], "unit": UNITS.get(verb, "rows"), "kept": rows["kept"]}
    if verb == "sample" and counts.get("answers"):
        step |= {"count": counts["answers"], "unit": "answers", "detail": f"to {rows.get('kept', 0):,} prompts"}
        step["cut_off"] = counts.get("cut_off", 0) / counts["answers"]
    if verb == "rate" and counts.get("answers"):
        step |= {"count": counts["answers"] - counts.get("unscored", 0), "unit": "answers scored"}
    if verb == "train" and extra.get("steps"):
        lost = extra.get("rejected") or {}
        step |= {"count": extra["steps"], "unit": "steps", "detail": f"on {extra['pairs']:,} pairs"}
        step |= {"rejected": sum(lost.values()), "kept": extra["pairs"], "reasons": sorted(lost.items())}
    return step


def _judges(successes: dict[str, dict[str, Any] | None]) -> list[dict[str, Any]]:
    """A card per judge: of the rating (last round) and of the measurement."""
    cards = []
    rating = _last(successes, "rate")
    counts = (rating or {}).get("counts") or {}
    if "verdicts" in counts:
        cards.append({"title": "Rating", "verdicts": counts["verdicts"], "rates": _card(rates(counts))})
    measured = ((_last(successes, "evaluate") or {}).get("extra") or {}).get("counts") or {}
    if "verdicts" in measured:
        cards.append({"title": "Measurement", "verdicts": measured["verdicts"], "rates": _card(rates(measured))})
    return cards


def _card(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"key": key, "label": label, "means": means, "ideal": ideal, "value": found[key]}
        for key, (label, means, ideal) in CARD.items()
        if found.get(key) is not None and math.isfinite(found[key])
    ]


def _samples(stages: list[StageDir], most: int) -> list[dict[str, Any]]:
    """Answers of base and aligned model side by side, evenly from the whole of the last round's comparison."""
    found = [s for s in stages if split_name(s.name)[1] == "evaluate" and s.count()]
    if not found or most == 0:
        return []
    stage = max(found, key=lambda s: split_name(s.name)[0])
    every = max(1, stage.count() // most)
    samples = []
    for row in islice(stage.rows(), 0, every * most, every):
        base, aligned = row["completions"]
        low, high = row["scores"]
        winner = (
            None if low is None or high is None else "same" if low == high else "aligned" if high > low else "base"
        )
        samples.append({"prompt": row["prompt"], "base": base["text"], "aligned": aligned["text"], "winner": winner})
    return samples


def _repeat(
    manifest: dict[str, Any], recipe: dict[str, Any], successes: dict[str, dict[str, Any] | None]
) -> dict[str, Any]:
    """All that is needed to get the same numbers again."""
    import yaml

    settings = {s["name"]: s.get("settings") or {} for s in manifest.get("stages", [])}
    digests = [
        ("base model", (settings.get("evaluate", {}).get("base") or {}).get("weights")),
        ("prompts", settings.get("prompts", {}).get("content") or settings.get("prompts", {}).get("code")),
        ("held-out prompts", settings.get("heldout", {}).get("content") or settings.get("heldout", {}).get("code")),
        ("pairs", (_last(successes, "pair") or {}).get("content")),
        ("aligned model", (_last(successes, "merge") or {}).get("content")),
    ]
    return {
        "command": _shell(manifest.get("command") or []),
        "versions": sorted((manifest.get("versions") or {}).items()),
        "machine": sorted((k, str(v)) for k, v in (manifest.get("machine") or {}).items()),
        "digests": [(name, str(value)) for name, value in digests if value],
        "recipe": yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=110) if recipe else "",
    }


def _shell(command: list[str]) -> str:
    import shlex

    return shlex.join(command)
