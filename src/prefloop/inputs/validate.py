"""`prefloop validate FILE`: everything that is wrong with prompts, preferences, candidates, questions or rankings."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from prefloop.config import PreferencesSection, PromptsSection
from prefloop.config.rag import QuestionsSection
from prefloop.errors import UsageError
from prefloop.inputs.candidates import CANDIDATES_COLUMNS, candidates_faults
from prefloop.inputs.columns import Columns
from prefloop.inputs.judgments import SILENT, verdicts_line
from prefloop.inputs.layouts import LAYOUTS, layout_of
from prefloop.inputs.llamafactory import is_registry
from prefloop.inputs.preferences import PreferenceReader
from prefloop.inputs.problems import Problem, ProblemLog, raw_json
from prefloop.inputs.prompts import PromptReader, TokenLimit
from prefloop.inputs.questions import QuestionReader
from prefloop.inputs.rankings import Candidates, RankingReader
from prefloop.inputs.rankings import layout_of as ranking_layout
from prefloop.inputs.readers import Record, Stats, Stream, container_of, format_of, read_records
from prefloop.inputs.tokens import token_limit
from prefloop.inputs.votes import agreement_line

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class FileReport:
    """What `validate_file` found.

    Attributes:
        path: the source.
        kind: prompts, preference, candidates, questions or ranking.
        layout: what the columns of preference data, questions or rankings mean; None of other rows.
        rows, valid: records read, and those of them that can be used.
        blank_lines: skipped, which is allowed.
        left_columns: there and not read, by choice or because the format has them: in how many rows.
        votes: of votes of people, how many there are and how far the voters agree (`inputs.votes.Tally.agreement`).
        verdicts: of written judgments, what they say of the answers (`inputs.judgments.decide`).
        log: the problems; all are counted, the first are kept.
    """

    path: str
    kind: str
    rows: int
    valid: int
    blank_lines: int
    left_columns: dict[str, int]
    layout: str | None = None
    log: ProblemLog = field(default_factory=ProblemLog)
    votes: dict[str, Any] | None = None
    verdicts: dict[str, int] | None = None

    @property
    def problems(self) -> int:
        """Problems that keep a run with `on_bad_row: stop` from using the file; repeated prompts do not."""
        return self.log.by_level["fatal"] + self.log.by_level["error"]

    @property
    def ok(self) -> bool:
        """Whether a run takes the file: no such problem, and a row that is not left out."""
        return self.problems == 0 and self.valid > 0

    def as_dict(self) -> dict[str, Any]:
        """For `--json`: counts of every kind of problem, and the problems that were kept."""
        return {
            "path": self.path,
            "kind": self.kind,
            "format": self.layout,
            "ok": self.ok,
            "rows": self.rows,
            "valid": self.valid,
            "blank_lines": self.blank_lines,
            "left_columns": self.left_columns,
            **({} if self.votes is None else {"votes": self.votes}),
            **({} if self.verdicts is None else {"verdicts": self.verdicts}),
            "problems": {"total": self.log.total, "by_kind": dict(self.log.by_kind.most_common())},
            "first": [p.to_json() for p in self.log.kept],
        }

    def table(self, show: int = 20) -> RenderableType:
        """For people: one line of counts, a table of the first `show` problems, one line that sums up."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        read_as = "" if self.layout is None else f" (read as {self.layout})"
        head = f"{self.path}: {self.rows:,} {self.kind} rows{read_as}, {self.valid:,} valid"
        if self.blank_lines:
            head += f", {self.blank_lines:,} blank lines skipped"
        if self.left_columns:
            head += f"; not read: {', '.join(f'{name} ({n:,} rows)' for name, n in self.left_columns.items())}"
        parts: list[RenderableType] = [Text(head)]
        if self.votes is not None:
            parts.append(Text(agreement_line(self.votes)))
        if self.verdicts is not None:
            parts.append(Text(verdicts_line(self.verdicts)))
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
            parts.append(Text(f"… {self.log.total:,} problems in all (--json lists them): {kinds}"))
        verdict = "ok" if self.ok else "not usable as it is" if self.problems else "no row of it can be used"
        if self.ok and self.log.by_level["duplicate"]:
            undecided = self.log.by_kind["split_votes"] + self.log.by_kind["not_compared"]
            silent = sum(self.log.by_kind[kind] for kind in SILENT)
            repeated = self.log.by_level["duplicate"] - undecided - silent
            left = [f"{silent:,} judgments that say nothing"] if silent else []
            left += [f"{repeated:,} repeated rows"] if repeated else []
            left += [f"pairs of {undecided:,} prompts on which the votes decide nothing"] if undecided else []
            verdict = f"ok; a run leaves out {' and '.join(left)}"
        parts.append(Text(verdict, style="green" if self.ok else "red"))
        return Group(*parts)


