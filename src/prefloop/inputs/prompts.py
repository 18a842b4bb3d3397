"""Prompts from anywhere as `PromptRow`s, and everything that is wrong with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from prefloop.config import PromptsSection
from prefloop.engine.tokens import PromptError
from prefloop.errors import UsageError
from prefloop.inputs import hh
from prefloop.inputs.columns import Columns
from prefloop.inputs.lima import LEFT, READ, lima_prompt, looks_like_lima
from prefloop.inputs.messages import Fault, given_id, messages_of, order_faults, with_tools
from prefloop.inputs.problems import Problem, ProblemLog, nearest, raw_json, reject_rows, stop
from prefloop.inputs.readers import Record, Stats, format_of, read_records
from prefloop.records import Message, PromptRow, RejectRow, prompt_id


@dataclass(frozen=True)
class TokenLimit:
    """How long a prompt may be.

    Attributes:
        count: tokens of a prompt as the model will see it, template included; a `PromptError` is one of the row's.
        limit: the most that leave room for an answer.
    """

    count: Callable[[Sequence[Message]], int]
    limit: int

    def faults(self, messages: Sequence[Message], field: str) -> list[Fault]:
        """What keeps the model from answering these messages: too many tokens, or its template refuses them."""
        try:
            tokens = self.count(messages)
        except PromptError as error:
            fix = error.fix or "write it so that the chat template takes it"
            return [Fault("wrong_value", field, error.what, fix)]
        if tokens <= self.limit:
            return []
        reason = f"{tokens:,} tokens, {tokens - self.limit:,} more than the model takes with room for an answer "
        fix = "shorten it, lower max_new_tokens, or take a model with a longer context"
        return [Fault("too_long", field, f"{reason}({self.limit:,})", fix)]


def read_prompts(
    section: PromptsSection, *, max_prompt_tokens: TokenLimit | None = None, seed: int = 0
) -> tuple[list[PromptRow], list[RejectRow]]:
    """Read a prompts section.

    A prompt that repeats an earlier one (same roles and texts) would be sampled twice under one id: it goes to the
    rejects, and stops nothing. Every record that was read is in one of the two lists.

    Args:
        section: path, format, columns, limit and what to do with bad rows.
        max_prompt_tokens: also report prompts that are too long for the model.
        seed: of a `sandbox:` set.

    Returns:
        The valid prompts in the order of the file, at most `section.limit`, and the records dropped on the way.

    Raises:
        UsageError: bad rows where `on_bad_row` is `stop`, or a file that cannot be read at all.
    """
    if section.format == "passages":
        return passage_prompts(section)
    if format_of(section.path, section.format) == "sandbox":
        return sandbox_prompts(section, seed), []
    reader = PromptReader(section, max_prompt_tokens)
    # Rejected rows are all recorded; a stop lists a few of them and needs no more in memory.
    stopping = section.on_bad_row == "stop"
    log = ProblemLog(keep=100 if stopping else None, uncapped=("fatal", "duplicate"))
    rows: list[PromptRow] = []
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
        raise stop(log, section.path)
    if not rows:
        raise UsageError(
            f"none of the {log.total:,} rows can be used", where=section.path, fix=f"prefloop validate {section.path}"
        )
    return rows, reject_rows(log.kept)


def sandbox_prompts(section: PromptsSection, seed: int) -> list[PromptRow]:
    """Prompts of the embedded world: `sandbox:questions/train`."""
    from prefloop.sandbox.prompts import prompts

    try:
        found = prompts(section.path.removeprefix("sandbox:"), section.limit, seed)
    except ValueError as error:
        raise UsageError(
            str(error), where=section.path, fix="set prompts.path to sandbox:<one of the splits>"
        ) from None
    rows: list[PromptRow] = []
    for bare in found:
        messages = with_system([{"role": m["role"], "content": m["content"]} for m in bare], section.system)
        rows.append({"id": prompt_id(messages), "prompt": messages, "source_id": None})
    return rows


def passage_prompts(section: PromptsSection) -> tuple[list[PromptRow], list[RejectRow]]:
    """The texts of a collection, one prompt each, in the order of its file; `source_id` is the document's id.

    Titles are left out, as a retriever is to read what was rewritten. An empty text is a bad row, one that an earlier
    document has goes to the rejects; documents outside of `judged` are not read at all.
    """
    from prefloop.retrieve.corpus import read_collection

    judged = section.judged
    collection = read_collection(section.path, judged or "test", [section.source], judged=judged is not None)
    passages = collection.passages[section.source]
    if judged is not None:
        wanted = {name for grades in collection.qrels.values() for name, grade in grades.items() if grade > 0}
        passages = [passage for passage in passages if passage.id in wanted]
    rows: list[PromptRow] = []
    log = ProblemLog(keep=None, uncapped=("fatal", "duplicate"))
    seen: dict[str, str] = {}
    for number, passage in enumerate(passages, 1):
        place = (section.path, number, "text")
        raw = raw_json(passage._asdict())
        messages = with_system([{"role": "user", "content": passage.text}], section.system)
        name = prompt_id(messages)
        words = len(passage.text.split())
        if not passage.text.strip():
            reason, fix = f"the text of {passage.id} is empty", "take the passage out"
            log.add(Problem("missing_field", *place, reason, fix, "passage", raw=raw))
        elif section.max_words is not None and words > section.max_words:
            reason = f"{words:,} words, more than the {section.max_words:,} of max_words"
            fix = "raise prompts.max_words"
            log.add(Problem("too_long", *place, reason, fix, "passage", level="duplicate", raw=raw))
        elif name in seen:
            reason = f"the same text as {seen[name]}"
            log.add(Problem("duplicate_prompt", *place, reason, "keep one", "passage", level="duplicate", raw=raw))
        else:
            seen[name] = passage.id
            rows.append({"id": name, "prompt": messages, "source_id": passage.id})
            if section.limit is not None and len(rows) == section.limit:
                break
    if log.by_level["error"] and section.on_bad_row == "stop":
        raise stop(log, section.path)
    if not rows:
        what = "no passage can be used" if passages else f"no passage is judged relevant by qrels/{judged}.tsv"
        raise UsageError(what, where=section.path, fix="look at its corpus and judgments")
    return rows, reject_rows(log.kept)


def with_system(messages: list[Message], system: str | None) -> list[Message]:
    """The messages, with `system` put before them unless they have one of their own."""
    if system is None or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": system}, *messages]


@dataclass
class PromptReader:
    """Iterates over the prompts and problems of a file, a hub set or given records, in bounded memory.

    Attributes:
        records: rows read so far, good or bad.
        stats: blank lines.
        columns: those that were there and not read, by choice of the recipe or of the format, and the unknown ones.
    """

    section: PromptsSection
    max_prompt_tokens: TokenLimit | None = None
    records: int = 0
    stats: Stats = field(default_factory=Stats)
    lima: bool = False
    columns: Columns = field(init=False)
    _ids: dict[str, int] = field(default_factory=dict)
    _prompts: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.columns = Columns([self.section.column, "id", "tools"], self.section.ignore_columns)

    def stream(self) -> Iterator[Record | Problem]:
        """The records as the format gives them."""
        section = self.section
        container = format_of(section.path, section.format)
        return read_records(section.path, container, self.stats, section.split)

    def __iter__(self) -> Iterator[PromptRow | Problem]:
        return self.read(self.stream())

    def read(self, stream: Iterable[Record | Problem]) -> Iterator[PromptRow | Problem]:
        """Prompts and problems of a stream of records; one record gives a prompt or at least one problem."""
        first = True
        for item in stream:
            self.records += item.row is not None and (isinstance(item, Record) or item.level != "fatal")
            if isinstance(item, Problem):
                yield item
                continue
            if first:
                wanted = self.section.format
                self.lima = wanted == "lima" or (wanted == "auto" and looks_like_lima(item.value, self.section.column))
                if self.lima:
                    self.columns = Columns([*READ, "id"], self.section.ignore_columns, LEFT)
                elif wanted == "hh":
                    self.columns = Columns([*hh.READ, "id"], self.section.ignore_columns)
                first = False
            yield from self._one(item)

    def unknown_columns(self) -> list[Problem]:
        """One problem for each column that nobody declared, after reading."""
        return self.columns.problems(self.section.path)

    def _one(self, record: Record) -> Iterator[PromptRow | Problem]:
        self.columns.note(record)
        messages, faults = self._messages(record.value)
        source_id, id_faults = given_id(record.value)
        faults += id_faults
        if not self.lima and self.section.format != "hh":
            messages, found = with_tools(messages, record.value.get("tools"))
            faults += found
        row: PromptRow | None = None
        if not faults:
            messages = with_system(messages, self.section.system)
            if self.max_prompt_tokens is not None:
                faults += self.max_prompt_tokens.faults(messages, self.columns.known[0])
            row = {"id": prompt_id(messages), "prompt": messages, "source_id": source_id}
        problems = [
            Problem(
                *(fault.kind, self.section.path, record.row, fault.field, fault.reason, fault.fix, record.unit),
                raw=raw_json(record.value),
            )
            for fault in faults
        ]
        if row is not None:
            problems += filter(None, [self._too_many_words(record, row) or self._repeat(record, row)])
        if problems:
            yield from problems
        elif row is not None:
            yield row

    def _messages(self, value: dict[str, Any]) -> tuple[list[Message], list[Fault]]:
        if self.lima:
            return lima_prompt(value.get("conversations"))
        if self.section.format == "hh":
            return hh.hh_prompt(value)
        column = self.section.column
        if column not in value:
            meant = nearest(column, list(value))
            fix = f"rename {meant!r}, or set column: {meant}" if meant else "write one, or set `column` to its name"
            return [], [Fault("missing_field", column, f"is missing (there: {', '.join(value) or 'nothing'})", fix)]
        messages, faults = messages_of(value[column], column)
        return messages, faults or order_faults(messages, column, last="user")

    def _too_many_words(self, record: Record, row: PromptRow) -> Problem | None:
        """Longer than the recipe wants: left out and counted, and nothing that is wrong with the file."""
        limit = self.section.max_words
        if limit is None:
            return None
        words = sum(len(message["content"].split()) for message in row["prompt"])
        if words <= limit:
            return None
        reason, fix = (
            f"{words:,} words, more than the {limit:,} of max_words",
            "shorten it, or raise prompts.max_words",
        )
        where = (self.section.path, record.row, self.columns.known[0])
        raw = raw_json(record.value)
        return Problem("too_long", *where, reason, fix, record.unit, level="duplicate", raw=raw)

    def _repeat(self, record: Record, row: PromptRow) -> Problem | None:
        """The same prompt or the same id as in an earlier row."""
        path, source = self.section.path, row["source_id"]
        raw = raw_json(record.value)
        before = self._prompts.setdefault(row["id"], record.row)
        if before != record.row:
            reason = f"the same prompt as in {record.unit} {before}"
            fix = "keep one of them; more answers to a prompt come from sample.n"
            field = self.columns.known[0]
            return Problem(
                "duplicate_prompt", path, record.row, field, reason, fix, record.unit, level="duplicate", raw=raw
            )
        if source is not None and (before := self._ids.setdefault(source, record.row)) != record.row:
            reason = f"the id {source!r} is that of {record.unit} {before} too, with another prompt"
            fix = "give every prompt its own id, or take the column out"
            return Problem("duplicate_id", path, record.row, "id", reason, fix, record.unit, raw=raw)
        return None
