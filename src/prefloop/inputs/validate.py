"""`prefloop validate FILE`: everything that is wrong with a prompts, preference or candidates file."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from prefloop.config import PromptsSection
from prefloop.errors import UsageError
from prefloop.inputs.messages import Fault
from prefloop.inputs.preferences import (
    CANDIDATES_COLUMNS,
    PREFERENCE_COLUMNS,
    candidates_faults,
    kind_of,
    preference_faults,
)
from prefloop.inputs.problems import Problem, ProblemLog, nearest, raw_json
from prefloop.inputs.prompts import PromptReader, TokenLimit
from prefloop.inputs.readers import Record, format_of
from prefloop.inputs.tokens import token_limit

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class FileReport:
    """What `validate_file` found.

    Attributes:
        path: the source.
        kind: prompts, preference or candidates.
        rows, valid: records read, and those of them that can be used.
        blank_lines: skipped, which is allowed.
        left_columns: there and not read, by choice.
        log: the problems; all are counted, the first are kept.
    """

    path: str
    kind: str
    rows: int
    valid: int
    blank_lines: int
    left_columns: list[str]
    log: ProblemLog = field(default_factory=ProblemLog)

    @property
    def problems(self) -> int:
        """Problems that keep a run with `on_bad_row: stop` from using the file; repeated prompts do not."""
        return self.log.by_level["fatal"] + self.log.by_level["error"]

    @property
    def ok(self) -> bool:
        return self.problems == 0

    def as_dict(self) -> dict[str, Any]:
        """For `--json`: counts of every kind of problem, and the problems that were kept."""
        return {
            "path": self.path,
            "kind": self.kind,
            "ok": self.ok,
            "rows": self.rows,
            "valid": self.valid,
            "blank_lines": self.blank_lines,
            "left_columns": self.left_columns,
            "problems": {"total": self.log.total, "by_kind": dict(self.log.by_kind.most_common())},
            "first": [p.to_json() for p in self.log.kept],
        }

    def table(self, show: int = 20) -> RenderableType:
        """For people: one line of counts, a table of the first `show` problems, one line that sums up."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        head = f"{self.path}: {self.rows:,} {self.kind} rows, {self.valid:,} valid"
        if self.blank_lines:
            head += f", {self.blank_lines:,} blank lines skipped"
        if self.left_columns:
            head += f"; not read: {', '.join(self.left_columns)}"
        parts: list[RenderableType] = [Text(head)]
        if self.log.kept:
            table = Table("row", "field", "problem", "fix", show_edge=False, pad_edge=False)
            for problem in self.log.kept[:show]:
                row = "" if problem.row is None else f"{problem.unit} {problem.row}"
                # Text, not str: a field or reason may hold what rich would take for markup.
                cells = (row, problem.field or "", problem.reason, problem.fix)
                table.add_row(*(Text(cell) for cell in cells))
            parts.append(table)
        if self.log.total > show:
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.log.by_kind.most_common())
            parts.append(Text(f"… {self.log.total:,} problems in all: {kinds}"))
        verdict = "ok" if self.ok else "not usable as it is"
        if self.ok and self.log.by_level["duplicate"]:
            verdict = f"ok; a run leaves out {self.log.by_level['duplicate']:,} repeated rows"
        parts.append(Text(verdict, style="green" if self.ok else "red"))
        return Group(*parts)