QUESTION_FORMATS = tuple(f for f in get_args(QuestionsSection.model_fields["format"].annotation) if f != "auto")
KINDS = ("auto", "prompts", "preferences", "candidates", "questions", "rankings")


def validate_file(
    path: Path | str,
    *,
    file_format: str = "auto",
    kind: str = "auto",
    column: str = "prompt",
    ignore_columns: Sequence[str] = (),
    model: str | None = None,
    max_prompt_tokens: TokenLimit | None = None,
    candidates: str | None = None,
    split: str = "train",
    keep: int = 1000,
) -> FileReport:
    """Check every row of a file, as a run would read it.

    Args:
        path: a file, or `hub:ORG/NAME`.
        file_format: as in a recipe's prompts or preferences section.
        kind: what the rows are; auto goes by the format, and by the keys of the first. LIMA's conversations are
            prompts then: they can be either.
        column, ignore_columns: as in a recipe's prompts section; `["all"]` ignores every other column.
        model: also report prompts that do not fit the context of this model (hub id, folder, `sandbox`).
        max_prompt_tokens: the same, with a counter at hand.
        candidates: of rankings: the rows of a retrieval; every document must be one of its query's.
        split: of a hub data set of questions.
        keep: problems kept with their text; all are counted.

    Raises:
        UsageError: an unknown format or kind, a hub set that cannot be loaded.
    """
    if kind not in KINDS:
        raise UsageError(f"unknown kind {kind!r}", where="--kind", fix=f"use one of: {', '.join(KINDS)}")
    if candidates is not None and kind not in ("auto", "rankings"):
        raise UsageError("candidates are of rankings", where="--candidates", fix="take it out, or add --kind rankings")
    if kind == "questions" or (kind == "auto" and file_format in QUESTION_FORMATS):
        return _questions(str(path), file_format, list(ignore_columns), split, keep)
    if kind == "rankings":
        return _rankings(str(path), candidates, keep)
    # Passages are a collection of several files, which a run reads whole and checks before anything else.
    of_prompts = tuple(f for f in get_args(PromptsSection.model_fields["format"].annotation) if f != "passages")
    if file_format not in (*of_prompts, *LAYOUTS):
        known = ", ".join(dict.fromkeys((*of_prompts, *LAYOUTS)))
        raise UsageError(f"unknown format {file_format!r}", where="--format", fix=f"use one of: {known}")
    if kind == "auto" and file_format in LAYOUTS and file_format not in of_prompts:
        kind = "preferences"
    layout = file_format if file_format in LAYOUTS else "auto"
    ignore: Any = "all" if list(ignore_columns) == ["all"] else list(ignore_columns)
    common = {"path": str(path), "ignore_columns": ignore}
    prompts = PromptsSection.model_validate(
        common | {"format": file_format if file_format in of_prompts else "auto", "column": column}
    )
    preferences = PreferencesSection.model_validate(common | {"format": layout})
    if prompts.path.startswith("sandbox:"):
        raise UsageError("the sandbox's prompts are made, not read", where=prompts.path, fix="name a file")
    pairs = PreferenceReader(preferences, max_prompt_tokens)
    if is_registry(prompts.path):
        kind, container = "preferences", "json"
    elif kind == "preferences" and file_format in ("auto", *LAYOUTS):
        container = container_of(prompts.path)
    else:
        container = format_of(prompts.path, prompts.format)
    if model is not None:
        max_prompt_tokens = token_limit(model)
        pairs.max_prompt_tokens = max_prompt_tokens
    stats = pairs.stats
    stream: Stream = (
        pairs.stream() if is_registry(prompts.path) else read_records(prompts.path, container, stats, prompts.split)
    )
    if kind == "auto" and file_format == "auto" and container == "json" and container_of(prompts.path) == "jsonl":
        # A run reads JSON Lines named .json as anything but prompts and candidates.
        lines = Stats()
        tried, rows = _kind(read_records(prompts.path, "jsonl", lines), column)
        if tried in ("preferences", "rankings"):
            pairs.stats = stats = lines
            stream = rows
            kind = tried
    if kind == "auto":
        kind, stream = _kind(stream, column)
    if kind == "rankings":
        return _rankings(str(path), candidates, keep)
    if candidates is not None:
        raise UsageError("these are no rankings, and only those have candidates", where=str(path), fix="take it out")
    log = ProblemLog(keep)
    if kind == "preferences":
        valid = _log_all(pairs.read(stream), log)
        _log_all([(None, pairs.unknown_columns())], log)
        found = pairs.layout.name if pairs.layout else None
        return FileReport(
            *(prompts.path, "preference", pairs.records, valid, stats.blank_lines),
            *(_sorted(pairs.columns), found, log),
            None if pairs.tally is None else pairs.tally.agreement(),
            dict(sorted(pairs.verdicts.items())) or None,
        )
    if kind == "candidates":
        check = _Candidates(prompts)
        valid = _log_all(check.read(stream), log)
        left = _sorted(check.columns)
        return FileReport(prompts.path, kind, check.rows, valid, stats.blank_lines, left, None, log)
    reader = PromptReader(prompts, max_prompt_tokens)
    items = ((None, [i]) if isinstance(i, Problem) else (i, []) for i in reader.read(stream))
    valid = _log_all(items, log)
    _log_all([(None, reader.unknown_columns())], log)
    return FileReport(
        prompts.path, "prompts", reader.records, valid, stats.blank_lines, _sorted(reader.columns), None, log
    )


