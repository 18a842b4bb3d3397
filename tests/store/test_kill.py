"""kill -9 at every write point: nothing published is lost, and going on gives what an undisturbed run gives.

A child process works with `atomic.crash_point` patched to kill the process at the k-th call; this process then opens
what is left and goes on.
"""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from prefloop.store import atomic
from prefloop.store.cache import Cache
from prefloop.store.rundir import RunDir

PARTS = 2


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


def state(folder):
    """Everything that a reader can see, without the times."""
    run = RunDir.peek(folder)
    stage = run.stage(1, "rate")
    success = [run.stage(1, "rate").success(), run.stage(2, "merge").success()]
    for one in success:
        one.pop("seconds")
    tables = {name: list(stage.rows(name)) for name in ("part", "calls", "rejects")}
    files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    return success, tables, files, run.read_manifest(), run.read_summary(), (folder / "model/config.json").read_text()


CHILD = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_kill
from prefloop.store import atomic

calls = []
def crash(name):
    calls.append(name)
    if len(calls) == int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)
atomic.crash_point = crash
getattr(test_kill, sys.argv[2])(Path(sys.argv[3]))
"""


def child(job, path, kill_at):
    here = str(Path(__file__).parent)
    return subprocess.run([sys.executable, "-c", CHILD, here, job, str(path), str(kill_at)], timeout=60).returncode


def crash_points(job, path, monkeypatch):
    names = []
    with monkeypatch.context() as patch:
        patch.setattr(atomic, "crash_point", names.append)
        job(path)
    return names


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    work(folder)
    return state(folder)


# manifest, 2 x (calls, rejects, part), marks and merged rejects, model, its mark, summary: before and after each.
WORK_POINTS = 26


def test_every_write_is_a_crash_point(tmp_path, monkeypatch):
    names = crash_points(work, tmp_path / "run", monkeypatch)
    assert len(names) == WORK_POINTS
    assert names[4:10] == [
        f"{file}-00000.parquet:{when}" for file in ("calls", "rejects", "part") for when in ("before", "after")
    ]
    assert names[-6:] == [f"{n}:{w}" for n in ("model", "_SUCCESS.json", "summary.json") for w in ("before", "after")]


@pytest.mark.parametrize("kill_at", range(1, WORK_POINTS + 1))
def test_run_goes_on_after_a_kill(tmp_path, undisturbed, kill_at):
    folder = tmp_path / "run"
    # Every second run has first to clear away older work.
    if kill_at % 2:
        old_work(folder)
    assert child("work", folder, kill_at) == -signal.SIGKILL
    work(folder)
    assert state(folder) == undisturbed


def test_published_parts_are_not_made_again(tmp_path, monkeypatch):
    names = crash_points(work, tmp_path / "first", monkeypatch)
    after_first_part = names.index("part-00000.parquet:after") + 1
    assert child("work", tmp_path / "run", after_first_part) == -signal.SIGKILL
    again = crash_points(work, tmp_path / "run", monkeypatch)
    assert "part-00000.parquet:before" not in again
    assert "part-00001.parquet:before" in again


def test_side_tables_without_their_part_are_swept(tmp_path, monkeypatch):
    names = crash_points(work, tmp_path / "first", monkeypatch)
    assert child("work", tmp_path / "run", names.index("part-00001.parquet:before") + 1) == -signal.SIGKILL
    stage = tmp_path / "run" / "stages" / "01-rate"
    assert (stage / "calls-00001.parquet").exists()
    with RunDir.open(tmp_path / "run") as run:
        assert run.stage(1, "rate").begin("f") == {0}
    assert not (stage / "calls-00001.parquet").exists()
    assert (stage / "calls-00000.parquet").exists()


BATCHES, BATCH = 3, 50


def fill(path):
    with Cache(path) as cache:
        for batch in range(BATCHES):
            items = {f"{batch}-{i}": [batch, i, "x" * 500] for i in range(BATCH)}
            if len(cache.get_many(items)) < BATCH:
                cache.put_many("generate", items, "m")


@pytest.mark.parametrize("kill_at", range(1, 2 * BATCHES + 1))
def test_cache_keeps_whole_batches_over_a_kill(tmp_path, kill_at):
    path = tmp_path / "cache.db"
    assert child("fill", path, kill_at) == -signal.SIGKILL
    keys = [f"{batch}-{i}" for batch in range(BATCHES) for i in range(BATCH)]
    with Cache(path) as cache:
        # Points alternate: before the commit, behind it.
        assert len(cache.get_many(keys)) == kill_at // 2 * BATCH
    fill(path)
    with Cache(path) as cache:
        assert cache.get_many(keys) == {
            f"{batch}-{i}": [batch, i, "x" * 500] for batch in range(BATCHES) for i in range(BATCH)
        }
    assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_log_lines_before_a_kill_are_there(tmp_path):
    code = (
        "import os, signal, sys\nfrom prefloop.store.rundir import RunDir\nrun = RunDir.open(sys.argv[1])\n"
        "for i in range(100): run.metric(step=i)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "r")]).returncode == -signal.SIGKILL
    lines = (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(100))
