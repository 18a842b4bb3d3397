"""One training step of a reranker with three losses: ours against the published way.

    python -m benchmarks.rerank --json

The published way calls the encoder four times a step, goes backward once for each loss over all shared weights, solves
for the weights, and goes backward once more. Ours encodes each distinct row once. All start from the same weights and
take the same texts; before anything is timed, every loss must be equal, and under exact MGDA every gradient. Then they
take turns, a step each, tokenising, clipping and AdamW included, and medians are compared. docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import os
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from torch.nn import functional as F
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from benchmarks import machine
from benchmarks.machine import Clock
from prefloop.config import RerankSection
from prefloop.rerank.batches import Collator
from prefloop.rerank.groups import Group
from prefloop.rerank.joint import JointLoss, backward
from prefloop.rerank.model import last_layer, load_two_logits, shared_parameters
from prefloop.rerank.weighting import mgda
from prefloop.train.precision import Precision

TASKS = ("pointwise", "pairwise", "contrastive")
QUERIES, MAX_NORM, LEARNING_RATE = 4, 1.0, 1e-5
OURS = ("fixed", "mgda_ub", "mgda")
PUBLISHED = "four_calls"
MODEL = {"layers": 4, "width": 256, "words": 30_000}
TOLERANCE = 1e-6
"""Of losses, absolute, and of gradients, relative to their norm; in float64, since MGDA makes gradients cancel."""


class UnequalWork(Exception):
    """Two contenders do not compute the same thing, so their times say nothing."""


@dataclass(frozen=True)
class Case:
    """What the lists of a query hold.

    Attributes:
        name: distinct: 8 documents, the classified one is the first of its side, as in the published rows; apart: 9,
            it is one of its own; shared: 4, and all lists are made of them.
        length: mean length of a document in tokens.
    """

    name: str
    length: int = 135

    def groups(self, seed: int, words: int) -> list[Group]:
        """Four queries; documents of Wikipedia's 100-word passages vary in tokens by about a tenth."""
        rng = random.Random(f"benchmark {seed}")

        def text(mean: float) -> str:
            length = max(1, round(rng.gauss(mean, mean / 10)))
            return " ".join(f"w{rng.randrange(words)}" for _ in range(length))

        found = []
        for q in range(QUERIES):
            documents = tuple(text(self.length) for _ in range({"distinct": 8, "apart": 9, "shared": 4}[self.name]))
            positives, negatives = ((4, 5), (6, 7)) if self.name != "shared" else ((0, 1), (2, 3))
            label = q % 2
            own = 8 if self.name == "apart" else (positives if label else negatives)[0]
            ranked = tuple((i, float(-i)) for i in range(4))
            found.append(Group(str(q), str(q), text(12), documents, ((own, label),), ranked, positives, negatives))
        return found


CASES = [Case("distinct"), Case("apart"), Case("shared")]


def start(folder: Path, *, layers: int, width: int, words: int) -> Path:
    """A random BERT with a word tokenizer, without dropout, so that losses can be compared."""
    entries = {w: i for i, w in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]", *(f"w{i}" for i in range(words))])}
    tokenizer = Tokenizer(models.WordLevel(entries, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **special).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(entries),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64),
        intermediate_size=4 * width,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    BertModel(config).save_pretrained(folder)
    return folder


