"""Whatever kills a run, the same command goes on and ends with the rows and weights of an undisturbed one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time

import pytest
from tests.loop.conftest import make_project

from prefloop.store import atomic


class Crash(BaseException):
    """Stands for the process's death; no handler for errors may catch it."""


def weights(project, out="out"):
    return (project.root / out / "model" / "model.safetensors").read_bytes()


def test_a_failure_at_every_write_point_changes_nothing(finished, tmp_path, monkeypatch):
    """Fails at one write point after the other, starting again each time, until the run gets through.

    An exception, so clean-up runs; the tests below and tests/store/test_kill.py kill for real.
    """
    project = make_project(tmp_path / "project")
    hit: list[tuple[int, str]] = []

    def crash_point(name: str) -> None:
        # One write point is one file at one stage of the run; it fails the first time it is met.
        point = (len(list(project.run_dir.glob("stages/*/_SUCCESS.json"))), name)
        if point not in hit:
            hit.append(point)
            raise Crash(name)

    monkeypatch.setattr(atomic, "crash_point", crash_point)
    for _ in range(500):
        try:
            project.run_here()
            break
        except Crash:
            continue
    else:
        pytest.fail(f"no end after {hit[-5:]}")
    names = {name for _, name in hit}
    assert {"manifest.json:before", "part-00000.parquet:after", "_SUCCESS.json:before", "summary.json:after"} <= names
    assert len(hit) > 40
    assert project.contents() == finished.contents()
    assert weights(project) == weights(finished)


def kill_at(project, marks, out="out"):
    """Start the run and SIGKILL it as soon as each of the files exists; then let it finish."""
    for mark in marks:
        process = subprocess.Popen(
            project.command("run", "recipe.yaml", "--out", out),
            cwd=project.root,
            env=project.environment(),
            stderr=subprocess.PIPE,
            text=True,
        )
        while not list((project.root / out).glob(mark)):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    project.run_here(out=out)


def test_killed_twice_with_sigkill(finished, tmp_path):
    project = make_project(tmp_path / "project")
    kill_at(project, ["stages/03-sample/part-*.parquet", "stages/06-train/checkpoint-*"])
    assert project.contents() == finished.contents()
    assert weights(project) == weights(finished)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_hand_it_says_how_to_go_on(finished, tmp_path, how):
    project = make_project(tmp_path / "project")
    process = subprocess.Popen(
        project.command("run", "recipe.yaml", "--out", "out"),
        cwd=project.root,
        env=project.environment(),
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs ignore Ctrl-C, and so would what the tests start from one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not (project.run_dir / "stages" / "06-train").exists():
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(how)
    said = process.communicate()[1]
    assert process.returncode == 1
    assert "start the same command again" in said
    assert "Traceback" not in said
    project.run_here()
    assert weights(project) == weights(finished)


@pytest.mark.slow
def test_killed_at_ten_random_moments(finished, tmp_path):
    started = time.monotonic()
    make_project(tmp_path / "timed").run()
    whole = time.monotonic() - started
    chance = random.Random(0)
    killed = 0
    for number in range(10):
        project = make_project(tmp_path / f"project{number}")
        process = subprocess.Popen(
            project.command("run", "recipe.yaml", "--out", "out"),
            cwd=project.root,
            env=project.environment(),
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            process.wait(timeout=chance.uniform(0.3, 0.95) * whole)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            killed += 1
        project.run_here()
        assert project.contents() == finished.contents()
        assert weights(project) == weights(finished)
    assert killed >= 8