def validate_file(
    path: Path | str,
    *,
    file_format: str = "auto",
    column: str = "prompt",
    ignore_columns: Sequence[str] = (),
    model: str | None = None,
    max_prompt_tokens: TokenLimit | None = None,
    keep: int = 1000,
) -> FileReport:
    """Check every row of a file; what its rows are goes by the keys of the first.

    Args:
        path: a file, or `hub:ORG/NAME`.
        file_format, column, ignore_columns: as in a recipe's prompts section.
        model: also report prompts that do not fit the context of this model (hub id, folder, `sandbox`).
        max_prompt_tokens: the same, with a counter at hand.
        keep: problems kept with their text; all are counted.

    Raises:
        UsageError: an unknown format, a hub set that cannot be loaded.
    """
    if file_format not in get_args(PromptsSection.model_fields["format"].annotation):
        known = ", ".join(get_args(PromptsSection.model_fields["format"].annotation))
        raise UsageError(f"unknown format {file_format!r}", where="--format", fix=f"use one of: {known}")
    section = PromptsSection.model_validate(
        {"path": str(path), "format": file_format, "column": column, "ignore_columns": list(ignore_columns)}
    )
    if format_of(section.path, section.format) == "sandbox":
        raise UsageError("the sandbox's prompts are made, not read", where=section.path, fix="name a file")
    if model is not None:
        max_prompt_tokens = token_limit(model)
    reader = PromptReader(section, max_prompt_tokens)
    log = ProblemLog(keep)
    stream = reader.stream()
    head: list[Record | Problem] = []
    for item in stream:  # up to the first good record: its keys say what the rows are
        head.append(item)
        if isinstance(item, Record):
            break
    kind = kind_of(head[-1].value) if head and isinstance(head[-1], Record) else "prompts"
    rest = itertools.chain(head, stream)
    if kind == "prompts":
        valid = 0
        for found in reader.read(rest):
            if isinstance(found, Problem):
                log.add(found)
            else:
                valid += 1
        for problem in reader.unknown_columns():
            log.add(problem)
        rows, left = reader.records, sorted(reader.left)
    else:
        check = _Check(section, kind)
        for problem in check.problems(rest):
            log.add(problem)
        rows, valid, left = check.rows, check.valid, sorted(check.left)
    return FileReport(section.path, kind, rows, valid, reader.stats.blank_lines, left, log)


class _Check:
    """Preference or candidates rows, one after another."""

    def __init__(self, section: PromptsSection, kind: str) -> None:
        self.section = section
        self.faults: Callable[[Mapping[str, Any]], list[Fault]]
        self.faults = preference_faults if kind == "preference" else candidates_faults
        self.known: Sequence[str] = PREFERENCE_COLUMNS if kind == "preference" else CANDIDATES_COLUMNS
        self.rows = self.valid = 0
        self.left: set[str] = set()
        self.unknown: dict[str, tuple[Record, int]] = {}
        self.seen: dict[str, int] = {}

    def problems(self, stream: Iterator[Record | Problem]) -> Iterator[Problem]:
        path = self.section.path
        for item in stream:
            if isinstance(item, Problem):
                self.rows += item.level != "fatal"
                yield item
                continue
            self.rows += 1
            self._note_columns(item)
            faults = self.faults(item.value)
            for f in faults:
                raw = raw_json(item.value)
                yield Problem(f.kind, path, item.row, f.field, f.reason, f.fix, item.unit, raw=raw)
            repeat = self._repeat(item)
            if repeat is not None:
                yield repeat
            self.valid += not faults and repeat is None
        for column, (first, count) in self.unknown.items():
            meant = nearest(column, self.known)
            reason = f"unknown column in {count:,} rows, the first here (known: {', '.join(self.known)})"
            fix = (f"did you mean {meant!r}? " if meant else "") + f"otherwise set ignore_columns: [{column}]"
            yield Problem("unknown_column", path, first.row, column, reason, fix, first.unit, "fatal")

    def _note_columns(self, record: Record) -> None:
        ignore = self.section.ignore_columns
        for column in record.value:
            if column in self.known:
                continue
            if ignore == "all" or column in ignore:
                self.left.add(column)
            else:
                first, count = self.unknown.get(column, (record, 0))
                self.unknown[column] = (first, count + 1)

    def _repeat(self, record: Record) -> Problem | None:
        given = record.value.get("id")
        if not isinstance(given, str) or not given:
            return None
        before = self.seen.setdefault(given, record.row)
        if before == record.row:
            return None
        reason = f"the id {given!r} is that of {record.unit} {before} too"
        return Problem(
            "duplicate_id", self.section.path, record.row, "id", reason, "give every row its own", record.unit
        )
