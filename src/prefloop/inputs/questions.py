"""Questions with their reference answers from anywhere as `QuestionRow`s, and everything that is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from prefloop.config.rag import QuestionsSection
from prefloop.errors import UsageError
from prefloop.inputs.columns import Columns
from prefloop.inputs.encoding import opened
from prefloop.inputs.messages import Fault, text_fault
from prefloop.inputs.problems import Problem, ProblemLog, raw_json, reject_rows, stop
from prefloop.inputs.question_layouts import LAYOUTS, QuestionLayout, layout_of, list_keys
from prefloop.inputs.readers import Record, Stats, Stream, container_of, json_type, read_records
from prefloop.records import QuestionRow, RejectRow, content_id


def question_id(question: str) -> str:
    """Id of a question: the hash of its text."""
    return content_id("question", question)


def read_questions(section: QuestionsSection, seed: int = 0) -> tuple[list[QuestionRow], list[RejectRow]]:
    """Read a questions section.

    A question that repeats an earlier one goes to the rejects and stops nothing. Every record that was read is in one
    of the two lists.

    Args:
        seed: of a `sandbox:` set.

    Returns:
        The valid questions in the order of the file, at most `section.limit`, and the records dropped on the way.

    Raises:
        UsageError: bad rows where `on_bad_row` is `stop`, or a file that cannot be read at all.
    """
    if section.path.startswith("sandbox:"):
        return _sandbox(section, seed), []
    reader = QuestionReader(section)
    stopping = section.on_bad_row == "stop"
    log = ProblemLog(keep=100 if stopping else None, uncapped=("fatal", "duplicate"))
    rows: list[QuestionRow] = []
    for item in reader:
        if isinstance(item, Problem):
            log.add(item)
        else:
            rows.append(item)
            if section.limit is not None and len(rows) == section.limit:
                break
    for problem in reader.unknown_columns():
        log.add(problem)
    if log.by_level["fatal"] or (log.by_level["error"] and stopping):
        raise stop(log, section.path, kind="questions")
    if not rows:
        raise UsageError(
            f"none of the {log.total:,} rows can be used",
            where=section.path,
            fix=f"prefloop validate {section.path} --kind questions",
        )
    return rows, reject_rows(log.kept, "questions")


def _sandbox(section: QuestionsSection, seed: int) -> list[QuestionRow]:
    """Questions about the embedded world: `sandbox:library/train`."""
    from prefloop.sandbox import library

    name, _, side = section.path.removeprefix("sandbox:").partition("/")
    try:
        if name != "library":
            raise ValueError(f"unknown questions {name!r}; there are library/train and library/heldout")
        found = library.questions(side, section.limit, seed)
    except ValueError as error:
        fix = "set questions.path to sandbox:library/train or sandbox:library/heldout"
        raise UsageError(str(error), where=section.path, fix=fix) from None
    # The sentence first: it is what a reader learns to say, and the embedded one knows no bare values.
    return [
        {"id": question_id(q.text), "question": q.text, "answers": [q.sentence, q.answer], "source_id": q.id}
        for q in found
    ]


@dataclass
class QuestionReader:
    """Iterates over the questions and problems of a file or hub set.

    Attributes:
        records: rows read so far, good or bad.
        layout: what the columns mean, once the first row is read.
    """

    section: QuestionsSection
    records: int = 0
    stats: Stats = field(default_factory=Stats)
    layout: QuestionLayout | None = None
    columns: Columns | None = None
    _seen: dict[str, int] = field(default_factory=dict)

    def __iter__(self) -> Iterator[QuestionRow | Problem]:
        return self.read(_records(self.section, self.stats))

    def read(self, stream: Stream) -> Iterator[QuestionRow | Problem]:
        """Questions and problems of a stream of records; one record gives a question or at least one problem."""
        for item in stream:
            self.records += item.row is not None and (isinstance(item, Record) or item.level != "fatal")
            if isinstance(item, Problem):
                yield item
                continue
            if self.layout is None:
                self.layout = layout_of(item.value, self.section.format)
                if self.layout is None:
                    yield self._no_layout(item)
                    return
                self.columns = Columns(self.layout.reads, self.section.ignore_columns, self.layout.leaves)
            assert self.columns is not None
            self.columns.note(item)
            yield from self._one(item, self.layout)

    def unknown_columns(self) -> list[Problem]:
        """One problem for each column that nobody declared, after reading."""
        return [] if self.columns is None else self.columns.problems(self.section.path)

    def _no_layout(self, record: Record) -> Problem:
        known = "; ".join(f"{y.name}: {', '.join(y.marks)}" for y in LAYOUTS)
        wanted = "any set of questions" if self.section.format == "auto" else self.section.format
        reason = f"has not the columns of {wanted} (there: {', '.join(record.value) or 'nothing'})"
        fix = f"name the columns `question` and `answers` (known are {known})"
        return Problem("unknown_format", self.section.path, record.row, None, reason, fix, record.unit, "fatal")

    def _one(self, record: Record, layout: QuestionLayout) -> Iterator[QuestionRow | Problem]:
        found = layout.take(record.value)
        place, raw = (self.section.path, record.row), raw_json(record.value)
        faults = [*filter(None, [text_fault(found.question, layout.fields[0])])]
        faults += _answer_faults(found.answers, layout.fields[1])
        if faults:
            for f in faults:
                yield Problem(f.kind, *place, f.field, f.reason, f.fix, record.unit, raw=raw)
            return
        question = found.question.strip()
        name = question_id(question)
        if (before := self._seen.setdefault(name, record.row)) != record.row:
            reason = f"the same question as in {record.unit} {before}"
            fix = "keep one of them, with the answers of both"
            yield Problem(
                "duplicate_prompt", *place, layout.fields[0], reason, fix, record.unit, level="duplicate", raw=raw
            )
            return
        answers = list(dict.fromkeys(text.strip() for text in found.answers))
        given = None if found.given_id is None else str(found.given_id)
        yield {"id": name, "question": question, "answers": answers, "source_id": given}


def _answer_faults(answers: Any, field: str) -> list[Fault]:
    fix = 'write a list of texts, such as ["Paris"]'
    if answers is None:
        return [Fault("missing_field", field, "is missing", fix)]
    if not isinstance(answers, list | tuple):
        return [Fault("wrong_type", field, f"is a {json_type(answers)}, not a list of texts", fix)]
    if not answers:
        fix = "give one, or leave such rows out with on_bad_row=reject"
        return [Fault("empty_field", field, "there is no reference answer", fix)]
    return [fault for i, text in enumerate(answers) if (fault := text_fault(text, f"{field}[{i}]")) is not None]


def _records(section: QuestionsSection, stats: Stats) -> Stream:
    container = container_of(section.path)
    if container in ("json", "jsonl") and (rows := _wrapped(section)) is not None:
        return _in_object(section.path, rows)
    return read_records(section.path, container, stats, section.split)


def _wrapped(section: QuestionsSection) -> list[Any] | None:
    """The rows of an authors' file: one JSON object that holds the list. None for any other file.

    Such a file is read as a whole; the largest (TriviaQA's with its search results) take some gigabytes.
    """
    try:
        with opened(section.path) as f:
            head = f.read(4096)
            keys = [key for key in list_keys(section.format) if b'"' + key.encode() + b'"' in head]
            if not keys or not head.lstrip().startswith(b"{"):
                return None
            whole = json.loads(head + f.read())
    except (OSError, ValueError):
        return None  # `read_records` says what is wrong with it; several objects, one on a line, are its too
    rows = whole.get(keys[0]) if isinstance(whole, dict) else None
    return rows if isinstance(rows, list) else None


def _in_object(path: str, rows: list[Any]) -> Stream:
    for number, row in enumerate(rows, 1):
        if isinstance(row, dict):
            yield Record(number, row, "record")
        else:
            reason, fix = f"the row is a {json_type(row)}, not an object", "write it as an object"
            yield Problem("not_an_object", path, number, None, reason, fix, unit="record", raw=raw_json(row))