def _kind(stream: Stream, column: str) -> tuple[str, Stream]:
    """What the rows are, by the keys of the first good record; and the stream, whole."""
    head: list[Record | Problem] = []
    kind = "prompts"
    for item in stream:
        head.append(item)
        if isinstance(item, Record):
            if ranking_layout(item.value) is not None and column not in item.value:
                kind = "rankings"
            elif "completions" in item.value and layout_of(item.value) is None:
                kind = "candidates"
            elif (layout := layout_of(item.value)) is not None and layout.name != "lima" and column == "prompt":
                kind = "preferences"
            break
    return kind, itertools.chain(head, stream)


def _questions(path: str, file_format: str, ignore: list[str], split: str, keep: int) -> FileReport:
    settings = {"path": path, "format": file_format, "split": split}
    if file_format not in ("auto", *QUESTION_FORMATS):
        known = ", ".join(QUESTION_FORMATS)
        raise UsageError(f"unknown format {file_format!r} of questions", where="--format", fix=f"use one of: {known}")
    ignored: Any = "all" if ignore == ["all"] else ignore
    reader = QuestionReader(QuestionsSection.model_validate(settings | {"ignore_columns": ignored}))
    log = ProblemLog(keep)
    items = ((None, [i]) if isinstance(i, Problem) else (i, []) for i in reader)
    valid = _log_all(items, log)
    _log_all([(None, reader.unknown_columns())], log)
    found = None if reader.layout is None else reader.layout.name
    left = {} if reader.columns is None else _sorted(reader.columns)
    return FileReport(path, "questions", reader.records, valid, reader.stats.blank_lines, left, found, log)


def _rankings(path: str, candidates: str | None, keep: int) -> FileReport:
    reader = RankingReader(path, None if candidates is None else Candidates.read(candidates))
    stats, log = Stats(), ProblemLog(keep)
    valid = _log_all(reader.read(read_records(path, container_of(path), stats)), log)
    return FileReport(path, "ranking", reader.rows, valid, stats.blank_lines, {}, reader.layout, log)


def _log_all(read: Iterable[tuple[Any, list[Problem]]], log: ProblemLog) -> int:
    """Log the problems, and count the rows that have none."""
    valid = 0
    for row, problems in read:
        valid += row is not None
        for problem in problems:
            log.add(problem)
    return valid


def _sorted(columns: Columns) -> dict[str, int]:
    return dict(sorted(columns.left.items()))


class _Candidates:
    """Candidates rows, one after another."""

    def __init__(self, section: PromptsSection) -> None:
        self.path = section.path
        self.rows = 0
        self.columns = Columns(CANDIDATES_COLUMNS, section.ignore_columns)
        self._ids: dict[str, int] = {}

    def read(self, stream: Stream) -> Iterator[tuple[Record | None, list[Problem]]]:
        for item in stream:
            self.rows += isinstance(item, Record) or item.level != "fatal"
            if isinstance(item, Problem):
                yield None, [item]
                continue
            self.columns.note(item)
            place, raw = (self.path, item.row), raw_json(item.value)
            problems = [
                Problem(f.kind, *place, f.field, f.reason, f.fix, item.unit, raw=raw)
                for f in candidates_faults(item.value)
            ]
            given = item.value.get("id")
            if isinstance(given, str) and given and (before := self._ids.setdefault(given, item.row)) != item.row:
                reason = f"the id {given!r} is that of {item.unit} {before} too"
                problems.append(Problem("duplicate_id", *place, "id", reason, "give every row its own", item.unit))
            yield (None if problems else item), problems
        yield None, self.columns.problems(self.path)
