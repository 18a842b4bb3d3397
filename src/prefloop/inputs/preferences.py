"""Preference data from anywhere as `PreferenceRow`s, and everything that is wrong with it."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from prefloop.config import PreferencesSection
from prefloop.errors import UsageError
from prefloop.inputs import judgments
from prefloop.inputs.columns import Columns
from prefloop.inputs.layouts import LAYOUTS, NUMBERS, Answers, Layout, layout_of
from prefloop.inputs.llamafactory import Entry, is_registry, read_entry
from prefloop.inputs.messages import Fault, given_id, with_tools
from prefloop.inputs.problems import Problem, ProblemLog, raw_json, reject_rows, stop
from prefloop.inputs.prompts import TokenLimit
from prefloop.inputs.readers import Record, Stats, container_of, json_type, read_records
from prefloop.inputs.votes import Tally
from prefloop.records import PreferenceRow, RejectRow, completion_id, content_id, message_text, prompt_id


@dataclass
class PreferenceReader:
    """Goes once through a file, a hub set or given records. Memory grows by the hash of each row, to find repeats.

    Attributes:
        layout: what the columns mean; None until the first good record, and where nothing fits them.
        records: rows read so far, good or bad.
        stats: blank lines.
        columns: those that were there and not read, and the unknown ones.
        tally: the votes that were counted, of a layout of votes; a record is a pair of answers then.
        criticism: makes a demonstration of judging of a written judgment; None where answers are learned.
        verdicts: of a layout of judgments, how many rows are criticised, satisfactory, or satisfactory because they
            were praised or scored highly.
        entry: the data set of LLaMA-Factory's registry that is read, where one is.
    """

    section: PreferencesSection
    max_prompt_tokens: TokenLimit | None = None
    layout: Layout | None = None
    records: int = 0
    stats: Stats = field(default_factory=Stats)
    columns: Columns = field(default_factory=lambda: Columns([]))
    tally: Tally | None = None
    verdicts: Counter[str] = field(default_factory=Counter)
    criticism: Callable[[judgments.Judged], Answers] | None = None
    entry: Entry | None = None
    _seen: dict[str, int] = field(default_factory=dict)
    _ids: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.section.learn == "critic":
            from prefloop.signals.critic import demonstration  # the same box in the picture; it reads judgments too

            def shown(said: judgments.Judged) -> Answers:
                return Answers(*demonstration(said.prompt, message_text(said.completion[0]), said.judgment))

            self.criticism = shown

    @property
    def kind(self) -> str:
        """What its rows are, as `records.arrow_schema` has it: preference or judgment."""
        assert self.layout is not None, "a file with a usable row has a layout"
        return "preference" if self.layout.judged is None or self.criticism is not None else "judgment"

    def stream(self) -> Iterator[Record | Problem]:
        """The records as the container gives them; of a registry's data set by the names that ours have."""
        if is_registry(self.section.path):
            self.entry = entry = read_entry(self.section.path, self.section.name)
            file = str(entry.file)
            for item in read_records(file, container_of(file), self.stats):
                yield replace(item, value=entry.plain(item.value)) if isinstance(item, Record) else item
            return
        yield from self._plain_stream()

    def _plain_stream(self) -> Iterator[Record | Problem]:
        container = container_of(self.section.path)
        if container == "sandbox":
            fix = "name a file; `sandbox:` sets are prompts, for prompts.path"
            raise UsageError("the sandbox has no preference data", where=self.section.path, fix=fix)
        yield from read_records(self.section.path, container, self.stats, self.section.split)

    def __iter__(self) -> Iterator[tuple[PreferenceRow | None, list[Problem]]]:
        return self.read(self.stream())

    def read(self, stream: Iterable[Record | Problem]) -> Iterator[tuple[PreferenceRow | None, list[Problem]]]:
        """One pair for each record: its row, or what is wrong with it; and (None, [problem]) for one of the file."""
        rest = iter(stream)
        for item in rest:
            if isinstance(item, Problem):
                self.records += item.row is not None and item.level != "fatal"
                yield None, [item]
                continue
            if self.layout is None:
                self.layout = self._layout(item)
                if self.layout is not None and self.layout.ballot is not None:
                    self.tally = Tally(self.section.path, self.layout.ballot, self.columns.note)
                    yield from self.read(self.tally.read(itertools.chain([item], rest)))
                    return
            if self.layout is None:
                yield None, [self._unknown_format(item)]
                return
            if self.criticism is not None and self.layout.judged is None:
                what = f"a critic learns from written judgments, and these rows are read as {self.layout.name}"
                fix = "give judgments (docs/cut.md), or take preferences.learn out"
                raise UsageError(what, where=self.section.path, fix=fix)
            if self.layout.judged is not None:
                yield from self._judged(item, self.layout, self.layout.judged)
                continue
            self.records += 1
            yield self._one(item, self.layout)

    def unknown_columns(self) -> list[Problem]:
        """One problem for each column that nobody declared, after reading."""
        return self.columns.problems(self.section.path)

    def parts(self, size: int) -> Iterator[tuple[list[PreferenceRow], list[RejectRow]]]:
        """The rows and the rejects of `size` records at a time, at most `section.limit` rows in all.

        The parts are the same at every reading. Nothing is kept behind a part that was taken
        (tests/inputs/test_read_preferences.py::test_no_more_than_a_part_is_held).

        Raises:
            UsageError: at the end of the file, of bad rows where `on_bad_row` is `stop`, of columns that nobody
                declared, and of a file without a usable row.
        """
        stopping = self.section.on_bad_row == "stop"
        log = ProblemLog(keep=100)
        rows: list[PreferenceRow] = []
        dropped: list[list[Problem]] = []
        kept = 0
        for row, problems in self:
            for problem in problems:
                log.add(problem)
            if row is not None:
                rows.append(row)
                kept += 1
            else:
                dropped.append(problems)
            refused = log.by_level["fatal"] or (stopping and log.by_level["error"])
            if len(rows) + len(dropped) == size:
                if not refused:
                    yield rows, _rejects(dropped)
                rows, dropped = [], []
            if kept == self.section.limit:
                break
        for problem in self.unknown_columns():
            log.add(problem)
        if log.by_level["fatal"] or (stopping and log.by_level["error"]):
            raise stop(log, self.section.path)
        if not kept:
            what, fix = f"none of the {self.records:,} rows can be used", f"prefloop validate {self.section.path}"
            raise UsageError(what, where=self.section.path, fix=fix)
        if rows or dropped:
            yield rows, _rejects(dropped)

    def _layout(self, record: Record) -> Layout | None:
        declared = self.section.format
        layout = layout_of(record.value) if declared == "auto" else LAYOUTS[declared]
        if self.entry is not None:
            # What a registry does not name is its owner's business.
            layout = LAYOUTS[self.entry.layout]
            layout = replace(layout, leaves=tuple(set(record.value) - {*layout.reads, *layout.numbers, "id"}))
        if layout is not None:
            known = ["id", *dict.fromkeys((*layout.reads, *layout.numbers))]
            # A weight that is written wrongly would be no weight at all, and nobody would know.
            confusable = None if layout.own else [*known, "label"]
            self.columns = Columns(known, self.section.ignore_columns, layout.leaves, confusable)
        return layout

    def _unknown_format(self, record: Record) -> Problem:
        reason = f"no preference data: the columns {', '.join(record.value) or '(none)'} fit no known format"
        fix = f"rename them, or set `format` (`--format` of `prefloop validate`) to one of: {', '.join(LAYOUTS)}"
        return Problem("unknown_format", self.section.path, record.row, None, reason, fix, record.unit, "fatal")

    def _one(self, record: Record, layout: Layout) -> tuple[PreferenceRow | None, list[Problem]]:
        if self.tally is None:  # which notes the columns of the votes
            self.columns.note(record)
        answers = layout.parse(record.value)
        own_id, faults = given_id(record.value)
        numbers: dict[str, float | None] = dict.fromkeys(
            ("weight", "margin", "label", "score_chosen", "score_rejected")
        )
        for name in NUMBERS if layout.ballot else layout.numbers:
            numbers[name], found = _number(record.value.get(name), name)
            faults = faults + found
        facts, found = _facts(record.value) if layout.own or layout.ballot else ({}, [])
        faults = answers.faults + faults + found
        if "tools" in layout.reads:
            answers.prompt, found = with_tools(answers.prompt, record.value.get("tools"))
            faults = faults + found
        if not faults and self.max_prompt_tokens is not None:
            faults = self.max_prompt_tokens.faults(answers.prompt, layout.reads[0])
        if faults:
            raw = raw_json(record.value)
            place = (self.section.path, record.row)
            return None, [Problem(f.kind, *place, f.field, f.reason, f.fix, record.unit, raw=raw) for f in faults]
        row = _row(answers, numbers, layout.name, own_id, facts)
        repeat = self._repeat(record, row, own_id)
        return (row, []) if repeat is None else (None, [repeat])

    def _judged(
        self, record: Record, layout: Layout, parse: Callable[[Mapping[str, Any]], judgments.Judged]
    ) -> Iterator[tuple[Any, list[Problem]]]:
        """The judgments of a record: one, or of a layout with parts as many as it has."""
        self.columns.note(record)
        found: list[Record] = [record]
        if layout.parts is not None:
            found = [
                Record(self.records + number, dict(part), layout.part)
                for number, part in enumerate(layout.parts(record.value), 1)
            ]
        if not found:
            self.records += 1
            reason, fix = f"has not the shape of {layout.name}", "take the row out, or set another `format`"
            place, raw = (self.section.path, record.row), raw_json(record.value)
            yield None, [Problem("wrong_type", *place, layout.reads[-1], reason, fix, record.unit, raw=raw)]
        for one in found:
            self.records += 1
            yield self._judgment(one, layout, parse(one.value))

    def _judgment(self, record: Record, layout: Layout, said: judgments.Judged) -> tuple[Any, list[Problem]]:
        place, raw = (self.section.path, record.row), raw_json(record.value)
        faults = said.faults if said.left_out is None else []
        own_id, weight = None, None
        facts: dict[str, Any] = {}
        if layout.own:
            own_id, wrong = given_id(record.value)
            weight, more = _number(record.value.get("weight"), "weight")
            facts, others = _facts(record.value)
            faults = faults + wrong + more + others
        if not faults and said.left_out is None and self.max_prompt_tokens is not None:
            faults = self.max_prompt_tokens.faults(said.prompt, layout.reads[0])
        if faults:
            return None, [Problem(f.kind, *place, f.field, f.reason, f.fix, record.unit, raw=raw) for f in faults]
        verdict = judgments.decide(said, self.section)
        if said.left_out is not None:
            f, fix = said.left_out, "nothing to do: it is left out and counted"
            return None, [Problem(f.kind, *place, f.field, f.reason, fix, record.unit, "duplicate", raw)]
        row = judgments.judgment_row(said, layout.name, weight, own_id, facts)
        repeat = self._again(record, [row["prompt_id"], row["completion"], row["judgment"]], own_id)
        if repeat is not None:
            return None, [repeat]
        self.verdicts[verdict] += 1
        if self.criticism is not None:
            taught = {"source": row["source"], "evidence": row["evidence"], "strategy": "critic"}
            return _row(self.criticism(said), {**dict.fromkeys(NUMBERS), "weight": weight}, "", None, taught), []
        return row, []

    def _repeat(self, record: Record, row: PreferenceRow, own_id: str | None) -> Problem | None:
        """The same prompt and answers, or the same id, as in an earlier row."""
        return self._again(record, [row["prompt_id"], row["chosen"], row["rejected"]], own_id)

    def _again(self, record: Record, says: list[Any], own_id: str | None) -> Problem | None:
        path, raw = self.section.path, raw_json(record.value)
        content = content_id(*says)
        before = self._seen.setdefault(content, record.row)
        if before != record.row:
            reason = f"the same prompt and answers as in {record.unit} {before}"
            fix = "keep one of them; what is to count more has a higher weight"
            return Problem("duplicate_row", path, record.row, None, reason, fix, record.unit, "duplicate", raw)
        if own_id is not None and (before := self._ids.setdefault(own_id, record.row)) != record.row:
            reason = f"the id {own_id!r} is that of {record.unit} {before} too"
            fix = "give every row its own id, or take the column out"
            return Problem("duplicate_id", path, record.row, "id", reason, fix, record.unit, raw=raw)
        return None