class Contender:
    """A model of its own, and how it takes a step.

    Args:
        name: `PUBLISHED`, or one of `OURS`: the weighting.
        base: the model that all start from; copied.
    """

    def __init__(self, name: str, base: Any, section: RerankSection) -> None:
        self.name = name
        self.model = copy.deepcopy(base).train()
        self.section = section if name == PUBLISHED else section.model_copy(update={"weighting": name})
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
        device = next(self.model.parameters()).device
        self._joint = JointLoss(self.model, self.section, Precision(device, getattr(torch, section.dtype)))
        self._collate = Collator(self.model.tokenizer, section.max_length, self.section)
        self.device = device

    def gradients(self, groups: Sequence[Group]) -> dict[str, float]:
        """Losses by name; gradients are in the model afterwards."""
        if self.name == PUBLISHED:
            return self._published(groups)
        weighed = backward(self._joint, self._collate(groups).to(self.device))
        return {name: loss.item() for name, loss in weighed.losses.items()}

    def step(self, groups: Sequence[Group]) -> None:
        """From texts to updated weights."""
        self.gradients(groups)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _encode(self, groups: Sequence[Group], places: Callable[[Group], Sequence[int]]) -> Tensor:
        """First tokens of (query, document) pairs, padded to the longest of this call."""
        pairs = [(g.query, g.documents[i]) for g in groups for i in places(g)]
        features = self.model.tokenizer(
            [q for q, _ in pairs],
            [d for _, d in pairs],
            padding=True,
            truncation="longest_first",
            max_length=self.section.max_length,
            return_tensors="pt",
        ).to(self.device)
        with self._joint.precision.autocast():
            hidden: Tensor = self.model.transformers_model(**features).last_hidden_state
        return hidden[:, 0].float() if hidden.dtype == torch.bfloat16 else hidden[:, 0]

    def _published(self, groups: Sequence[Group]) -> dict[str, float]:
        head, count = last_layer(self.model), len(groups)
        classified = head(self._encode(groups, lambda g: [g.classified[0][0]]))
        ranked = head(self._encode(groups, lambda g: [i for i, _ in g.ranked]))[:, 1].reshape(count, -1)
        positives = self._encode(groups, lambda g: g.positives).reshape(count, 2, -1)
        negatives = self._encode(groups, lambda g: g.negatives).reshape(count, 2, -1)
        labels = torch.tensor([g.classified[0][1] for g in groups], device=self.device)
        better, worse = torch.triu_indices(ranked.shape[1], ranked.shape[1], 1, device=self.device)
        z = F.normalize(torch.cat([positives, negatives], 1), dim=-1)
        cosine = z @ z.transpose(1, 2) / self.section.temperature
        alone = cosine.masked_fill(torch.eye(4, dtype=torch.bool, device=self.device), float("-inf"))
        partner = torch.tensor([1, 0, 3, 2], device=self.device).expand(count, 4).unsqueeze(2)
        tasks = [
            F.cross_entropy(classified, labels),
            F.softplus(ranked[:, worse] - ranked[:, better]).mean(),
            (alone.logsumexp(-1) - cosine.gather(2, partner).squeeze(2)).mean(),
        ]
        shared = shared_parameters(self.model)
        each = [torch.autograd.grad(loss, shared, retain_graph=True) for loss in tasks]
        gram = torch.zeros(3, 3, dtype=torch.float64)
        for i in range(3):
            for j in range(3):
                gram[i, j] = sum((a * b).sum() for a, b in zip(each[i], each[j], strict=True))
        weights = mgda(gram).tolist()
        total = torch.stack([w * loss for w, loss in zip(weights, tasks, strict=True)]).sum()
        total.backward()  # type: ignore[no-untyped-call]
        return {name: loss.item() for name, loss in zip(TASKS, tasks, strict=True)}


def check_equal(those: Sequence[Contender], groups: Sequence[Group]) -> None:
    """Equal losses everywhere; equal gradients of the published way and ours with exact MGDA.

    Raises:
        UnequalWork: they differ by more than rounding.
    """
    losses, gradients = {}, {}
    for one in those:
        losses[one.name] = one.gradients(groups)
        gradients[one.name] = {n: p.grad.clone() for n, p in one.model.named_parameters() if p.grad is not None}
        one.model.zero_grad(set_to_none=True)
    for name, own in losses.items():
        for task, value in own.items():
            theirs = losses[PUBLISHED][task]
            if not abs(value - theirs) <= TOLERANCE:
                raise UnequalWork(f"{task} of {name} is {value:.7f}, of {PUBLISHED} {theirs:.7f}")
    if "mgda" not in gradients:
        return
    for name, theirs in gradients[PUBLISHED].items():
        found = gradients["mgda"].get(name)
        size = float(theirs.norm())
        if found is None or not float((found - theirs).norm()) <= TOLERANCE * size + 1e-12:
            raise UnequalWork(f"the gradients of {name} differ")


