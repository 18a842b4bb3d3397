"""Which columns of a file are read, which are left and said so, and which nobody knows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from prefloop.inputs.problems import Problem, nearest
from prefloop.inputs.readers import Record


class Columns:
    """Counts the columns of records that are not read.

    Args:
        known: columns that are read.
        ignore: what the recipe says is there and not to be read.
        leaves: columns that the format has and that are not read.
        confusable: None where every other column is an error, as in formats of our own. A format of others may have
            any columns: those are left and counted, except one that seems to be one of these written wrongly.

    Attributes:
        left: rows in which each column that is not read was there.
    """

    def __init__(
        self,
        known: Sequence[str],
        ignore: Sequence[str] | Literal["all"] = (),
        leaves: Sequence[str] = (),
        confusable: Sequence[str] | None = None,
    ) -> None:
        self.known, self.ignore, self.leaves, self.confusable = known, ignore, leaves, confusable
        self.left: Counter[str] = Counter()
        self._unknown: dict[str, tuple[Record, int]] = {}

    def note(self, record: Record) -> None:
        """Take a record's columns into account."""
        for column in record.value:
            if column in self.known:
                continue
            if self.ignore == "all" or column in self.ignore or column in self.leaves or not self._doubtful(column):
                self.left[column] += 1
            else:
                first, count = self._unknown.get(column, (record, 0))
                self._unknown[column] = (first, count + 1)

    def _doubtful(self, column: str) -> bool:
        return self.confusable is None or nearest(column, self.confusable) is not None

    def problems(self, path: str) -> list[Problem]:
        """One problem for each column that nobody declared, after reading."""
        found = []
        for column, (first, count) in self._unknown.items():
            meant = nearest(column, self.known if self.confusable is None else self.confusable)
            rows = f"{count:,} row{'s' if count > 1 else ''}, the first here"
            fix = f"did you mean {meant!r}? otherwise " if meant not in (None, column) else ""
            fix += f"set ignore_columns: [{column}]"
            reason = f"unknown column in {rows} (known: {', '.join(self.known)})"
            found.append(Problem("unknown_column", path, first.row, column, reason, fix, first.unit, "fatal"))
        return found
