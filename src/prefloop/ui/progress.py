"""What a run shows while it works: a live display on a terminal, plain lines elsewhere, nothing when quiet.

Everything goes to stderr, so that stdout holds results alone. Texts are shown as they are, never read as
rich markup and without control characters: they may come from a model.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from prefloop.ui.controls import without_controls

PLAIN_SECONDS = 5.0
Fact = str | int | float


class Progress:
    """Reports the stages of a run. Use as a context manager; methods may be called from one thread.

    Args:
        plain: plain lines even on a terminal. They are also what is shown when stderr is not a terminal, and when
            PREFLOOP_PLAIN or NO_COLOR is set.
        quiet: show warnings only.
        title: shown first.
        stream: stderr unless given.
        clock: seconds, monotonic; tests bring their own.

    Example:
        >>> with Progress(title="quickstart") as progress:  # doctest: +SKIP
        ...     progress.stage("sample", 1, 5)
        ...     progress.total(100, "answers")
        ...     progress.advance(20)
        ...     progress.update(cached=3)
    """

    def __init__(
        self,
        *,
        plain: bool = False,
        quiet: bool = False,
        title: str | None = None,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        stream = sys.stderr if stream is None else stream
        plain = plain or bool(os.environ.get("PREFLOOP_PLAIN") or os.environ.get("NO_COLOR"))
        self._quiet = quiet
        self._clock = clock
        self._title = None if title is None else without_controls(title)
        self._console = Console(file=stream, highlight=False)
        self._live: Live | None = None
        if not quiet and not plain and self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(self, console=self._console, auto_refresh=True, refresh_per_second=8, transient=True)
        self._label: str | None = None
        self._place = ""
        self._done = 0.0
        self._total: float | None = None
        self._unit = ""
        self._facts: dict[str, Fact] = {}
        self._started = self._counted = self._printed = 0.0
        self._counted_from = 0.0

    def __enter__(self) -> Progress:
        if self._title:
            self._print(Text(self._title, style="bold"))
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close_stage(failed=kind is not None)
        if self._live is not None:
            self._live.stop()

    # ------------------------------------------------------------------------------------------------- what happens

    def stage(self, label: str, number: int, total_stages: int) -> None:
        """A stage begins; the one before, if any, has ended well."""
        self._close_stage(failed=False)
        self._label, self._place = label, f"{number}/{total_stages}"
        self._done, self._total, self._unit, self._facts = 0.0, None, "", {}
        self._started = self._counted = self._printed = self._clock()
        self._counted_from = 0.0
        if self._live is None:
            self._print(Text(f"[{self._place}] {label}"))

    def total(self, n: float, unit: str) -> None:
        """How much there is to do in this stage, and in what; may be corrected on the way."""
        self._total, self._unit = n, unit

    def advance(self, k: float = 1) -> None:
        """`k` more are done."""
        self.at(self._done + k)

    def at(self, done: float) -> None:
        """`done` are done in all."""
        if self._done == 0 and done > 0:
            # What a resumed run finds done at its first step took no time: the rate counts from behind it.
            self._counted, self._counted_from = self._clock(), done
        self._done = done
        self._line_when_due()

    def update(self, **facts: Fact) -> None:
        """Figures of the running stage, shown behind its bar; a name given again replaces the old figure."""
        self._facts |= {
            name: without_controls(value) if isinstance(value, str) else value for name, value in facts.items()
        }
        self._line_when_due()

    def skip(self, label: str, reason: str) -> None:
        """A stage is not run, and why."""
        self._close_stage(failed=False)
        self._print(Text.assemble(("✓ ", "green"), (f"{label:<10}", "dim"), (f" {without_controls(reason)}", "dim")))

    def note(self, text: str) -> None:
        """One line for people."""
        self._print(Text(f"  {without_controls(text)}"))

    def warn(self, text: str) -> None:
        """One line that is also shown when quiet."""
        self._console.print(Text.assemble(("! ", "bold yellow"), without_controls(text)), soft_wrap=True)

    # ------------------------------------------------------------------------------------------------- how it is shown

    def __rich__(self) -> Table | Text:
        """The running stage as one line; called by the live display."""
        # The display's own thread comes here while the stage may be closing: each value is read once.
        label, total = self._label, self._total
        if label is None:
            return Text("")
        cells: list[Spinner | Text | ProgressBar] = [Spinner("dots", style="cyan"), Text(f"{label:<10}")]
        if total:
            cells.append(ProgressBar(total, min(self._done, total), width=20))
        cells.append(Text("  ".join(self._figures()), style="dim", overflow="ellipsis", no_wrap=True))
        grid = Table.grid(padding=(0, 1))
        grid.add_row(*cells)
        return grid

    def _figures(self) -> list[str]:
        """Counts, time and facts of the running stage."""
        figures = []
        elapsed = self._clock() - self._started
        if (total := self._total) is not None:
            figures.append(f"{_number(self._done)}/{_number(total)} {self._unit}")
        figures.append(_seconds(elapsed))
        if (left := self._left()) is not None:
            figures.append(f"{_seconds(left)} left")
        return figures + [f"{name} {_number(value)}" for name, value in list(self._facts.items())]

    def _left(self) -> float | None:
        """Seconds to go by the mean rate so far; None while there is too little to say it."""
        total = self._total
        counted, spent = self._done - self._counted_from, self._clock() - self._counted
        if total is None or counted <= 0 or spent <= 0 or self._done >= total:
            return None
        return (total - self._done) * spent / counted

    def _line_when_due(self) -> None:
        if self._live is not None or self._label is None or self._clock() - self._printed < PLAIN_SECONDS:
            return
        self._printed = self._clock()
        self._print(Text(f"[{self._place}] {self._label}: {', '.join(self._figures())}"))

    def _close_stage(self, *, failed: bool) -> None:
        if self._label is None:
            return
        label, self._label = self._label, None
        figures = [f"{_number(self._done)} {self._unit}"] if self._unit else []
        figures += [f"{name} {_number(value)}" for name, value in self._facts.items()]
        seconds = _seconds(self._clock() - self._started)
        mark, style = ("✗ ", "red") if failed else ("✓ ", "green")
        figures_text = f" {'  '.join(figures)}" if figures else ""
        self._print(Text.assemble((mark, style), f"{label:<10}", (figures_text, ""), (f"  {seconds}", "dim")))

    def _print(self, text: Text) -> None:
        if not self._quiet:
            self._console.print(text, soft_wrap=True)


def _seconds(seconds: float) -> str:
    """12.3 s, 4:05 min, 1:02:03 h."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d} h"


def _number(value: Fact) -> str:
    """Whole numbers with thousands separators, others with three or four digits that matter."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or value != value or value in (float("inf"), float("-inf")):
        return str(value)
    if float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
