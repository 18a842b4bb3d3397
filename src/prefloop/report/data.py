"""What a run directory says, as the data of its report. Parts of an unfinished run are simply not there."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

from prefloop.evaluate.stats import says_nothing
from prefloop.report.charts import interval
from prefloop.report.figures import curves, histograms, measures, source_bias
from prefloop.report.rag import systems
from prefloop.report.remarks import remarks
from prefloop.report.source_bias import gap_figures
from prefloop.signals.bias import cases, rates
from prefloop.store import atomic
from prefloop.store.rundir import RunDir
from prefloop.store.stagedir import StageDir

# Judge's rates: what they mean, and what an unbiased judge has.
CARD = {
    "consistency": ("Consistency", "pairs judged alike in both orders", 1.0),
    "first_seat": ("First seat", "verdicts for the answer shown first; 50 % is unbiased", 0.5),
    "longer_wins": ("Longer wins", "decided pairs won by the longer answer; 50 % is unbiased", 0.5),
    "list_wins": ("Lists win", "decided pairs won by the answer with a list in it; 50 % is unbiased", 0.5),
    "tie_rate": ("Ties", "judged pairs without a winner", 0.0),
    "null_rate": ("No verdict", "calls without a verdict, left out and counted", 0.0),
    "label_mass": ("Label mass", "mean probability of the labels together", 1.0),
}
ORDER = (
    *("first-preferences", "first-train", "first-merge"),
    *("prompts", "preferences", "sample", "questions", "retrieve", "augment", "rate", "pair", "judgments"),
    *("rows", "rerank", "without-pointwise-rerank", "without-pairwise-rerank", "without-contrastive-rerank"),
    *("prealign", "qa", "prealign-train", "prealign-merge", "train", "merge"),
    *("without-prealign-train", "without-prealign-merge", "heldout", "heldout-retrieve", "evaluate", "ability"),
)
UNITS = {
    "prompts": "prompts",
    "preferences": "rows",
    "first-preferences": "rows",
    "heldout": "held-out prompts",
    "questions": "questions",
    "retrieve": "questions with documents",
    "augment": "rewritings",
    "rows": "ranking rows",
    "prealign": "demonstrations",
    "qa": "demonstrations",
    "sample": "prompts sampled",
    "rate": "prompts rated",
    "pair": "pairs",
    "judgments": "judged answers",
    "evaluate": "prompts compared",
}
# What a training counts, by its objective; pairs where it is none of these.
ROWS_OF = {"sft": "answers", "kto": "answers", "plackett_luce": "lists", "cut": "judged answers"}
KEPT = {
    "pairs": "pairs",
    "good": "good answers",
    "bad": "bad answers",
    "criticised": "criticised answers",
    "satisfactory": "satisfactory ones",
}


@dataclass(frozen=True)
class Part:
    """A stage of the manifest's plan.

    Attributes:
        name, verb, round, branch: as planned.
        folder: its folder, which may not be there, or hold the work of another recipe.
        success: its `_SUCCESS.json` if that is of the plan's fingerprint, else None.
        rows: whether the folder holds rows of the plan's fingerprint, finished or not.
    """

    name: str
    verb: str
    round: int
    branch: str
    folder: StageDir
    success: dict[str, Any] | None
    rows: bool


def plan(run: RunDir, manifest: dict[str, Any]) -> list[Part]:
    """The stages of the manifest, each with what its folder holds of it.

    A run directory also keeps stages of earlier recipes: of a round that is no longer, of other settings. A stage
    counts only under the fingerprint that the manifest gives it; a fingerprint that is not known yet is not done.
    """
    parts = []
    for entry in manifest.get("stages", []):
        folder, fingerprint = run.stage(entry["number"], entry["name"]), entry["fingerprint"]
        success = folder.success() if fingerprint is not None else None
        if success is not None and success["fingerprint"] != fingerprint:
            success = None
        begun = success is not None or (
            fingerprint is not None and folder.path.is_dir() and folder.has_work(fingerprint)
        )
        where = (entry["name"], entry["verb"], entry["round"], entry.get("branch", ""))
        parts.append(Part(*where, folder, success, begun and folder.count() > 0))
    return parts


def current(records: Iterable[dict[str, Any]], manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Those of the logs' records that were written under the stage and fingerprint of the manifest's plan."""
    stages = {s["name"]: s["fingerprint"] for s in manifest.get("stages", []) if s["fingerprint"] is not None}
    return [r for r in records if r.get("stage") in stages and r.get("fingerprint") == stages[r["stage"]]]


