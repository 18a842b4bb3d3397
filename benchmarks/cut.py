"""One optimiser step of CUT: ours against the way of its published code, two stacked contexts and a whole softmax.

    python -m benchmarks.cut --json

`stacked` takes every row twice, behind the judged and behind the plain prompt, padded to one length; the second
context of a satisfactory row is padding and masked out, as published. All positions' logits become float32, and a
softmax over the vocabulary gives the tokens' probabilities. Both start from the same weights and take the same ids;
before anything is timed they must give the same loss, flags and gradients. Then they take turns, a step each, and
medians are compared; peak memory is measured in a process of its own.
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
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

from benchmarks import contenders, machine
from benchmarks.contenders import CPU, Contender
from benchmarks.dpo import MEMORY_STEPS, UnequalWork, alternate
from benchmarks.machine import Clock
from prefloop.config import CutObjectiveSection
from prefloop.engine.logprob import attach_scorer
from prefloop.engine.sharing import check_sharing
from prefloop.train import adapters
from prefloop.train.batches import Collator
from prefloop.train.encode import Example
from prefloop.train.meter import Meter
from prefloop.train.precision import Precision
from prefloop.train.rhythm import Plan, Rhythm
from prefloop.train.shift import RewardShift
from prefloop.train.steps import Cut, Micro, StepSampler
from prefloop.train.trainer import PreferenceTrainer

SPREAD = 3.0  # weights are as much larger than a fresh model's: a token's context then changes its probability
OBJECTIVE = CutObjectiveSection(threshold=1.1, unlike_weight=1.0, normalize="token")
LOSS, GRADIENT = 1e-5, 1e-4
"""How far the loss may lie apart, relative, and a parameter's gradient, relative to its norm."""
NAMES = ("ours", "stacked")


@dataclass(frozen=True)
class Case:
    """What one step is made of.

    Attributes:
        prompt, judgment, answer: tokens of a prompt, of what a judgment adds to it, and of an answer. In CUT's online
            rounds an instruction in Alpaca's form, a judgment and a criticised answer have about as many.
        batch, satisfactory: rows, and how many of them nothing is wrong with.
        lora: adapters on a frozen base, as published, instead of training all weights.
    """

    prompt: int = 64
    judgment: int = 80
    answer: int = 160
    batch: int = 5
    satisfactory: int = 1
    lora: bool = True
    device: ClassVar[torch.device] = CPU
    model: dict[str, Any] = field(default_factory=lambda: contenders.CPU_MODEL)

    @property
    def name(self) -> str:
        """Such as 64+80/160, with -full where all weights are trained."""
        return f"{self.prompt}+{self.judgment}/{self.answer}" + ("" if self.lora else "-full")

    def examples(self) -> list[Example]:
        """Random ids; the satisfactory rows first."""
        draw = random.Random(0)

        def ids(n: int) -> tuple[int, ...]:
            return tuple(draw.randrange(1, self.model["vocab_size"]) for _ in range(n))

        found = []
        for row in range(self.batch):
            prompt, answer, judgment = ids(self.prompt), ids(self.answer), ids(self.judgment)
            judged = () if row < self.satisfactory else (*prompt, *judgment)
            found.append(Example(id=str(row), prompt_ids=prompt, responses=(answer,), judged_ids=judged))
        return found

    def base(self) -> nn.Module:
        """The model both start from, sharp enough that some tokens are flagged and some not."""
        torch.manual_seed(0)
        longest = self.prompt + self.judgment + self.answer
        config = LlamaConfig(**self.model, max_position_embeddings=longest, pad_token_id=0, bos_token_id=1)
        model: Any = LlamaForCausalLM(config)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.dim() > 1:
                    weight.mul_(SPREAD)
        model.config._attn_implementation = "sdpa"
        model.requires_grad_(not self.lora)
        return model  # type: ignore[no-any-return]

    def start(self, base: nn.Module) -> Any:
        """A copy of the base to train; adapters begin with an effect, so that all of their gradients are checked."""
        model: Any = contenders._copy(base)
        if self.lora:
            torch.manual_seed(0)
            model = adapters.add_lora(model, contenders.LORA)
            with torch.no_grad():
                for name, weight in model.named_parameters():
                    if "lora_B" in name:
                        weight.normal_(std=0.01)
        return model


