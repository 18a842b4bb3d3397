"""Does the time for a pair stay the same when the data set grows, and does memory stay bounded?

    python -m benchmarks.rows --json

Short made-up rows lie in a Parquet file and go through `train.run.train` as in a run: streamed, tokenised into a
mapped file, scored by the reference, trained on. Each size in a process of its own. The model is tiny on purpose: what
is measured is everything around it.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import machine
from prefloop.config import LoraSection, ModelSection, TrainSection
from prefloop.records import PreferenceRow, arrow_schema, content_id, prompt_id
from prefloop.store.cache import Cache
from prefloop.store.rows import read_rows, to_table
from prefloop.train.run import Source, train

SIZES = {1_000: 7, 10_000: 3, 100_000: 1}  # rows: processes, of whose figures the medians are shown
BATCH, STEPS, SKIPPED = 16, 60, 4  # pairs in a step; steps in a training; first ones that are not timed
WORDS = [f"w{i}" for i in range(400)]
TEMPLATE = "{% for m in messages %}<{{ m.role }}> {{ m.content }} <end> {% endfor %}<assistant>"


def rows(count: int) -> Iterator[PreferenceRow]:
    """Made-up pairs: prompts of 8 to 24 words, answers of 4 to 12."""
    draw = random.Random(0)

    def text(low: int, high: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(low, high)))

    for i in range(count):
        prompt = [{"role": "user", "content": text(8, 24)}]
        yield {
            "id": content_id("row", i),
            "prompt_id": prompt_id(prompt),
            "prompt": prompt,
            "chosen": [{"role": "assistant", "content": text(4, 12)}],
            "rejected": [{"role": "assistant", "content": text(4, 12)}],
            "score_chosen": None,
            "score_rejected": None,
            "weight": None,
            "margin": None,
            "label": None,
            "source": "made up",
            "strategy": "none",
            "chosen_id": f"c{i}",
            "rejected_id": f"r{i}",
            "chosen_finish": "stop",
            "rejected_finish": "stop",
            "evidence": [],
        }


def write_rows(path: Path, count: int) -> None:
    """The rows as a Parquet file, a part at a time."""
    import pyarrow.parquet as pq

    with pq.ParquetWriter(path, arrow_schema("preference")) as writer:
        made = rows(count)
        while part := list(islice(made, 1024)):
            writer.write_table(to_table("preference", part, where=path.name))


def write_model(folder: Path) -> None:
    """A random Llama of two layers with a tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<pad>", "<eos>", "<unk>", "<user>", "<assistant>", "<end>"]
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*special, *WORDS])}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=special[3:],
        chat_template=TEMPLATE,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=128,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=None,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def measure(count: int, clock: machine.Clock = time.perf_counter, *, steps: int = STEPS) -> dict[str, Any]:
    """One training on `count` rows: microseconds of each phase per pair, and the memory above the start's."""
    marks: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name, Cache(Path(name) / "cache.db") as cache:
        folder = Path(name)
        write_model(folder / "model")
        write_rows(folder / "rows.parquet", count)
        section = TrainSection(
            lora=LoraSection(r=4, alpha=8),
            batch_size=BATCH,
            epochs=min(1.0, steps * BATCH / count),
            save_steps=10**9,
            logging_steps=10,
        )

        def on_reference(done: int, total: int) -> None:
            marks.setdefault("first_reference", clock())
            marks.update(first_done=marks.get("first_done", done), last_reference=clock(), references=done)

        def on_step(done: int, total: int) -> None:
            if done == SKIPPED:
                marks["first_step"] = clock()
            marks.update(last_step=clock(), steps=done)

        gc.collect()
        started = clock()
        with machine.PeakMemory(torch.device("cpu")) as peak:
            result = train(
                ModelSection(path=str(folder / "model"), device="cpu", dtype="float32"),
                Source(lambda: read_rows([folder / "rows.parquet"]), digest=str(count)),  # type: ignore[arg-type, return-value]
                section,
                seed=0,
                out=folder / "out",
                cache=cache,
                on_step=on_step,
                on_reference=on_reference,
            )
        assert result["pairs"] == count
    scored = (marks["references"] - marks["first_done"]) / 2  # two responses to a pair
    trained = (marks["steps"] - SKIPPED) * BATCH
    return {
        "prepare_us": 1e6 * (marks["first_reference"] - started) / count,
        "reference_us": 1e6 * (marks["last_reference"] - marks["first_reference"]) / max(scored, 1),
        "step_us": 1e6 * (marks["last_step"] - marks["first_step"]) / trained,
        "memory_bytes": peak.bytes,
    }


def _medians(count: int, shared: bool) -> dict[str, Any]:
    """A thousand rows take a second, in which a machine may do anything: so the small sizes are measured often."""
    found = [_elsewhere(count, shared) for _ in range(SIZES[count])]
    return {name: None if found[0][name] is None else statistics.median(f[name] for f in found) for name in found[0]}


def _elsewhere(count: int, shared: bool) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.rows", "--size", str(count), *(["--shared"] if shared else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rows", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.add_argument("--shared", action="store_true", help="one thread and its CPU time, as in benchmarks.dpo")
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", category=FutureWarning)
    torch.set_num_threads(1 if given.shared else machine.cores())
    if given.size:
        print(json.dumps(measure(given.size, time.process_time if given.shared else time.perf_counter)))
        return
    found = {str(count): _medians(count, given.shared) for count in SIZES}
    smallest = found[str(min(SIZES))]
    shown = Table(title="Microseconds for a pair, and how that compares with the smallest size")
    for column in ("rows", "prepare", "reference", "step", "memory"):
        shown.add_column(column, justify="right")
    for count, values in found.items():
        values["ratios"] = {k: values[k] / smallest[k] for k in smallest if k != "ratios" and smallest[k]}
        cells = [f"{values[k]:,.0f} ({values['ratios'][k]:.2f})" for k in ("prepare_us", "reference_us", "step_us")]
        memory = values["memory_bytes"]
        shown.add_row(f"{int(count):,}", *cells, "" if memory is None else f"{memory / 2**20:,.0f} MiB")
    Console(width=None if sys.stdout.isatty() else 120).print(shown)
    if given.json:
        print(json.dumps({"rows": found}))


if __name__ == "__main__":
    main()