def collect(run: RunDir) -> dict[str, Any]:
    """The data of a run's report.

    Reads manifest.json, metrics.jsonl, events.jsonl (kinds `warning` and `model_loaded`) and the stages: their
    _SUCCESS.json, the rows of rate, pair and evaluate; of all of these only what belongs to the manifest's plan, see
    `plan` and `current`. Nothing is kept of the rows but numbers and as many answers as the recipe's
    `evaluate.side_by_side` says.
    """
    manifest = run.read_manifest() or {}
    recipe = manifest.get("recipe") or {}
    parts = plan(run, manifest)
    metrics, events = current(run.metrics(), manifest), current(run.events(), manifest)
    skipped = {s["name"] for s in manifest.get("stages", []) if s.get("skipped")}
    everything = [part for part in parts if part.name not in skipped]
    parts = _chosen(everything)
    # The first stage has another loss and other rows than the loop: its curves have axes of their own.
    first_metrics = [m for m in metrics if m["stage"] == "first-train"]
    metrics = [m for m in metrics if m["stage"] in {part.name for part in parts} - {"first-train"}]
    evaluate = dict(((_last(parts, "evaluate") or {}).get("extra") or {}).get("evaluate") or {})
    ability = ((_last(parts, "ability") or {}).get("extra") or {}).get("harness") or {}
    if ability:
        evaluate["harness"] = ability[evaluate.get("winner") or next(iter(ability))]
    unfinished = [part.name for part in everything if part.success is None and part.verb != "report"]
    data = {
        "name": manifest.get("name") or recipe.get("name") or run.path.name,
        "created": manifest.get("created"),
        "unfinished": unfinished,
        "facts": _facts(manifest, recipe, events),
        "win": _win(evaluate.get("win_rate")),
        "no_win": (evaluate.get("not_measured") or {}).get("win_rate"),
        "validation": _validation(parts),
        "bias": source_bias(evaluate.pop("source_bias", {}), evaluate.pop("source_texts", {})),
        "gaps": gap_figures(_score_gaps(parts)),
        "measures": measures(evaluate),
        "lengths": evaluate.get("lengths"),
        "rag": systems(evaluate.get("rag_qa")),
        "perplexity": evaluate.get("perplexity"),
        "models": _models(everything),
        "differences": evaluate.get("differences") or [],
        "flow": _flow(everything),
        "first_curves": curves(first_metrics),
        "curves": curves(metrics),
        "histograms": histograms([(part.verb, part.folder) for part in parts if part.rows]),
        "judges": _judges(parts),
        "samples": _samples(parts, (recipe.get("evaluate") or {}).get("side_by_side", 20)),
        "repeat": _repeat(manifest, recipe, parts),
        "branch": next((part.branch for part in parts if part.branch), ""),
    }
    # A stage that was interrupted and went on may warn of the same thing again.
    warnings = list(dict.fromkeys(str(e["text"]) for e in events if e["kind"] == "warning"))
    return data | {"remarks": remarks(data, metrics, warnings, recipe)}


def _last(parts: list[Part], verb: str) -> dict[str, Any] | None:
    """`_SUCCESS.json` of the last finished stage of a verb."""
    return next((part.success for part in reversed(parts) if part.success and part.verb == verb), None)


def _score_gaps(parts: list[Part]) -> dict[str, dict[str, list[float]]]:
    """What the last measurement wrote of scores (`loop.measuring.SCORE_GAPS`); empty where it measured none."""
    done = [part.folder.path / "score_gaps.json" for part in parts if part.success and part.verb == "evaluate"]
    found: dict[str, dict[str, list[float]]] = atomic.read_json(done[-1]) if done and done[-1].is_file() else {}
    return found