class Ours(Contender):
    """`PreferenceTrainer`'s own step."""

    name = "ours"

    def __init__(self, case: Case, base: nn.Module) -> None:
        self.model = model = attach_scorer(case.start(base))
        sharing = check_sharing(model)
        examples = case.examples()
        sampler = StepSampler(np.array([e.tokens for e in examples]), case.batch, Cut(case.batch), seed=0)
        collate = Collator(0, sharing)
        self._folder = tempfile.TemporaryDirectory()
        meter, shift = Meter(), RewardShift()
        plan = Plan(1, 1, 0, log=1, save=1, validate=False)
        self._rhythm = Rhythm(plan, meter, sampler, Path(self._folder.name), "", lambda done, total: None, shift)
        self.trainer = PreferenceTrainer(
            model,
            contenders._arguments(TrainingArguments, self._folder.name, case),  # type: ignore[arg-type]
            examples,  # type: ignore[arg-type]
            [],  # type: ignore[arg-type]
            OBJECTIVE,
            collate=collate,
            precision=Precision(CPU, torch.float32),
            sampler=sampler,
            meter=meter,
            rhythm=self._rhythm,
            shift=shift,
            check_start=False,
            apart=False,
            on_log=lambda record: None,
        )
        self._optimise()
        step = [(Micro(tuple(range(case.batch))), examples)]

        def backward() -> Tensor:
            (batches,), items = self.trainer.get_batch_samples(iter([collate(step)]), 1, CPU)
            return self.trainer.training_step(model, batches, items)

        self.backward = backward

    def before_update(self) -> None:
        self._rhythm.on_pre_optimizer_step(None, None, self.trainer.state, model=self.model)  # type: ignore[arg-type]

    def flag_rate(self) -> float:
        """Share of the criticised answers' tokens that the last step flagged."""
        return self.trainer._meter.flush(self.trainer.accelerator)["flags/rate"]


