"""Rows in the terminal: of running and finished stages, and harmless whatever a model wrote."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from tests.report.example import assistant, completion, pair, scored, user, write_run

from prefloop.errors import UsageError
from prefloop.store.rundir import RunDir
from prefloop.ui.controls import without_controls
from prefloop.ui.rows import show_rows, stage_rows

EVIL = "\x1b]0;title\x07\x1b[2J\x9b31mred\r\x08\x7f"


def reject(name: str) -> dict[str, object]:
    return {"id": name, "stage": "prompts", "reason": "too long", "attempts": 1, "row": "{}"}


def prompt(name: str) -> dict[str, object]:
    return {"id": name, "prompt": user("q"), "source_id": None}


@pytest.fixture
def running(tmp_path: Path) -> Path:
    """A run whose first stage has two parts and is not done."""
    with RunDir.open(tmp_path / "r") as run:
        stage = run.stage(1, "prompts")
        stage.begin("f")
        stage.write_part(0, [prompt("a"), prompt("b")], "prompts", rejects=[reject("x")])
        stage.write_part(1, [prompt("c")], "prompts", rejects=[reject("y")])
    return tmp_path / "r"


def ids(run: Path, stage: str, limit: int = 9, *, rejects: bool = False) -> list[str]:
    return [row["id"] for row in stage_rows(run, stage, limit, rejects=rejects)]


def test_a_running_stage_shows_its_rows_and_its_rejects(running: Path) -> None:
    assert ids(running, "prompts") == ["a", "b", "c"]
    assert ids(running, "prompts", 2) == ["a", "b"]
    assert ids(running, "prompts", rejects=True) == ["x", "y"]
    with RunDir.open(running) as run:
        run.stage(1, "prompts").begin("f")
        run.stage(1, "prompts").finish("f", rows_in=5)
    assert ids(running, "prompts", rejects=True) == ["x", "y"]


def test_reading_stops_at_the_limit(running: Path) -> None:
    """A broken second part shows that it was not read."""
    (running / "stages" / "01-prompts" / "part-00001.parquet").write_bytes(b"broken")
    assert ids(running, "prompts", 2) == ["a", "b"]


def test_what_is_not_there(running: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one of: prompts"):
        ids(running, "sample")
    with pytest.raises(UsageError, match="none has begun yet"):
        ids(tmp_path / "nowhere", "sample")
    run = write_run(tmp_path / "done", until="sample")
    with pytest.raises(UsageError, match="no rows are here"):
        ids(run, "sample", rejects=True)


def test_a_stale_folder_of_the_same_name_is_not_shown(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", until="prompts")
    with RunDir.open(run) as opened:
        stage = opened.stage(12, "prompts")
        stage.begin("f")
        stage.write_part(0, [prompt("stale")], "prompts")
    assert "stale" not in ids(run, "prompts")


def test_no_row_can_drive_the_terminal() -> None:
    import random

    rows = [
        scored("a", EVIL, [EVIL], [1.0]),
        pair("b", random.Random(0)) | {"chosen": assistant(EVIL), "rejected": assistant(EVIL)},
        {"id": "c", "prompt": user(EVIL), "completions": [completion("x", EVIL)]},
        reject("d") | {"reason": EVIL, "row": EVIL},
    ]
    stream = io.StringIO()
    show_rows(rows, Console(file=stream, width=80, color_system=None))
    shown = stream.getvalue()
    assert shown.count("red") >= 6
    assert [c for c in shown if (ord(c) < 32 and c != "\n") or 127 <= ord(c) < 160] == []


def test_newlines_and_tabs_stay() -> None:
    assert without_controls("a\n\tb é 中 \u200d") == "a\n\tb é 中 \u200d"
    assert without_controls(EVIL) == "]0;title[2J31mred"


def test_a_question_is_shown_with_its_documents_and_their_labels():
    rows = [
        {"id": "r1", "query": "Where?", "documents": ["Here.", "There."], "labels": [1, None], "scores": [0.5, None]},
        {"id": "r2", "query": "Who?", "answers": ["Mira"], "documents": ["[bold]Ada[/]"], "labels": ["unaligned"]},
        {"id": "r3", "question": "What?", "answers": ["A cat.", "cat"]},
    ]
    stream = io.StringIO()
    show_rows(rows, Console(file=stream, width=80, color_system=None))
    shown = stream.getvalue()
    for text in ("query: Where?", "[0.500] positive: Here.", "There.", "answers: Mira", "unaligned: [bold]Ada[/]"):
        assert text in shown
    assert "question: What?" in shown
    assert "answers: A cat.; cat" in shown
