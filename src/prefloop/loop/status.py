"""How far a run is, read from its directory alone: no lock, no torch, and no file that it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefloop.loop.run import stage_state
from prefloop.store.rundir import RunDir


def run_status(path: Path) -> dict[str, Any]:
    """Every stage of a run, as last planned, with its state and counts, and the process that works on it.

    Whether the recipe would compute anything again (a changed file, newer code) is what `--dry-run` says.
    """
    run = RunDir.peek(path)
    manifest = run.read_manifest() or {}
    stages = []
    for entry in manifest["stages"]:
        folder = run.stage(entry["number"], entry["name"])
        state = "skipped" if entry.get("skipped") else stage_state(folder, entry["fingerprint"])
        found: dict[str, Any] = {"number": entry["number"], "name": entry["name"], "state": state}
        success = folder.success() if state == "done" else None
        if success is not None:
            rows = success.get("rows") or {}
            found |= {name: rows[name] for name in ("kept", "rejected") if name in rows}
            found["seconds"] = success.get("seconds")
        stages.append(found)
    return {"name": manifest["name"], "path": str(path), "process": run.holder(), "stages": stages}


def runs_in(folder: Path) -> list[dict[str, Any]]:
    """The run directories in a folder, by name: running, finished (every stage is done) or unfinished."""
    found = []
    for manifest in sorted(folder.glob("*/manifest.json")):
        status = run_status(manifest.parent)
        finished = all(s["state"] in ("done", "skipped") for s in status["stages"])
        state = "running" if status["process"] else "finished" if finished else "unfinished"
        found.append({"path": str(manifest.parent), "name": status["name"], "state": state})
    return found