def read_votes(path: str) -> Tally:
    """The votes of a file, counted.

    Args:
        path: JSONL, JSON, CSV or Parquet of one of the layouts of votes.

    Raises:
        UsageError: it holds no votes, or some that cannot be read.
    """
    reader, log = PreferenceReader(PreferencesSection(path=path)), ProblemLog(keep=100)
    for _, problems in reader:
        for problem in problems:
            log.add(problem)
    for problem in reader.unknown_columns():
        log.add(problem)
    if log.by_level["fatal"] or log.by_level["error"]:
        raise stop(log, path)
    if reader.tally is None:
        found = reader.layout.name if reader.layout else "unknown"
        known = ", ".join(name for name, layout in LAYOUTS.items() if layout.ballot)
        what = f"these rows are no votes of people (read as {found})"
        raise UsageError(what, where=path, fix=f"write one of: {known} (docs/human.md)")
    return reader.tally


def _rejects(dropped: list[list[Problem]]) -> list[RejectRow]:
    return reject_rows((problem for problems in dropped for problem in problems), stage="preferences")


def _row(
    answers: Answers, numbers: Mapping[str, float | None], source: str, own_id: str | None, facts: Mapping[str, Any]
) -> PreferenceRow:
    prompt = prompt_id(answers.prompt)
    ids = {}
    for index, side in enumerate((answers.chosen, answers.rejected)):
        ids[index] = "" if side is None else completion_id(prompt, message_text(side[0]), 0)
    chosen_id, rejected_id = facts.get("chosen_id") or ids[0], facts.get("rejected_id") or ids[1]
    row: PreferenceRow = {
        "id": own_id or content_id("pair", prompt, chosen_id, rejected_id),
        "prompt_id": prompt,
        "prompt": answers.prompt,
        "chosen": answers.chosen,
        "rejected": answers.rejected,
        "score_chosen": numbers["score_chosen"],
        "score_rejected": numbers["score_rejected"],
        "weight": numbers["weight"],
        "margin": numbers["margin"],
        "label": numbers["label"],
        "source": facts.get("source") or source,
        "strategy": facts.get("strategy") or "given",
        "chosen_id": chosen_id,
        "rejected_id": rejected_id,
        "chosen_finish": facts.get("chosen_finish"),
        "rejected_finish": facts.get("rejected_finish"),
        "evidence": facts.get("evidence") or [],
    }
    for name in ("document", "query"):
        if facts.get(name):
            row[name] = facts[name]  # type: ignore[literal-required]
    return row


