"""A sheet of pairs for people to vote on, and the way back.

The sheet is a CSV that a spreadsheet opens: an id, the prompt, two answers in random seats, an empty column for the
vote (a, b or tie) and one for comments. Beside it lies a key with the very texts and the seats. Filled sheets are
joined to the key by id, so it does no harm that a spreadsheet trims or reflows texts; seats are undone, and what comes
out are votes that `preferences:` and the signal `human` read.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from prefloop.errors import UsageError
from prefloop.evaluate.sheet import csv_text
from prefloop.inputs.preferences import read_votes
from prefloop.inputs.problems import Problem, nearest
from prefloop.inputs.readers import Record, Stats, read_records
from prefloop.publish import facts as of_run
from prefloop.publish.dataset import unfit
from prefloop.records import Message, content_id
from prefloop.store import atomic

COLUMNS = ("id", "prompt", "answer_a", "answer_b", "vote", "voter", "comment")

_WORKBOOKS = (".xlsx", ".xls", ".ods", ".numbers")


def key_path(sheet: Path) -> Path:
    """Where the key of a sheet lies."""
    return sheet.with_suffix(".key.jsonl")


def export_sheet(
    run_dir: Path, out: Path, *, limit: int | None = None, seed: int = 0, branch: str | None = None
) -> dict[str, Any]:
    """Write a sheet of a run's pairs, and its key beside it.

    Order and seats depend on the pairs and the seed alone; nothing in the sheet tells chosen from rejected.

    Args:
        out: a .csv file.
        limit: that many pairs, drawn at random.
        branch: whose pairs, of a recipe with branches; without it those that the run's model was trained on.

    Returns:
        {"pairs", "sheet", "key"}.

    Raises:
        UsageError: the run has no pairs, or the file is there already: votes are not overwritten.
    """
    if out.suffix.lower() != ".csv":
        raise UsageError("the sheet is a CSV", where=str(out), fix="name it *.csv")
    for path in (out, key_path(out)):
        if path.exists():
            raise UsageError("is there already, perhaps with votes in it", where=str(path), fix="give another name")
    facts = of_run.read(run_dir)
    pairs = of_run.pairs(facts, of_run.check_branch(facts, branch))
    rows = [row for _, _, row in pairs if unfit(row) is None]
    if not rows:
        raise UsageError(
            "the run has no pairs", where=str(run_dir), fix="vote on a run with chosen and rejected answers"
        )
    rows.sort(key=lambda row: (content_id("sheet", seed, row["id"]), row["id"]))
    table, keys = [], []
    for row in islice(rows, limit):
        answers = [row["chosen"][0]["content"], row["rejected"][0]["content"]]
        # One generator a row: a pair has its seats whatever else is in the sheet.
        if random.Random(content_id("seats", seed, row["id"])).random() < 0.5:
            answers.reverse()
        key = {"id": content_id("ballot", row["id"]), "prompt": row["prompt"], "answers": answers}
        keys.append(json.dumps(key, ensure_ascii=False) + "\n")
        # A text that a spreadsheet would run as a formula is changed there; the key has the text itself.
        table.append((key["id"], shown(row["prompt"]), *answers, "", "", ""))
    out.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_text(key_path(out), "".join(keys))
    # With the mark that makes spreadsheets read UTF-8.
    atomic.write_text(out, "\ufeff" + csv_text(COLUMNS, table))
    n = len(rows) if limit is None else min(limit, len(rows))
    return {"pairs": n, "sheet": str(out), "key": str(key_path(out))}


def shown(prompt: Sequence[Message]) -> str:
    """A prompt as people read it: the text of a single question, or turns with their speakers."""
    if len(prompt) == 1:
        return prompt[0]["content"]
    return "\n\n".join(f"{message['role'].upper()}: {message['content']}" for message in prompt)


def import_sheets(key: Path, sheets: Sequence[Path], out: Path) -> dict[str, Any]:
    """Join filled sheets to their key and write the votes, seats undone.

    A sheet without names in its column `voter` is one person's, and its file name is the name. Rows without a vote
    are left out and counted, and so are second votes of one voter on one pair: the first counts.

    Args:
        key: what `export_sheet` wrote beside the sheet.
        sheets: one or several filled copies.
        out: a .jsonl file of votes.

    Returns:
        {"votes", "blank", "repeated" (second votes), "first_seat" (share of the decided votes for the answer in seat
        a; None without any), "agreement" (`inputs.votes.Tally.agreement`), "out"}.

    Raises:
        UsageError: a file is not what it should be, a column is missing, an id is not in the key, a vote is none of a,
            b and tie, or nobody voted.
    """
    pairs = _read_key(key)
    lines: list[str] = []
    counts: Counter[str] = Counter()
    seen: set[tuple[str, str]] = set()
    for sheet in sheets:
        for number, row in enumerate(_records(sheet), start=1):
            if number == 1:
                _check_columns(sheet, row)
            where = f"{sheet}, row {number}"
            vote = str(row.get("vote") or "").strip().lower()
            if not vote:
                counts["blank"] += 1
                continue
            if vote not in ("a", "b", "tie"):
                raise UsageError(
                    f"the vote is {row['vote']!r}", where=where, fix="write a, b or tie, or leave it empty"
                )
            pair = pairs.get(str(row.get("id") or "").strip())
            if pair is None:
                what = f"the id {row.get('id')!r} is not in {key.name}"
                raise UsageError(what, where=where, fix="give the key that was written with this sheet")
            voter = (row.get("voter") or "").strip() or sheet.stem
            if (voter, pair["id"]) in seen:
                counts["repeated"] += 1
                continue
            seen.add((voter, pair["id"]))
            counts[vote] += 1
            lines.append(json.dumps(_unseated(pair, vote, voter), ensure_ascii=False))
    if not lines:
        raise UsageError("nobody voted", where=str(sheets[0]), fix="write a, b or tie into the column vote")
    out.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_text(out, "\n".join(lines) + "\n")
    decided = counts["a"] + counts["b"]
    return {
        "votes": len(lines),
        "blank": counts["blank"],
        "repeated": counts["repeated"],
        "first_seat": counts["a"] / decided if decided else None,
        "agreement": read_votes(str(out)).agreement(),
        "out": str(out),
    }


_FIX = "give the key first, then the filled sheets: prefloop votes import SHEET.key.jsonl SHEET.csv --out VOTES.jsonl"


def _read_key(path: Path) -> dict[str, dict[str, Any]]:
    found = {}
    for record in _records(path):
        if not {"id", "prompt", "answers"} <= record.keys():
            what = "is a sheet, not its key" if "vote" in record else "is no key of a sheet"
            raise UsageError(what, where=str(path), fix=_FIX)
        found[record["id"]] = record
    return found


def _check_columns(sheet: Path, row: Mapping[str, Any]) -> None:
    if "answers" in row:
        raise UsageError("is a key, not a filled sheet", where=str(sheet), fix=_FIX)
    for name in ("id", "vote"):
        if name not in row:
            meant = nearest(name, [column for column in row if column not in COLUMNS])
            fix = f"rename {meant!r} to {name!r}" if meant else f"keep the header as exported: {', '.join(COLUMNS)}"
            raise UsageError(f"has no column {name!r}; its columns: {', '.join(row)}", where=str(sheet), fix=fix)


def _unseated(pair: dict[str, Any], vote: str, voter: str) -> dict[str, Any]:
    """A vote with its answers in the order of their texts, so that seats say nothing any more."""
    answers = pair["answers"]
    turned = answers[0] > answers[1]
    first, second = reversed(answers) if turned else answers
    return {
        "id": pair["id"],
        "prompt": pair["prompt"],
        "answer_a": first,
        "answer_b": second,
        "vote": {"a": "b", "b": "a"}.get(vote, vote) if turned else vote,
        "voter": voter,
    }


def _records(path: Path) -> Iterator[dict[str, Any]]:
    if path.suffix.lower() in _WORKBOOKS:
        raise UsageError("is a spreadsheet's own format", where=str(path), fix="save it as CSV (UTF-8)")
    container = "jsonl" if path.suffix == ".jsonl" else "csv"
    for item in read_records(str(path), container, Stats()):
        if isinstance(item, Problem):
            raise UsageError(item.reason, where=item.where, fix=item.fix)
        assert isinstance(item, Record)
        yield item.value
