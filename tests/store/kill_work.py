"""What the child processes of test_kill.py do. The fork server imports it once."""

from __future__ import annotations

import os
import signal

from prefloop.store import atomic
from prefloop.store.cache import Cache
from prefloop.store.rows import to_table
from prefloop.store.rundir import RunDir

# Arrow loads half a second of modules for the first row that it sees: here once, not in every child.
to_table("prompts", [{"id": "x", "prompt": [], "source_id": None}], where="warm-up")

PARTS = 2


def run_killed(job, path, kill_at):
    """Run a job in this process, and kill it at the k-th crash point (1-based)."""
    calls = 0

    def crash(name):
        nonlocal calls
        calls += 1
        if calls == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    atomic.crash_point = crash
    # As in test_kill.no_fsync.
    os.fsync = lambda descriptor: None
    job(path)


def work(folder):
    """A stage of two parts with side tables and rejects, then a folder, as a run would do them."""
    with RunDir.open(folder) as run:
        run.write_manifest({"seed": 0})
        stage = run.stage(1, "rate")
        if not stage.is_done("f"):
            done = stage.begin("f")
            for index in range(PARTS):
                if index not in done:
                    write(stage, index)
                run.event("part", index=index)
            stage.finish("f", PARTS * 3)
        merge = run.stage(2, "merge")
        if not merge.is_done("g"):
            merge.begin("g")
            with atomic.directory(folder / "model") as model:
                (model / "config.json").write_text("{}")
            merge.finish_files("g", folder=folder / "model")
        run.write_summary({"ok": True})


def write(stage, index):
    rows = [{"id": f"{index}-{i}", "prompt": [], "source_id": None} for i in range(2)]
    rejects = [{"id": f"{index}-r", "stage": "rate", "reason": "empty", "attempts": 1, "row": "{}"}]
    call = {"id": f"c{index}", "row_id": "x", "signal": "s", "verb": "score", "request": "{}", "result": "{}"}
    stage.write_part(
        index, rows, "prompts", rejects=rejects, tables={"calls": ("calls", [call])}, counts={"n": index + 1}
    )


def old_work(folder):
    """Work of another fingerprint, which `work` has to replace."""
    with RunDir.open(folder) as run:
        stage = run.stage(1, "rate")
        stage.begin("old")
        write(stage, 0)
        write(stage, 7)
        stage.finish("old", 6)
        with atomic.directory(folder / "model") as model:
            (model / "config.json").write_text("old")


BATCHES, BATCH = 3, 50


def fill(path):
    with Cache(path) as cache:
        for batch in range(BATCHES):
            items = {f"{batch}-{i}": [batch, i, "x" * 500] for i in range(BATCH)}
            if len(cache.get_many(items)) < BATCH:
                cache.put_many("generate", items, "m")