class Stacked(Contender):
    """Two contexts of every row in one batch, probabilities of the whole vocabulary at all positions."""

    name = "stacked"

    def __init__(self, case: Case, base: nn.Module) -> None:
        self.model = model = case.start(base)
        self._optimise()
        examples = case.examples()
        self._flagged = torch.zeros(0, dtype=torch.bool)

        def backward() -> Tensor:
            first = [[*e.contexts[-1], *e.responses[0]] for e in examples]
            second = [[*e.prompt_ids, *e.responses[0]] if e.judged_ids else [] for e in examples]
            width = -(-max(map(len, first + second)) // 8) * 8
            ids_BT = torch.tensor([s + [0] * (width - len(s)) for s in first + second])
            mask_BT = torch.tensor([[1] * len(s) + [0] * (width - len(s)) for s in first + second])
            labels_BT = ids_BT.masked_fill(mask_BT == 0, -100)
            for row, sequence in enumerate(first + second):
                labels_BT[row, : max(0, len(sequence) - case.answer)] = -100

            model.train()
            logits_BTV = model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits
            targets_BT = labels_BT[:, 1:]
            p_BTV = logits_BTV[:, :-1].float().softmax(-1)
            p_BT = p_BTV.gather(2, targets_BT.clamp(min=0)[..., None]).squeeze(2)
            there_BT = targets_BT != -100
            p_first, p_second = p_BT.chunk(2)
            there_first, there_second = there_BT.chunk(2)
            likelihood = -p_first[there_first].log().mean()
            judged = torch.tensor([bool(e.judged_ids) for e in examples])
            judged_M, plain_M = p_first[judged][there_first[judged]], p_second[there_second]
            self._flagged = judged_M.detach() / plain_M.detach() > OBJECTIVE.threshold
            kept_M = torch.where(self._flagged, 1 - plain_M, plain_M)
            terms_M = -(kept_M + (kept_M == 0) * 1e-5).log()
            loss = (likelihood + terms_M.mean()) / 2
            loss.backward()
            return loss.detach()

        self.backward = backward

    def flag_rate(self) -> float:
        return float(self._flagged.float().mean())


def build(name: str, case: Case, base: nn.Module) -> Any:
    """A contender by its name, on a copy of `base`."""
    return {"ours": Ours, "stacked": Stacked}[name](case, base)


def check_equal(ours: Any, stacked: Any) -> float:
    """The share of flagged tokens, where both flag as many and give the same loss and gradients.

    Raises:
        UnequalWork: they do not, or all tokens are flagged, or none.
    """
    (loss, gradients), (other_loss, others) = ours.gradients(), stacked.gradients()
    rates = ours.flag_rate(), stacked.flag_rate()
    if abs(rates[0] - rates[1]) > 1e-6 or not 0 < rates[0] < 1:
        raise UnequalWork(f"ours flags {rates[0]:.4%} of the tokens, stacked {rates[1]:.4%}")
    if not abs(loss - other_loss) <= LOSS * abs(loss):
        raise UnequalWork(f"loss of ours {loss:.7f}, of stacked {other_loss:.7f}")
    if gradients.keys() != others.keys():
        raise UnequalWork("ours and stacked train different parameters")
    for name, gradient in gradients.items():
        size, differ = float(gradient.norm()), float((others[name] - gradient).norm())
        if not differ <= GRADIENT * size:
            raise UnequalWork(f"gradient of {name} differs by {differ / max(size, 1e-30):.2g}")
    return rates[0]


def memory(case: Case, name: str) -> int | None:
    """Bytes above the weights that a contender's first steps touch; to be called in a process of its own."""
    base = case.base()
    contender = build(name, case, base)
    gc.collect()
    with machine.PeakMemory(CPU) as peak:
        for _ in range(MEMORY_STEPS):
            contender.step()
    return peak.bytes


def _memory_elsewhere(case: Case, name: str) -> int | None:
    command = [sys.executable, "-m", "benchmarks.cut", "--memory-of", name, "--cases", case.name]
    command += ["--shared"] if torch.get_num_threads() == 1 else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    found: int | None = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(
    case: Case, clock: Clock = time.perf_counter, *, repeats: int, warmup: int, with_memory: bool = True
) -> dict[str, Any]:
    """Everything about one case; `vs_stacked` above 1 where we are faster, memory as a fraction of the peer's."""
    used = {name: _memory_elsewhere(case, name) if with_memory else None for name in NAMES}
    base = case.base()
    those = [build(name, case, base) for name in NAMES]
    flagged = check_equal(*those)
    times = alternate(those, clock, repeats=repeats, warmup=warmup, device=CPU)
    median = {name: statistics.median(values) for name, values in times.items()}
    found: dict[str, Any] = {"vs_stacked": median["stacked"] / median["ours"]}
    own, other = used["ours"], used["stacked"]
    if own is not None and other is not None:
        found["memory_vs_stacked"] = own / other
    found |= {"flagged": flagged, "satisfactory": case.satisfactory / case.batch}
    found["steps"] = {
        name: {
            "seconds": median[name],
            "spread": (max(times[name]) - min(times[name])) / median[name],
            "rows_per_second": case.batch / median[name],
            "memory_bytes": used[name],
        }
        for name in NAMES
    }
    return found


def table(cases: dict[str, dict[str, Any]]) -> Table:
    """All cases, a row for each contender."""
    shown = Table(title="CUT, one optimiser step (tokens of prompt+judgment/answer)")
    for column in ("case", "who", "seconds", "±", "rows/s", "memory", "ours is faster", "our memory"):
        shown.add_column(column, justify="left" if column in ("case", "who") else "right")
    for name, found in cases.items():
        for who, one in found["steps"].items():
            bytes_, peer = one["memory_bytes"], who != "ours"
            shown.add_row(
                "" if peer else name,
                who,
                f"{one['seconds']:.3f}",
                f"{one['spread']:.0%}",
                f"{one['rows_per_second']:.1f}",
                "" if bytes_ is None else f"{bytes_ / 2**20:,.0f} MiB",
                f"{found['vs_stacked']:.2f}x" if peer else "",
                f"{found['memory_vs_stacked']:.2f}" if peer and "memory_vs_stacked" in found else "",
            )
    return shown


CASES = [Case(), Case(lora=False)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cut", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.add_argument("--cases", nargs="+", metavar="P+J/A", help="some of " + ", ".join(c.name for c in CASES))
    parser.add_argument("--repeats", type=int, default=9, help="timed steps of each contender")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them")
    parser.add_argument(
        "--shared", action="store_true", help="one thread and its CPU time: for a machine that others use as well"
    )
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    cases = [case for case in CASES if not given.cases or case.name in given.cases]
    if not cases:
        parser.error(f"no such case; there are {', '.join(c.name for c in CASES)}")
    warnings.filterwarnings("ignore", category=FutureWarning)  # the libraries' own, about each other
    torch.set_num_threads(1 if given.shared else machine.cores())
    if given.memory_of:
        print(json.dumps(memory(cases[0], given.memory_of)))
        return
    console, load = Console(stderr=True, width=None if sys.stderr.isatty() else 120), os.getloadavg()[0]
    if not given.shared and load > 0.3 * machine.cores():
        console.print(f"[yellow]The machine is busy (load {load:.1f}): these times say little; --shared says more.[/]")
    clock = time.process_time if given.shared else time.perf_counter
    about = machine.describe(CPU, machine.matmul_peak(CPU, torch.float32, clock))
    about |= {"clock": "CPU time" if given.shared else "wall", "load": round(load, 2)}
    found = {case.name: measure(case, clock, repeats=given.repeats, warmup=given.warmup) for case in cases}
    console.print(table(found))
    if given.json:
        print(json.dumps({"cases": found, "machine": about}))


if __name__ == "__main__":
    main()
