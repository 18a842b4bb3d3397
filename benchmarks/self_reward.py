"""Self-reward's four log-probabilities of a pair: ours against four separate forward passes over full logits.

    python -m benchmarks.self_reward --json

Both score the same pairs with the same float32 weights: LL of two answers under two notes. `plain` is what one writes
first, one padded batch for each note and answer, log-softmax over all logits in float32; `published` upcasts them to
float64, as DLMA's code does, and is shown beside. Before anything is timed all must give the same scores. Then they
take turns and medians are compared; peak memory is measured in a process of its own.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks import machine
from benchmarks.contenders import CPU_MODEL
from benchmarks.machine import Clock
from prefloop.backends.base import AnswerScoreRequest, Score, freeze, thaw
from prefloop.backends.hf import HfBackend
from prefloop.engine.tokens import encode_prompt
from prefloop.records import Message

CPU = torch.device("cpu")
TOLERANCE = 1e-2
"""Nats, of a sum over some hundred tokens in float32; float64's rounding is none."""
NAMES = ("ours", "plain", "published")
NOTES = 1  # token by which the two prompts of a pair differ


class Case(NamedTuple):
    """Sizes in tokens; `batch` pairs are scored at once."""

    prompt: int
    answer: int
    batch: int = 8
    model: dict[str, Any] = CPU_MODEL

    @property
    def name(self) -> str:
        return f"{self.prompt}/{self.answer}"


CASES = [Case(100, 200), Case(800, 100)]


class UnequalWork(Exception):
    """Two contenders do not compute the same scores, so their times say nothing."""


class Work:
    """A model with pairs to score: every word is a token, so prompts and answers have the sizes that the case says."""

    def __init__(self, case: Case) -> None:
        size = case.model["vocab_size"]
        torch.manual_seed(0)
        positions = max(2048, case.prompt + case.answer)
        config = LlamaConfig(**{**case.model, "max_position_embeddings": positions})
        self.model = LlamaForCausalLM(config).float().eval()
        words = {f"w{i}": i for i in range(size)}
        raw = Tokenizer(models.WordLevel(words, unk_token="w0"))
        raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="w1", pad_token="w2")
        self.tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
        # As many answers in a pass as each of the four passes of the peer holds.
        self.backend = HfBackend(self.model, self.tokenizer, weights="random", batch_size=case.batch)
        draw = torch.Generator().manual_seed(1)

        def ids(n: int) -> list[int]:
            return torch.randint(3, size, (n,), generator=draw).tolist()

        self.requests: list[AnswerScoreRequest] = []
        for _ in range(case.batch):
            question, answers = ids(case.prompt - NOTES), [ids(case.answer) for _ in range(2)]
            for note in ids(2):
                system, user = (
                    Message(role=r, content=c) for r, c in (("system", f"w{note}"), ("user", _text(question)))
                )
                messages = freeze([system, user])
                self.requests += [AnswerScoreRequest(messages, _text(answer), tuple(answer)) for answer in answers]

    def ours(self) -> list[float]:
        """[4 * batch], in the order of the requests."""
        results = self.backend.answer(self.requests)
        return [result.total for result in results if isinstance(result, Score)]

    def plain(self) -> list[float]:
        return self._four(torch.float32)

    def published(self) -> list[float]:
        return self._four(torch.float64)

    def _four(self, dtype: torch.dtype) -> list[float]:
        """Four batches, one for each note and answer, right-padded, and all logits of all positions."""
        scores = [0.0] * len(self.requests)
        for part in range(4):
            own = range(part, len(self.requests), 4)
            prompts = [encode_prompt(self.tokenizer, thaw(self.requests[i].messages)) for i in own]
            rows = [torch.tensor([*p, *self.requests[i].token_ids]) for p, i in zip(prompts, own, strict=True)]
            ids_BT = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=2)
            mask_BT = torch.nn.utils.rnn.pad_sequence([torch.ones_like(r) for r in rows], batch_first=True)
            with torch.no_grad():
                logits_BTV = self.model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits
                logps_BTV = logits_BTV[:, :-1].to(dtype).log_softmax(-1)
                logps_BT: Tensor = logps_BTV.gather(-1, ids_BT[:, 1:, None]).squeeze(-1)
            for row, (i, prompt) in enumerate(zip(own, prompts, strict=True)):
                scores[i] = float(logps_BT[row, len(prompt) - 1 : len(rows[row]) - 1].sum())
        return scores


def _text(ids: Sequence[int]) -> str:
    return " ".join(f"w{i}" for i in ids)


