"""The pairs of a run as a data set folder that others load and train on as it is.

    README.md                the card
    data/SPLIT.parquet       TRL's columns; `datasets.load_dataset(FOLDER)` reads these
    SPLIT.jsonl              the same rows, for people and other tools; `preferences: {path: train.jsonl}` reads them
    llamafactory/SPLIT.jsonl the same pairs as LLaMA-Factory's ranking data, described in dataset_info.json
    export.json              counts

The same run gives the same bytes.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

from prefloop.errors import UsageError
from prefloop.publish import facts as of_run
from prefloop.publish.data_card import data_card
from prefloop.records import arrow_schema, extras
from prefloop.store import atomic

COUNTS = "export.json"
"""Also the mark of an exported folder: another folder is never replaced."""

COLUMNS = (
    *("id", "prompt_id", "prompt", "chosen", "rejected", "score_chosen", "score_rejected"),
    *("weight", "margin", "label", "source", "strategy", "chosen_id", "rejected_id"),
    *("chosen_finish", "rejected_finish", "document", "query"),
)
"""Columns of the record of a pair; `evidence` is left behind, as it points into the run."""

# A column that is null throughout is left out: TRL would take a `margin` of nothing for a margin.
OPTIONAL = (
    *("score_chosen", "score_rejected", "weight", "margin", "label", "chosen_finish", "rejected_finish"),
    *("document", "query"),  # which rows of other strategies have not even as nulls
)
SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt"}
_BATCH = 1024


def export_pairs(run_dir: Path, out: Path, licence: str | None = None, branch: str | None = None) -> dict[str, Any]:
    """Write a run's pairs as a data set folder.

    Args:
        run_dir: a run directory, at least up to its pairs.
        out: the folder; put in place whole. An earlier export there is replaced.
        licence: for the card, as the hub writes licences (`cc-by-4.0`); it is never guessed.
        branch: whose pairs, of a recipe with branches, as two of them may say opposite things of the same answers;
            without it those that the run's model was trained on.

    Returns:
        What `export.json` holds: pairs by split and round, columns, means, and what was left out.

    Raises:
        UsageError: there are no pairs, or the folder holds something else.
    """
    facts = of_run.read(run_dir)
    branch = of_run.check_branch(facts, branch)
    check_target(out)
    found = _survey(of_run.pairs(facts, branch))
    if not found["pairs"]:
        others = ", ".join(f"{n:,} {what}" for what, n in found["left_out"].items()) or "no rows"
        fix = "export a run with chosen and rejected answers in plain text"
        raise UsageError(f"the run has no pairs to export, but {others}", where=str(run_dir), fix=fix)
    counts = {"name": slug(f"{facts.name}-{branch}" if branch else facts.name), "branch": branch, **found}
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic.directory(out) as folder:
        counts["bytes"] = _write_rows(folder, facts, counts)
        atomic.write_json(
            folder / "dataset_info.json",
            llamafactory_info(counts["name"], counts["splits"], weighted="weight" in counts["columns"]),
        )
        atomic.write_json(folder / COUNTS, counts)
        atomic.write_text(folder / "README.md", data_card(facts, counts, licence))
    return counts


def check_target(out: Path) -> None:
    """Refuse to replace a folder that no export made.

    Raises:
        UsageError: there is such a folder, or a file.
    """
    if out.is_dir() and (not any(out.iterdir()) or (out / COUNTS).is_file()):
        return
    if out.exists():
        raise UsageError(
            "is there already, and no export of prefloop's", where=str(out), fix="give a new folder with --out"
        )


def slug(name: str) -> str:
    """A name that every tool takes: letters, digits, `_`, `-` and `.`."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "pairs"


def _survey(rows: Iterable[tuple[str, int, Mapping[str, Any]]]) -> dict[str, Any]:
    """Counts and means of all pairs, and which columns say something."""
    splits: Counter[str] = Counter()
    rounds: defaultdict[int, Counter[str]] = defaultdict(Counter)
    left_out: Counter[str] = Counter()
    prompts: set[str] = set()
    said: set[str] = set()
    chars: Counter[str] = Counter()
    longer = unequal = 0
    for split, round_number, row in rows:
        if (reason := unfit(row)) is not None:
            left_out[reason] += 1
            continue
        splits[split] += 1
        rounds[round_number][split] += 1
        prompts.add(row["prompt_id"])
        said |= {name for name in OPTIONAL if row.get(name) is not None}
        better, worse = (sum(len(turn["content"]) for turn in row[side]) for side in ("chosen", "rejected"))
        chars.update(chosen=better, rejected=worse)
        unequal += better != worse
        longer += better > worse
    n = splits.total()
    return {
        "pairs": n,
        "prompts": len(prompts),
        "splits": _by_split(splits),
        "rounds": {str(number): _by_split(found) for number, found in sorted(rounds.items())},
        "columns": [name for name in COLUMNS if name in said or name not in OPTIONAL],
        "left_out": dict(left_out),
        "mean_chars_chosen": chars["chosen"] / n if n else None,
        "mean_chars_rejected": chars["rejected"] / n if n else None,
        "unequal_lengths": unequal,
        "chosen_longer": longer / unequal if unequal else None,
    }


