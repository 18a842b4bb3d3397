"""Does the time for a passage stay the same when a collection grows, and does memory stay in proportion?

    python -m benchmarks.source_bias --json

Made-up passages in two versions lie in a folder of BEIR's layout and go through the protocol of source bias with BM25:
read, searched together and each source alone, pairs scored, texts compared. 80 queries at every size, and so few
resamples that bootstraps, whose time depends on queries alone, hide nothing. Each size in a process of its own.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import machine
from prefloop.config import RetrieverSection
from prefloop.evaluate.source_protocol import Measured, measure_sources
from prefloop.evaluate.source_task import Settings
from prefloop.retrieve.corpus import read_collection
from prefloop.retrieve.retriever import open_retriever

SIZES = {800: 5, 8_000: 3, 80_000: 1}  # passages: processes, of whose figures the medians are shown
QUERIES, RELEVANT, WORDS, RESAMPLES = 80, 4, 20_000, 100


def write_collection(folder: Path, passages: int, queries: int = QUERIES) -> None:
    """Passages of 40 to 120 words whose frequencies fall as 1 / rank, as in real text; a tenth of them is reworded."""
    draw = random.Random(0)
    words = [f"w{i}" for i in range(WORDS)]
    weights = list(itertools.accumulate(1 / (i + 1) for i in range(WORDS)))
    (folder / "corpus").mkdir(parents=True)
    (folder / "qrels").mkdir()
    kept: dict[int, list[str]] = {}
    with (
        (folder / "corpus" / "human.jsonl").open("w") as human,
        (folder / "corpus" / "other.jsonl").open("w") as other,
    ):
        for i in range(passages):
            text = draw.choices(words, cum_weights=weights, k=draw.randint(40, 120))
            changed = [draw.choice(words) if draw.random() < 0.1 else word for word in text]
            human.write(json.dumps({"_id": f"d{i}", "text": " ".join(text)}) + "\n")
            other.write(json.dumps({"_id": f"d{i}", "text": " ".join(changed)}) + "\n")
            if i < queries:
                kept[i] = text
    with (folder / "queries.jsonl").open("w") as asked, (folder / "qrels" / "test.tsv").open("w") as judged:
        judged.write("query-id\tcorpus-id\tscore\n")
        for i in range(queries):
            asked.write(json.dumps({"_id": f"q{i}", "text": " ".join(draw.sample(kept[i], 8))}) + "\n")
            judged.writelines(f"q{i}\td{(i + j) % passages}\t{2 if j == 0 else 1}\n" for j in range(RELEVANT))


def evaluate(folder: Path) -> Measured:
    """The whole protocol on a folder."""
    found = read_collection(folder, judged=True)
    retriever = open_retriever(RetrieverSection(path="bm25"))
    settings = Settings(resamples=RESAMPLES)
    return measure_sources(found.passages, found.queries, found.qrels, {"bm25": retriever}, settings)


def measure(passages: int, clock: machine.Clock = time.perf_counter) -> dict[str, Any]:
    """Microseconds a passage (of each of the two versions together), and the memory above the start's."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_collection(folder / "warm", 100)
        evaluate(folder / "warm")  # imports
        write_collection(folder / "sized", passages)
        gc.collect()
        started = clock()
        with machine.PeakMemory(torch.device("cpu")) as peak:
            found = evaluate(folder / "sized")
        seconds = clock() - started
    entry = found.retrievers["bm25"]
    if entry["queries"] != QUERIES or entry["ndcg@10"]["all"] < 0.1:
        raise RuntimeError(f"the made-up collection of {passages} passages is not searched as it should be: {entry}")
    return {"seconds": seconds, "us_per_passage": 1e6 * seconds / passages, "memory_bytes": peak.bytes}


def with_growth(cases: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Add how time and memory for a passage compare with the next smaller size; linear growth is 1, less is below."""
    for smaller, larger in itertools.pairwise(sorted(cases, key=int)):
        one, other = cases[smaller], cases[larger]
        other["time_per_passage_vs_smaller"] = other["us_per_passage"] / one["us_per_passage"]
        if one["memory_bytes"] and other["memory_bytes"]:
            ratio = other["memory_bytes"] / one["memory_bytes"]
            other["memory_per_passage_vs_smaller"] = ratio * int(smaller) / int(larger)
    return cases


def _medians(passages: int, shared: bool) -> dict[str, Any]:
    found = [_elsewhere(passages, shared) for _ in range(SIZES[passages])]
    return {name: None if found[0][name] is None else statistics.median(f[name] for f in found) for name in found[0]}


def _elsewhere(passages: int, shared: bool) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.source_bias", "--size", str(passages)]
    done = subprocess.run([*command, *(["--shared"] if shared else [])], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(cases: dict[str, dict[str, Any]]) -> Table:
    """All sizes, a row each."""
    shown = Table(title="Source bias with BM25: two versions of each passage, 80 queries")
    for column in ("passages", "seconds", "µs a passage", "against the smaller size", "memory"):
        shown.add_column(column, justify="right")
    for size, found in cases.items():
        ratio, memory = found.get("time_per_passage_vs_smaller"), found["memory_bytes"]
        shown.add_row(
            f"{int(size):,}",
            f"{found['seconds']:.2f}",
            f"{found['us_per_passage']:.0f}",
            "" if ratio is None else f"{ratio:.2f}",
            "" if memory is None else f"{memory / 2**20:,.0f} MiB",
        )
    return shown


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.source_bias", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.add_argument("--shared", action="store_true", help="CPU time: for a machine that others use as well")
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.size:
        print(json.dumps(measure(given.size, time.process_time if given.shared else time.perf_counter)))
        return
    cases = with_growth({str(size): _medians(size, given.shared) for size in SIZES})
    Console(stderr=True).print(table(cases))
    if given.json:
        print(json.dumps({"cases": cases}))


if __name__ == "__main__":
    main()
