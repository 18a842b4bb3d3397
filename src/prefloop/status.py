"""How far a run is, read from its directory without a lock and without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prefloop.config import parse_recipe
from prefloop.loop import survey


def run_status(run: Path, cache_path: Path) -> dict[str, Any]:
    """Every stage of a run with its state and counts.

    Args:
        run: a run directory (it has a manifest.json).
        cache_path: the project's cache, which remembers the digests of model files.
    """
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    recipe = parse_recipe(manifest["recipe"], where=str(run / "manifest.json"))
    stages = []
    for planned in survey(recipe, run, cache_path):
        entry: dict[str, Any] = {
            "number": planned.stage.number,
            "name": planned.stage.name,
            "stage": planned.stage.name,
            "state": planned.state,
        }
        if planned.success is not None:
            rows = planned.success.get("rows") or {}
            entry |= {k: rows[k] for k in ("kept", "rejected") if k in rows}
            entry["seconds"] = planned.success.get("seconds")
        stages.append(entry)
    return {"name": recipe.name, "path": str(run), "stages": stages}


def runs_in(folder: Path) -> list[dict[str, Any]]:
    """The run directories in a folder, by name: `finished` with a report, else `unfinished`."""
    found = []
    for manifest in sorted(folder.glob("*/manifest.json")):
        run = manifest.parent
        name = json.loads(manifest.read_text(encoding="utf-8"))["name"]
        state = "finished" if (run / "report.html").is_file() else "unfinished"
        found.append({"path": str(run), "name": name, "state": state})
    return found
