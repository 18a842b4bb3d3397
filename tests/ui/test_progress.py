"""The progress display, live and plain."""

from __future__ import annotations

import io
import re

import pytest

from prefloop.ui.progress import Progress, _number, _seconds

HOSTILE = "[bold red]x[/] [/nothing] :smile:"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PREFLOOP_PLAIN", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")


def run(stream: io.StringIO, clock: Clock, **options: bool) -> None:
    with Progress(stream=stream, clock=clock, title=f"run {HOSTILE}", **options) as progress:
        progress.skip("prompts", "done before")
        progress.stage("sample", 2, 3)
        progress.total(100, "answers")
        for _ in range(10):
            clock.now += 1
            progress.advance(8)
        progress.update(cached=3, text=HOSTILE)
        progress.advance(20)
        progress.warn(f"careful {HOSTILE}")
        progress.note("a note")
        progress.stage("train", 3, 3)
        clock.now += 90


PLAIN = f"""\
run {HOSTILE}
✓ prompts    done before
[2/3] sample
[2/3] sample: 40/100 answers, 5.0 s, 7.5 s left
[2/3] sample: 80/100 answers, 10.0 s, 2.5 s left
! careful {HOSTILE}
  a note
✓ sample     100 answers  cached 3  text {HOSTILE}  10.0 s
[3/3] train
✓ train       1:30 min
"""


def test_plain_lines_when_it_is_no_terminal() -> None:
    stream = io.StringIO()
    run(stream, Clock())
    # The rate counts from the first report of work: 40 of 100 after 5 s, 8 of them at 1 s.
    assert stream.getvalue() == PLAIN


@pytest.mark.parametrize("variable", ["PREFLOOP_PLAIN", "NO_COLOR"])
def test_plain_lines_on_a_terminal_when_asked(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "1")
    stream = Terminal()
    run(stream, Clock())
    assert _without_colour(stream.getvalue()) == PLAIN


def test_plain_option() -> None:
    stream = Terminal()
    run(stream, Clock(), plain=True)
    assert _without_colour(stream.getvalue()) == PLAIN


def test_quiet_shows_warnings_only() -> None:
    for stream in (io.StringIO(), Terminal()):
        run(stream, Clock(), quiet=True)
        assert _without_colour(stream.getvalue()) == f"! careful {HOSTILE}\n"


def test_the_live_display_leaves_a_line_for_each_stage() -> None:
    stream = Terminal()
    run(stream, Clock())
    text = _without_colour(stream.getvalue())
    assert "✓ prompts    done before" in text
    assert f"✓ sample     100 answers  cached 3  text {HOSTILE}  10.0 s" in text
    assert "✓ train" in text
    assert "[2/3] sample" not in text
    assert "\x1b[?25h" in stream.getvalue()  # the cursor is shown again


def test_the_running_stage_in_the_live_display() -> None:
    from rich.console import Console

    clock = Clock()
    progress = Progress(stream=Terminal(), clock=clock)
    progress.stage("train", 1, 1)
    progress.total(200, "steps")
    progress.at(10)
    clock.now += 20
    progress.at(50)
    progress.update(loss=0.69314718, tag="[red]")
    console = Console(file=io.StringIO(), width=120, highlight=False)
    console.print(progress)
    shown = console.file.getvalue()
    assert "train" in shown
    assert "━" in shown
    # 40 steps in 20 s: 150 more take 75 s
    assert "50/200 steps  20.0 s  1:15 min left  loss 0.6931  tag [red]" in shown


def test_what_a_resumed_run_finds_done_does_not_count_as_speed() -> None:
    clock = Clock()
    progress = Progress(stream=io.StringIO(), clock=clock)
    progress.stage("sample", 1, 1)
    progress.total(1000, "answers")
    progress.at(900)
    assert progress._left() is None
    clock.now += 10
    progress.at(910)
    assert progress._left() == pytest.approx(90)


def test_a_failing_stage_is_marked_and_the_error_passes() -> None:
    for stream in (io.StringIO(), Terminal()):
        with pytest.raises(ValueError, match="broken"):
            fail(stream)
        assert "✗ train" in _without_colour(stream.getvalue())


def fail(stream: io.StringIO) -> None:
    with Progress(stream=stream, clock=Clock()) as progress:
        progress.stage("train", 1, 1)
        raise ValueError("broken")


def test_nothing_goes_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(title="run") as progress:
        progress.stage("train", 1, 1)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "train" in captured.err


def test_a_model_cannot_drive_the_terminal() -> None:
    evil = "\x1b[2Jx\r\x9b"
    stream = io.StringIO()
    with Progress(stream=stream, title=evil) as progress:
        progress.skip("sample", evil)
        progress.stage("rate", 1, 1)
        progress.update(last=evil)
        progress.note(evil)
        progress.warn(evil)
    assert stream.getvalue().count("[2Jx") == 5
    assert not set("\x1b\r\x9b") & set(stream.getvalue())


def test_numbers_and_seconds() -> None:
    assert [_number(v) for v in (3, 12_345, 12_345.0, 0.69314718, 5e-05, 12_345.6, float("nan"), "x")] == [
        "3",
        "12,345",
        "12,345",
        "0.6931",
        "5e-05",
        "12,346",
        "nan",
        "x",
    ]
    assert [_seconds(s) for s in (0.04, 59.94, 61, 3723)] == ["0.0 s", "59.9 s", "1:01 min", "1:02:03 h"]


def _without_colour(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)
