"""The two documents of a run: the manifest (all that is needed to repeat it) and the summary (what came out)."""

from __future__ import annotations

import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from prefloop import __version__

if TYPE_CHECKING:
    from prefloop.loop.run import Loop
    from prefloop.store.rundir import RunDir

PACKAGES = ("torch", "transformers", "tokenizers", "accelerate", "peft", "datasets", "safetensors", "numpy", "pyarrow")


def describe(loop: Loop) -> dict[str, Any]:
    """The manifest: resolved recipe, versions, input and weight digests, seed, machine. Holds no secret.

    A stage's fingerprint is null while its inputs are not done.
    """
    before = loop.run.read_manifest() or {}
    return {
        "name": loop.recipe.name,
        "recipe": loop.recipe.model_dump(mode="json"),
        "command": ["prefloop", *sys.argv[1:]],
        "created": before.get("created") or datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": loop.recipe.seed,
        "versions": {"prefloop": __version__, "python": platform.python_version()} | _versions(),
        "machine": {
            "platform": platform.platform(),
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            **{k: v for k, v in os.environ.items() if k in {"OMP_NUM_THREADS", "MKL_NUM_THREADS"}},
        },
        "devices": before.get("devices", {}),
        "commits": loop.commits,
        "stages": [
            {
                "number": p.stage.number,
                "name": p.stage.name,
                "verb": p.stage.verb,
                "round": p.stage.round,
                "branch": p.stage.branch,
                "fingerprint": p.fingerprint,
                "skipped": p.state == "skipped",
                "settings": p.stage.settings,
            }
            for p in loop.survey()
        ],
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def paid(run: RunDir) -> dict[str, float]:
    """What the calls of each model with a price have cost in this run, whichever process made them, by its name."""
    costs: dict[str, float] = {}
    for event in run.events():
        if event["kind"] == "usage" and event.get("cost"):
            costs[event["model"]] = costs.get(event["model"], 0.0) + event["cost"]
    return costs


def _with_ability(measured: dict[str, Any], harness: dict[str, Any]) -> dict[str, Any]:
    """A round's figures with those of lm-eval, which a stage of its own measured, by branch."""
    if "branches" not in measured:
        return measured | {"harness": next(iter(harness.values()))}
    branches = {name: said | {"harness": harness[name]} for name, said in measured["branches"].items()}
    return measured | {"branches": branches, "harness": harness[measured["winner"]]}


def tokens(run: RunDir) -> dict[str, dict[str, int]]:
    """What each server's model read and wrote in this run, `prompt` and `generated`, as the server counted it."""
    found: dict[str, dict[str, int]] = {}
    for event in run.events():
        if event["kind"] == "usage" and event.get("prompt_tokens"):
            counts = found.setdefault(event["model"], {"prompt": 0, "generated": 0})
            counts["prompt"] += event["prompt_tokens"]
            counts["generated"] += event["generated_tokens"]
    return found


def summarize(loop: Loop) -> dict[str, Any]:
    """The summary: every finished stage's counts, and under `evaluate` the results of the round that was chosen.

    Paths in it are relative to the run directory.
    """
    stages: dict[str, Any] = {}
    rounds: list[dict[str, Any]] = []
    for planned in loop.survey():
        stage = planned.stage
        success = planned.success
        if success is None:
            continue
        stages[stage.name] = {
            "rows": success.get("rows"),
            "reject_reasons": success.get("reject_reasons", {}),
            "counts": success.get("counts", {}),
            "seconds": success.get("seconds"),
        }
        extra = success.get("extra") or {}
        if stage.verb == "train" or stage.verb.endswith("-train"):
            stages[stage.name]["train"] = extra
        if stage.verb == "select":
            stages[stage.name]["chosen"] = extra
        if stage.verb == "evaluate":
            rounds.append({"round": stage.round, **extra["evaluate"]})
        if stage.verb == "ability":
            rounds[-1] = _with_ability(rounds[-1], extra["harness"])
    summary: dict[str, Any] = {"name": loop.recipe.name, "stages": stages}
    if rounds:
        # What is said of the run is said of the model that it ends with.
        final = stages.get("select", {}).get("chosen", {}).get("round", rounds[-1]["round"])
        (measured,) = (found for found in rounds if found["round"] == final)
        summary["evaluate"] = {k: v for k, v in measured.items() if k != "round"}
        summary["rounds"] = rounds
    last = "select" if loop.kind.selects(loop.recipe) else "merge"
    if last in stages:
        summary["model"] = "model"
    if "select" in stages:
        summary["chosen"] = stages["select"]["chosen"]
    if "report" in stages:
        summary["report"] = "report.html"
    if costs := paid(loop.run):
        summary["cost"] = costs
    if counted := tokens(loop.run):
        summary["tokens"] = counted
    return summary
