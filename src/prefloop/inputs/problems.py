"""What can be wrong with a data file, said so that a user can act on it: which row, which field, why, what to do."""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from prefloop.errors import UsageError
from prefloop.records import RejectRow, content_id

Kind = Literal[
    "no_such_file",
    "empty_file",
    "unreadable",
    "broken_json",
    "encoding",
    "bad_text",
    "not_an_object",
    "csv_header",
    "csv_cells",
    "unknown_column",
    "missing_field",
    "empty_field",
    "wrong_type",
    "wrong_value",
    "unknown_role",
    "role_order",
    "too_long",
    "duplicate_id",
    "duplicate_prompt",
    "duplicate_row",
    "unknown_format",
    "same_answers",
    "split_votes",
    "not_compared",
    "failed_judgment",
    "empty_judgment",
    "only_praise",
    "not_judged",
    "foreign_document",
    "duplicate_document",
    "both_sides",
    "group_size",
    "label_mismatch",
    "no_such_id",
]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a file.

    Attributes:
        kind: a name for programs.
        file: as the user wrote it.
        row: 1-based; a line number for JSONL and CSV (a record's first line), else a record number. None: the file.
        field: column, or a place in it such as `prompt[1].role`.
        reason, fix: for people; what is wrong, what to do.
        unit: what `row` counts, "line" or "record".
        level: `fatal` concerns the whole file and stops even where bad rows are to be rejected; `error` concerns a
            row; `duplicate` is a row that repeats an earlier one, or says nothing: it is left out and counted, but
            stops nothing.
        raw: the row as JSON, for rejects.parquet; None for what concerns the file.
    """

    kind: Kind
    file: str
    row: int | None
    field: str | None
    reason: str
    fix: str
    unit: str = "line"
    level: Literal["fatal", "error", "duplicate"] = "error"
    raw: str | None = None

    def __post_init__(self) -> None:
        # Names of columns may hold half characters, which no terminal prints.
        for name in ("field", "reason", "fix"):
            text = getattr(self, name)
            if text is not None:
                object.__setattr__(self, name, text.encode("utf-8", "backslashreplace").decode("utf-8"))

    @property
    def where(self) -> str:
        """File, row and field in one text."""
        parts = [self.file]
        if self.row is not None:
            parts.append(f"{self.unit} {self.row}")
        if self.field is not None:
            parts.append(f"field {self.field}")
        return ", ".join(parts)

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}\n  fix: {self.fix}"

    def to_json(self) -> dict[str, Any]:
        """All but the row itself."""
        return {name: value for name, value in asdict(self).items() if name != "raw"}


@dataclass
class ProblemLog:
    """Collects problems, counting all and keeping the first `keep` (None: all), so that memory is bounded.

    Levels in `uncapped` are kept whole: what concerns the file is little and may come last.
    """

    keep: int | None = None
    uncapped: tuple[str, ...] = ("fatal",)
    kept: list[Problem] = field(default_factory=list)
    by_kind: Counter[str] = field(default_factory=Counter)
    by_level: Counter[str] = field(default_factory=Counter)

    def add(self, problem: Problem) -> None:
        self.by_kind[problem.kind] += 1
        self.by_level[problem.level] += 1
        if self.keep is None or len(self.kept) < self.keep or problem.level in self.uncapped:
            self.kept.append(problem)

    @property
    def total(self) -> int:
        return self.by_level.total()


def nearest(name: str, known: Collection[str]) -> str | None:
    """The known name that a mistyped one most likely means."""
    by_lower = {k.lower(): k for k in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[close[0]] if close else None


def stop(
    log: ProblemLog, file: str, *, show: int = 10, kind: str | None = None, can_reject: bool = True
) -> UsageError:
    """The error that lists the first problems and says how many there are.

    Args:
        log: at least one problem that is not a mere duplicate.
        file: the source, as the user wrote it.
        show: how many are listed.
        kind: of rows, as `prefloop validate --kind` calls it; None where it finds that out.
        can_reject: whether the reader has a setting `on_bad_row`.
    """
    # Fatal ones first: one wrong column often explains a thousand wrong rows.
    serious = sorted((p for p in log.kept if p.level != "duplicate"), key=lambda p: p.level != "fatal")
    total = log.by_level["fatal"] + log.by_level["error"]
    if total == 1:
        only = serious[0]
        return UsageError(only.reason, where=only.where, fix=only.fix)
    lines = [str(p) for p in serious[:show]]
    if total > show:
        lines.append(f"… and {total - show} more")
    rows_only = log.by_level["fatal"] == 0
    fix = f"correct them (`prefloop validate {file}{f' --kind {kind}' if kind else ''}` lists them all)"
    if rows_only and can_reject:
        fix += ", or set on_bad_row=reject to go on without these rows"
    return UsageError(f"{total:,} problems\n" + "\n".join(lines), where=file, fix=fix)


def reject_rows(problems: Iterable[Problem], stage: str = "prompts") -> list[RejectRow]:
    """Problems as rows of rejects.parquet: one for each dropped row.

    `reason` is the kind of the row's first problem, so that reasons can be counted; `row` holds the place, every
    problem in words, and the row's own content.
    """
    by_row: dict[tuple[str, str, int], list[Problem]] = {}
    for problem in problems:
        if problem.row is not None and problem.level != "fatal":
            by_row.setdefault((problem.file, problem.unit, problem.row), []).append(problem)
    return [
        {
            "id": content_id("input", file, row, *([] if unit in ("line", "record") else [unit])),
            "stage": stage,
            "reason": found[0].kind.replace("_", " "),
            "attempts": 1,
            "row": raw_json(
                {
                    "file": file,
                    found[0].unit: row,
                    "problems": [{"field": p.field, "reason": p.reason, "fix": p.fix} for p in found],
                    "content": next((json.loads(p.raw) for p in found if p.raw is not None), None),
                }
            ),
        }
        for (file, unit, row), found in by_row.items()
    ]


def raw_json(value: Any) -> str:
    """A row as JSON text that every writer takes: lone surrogates escaped, odd values as their text."""
    return json.dumps(value, ensure_ascii=True, default=str)
