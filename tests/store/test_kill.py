"""kill -9 at every write point: nothing published is lost, and going on gives what an undisturbed run gives.

A child process works with `atomic.crash_point` patched to kill the process at the k-th call; this process then opens
what is left and goes on.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys

import kill_work
import pytest
from kill_work import BATCH, BATCHES, fill, old_work, work

from prefloop.store import atomic
from prefloop.store.cache import Cache
from prefloop.store.rundir import RunDir


def state(folder):
    """Everything that a reader can see, without the times."""
    run = RunDir.peek(folder)
    stage = run.stage(1, "rate")
    success = [run.stage(1, "rate").success(), run.stage(2, "merge").success()]
    for one in success:
        one.pop("seconds")
        # A part's size depends on the digits of the seconds in it.
        one["files"] = list(one["files"])
    tables = {name: list(stage.rows(name)) for name in ("part", "calls", "rejects")}
    files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    return success, tables, files, run.read_manifest(), run.read_summary(), (folder / "model/config.json").read_text()


# A fork server forks a fresh child in milliseconds, from a process that never ran a thread.
CHILDREN = multiprocessing.get_context("forkserver")
CHILDREN.set_forkserver_preload(["kill_work"])


def child(job, path, kill_at):
    process = CHILDREN.Process(target=kill_work.run_killed, args=(job, path, kill_at))
    process.start()
    process.join(60)
    return process.exitcode


def crash_points(job, path, monkeypatch):
    names = []
    with monkeypatch.context() as patch:
        patch.setattr(atomic, "crash_point", names.append)
        job(path)
    return names


@pytest.fixture(scope="module", autouse=True)
def no_fsync():
    """fsync is for power loss; the kernel keeps what a killed process wrote. tests/store/test_atomic.py checks it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    work(folder)
    return state(folder)


# manifest, 2 x (calls, rejects, part), marks and merged rejects, model, its mark, summary: before and after each.
WORK_POINTS = 28


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
    # Every third run has first to clear away older work.
    if kill_at % 3 == 0:
        old_work(folder)
    assert child(work, folder, kill_at) == -signal.SIGKILL
    work(folder)
    assert state(folder) == undisturbed


def test_published_parts_are_not_made_again(tmp_path, monkeypatch):
    names = crash_points(work, tmp_path / "first", monkeypatch)
    after_first_part = names.index("part-00000.parquet:after") + 1
    assert child(work, tmp_path / "run", after_first_part) == -signal.SIGKILL
    again = crash_points(work, tmp_path / "run", monkeypatch)
    assert "part-00000.parquet:before" not in again
    assert "part-00001.parquet:before" in again


def test_side_tables_without_their_part_are_swept(tmp_path, monkeypatch):
    names = crash_points(work, tmp_path / "first", monkeypatch)
    assert child(work, tmp_path / "run", names.index("part-00001.parquet:before") + 1) == -signal.SIGKILL
    stage = tmp_path / "run" / "stages" / "01-rate"
    assert (stage / "calls-00001.parquet").exists()
    with RunDir.open(tmp_path / "run") as run:
        assert run.stage(1, "rate").begin("f") == {0}
    assert not (stage / "calls-00001.parquet").exists()
    assert (stage / "calls-00000.parquet").exists()


@pytest.mark.parametrize("kill_at", range(1, 2 * BATCHES + 1))
def test_cache_keeps_whole_batches_over_a_kill(tmp_path, kill_at):
    path = tmp_path / "cache.db"
    assert child(fill, path, kill_at) == -signal.SIGKILL
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