def _facts(manifest: dict[str, Any], recipe: dict[str, Any], events: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """The header: what ran on what."""
    versions = manifest.get("versions") or {}
    loaded = [e for e in events if e["kind"] == "model_loaded" and e.get("device")]
    devices = [str(e["device"]) for e in loaded]
    model = recipe.get("model") or {}
    rate = recipe.get("rate") or (recipe.get("evaluate") or {}).get("judge") or {}
    facts = [
        ("Model", model.get("path")),
        ("First trained on", ((recipe.get("first") or {}).get("preferences") or {}).get("path")),
        ("Preferences", (recipe.get("preferences") or {}).get("path")),
        ("Questions", (recipe.get("questions") or {}).get("path")),
        ("Corpus", (recipe.get("corpus") or {}).get("path")),
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
    if says_nothing(win):
        return {
            **win,
            "says_nothing": True,
            "verdict": "same",
            "words": f"All {win['n']} comparisons came out alike: too few to say",
        }
    verdict = "better" if win["ci_low"] > 0.5 else "worse" if win["ci_high"] < 0.5 else "same"
    words = {
        "better": "The aligned model is better than the base",
        "worse": "The aligned model is worse than the base",
        "same": "No detectable difference from the base",
    }
    return {**win, "says_nothing": False, "verdict": verdict, "words": words[verdict]}


def _validation(parts: list[Part]) -> list[dict[str, Any]]:
    """Loss and reward accuracy on the rows kept from training, before and after the last round's."""
    found = ((_last(parts, "train") or {}).get("extra") or {}).get("validation") or {}
    before, after = found.get("before") or {}, found.get("after") or {}
    names = {"loss": "loss", "rewards/accuracies": "reward accuracy"}
    return [
        {"key": key, "name": name, "before": before[key], "after": after[key]}
        for key, name in names.items()
        if all(isinstance(side.get(key), int | float) and math.isfinite(side[key]) for side in (before, after))
    ]


def _chosen(parts: list[Part]) -> list[Part]:
    """Those that made the model the run ends with: of several branches one, and no round behind it."""
    select = (_last(parts, "select") or {}).get("extra") or {}
    branches = [part.branch for part in parts if part.branch]
    branch = select.get("branch") or next(iter(branches), "")
    last = select.get("round", math.inf)
    return [part for part in parts if part.branch in ("", branch) and (part.round <= last or part.verb == "report")]


def _models(parts: list[Part]) -> list[dict[str, Any]]:
    """Every model that was measured against the recipe's first one; empty where it is one alone.

    Each entry: round, name (of the branch, of an adapter that is not merged, or empty), signal (of a further one, or
    empty), value, ci_low, ci_high, n, picture.
    """
    found: list[dict[str, Any]] = []
    for part in parts:
        evaluate = ((part.success or {}).get("extra") or {}).get("evaluate") or {}
        if part.verb != "evaluate" or "win_rate" not in evaluate:
            continue
        models = {"": evaluate} if "branches" not in evaluate else dict(evaluate["branches"])
        models |= {f"{name}, not merged": said for name, said in (evaluate.get("unmerged") or {}).items()}
        for name, said in models.items():
            by = {"": said["win_rate"]} | {signal: o["win_rate"] for signal, o in (said.get("also") or {}).items()}
            found += [
                {**win, "round": part.round, "name": name, "signal": signal.partition("@")[0]}
                for signal, win in by.items()
            ]
    for entry in found:
        label = f"round {entry['round']} {entry['name']}"
        ends = (entry["value"], entry["ci_low"], entry["ci_high"])
        entry["picture"] = interval(*ends, label, axis=(0.0, 1.0), centre=0.5)
    return sorted(found, key=lambda m: m["round"]) if len(found) > 1 else []


def _flow(parts: list[Part]) -> list[dict[str, Any]]:
    """One entry per round: its steps with counts, rejects and seconds."""
    rounds: dict[int, list[dict[str, Any]]] = {}
    for part in parts:
        verb = part.verb
        if verb in ("report", "select"):
            continue
        step: dict[str, Any] = {
            "name": verb,
            "branch": part.branch,
            "state": "done" if part.success else "waits",
            "count": None,
            "unit": "",
        }
        if part.success is None and part.rows:
            so_far = part.folder.count()
            step |= {"state": "running", "count": so_far, "unit": UNITS.get(verb, "rows") + " so far"}
        rounds.setdefault(part.round, []).append(step | _counted(verb, part.success or {}))
    for steps in rounds.values():
        # Read early, so that no training prompt is among them; what they are for is the measurement.
        branches = list(dict.fromkeys(step["branch"] for step in steps))
        steps.sort(
            key=lambda s: (
                ORDER.index(s["name"]) >= ORDER.index("heldout"),
                branches.index(s["branch"]),
                ORDER.index(s["name"]),
            )
        )
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
    if verb in ("preferences", "judgments", "first-preferences"):
        found = [f"{counts[name]:,.0f} {what}" for name, what in KEPT.items() if counts.get(name)]
        step["detail"] = f"({', '.join(found)})" if found else ""
    if verb == "sample" and counts.get("answers"):
        step |= {"count": counts["answers"], "unit": "answers", "detail": f"to {rows.get('kept', 0):,} prompts"}
        step["cut_off"] = counts.get("cut_off", 0) / counts["answers"]
    if verb == "rate" and counts.get("answers"):
        step |= {"count": counts["answers"] - counts.get("unscored", 0), "unit": "answers scored"}
    if verb in ("train", "first-train") and extra.get("steps"):
        lost = extra.get("rejected") or {}
        of = ROWS_OF.get((extra.get("objective") or {}).get("type", ""), "pairs")
        step |= {"count": extra["steps"], "unit": "steps", "detail": f"on {extra['pairs']:,} {of}"}
        step |= {"rejected": sum(lost.values()), "kept": extra["pairs"], "reasons": sorted(lost.items())}
    return step


def _judges(parts: list[Part]) -> list[dict[str, Any]]:
    """A card per judge: of the rating (last round) and of the measurement."""
    cards = []
    rating = _last(parts, "rate")
    counts = (rating or {}).get("counts") or {}
    if "verdicts" in counts:
        cards.append({"title": "Rating", "verdicts": counts["verdicts"], "rates": _card(counts)})
    measured = ((_last(parts, "evaluate") or {}).get("extra") or {}).get("counts") or {}
    if "verdicts" in measured:
        cards.append({"title": "Measurement", "verdicts": measured["verdicts"], "rates": _card(measured)})
    return cards


def _card(counts: dict[str, Any]) -> list[dict[str, Any]]:
    found, of = rates(counts), cases(counts)
    return [
        {"key": key, "label": label, "means": means, "ideal": ideal, "value": found[key], "cases": of[key]}
        for key, (label, means, ideal) in CARD.items()
        if found.get(key) is not None and math.isfinite(found[key])
    ]


def _samples(parts: list[Part], most: int) -> list[dict[str, Any]]:
    """Answers of base and aligned model side by side, evenly from the whole of the last round's comparison."""
    found = [part for part in parts if part.verb == "evaluate" and part.rows]
    if not found or most == 0:
        return []
    stage = max(found, key=lambda part: part.round).folder
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


def _repeat(manifest: dict[str, Any], recipe: dict[str, Any], parts: list[Part]) -> dict[str, Any]:
    """All that is needed to get the same numbers again."""
    import yaml

    settings = {s["name"]: s.get("settings") or {} for s in manifest.get("stages", [])}
    begun = settings.get("first-train", {}).get("model") or settings.get("evaluate", {}).get("base") or {}
    digests = [
        ("base model", begun.get("weights")),
        ("first stage's data", settings.get("first-preferences", {}).get("content")),
        ("first stage's model", (_last(parts, "first-merge") or {}).get("content")),
        ("prompts", settings.get("prompts", {}).get("content") or settings.get("prompts", {}).get("code")),
        ("held-out prompts", settings.get("heldout", {}).get("content") or settings.get("heldout", {}).get("code")),
        ("preferences", settings.get("preferences", {}).get("content")),
        ("pairs", (_last(parts, "pair") or {}).get("content")),
        ("aligned model", (_last(parts, "merge") or {}).get("content")),
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
