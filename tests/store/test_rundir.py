"""The run directory: one writer, logs that survive a kill, reading at any time."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefloop.errors import PrefloopError, UsageError
from prefloop.store.rundir import RunDir

HOLDER = """
import sys, time
from prefloop.store.rundir import RunDir
with RunDir.open(sys.argv[1]) as run:
    print("open", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "runs" / "one"


def test_manifest_and_summary(folder):
    with RunDir.open(folder) as run:
        assert run.read_manifest() is None
        assert run.read_summary() is None
        run.write_manifest({"recipe": {"name": "x"}})
        run.write_summary({"stages": {}})
    peek = RunDir.peek(folder)
    assert peek.read_manifest() == {"recipe": {"name": "x"}}
    assert peek.read_summary() == {"stages": {}}


def test_second_process_is_told_who_has_the_run(folder):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(UsageError, match=f"in use by process {holder.pid}"):
            RunDir.open(folder)
        assert RunDir.peek(folder).holder() == holder.pid
        # The kernel drops the lock of a killed process.
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert RunDir.peek(folder).holder() is None
        with RunDir.open(folder) as run:
            assert run.holder() == os.getpid()
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


def test_one_process_cannot_open_a_run_twice(folder):
    with RunDir.open(folder), pytest.raises(UsageError, match=f"in use by process {os.getpid()}"):
        RunDir.open(folder)
    RunDir.open(folder).close()


def test_a_short_pid_after_a_long_one_is_read_right(folder):
    folder.mkdir(parents=True)
    (folder / ".lock").write_text("99999999999")
    with RunDir.open(folder):
        assert (folder / ".lock").read_text() == str(os.getpid())


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    for opener in (RunDir.open, RunDir.peek):
        with pytest.raises(UsageError, match="not a run"):
            opener(tmp_path)
        with pytest.raises(UsageError, match="is a file"):
            opener(tmp_path / "thesis.tex")
    assert os.listdir(tmp_path) == ["thesis.tex"]
    with pytest.raises(UsageError, match="cannot be written"):
        RunDir.open(tmp_path / "thesis.tex" / "run")


def test_peek_reads_what_is_not_there_yet_and_makes_nothing(folder):
    run = RunDir.peek(folder)
    assert run.read_manifest() is None
    assert run.holder() is None
    assert (list(run.events()), list(run.metrics()), run.stages()) == ([], [], [])
    stage = run.stage(1, "sample")
    assert stage.success() is None
    assert not stage.is_done("f")
    assert not stage.has_work("f")
    assert stage.count() == 0
    assert not folder.exists()


def test_peek_cannot_write(folder):
    RunDir.open(folder).close()
    run = RunDir.peek(folder)
    for write in (
        lambda: run.event("x"),
        lambda: run.metric(x=1),
        lambda: run.log("x"),
        lambda: run.write_manifest({}),
        lambda: run.write_summary({}),
        lambda: run.stage(1, "a").begin("f"),
    ):
        with pytest.raises(RuntimeError, match="reading only"):
            write()


def test_events_metrics_and_log(folder):
    with RunDir.open(folder) as run:
        run.event("stage_started", stage="sample", text="zwei\nZeilen \ud800")
        run.metric(step=1, loss=0.693, grad_norm=math.nan, deep={"x": [math.inf, -math.inf]})
        run.metric(step=2, loss=0.5)
        run.log("hello")
    peek = RunDir.peek(folder)
    (event,) = peek.events()
    assert (event["kind"], event["stage"], event["text"]) == ("stage_started", "sample", "zwei\nZeilen \ud800")
    assert event["time"].endswith("+00:00")
    first, second = peek.metrics()
    assert (first["loss"], first["grad_norm"], first["deep"]) == (0.693, "NaN", {"x": ["Infinity", "-Infinity"]})
    assert second["step"] == 2
    assert (folder / "run.log").read_text().endswith(" hello\n")


@settings(deadline=None, max_examples=40)
@given(cut=st.integers(1, 200), fields=st.dictionaries(st.text(), st.text(), max_size=3))
def test_torn_last_line_is_left_out_and_then_healed(tmp_path_factory, cut, fields):
    folder = tmp_path_factory.mktemp("run") / "r"
    with RunDir.open(folder) as run:
        run.metric(step=1)
        run.metric(step=2, fields=fields)
    path = folder / "metrics.jsonl"
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    cut = min(cut, len(lines[1]))
    path.write_bytes(whole[: len(whole) - cut])
    assert [m["step"] for m in RunDir.peek(folder).metrics()] == [1]
    with RunDir.open(folder) as run:
        run.metric(step=3)
        assert [m["step"] for m in run.metrics()] == [1, 3]
        healed = [e for e in run.events() if e["kind"] == "healed"]
        assert [e["file"] for e in healed] == (["metrics.jsonl"] if cut < len(lines[1]) else [])


def test_long_torn_lines_are_cut_whole(folder):
    with RunDir.open(folder) as run:
        run.event("a")
    with (folder / "events.jsonl").open("a") as stream:
        stream.write('{"kind": "' + "x" * 20_000)
    with RunDir.open(folder) as run:
        assert [e["kind"] for e in run.events()] == ["a", "healed"]
    (folder / "events.jsonl").write_text("x" * 20_000)
    with RunDir.open(folder) as run:
        assert [e["kind"] for e in run.events()] == ["healed"]


def test_a_bad_line_in_the_middle_is_an_error_that_names_it(folder):
    with RunDir.open(folder) as run:
        run.event("a")
    with (folder / "events.jsonl").open("a") as stream:
        stream.write("no json\n")
    with pytest.raises(PrefloopError, match=r"events\.jsonl, line 2"):
        list(RunDir.peek(folder).events())


def test_open_sweeps_what_a_killed_writer_left(folder):
    with RunDir.open(folder) as run:
        run.stage(1, "sample").begin("f")
    for place in (folder, folder / "stages", folder / "stages" / "01-sample"):
        (place / ".tmp-abc-part").write_text("x")
    RunDir.open(folder).close()
    assert not list(folder.rglob(".tmp-*"))


def test_stages_are_listed_in_order(folder):
    with RunDir.open(folder) as run:
        for number, name in ((10, "report"), (2, "r2-train"), (1, "sample"), (100, "more")):
            run.stage(number, name).begin("f")
        (folder / "stages" / "notes").mkdir()
    assert [s.path.name for s in RunDir.peek(folder).stages()] == ["01-sample", "02-r2-train", "10-report", "100-more"]
    with pytest.raises(ValueError, match="not the name"):
        RunDir.peek(folder).stage(1, "../x")


def test_reading_the_lock_does_not_keep_a_writer_out(folder):
    RunDir.open(folder).close()
    reader = (
        "import sys\nfrom prefloop.store.rundir import RunDir\nrun = RunDir.peek(sys.argv[1])\n"
        "print('on', flush=True)\nwhile True: run.holder()"
    )
    process = subprocess.Popen([sys.executable, "-c", reader, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "on\n"
        opened, end = 0, time.monotonic() + 1.0
        while time.monotonic() < end:
            # Raises where the lock is taken.
            with RunDir.open(folder) as run:
                assert run.holder() == os.getpid()
            opened += 1
        assert opened > 10
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_appending_is_one_json_object_a_line(folder):
    with RunDir.open(folder) as run:
        for step in range(3):
            run.metric(step=step)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1, 2]