_TEXTS = ("source", "strategy", "chosen_id", "rejected_id", "completion_id", "document", "query")
_FINISHES = ("chosen_finish", "rejected_finish", "finish")


def _facts(value: Mapping[str, Any]) -> tuple[dict[str, Any], list[Fault]]:
    """Where a row of our own comes from. Its `prompt_id` is not among them: it is the hash of the prompt."""
    found = {name: value[name] for name in (*_TEXTS, *_FINISHES, "evidence") if value.get(name) is not None}
    faults = []
    for name in _TEXTS:
        if name in found and not (isinstance(found[name], str) and found[name].isprintable()):
            faults.append(Fault("wrong_type", name, f"is no plain text ({json_type(found[name])})", "write a text"))
    for name in _FINISHES:
        if found.get(name) == "":  # CSV has no null
            del found[name]
        elif name in found and found[name] not in ("stop", "length"):
            fix = "write stop (the model ended its turn), length (it was cut off), or null"
            faults.append(Fault("wrong_value", name, f"is {found[name]!r}", fix))
    evidence = found.get("evidence", [])
    if evidence == "":
        del found["evidence"]
    elif not (isinstance(evidence, list) and all(isinstance(e, str) and e.isprintable() for e in evidence)):
        faults.append(Fault("wrong_type", "evidence", "is no list of ids", "write a list of texts, or null"))
    return found, faults


def _number(number: Any, name: str) -> tuple[float | None, list[Fault]]:
    if isinstance(number, str):  # CSV has nothing but texts
        if not number.strip():
            return None, []
        with contextlib.suppress(ValueError):
            number = float(number)
    if number is None:
        return None, []
    if isinstance(number, bool) or not isinstance(number, int | float):
        return None, [Fault("wrong_type", name, f"is a {json_type(number)}, not a number", "write a number or null")]
    try:
        number = float(number)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        return None, [Fault("wrong_value", name, f"is {number}", "write a finite number, or null for none")]
    if name == "weight" and number < 0:
        fix = "write 0 or more; a pair that is the wrong way round has its answers swapped"
        return None, [Fault("wrong_value", name, f"is negative ({number})", fix)]
    if name == "label" and not 0 <= number <= 1:
        fix = "write the probability that the chosen answer is the better one, from 0 to 1"
        return None, [Fault("wrong_value", name, f"is {number}", fix)]
    return number, []
