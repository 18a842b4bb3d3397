"""One optimiser step of DPO: ours against TRL's DPOTrainer, against the step one writes first, and against our own
engine without prompt sharing.

    python -m benchmarks.dpo --json

All start from the same weights and take the same ids; before anything is timed they must give the same loss and the
same gradients. Then they take turns, a step each, and medians are compared. docs/benchmarks.md explains the columns.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import contenders, machine
from benchmarks.contenders import CPU, Case, Contender
from benchmarks.machine import Clock

CASES = [Case(512, 64), Case(128, 128), Case(256, 256), Case(512, 64, responses=5)]
CUDA = Case(
    1024,
    256,
    model=contenders.LLAMA_3_8B,
    lora=True,
    dtype=torch.bfloat16,
    device=torch.device("cuda"),
)
TOLERANCE = {torch.float32: (1e-5, 1e-4), torch.bfloat16: (2e-2, 1e-1)}
"""Of the loss, absolute, and of each parameter's gradient, relative to its norm."""
MEMORY_STEPS = 3


class UnequalWork(Exception):
    """Two contenders do not compute the same thing, so their times say nothing."""


def check_equal(those: Sequence[Contender], case: Case) -> None:
    """Every contender's loss and gradients must be the first one's.

    In float32 the sum of a response's log-probabilities, some thousands of nats under a random model, is itself a
    number with a last place; what that place does to the loss is allowed on top.

    Raises:
        UnequalWork: they differ by more than rounding, or not the same parameters are trained.
    """
    allowed_loss, allowed_gradient = TOLERANCE[case.dtype]
    nats = case.response * math.log(case.model["vocab_size"])
    allowed_loss += contenders.BETA * nats * torch.finfo(torch.float32).eps
    first, *others = those
    loss, gradients = first.gradients()
    for other in others:
        found_loss, found = other.gradients()
        if not abs(found_loss - loss) <= allowed_loss:
            raise UnequalWork(f"loss of {first.name} {loss:.7f}, of {other.name} {found_loss:.7f}")
        if found.keys() != gradients.keys():
            raise UnequalWork(f"{first.name} and {other.name} train different parameters")
        for name, gradient in gradients.items():
            size = float(gradient.norm())
            differ = float((found[name] - gradient).norm())
            if not differ <= allowed_gradient * size:
                raise UnequalWork(
                    f"gradient of {name}: {first.name} and {other.name} differ by {differ / max(size, 1e-30):.2g}"
                )


