"""Labelling documents by a reader: ours against one call after the other of transformers' own generation.

    python -m benchmarks.labelling --json

Each question is answered without documents and with each of four, greedily, in at most 20 tokens: five prompts, of
which the labels follow. `one_call` renders the same prompts and gives each to `model.generate` by itself, with its
cache of keys and values, as a first script does; the same weights in float32, no server on either side. Before a time
is taken both must give the same answers. Then they take turns and medians are compared.

Cases: `sandbox`, the embedded model on its library, where answers end by themselves; `passages`, a larger random model
on passages of 130 words, as long as those of DPR.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks import machine
from benchmarks.contenders import CPU_MODEL
from benchmarks.machine import Clock
from prefloop.backends.base import thaw
from prefloop.backends.hf import HfBackend
from prefloop.config import ModelSection
from prefloop.config.rag import ReaderSection
from prefloop.engine.load import quiet
from prefloop.engine.tokens import encode_prompt
from prefloop.records import RetrievedRow
from prefloop.sandbox import library
from prefloop.signals.reader import ReaderSignal, read

CPU = torch.device("cpu")
CASES = {"sandbox": 48, "passages": 16}
"""Questions of each case; five prompts each."""
SECTION = ReaderSection(template="sandbox", ranks="all", max_new_tokens=20)


class UnequalWork(Exception):
    """The two do not give the same answers, so their times say nothing."""


class Work:
    """A reader and questions with four documents each."""

    def __init__(self, case: str) -> None:
        quiet()
        rng = random.Random(0)
        make = _sandbox if case == "sandbox" else _passages
        self.backend, self.rows = make(rng, CASES[case])
        self.signal = ReaderSignal(SECTION)

    def ours(self) -> list[str]:
        """The answers, question by question; the one without documents first."""
        made = read(self.signal, self.rows, {"reader": self.backend}, "rate")
        return [r["answer"] for r in made.reads]

    def one_call(self) -> list[str]:
        """The same, one `generate` a prompt."""
        model, tokenizer = self.backend.model, self.backend.tokenizer
        answers = []
        for row in self.rows:
            for documents in ([], *([document] for document in row["documents"])):
                messages = thaw(self.signal.prompt.messages(row["query"], documents))
                ids = torch.tensor([encode_prompt(tokenizer, messages)])
                with torch.inference_mode():
                    made = model.generate(
                        ids,
                        attention_mask=torch.ones_like(ids),
                        max_new_tokens=SECTION.max_new_tokens,
                        do_sample=False,
                        eos_token_id=list(self.backend.stops),
                        pad_token_id=tokenizer.pad_token_id,
                    )
                answers.append(tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True))
        return answers


def _sandbox(rng: random.Random, count: int) -> tuple[HfBackend, list[RetrievedRow]]:
    backend = HfBackend.load(ModelSection(path="sandbox", device="cpu"))
    by_name: dict[str, list[library.Document]] = {}
    for document in library.documents():
        by_name.setdefault(document.name, []).append(document)
    rows = []
    for question in library.questions("train", count):
        name = next(n for n in by_name if n in question.text.replace("?", " ").replace(".", " ").split())
        rows.append(_row(question.id, question.text, question.answer, [d.text for d in rng.sample(by_name[name], 4)]))
    return backend, rows


def _passages(rng: random.Random, count: int) -> tuple[HfBackend, list[RetrievedRow]]:
    """Every word is a token, so that prompts have the lengths they are to have."""
    size = CPU_MODEL["vocab_size"]
    torch.manual_seed(0)
    config = LlamaConfig(**{**CPU_MODEL, "max_position_embeddings": 2048, "eos_token_id": 1, "bos_token_id": None})
    raw = Tokenizer(models.WordLevel({f"w{i}": i for i in range(size)}, unk_token="w0"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="w1", pad_token="w2")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    backend = HfBackend(LlamaForCausalLM(config).float().eval(), tokenizer, weights="random")

    def words(n: int) -> str:
        return " ".join(f"w{rng.randrange(3, size)}" for _ in range(n))

    return backend, [_row(f"q{i}", words(12), words(2), [words(130) for _ in range(4)]) for i in range(count)]


def _row(name: str, query: str, answer: str, documents: list[str]) -> RetrievedRow:
    return {
        "id": name,
        "query": query,
        "answers": [answer],
        "document_ids": [f"{name}-{i}" for i in range(len(documents))],
        "documents": documents,
        "ranks": list(range(1, len(documents) + 1)),
        "scores": [0.0] * len(documents),
    }


def check_equal(work: Work) -> None:
    """Both give the same answers.

    Raises:
        UnequalWork: they do not.
    """
    ours, theirs = work.ours(), work.one_call()
    differ = [i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a.strip() != b.strip()]
    if differ:
        first = differ[0]
        raise UnequalWork(f"{len(differ)} of {len(ours)} answers differ: {ours[first]!r} and {theirs[first]!r}")


def measure(case: str, clock: Clock = time.perf_counter, *, repeats: int, warmup: int) -> dict[str, Any]:
    """Everything about one case; `vs_one_call` is above 1 where ours is faster."""
    work = Work(case)
    check_equal(work)
    who: dict[str, Callable[[], list[str]]] = {"ours": work.ours, "one_call": work.one_call}
    seconds: dict[str, list[float]] = {name: [] for name in who}
    for turn in range(warmup + repeats):
        for name, label in who.items():
            started = clock()
            label()
            if turn >= warmup:
                seconds[name].append(clock() - started)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    documents = 4 * len(work.rows)
    return {
        "vs_one_call": median["one_call"] / median["ours"],
        "documents": documents,
        "answers": 5 * len(work.rows),
        "labellers": {
            name: {
                "seconds": median[name],
                "spread": (max(seconds[name]) - min(seconds[name])) / median[name],
                "documents_per_second": documents / median[name],
            }
            for name in who
        },
    }


def table(cases: dict[str, dict[str, Any]]) -> Table:
    """All cases, a row for each contender."""
    shown = Table(title="Labelling documents: five greedy answers of at most 20 tokens for each four documents")
    for column in ("case", "who", "seconds", "±", "documents/s", "ours is faster"):
        shown.add_column(column, justify="left" if column in ("case", "who") else "right")
    for name, found in cases.items():
        for who, one in found["labellers"].items():
            shown.add_row(
                name if who == "ours" else "",
                who,
                f"{one['seconds']:.3f}",
                f"{one['spread']:.0%}",
                f"{one['documents_per_second']:.1f}",
                "" if who == "ours" else f"{found['vs_one_call']:.2f}x",
            )
    return shown


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.labelling", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), help="some of the cases")
    parser.add_argument("--repeats", type=int, default=5, help="timed turns of each contender")
    parser.add_argument("--warmup", type=int, default=1, help="turns before them")
    parser.add_argument(
        "--shared", action="store_true", help="one thread and its CPU time: for a machine that others use as well"
    )
    given = parser.parse_args(arguments)
    if given.shared:
        torch.set_num_threads(1)
    clock = time.process_time if given.shared else time.perf_counter
    names = given.cases or list(CASES)
    found = {name: measure(name, clock, repeats=given.repeats, warmup=given.warmup) for name in names}
    Console(stderr=True).print(table(found))
    if given.json:
        facts = machine.describe(CPU, machine.matmul_peak(CPU, torch.float32, clock))
        print(json.dumps({"cases": found, "machine": facts}))


if __name__ == "__main__":
    main()