def measure(
    case: Case,
    clock: Clock = time.perf_counter,
    *,
    repeats: int,
    warmup: int,
    model: dict[str, int] = MODEL,
    device: str = "cpu",
    dtype: str = "float32",
) -> dict[str, dict[str, Any]]:
    """By "lists/weighting": the ratio of the published step's median to ours, above 1 where ours is faster."""
    with tempfile.TemporaryDirectory() as folder:
        # The published head: one linear layer on the first token.
        section: Any = RerankSection(
            model=str(start(Path(folder), **model)), device=device, dtype=dtype, head="linear"
        )
        base = load_two_logits(section, seed=0)
    names = (PUBLISHED, *OURS)
    precise = section.model_copy(update={"dtype": "float32"})
    check_equal(
        [Contender(name, copy.deepcopy(base).double(), precise) for name in names], case.groups(0, model["words"])
    )
    those = [Contender(name, base, section) for name in names]
    seconds: dict[str, list[float]] = {c.name: [] for c in those}
    gc.collect()
    place = torch.device(device)
    for turn in range(warmup + repeats):
        groups = case.groups(turn + 1, model["words"])
        for one in those:
            machine.synchronize(place)
            started = clock()
            one.step(groups)
            machine.synchronize(place)
            if turn >= warmup:
                seconds[one.name].append(clock() - started)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        f"{case.name}/{name}": {
            f"vs_{PUBLISHED}": median[PUBLISHED] / median[name],
            "allowed": allowed(case)[name],
            "seconds": {who: median[who] for who in (name, PUBLISHED)},
            "spread": {who: (max(seconds[who]) - min(seconds[who])) / median[who] for who in (name, PUBLISHED)},
        }
        for name in OURS
    }


def allowed(case: Case) -> dict[str, float]:
    """What the rows allow, a forward pass counted 1 and a backward pass 2, all else free."""
    per_query = {"distinct": 8, "apart": 9, "shared": 4}[case.name]
    theirs, one_pass = 9 * (1 + 2 + 2), per_query * (1 + 2)
    return {"fixed": theirs / one_pass, "mgda_ub": theirs / one_pass, "mgda": theirs / (per_query + 2 * 9)}


def table(cases: dict[str, dict[str, Any]]) -> Table:
    """All cases, a row for each weighting."""
    shown = Table(title="One step of four queries, from texts to updated weights")
    for column in ("lists/weighting", "seconds", "±", PUBLISHED, "±", "ours is faster", "the rows allow"):
        shown.add_column(column, justify="left" if column == "lists/weighting" else "right")
    for name, found in cases.items():
        own = name.partition("/")[2]
        times = [f"{found[kind][who]:{form}}" for who in (own, PUBLISHED) for kind, form in FORMS]
        shown.add_row(name, *times, f"{found[f'vs_{PUBLISHED}']:.2f}x", f"{found['allowed']:.2f}x")
    return shown


FORMS = (("seconds", ".3f"), ("spread", ".0%"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rerank", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.add_argument("--cases", nargs="+", choices=[c.name for c in CASES], help="some of the cases")
    parser.add_argument("--repeats", type=int, default=9, help="timed steps of each contender")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them")
    parser.add_argument(
        "--shared", action="store_true", help="one thread and its CPU time: for a machine that others use as well"
    )
    given = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", category=FutureWarning)
    torch.set_num_threads(1 if given.shared else machine.cores())
    console = Console(width=None if sys.stdout.isatty() else 120)
    load = os.getloadavg()[0]
    if not given.shared and load > 0.3 * machine.cores():
        console.print(f"[yellow]The machine is busy (load {load:.1f}): these times say little; --shared says more.[/]")
    clock = time.process_time if given.shared else time.perf_counter
    cuda = torch.cuda.is_available()
    where: dict[str, Any] = {"device": "cuda", "dtype": "bfloat16"} if cuda else {}
    if cuda:
        where["model"] = {"layers": 24, "width": 1024, "words": 30_000}
    cases: dict[str, dict[str, Any]] = {}
    for case in CASES:
        if given.cases is None or case.name in given.cases:
            cases |= measure(case, clock, repeats=given.repeats, warmup=given.warmup, **where)
    console.print(table(cases))
    about = machine.describe(torch.device("cuda" if cuda else "cpu"), machine.matmul_peak(CPU, torch.float32, clock))
    about |= {"clock": "CPU time" if given.shared else "wall", "load": round(load, 2)}
    console.print(", ".join(f"{k} {v}" for k, v in about.items()))
    if given.json:
        print(json.dumps({"cases": cases, "machine": about}))


CPU = torch.device("cpu")

if __name__ == "__main__":
    main()