def contenders(work: Work) -> dict[str, Callable[[], list[float]]]:
    return {name: getattr(work, name) for name in NAMES}


def check_equal(work: Work) -> None:
    """All scores are the first contender's but for rounding.

    Raises:
        UnequalWork: they are not.
    """
    first = torch.tensor(work.ours(), dtype=torch.float64)
    if len(first) != len(work.requests):
        raise UnequalWork("some answers were not scored")
    for name, score in contenders(work).items():
        worst = float((torch.tensor(score(), dtype=torch.float64) - first).abs().max())
        if not worst <= TOLERANCE:
            raise UnequalWork(f"a score of {name} differs by {worst:.3g} nats")


def memory(case: Case, name: str) -> int | None:
    """Bytes above the weights that scoring touches; to be called in a process of its own."""
    work = Work(case)
    gc.collect()
    with machine.PeakMemory(CPU) as peak:
        contenders(work)[name]()
    return peak.bytes


def _memory_elsewhere(case: Case, name: str) -> int | None:
    command = [sys.executable, "-m", "benchmarks.self_reward", "--memory-of", name, "--cases", case.name]
    command += ["--shared"] if torch.get_num_threads() == 1 else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    found: int | None = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(
    case: Case, clock: Clock = time.perf_counter, *, repeats: int, warmup: int, with_memory: bool = True
) -> dict[str, Any]:
    """Everything about one case; ratios above 1 where we are faster, memory as a fraction of the peer's."""
    used = {name: _memory_elsewhere(case, name) if with_memory else None for name in NAMES}
    work = Work(case)
    check_equal(work)
    seconds: dict[str, list[float]] = {name: [] for name in NAMES}
    for turn in range(warmup + repeats):
        for name, score in contenders(work).items():
            started = clock()
            score()
            if turn >= warmup:
                seconds[name].append(clock() - started)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    found: dict[str, Any] = {}
    for peer in NAMES[1:]:
        found[f"vs_{peer}"] = median[peer] / median["ours"]
        own, other = used["ours"], used[peer]
        if own is not None and other is not None:
            found[f"memory_vs_{peer}"] = own / other
    found["scorers"] = {
        name: {
            "seconds": median[name],
            "spread": (max(seconds[name]) - min(seconds[name])) / median[name],
            "pairs_per_second": case.batch / median[name],
            "memory_bytes": used[name],
        }
        for name in NAMES
    }
    return found


def table(cases: dict[str, dict[str, Any]]) -> Table:
    """All cases, a row for each contender."""
    shown = Table(title="Self-reward of pairs: four log-probabilities each (prompt/answer tokens)")
    for column in ("case", "who", "seconds", "±", "pairs/s", "memory", "ours is faster", "our memory"):
        shown.add_column(column, justify="left" if column in ("case", "who") else "right")
    for name, found in cases.items():
        for who, one in found["scorers"].items():
            bytes_ = one["memory_bytes"]
            shown.add_row(
                name if who == "ours" else "",
                who,
                f"{one['seconds']:.3f}",
                f"{one['spread']:.0%}",
                f"{one['pairs_per_second']:.1f}",
                "" if bytes_ is None else f"{bytes_ / 2**20:,.0f} MiB",
                "" if who == "ours" else f"{found[f'vs_{who}']:.2f}x",
                f"{found[f'memory_vs_{who}']:.2f}" if f"memory_vs_{who}" in found else "",
            )
    return shown


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.self_reward", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.add_argument("--cases", nargs="+", metavar="P/A", help="some of " + ", ".join(c.name for c in CASES))
    parser.add_argument("--repeats", type=int, default=7, help="timed turns of each contender")
    parser.add_argument("--warmup", type=int, default=1, help="turns before them")
    parser.add_argument(
        "--shared", action="store_true", help="one thread and its CPU time: for a machine that others use as well"
    )
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.shared:
        torch.set_num_threads(1)
    cases = [case for case in CASES if not given.cases or case.name in given.cases]
    if not cases:
        parser.error(f"no such case; there are {', '.join(c.name for c in CASES)}")
    if given.memory_of:
        print(json.dumps(memory(cases[0], given.memory_of)))
        return
    clock = time.process_time if given.shared else time.perf_counter
    found = {case.name: measure(case, clock, repeats=given.repeats, warmup=given.warmup) for case in cases}
    Console(stderr=True).print(table(found))
    if given.json:
        facts = machine.describe(CPU, machine.matmul_peak(CPU, torch.float32, clock))
        print(json.dumps({"cases": found, "machine": facts}))


if __name__ == "__main__":
    main()