def alternate(
    those: Sequence[Contender], clock: Clock, *, repeats: int, warmup: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each contender's steps, in turns: a, b, c, a, b, c, …"""
    seconds: dict[str, list[float]] = {c.name: [] for c in those}
    gc.collect()
    for turn in range(warmup + repeats):
        for contender in those:
            machine.synchronize(device)
            started = clock()
            contender.step()
            machine.synchronize(device)
            if turn >= warmup:
                seconds[contender.name].append(clock() - started)
    return seconds


def memory(case: Case, name: str) -> int | None:
    """Bytes above the weights that a contender's first steps touch; to be called in a process of its own."""
    base = case.base()
    contender = contenders.build(name, case, base)
    if not case.lora:
        del base  # each contender has its copy
    gc.collect()
    with machine.PeakMemory(case.device) as peak:
        for _ in range(MEMORY_STEPS):
            contender.step()
    return peak.bytes


def _memory_elsewhere(case: Case, name: str) -> int | None:
    """`memory` in a fresh process, so that nothing of another contender is left over."""
    command = [sys.executable, "-m", "benchmarks.dpo", "--memory-of", name, "--cases", case.name]
    command += ["--cuda"] if case.device.type == "cuda" else []
    command += ["--shared"] if torch.get_num_threads() == 1 else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    found: int | None = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(
    case: Case, peak: float, clock: Clock = time.perf_counter, *, repeats: int, warmup: int, with_memory: bool = True
) -> dict[str, Any]:
    """Everything about one case; ratios above 1 where we are faster, memory as a fraction of the peer's."""
    names = contenders.names(case)
    # Before this process holds four models: the machine's memory is then free for the one that is measured.
    used = {name: _memory_elsewhere(case, name) if with_memory else None for name in names}
    base = case.base()
    those = [contenders.build(name, case, base) for name in names]
    check_equal(those, case)
    times = alternate(those, clock, repeats=repeats, warmup=warmup, device=case.device)
    median = {name: statistics.median(values) for name, values in times.items()}
    found: dict[str, Any] = {}
    for peer in names[1:]:
        found[f"vs_{peer}"] = median[peer] / median["ours"]
        own, other = used["ours"], used[peer]
        if own is not None and other is not None:
            found[f"memory_vs_{peer}"] = own / other
    operations = {c.name: c.operations for c in those}
    allowed = operations["concatenated"] / operations["ours"]
    found["layout"] = those[0].kind  # type: ignore[attr-defined]
    found["flops_allow_vs_concatenated"] = allowed
    found["share_of_allowed"] = found["vs_concatenated"] / allowed
    found["steps"] = {
        name: {
            "seconds": median[name],
            "spread": (max(times[name]) - min(times[name])) / median[name],
            "tokens_per_second": case.tokens / median[name],
            "samples_per_second": case.batch / median[name],
            "utilisation": operations[name] / median[name] / peak,
            "memory_bytes": used[name],
        }
        for name in names
    }
    return found


def table(cases: dict[str, dict[str, Any]]) -> Table:
    """All cases, a row for each contender."""
    shown = Table(title="One optimiser step, from token ids to updated weights (prompt/response tokens)")
    for column in ("case", "who", "seconds", "±", "tokens/s", "util.", "memory", "ours is faster", "our memory"):
        shown.add_column(column, justify="left" if column in ("case", "who") else "right")
    for name, found in cases.items():
        for who, step in found["steps"].items():
            bytes_ = step["memory_bytes"]
            shown.add_row(
                name if who == "ours" else "",
                f"{who} ({found['layout']})" if who == "ours" else who,
                f"{step['seconds']:.3f}",
                f"{step['spread']:.0%}",
                f"{step['tokens_per_second']:,.0f}",
                f"{step['utilisation']:.0%}",
                "" if bytes_ is None else f"{bytes_ / 2**20:,.0f} MiB",
                "" if who == "ours" else f"{found[f'vs_{who}']:.2f}x",
                f"{found[f'memory_vs_{who}']:.2f}" if f"memory_vs_{who}" in found else "",
            )
        shown.add_row(
            "",
            "[dim]of the speed-up over concatenated that the operations allow[/dim]",
            "", "", "", "", "",
            f"[dim]{found['flops_allow_vs_concatenated']:.2f}x[/dim]",
            f"[dim]{found['share_of_allowed']:.0%}[/dim]",
            end_section=True,
        )  # fmt: skip
    return shown


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dpo", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.add_argument("--cases", nargs="+", metavar="P/R", help="some of " + ", ".join(c.name for c in CASES))
    parser.add_argument("--repeats", type=int, default=9, help="timed steps of each contender")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them")
    parser.add_argument(
        "--shared", action="store_true", help="one thread and its CPU time: for a machine that others use as well"
    )
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    parser.add_argument("--cuda", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    known = {c.name: c for c in ([CUDA] if given.cuda else CASES)}
    unknown = sorted(set(given.cases or ()) - set(known))
    if unknown:
        parser.error(f"no case {', '.join(unknown)}; there are {', '.join(known)}")
    chosen = [known[name] for name in given.cases or known]
    warnings.filterwarnings("ignore", category=FutureWarning)  # the libraries' own, about each other
    torch.set_num_threads(1 if given.shared else machine.cores())
    if given.memory_of:
        print(json.dumps(memory(chosen[0], given.memory_of)))
        return

    console = Console(width=None if sys.stdout.isatty() else 140)
    load = os.getloadavg()[0]
    if not given.shared and load > 0.3 * machine.cores():
        console.print(f"[yellow]The machine is busy (load {load:.1f}): these times say little; --shared says more.[/]")
    clock = time.process_time if given.shared else time.perf_counter
    peak = machine.matmul_peak(CPU, torch.float32, clock)
    about = {**machine.describe(CPU, peak), "clock": "CPU time" if given.shared else "wall", "load": round(load, 2)}
    cases: dict[str, dict[str, Any]] = {}
    for case in chosen:
        cases[case.name] = measure(case, peak, clock, repeats=given.repeats, warmup=given.warmup)
    gpu = torch.cuda.is_available() and not given.cases
    if gpu:
        peak = machine.matmul_peak(CUDA.device, CUDA.dtype)
        about["gpu"] = machine.describe(CUDA.device, peak)
        cases[f"llama-3-8b {CUDA.name}"] = measure(CUDA, peak, repeats=given.repeats, warmup=given.warmup)
    console.print(table(cases))
    if not torch.cuda.is_available():
        console.print("No CUDA GPU at hand: the case of Llama-3-8B's shape (LoRA, bfloat16, 1024/256) was skipped.")
    console.print(", ".join(f"{k} {v}" for k, v in about.items()))
    if given.json:
        print(json.dumps({"cases": cases, "machine": about}))


if __name__ == "__main__":
    main()