def _by_split(counts: Counter[str]) -> dict[str, int]:
    return {name: counts[name] for name in ("train", "test") if counts[name]}


def unfit(row: Mapping[str, Any]) -> str | None:
    """Why a row is left out: TRL and LLaMA-Factory take pairs, and each writes tools in its own way."""
    if not row["chosen"] or not row["rejected"]:
        return "answers that stand alone"
    turns = [*row["prompt"], *row["chosen"], *row["rejected"]]
    if any(turn["role"] not in SPEAKERS or extras(turn) for turn in turns):
        return "pairs with tools"
    return None


def data_file(split: str, round_number: int | str, rounds: int) -> str:
    """Name of the Parquet file of a split; with several rounds each has its own."""
    return f"data/{split}.parquet" if rounds == 1 else f"data/{split}-round-{round_number}.parquet"


def _write_rows(folder: Path, facts: of_run.Facts, counts: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Write all files of rows; returns round -> split -> bytes of its rows in Arrow, as `datasets` counts."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    full = arrow_schema("preference")
    # Without the keys that ordinary turns have not: templates would meet them as nulls.
    messages = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    types = dict.fromkeys(("prompt", "chosen", "rejected"), messages)
    schema = pa.schema([(name, types.get(name, full.field(name).type)) for name in counts["columns"]])
    (folder / "data").mkdir()
    (folder / "llamafactory").mkdir()
    sizes: dict[str, dict[str, int]] = {number: dict.fromkeys(found, 0) for number, found in counts["rounds"].items()}
    with ExitStack() as stack:
        writers: dict[str, Any] = {}
        texts = {
            split: [
                stack.enter_context((folder / name / f"{split}.jsonl").open("w", encoding="utf-8"))
                for name in ("", "llamafactory")
            ]
            for split in counts["splits"]
        }
        rows = _rows(facts, counts["branch"], counts["columns"])
        while part := list(islice(rows, _BATCH)):
            by_place: defaultdict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
            for split, round_number, row in part:
                by_place[split, str(round_number)].append(row)
                for stream, value in zip(texts[split], (row, as_sharegpt(row)), strict=True):
                    stream.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")
            for (split, number), batch in by_place.items():
                name = data_file(split, number, len(counts["rounds"]))
                if name not in writers:
                    writers[name] = stack.enter_context(pq.ParquetWriter(folder / name, schema, compression="zstd"))
                table = pa.Table.from_pylist(batch, schema=schema)
                sizes[number][split] += table.nbytes
                writers[name].write_table(table)
    return sizes


def _rows(facts: of_run.Facts, branch: str, columns: Iterable[str]) -> Iterator[tuple[str, int, dict[str, Any]]]:
    for split, round_number, row in of_run.pairs(facts, branch):
        if unfit(row) is None:
            yield split, round_number, {name: row.get(name) for name in columns}


def as_sharegpt(row: Mapping[str, Any]) -> dict[str, Any]:
    """A pair as LLaMA-Factory's ranking data: the prompt's turns, one turn of `gpt` for each answer, its weight."""

    def turn(message: Mapping[str, str]) -> dict[str, str]:
        return {"from": SPEAKERS[message["role"]], "value": message["content"]}

    return {
        "conversations": [turn(message) for message in row["prompt"]],
        "chosen": turn(row["chosen"][0]),
        "rejected": turn(row["rejected"][0]),
        **({"weight": row["weight"]} if row.get("weight") is not None else {}),
    }


def llamafactory_info(name: str, splits: Iterable[str], *, weighted: bool = False) -> dict[str, Any]:
    """`dataset_info.json`: the splits under the names that a training of LLaMA-Factory's asks for.

    No tags are given: the speakers are those that LLaMA-Factory takes where nothing else is said, and a list of some
    tags would unset the others. Weights are named where there are any; LLaMA-Factory itself leaves them unread, forks
    of it that weigh pairs (LLM-SBM's) read them.
    """
    columns = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}
    columns |= {"weight": "weight"} if weighted else {}
    return {
        name if split == "train" else f"{name}-{split}": {
            "file_name": f"llamafactory/{split}.jsonl",
            "formatting": "sharegpt",
            "ranking": True,
            "columns": columns,
        }
        for split in splits
    }
