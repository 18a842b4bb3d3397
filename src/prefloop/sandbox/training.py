"""Training from scratch on two cores: a plain loop, loss on the assistant's words only."""

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from prefloop.records import Message
from prefloop.sandbox.corpus import conversations
from prefloop.sandbox.exercises import VALUES
from prefloop.sandbox.marks import LABELS, NONE, Marker
from prefloop.sandbox.verdicts import GRADES
from prefloop.sandbox.world import make_world

Row = tuple[list[int], list[float], list[int], list[int]]  # ids, weights, truth, grades

POOL = 1024  # conversations sorted by length at a time
# Three times this rate, or first weights of three times the usual width, and it never learns to attend.
LEARNING_RATE = 2e-3
LAST_RATE = 0.02  # of the learning rate, at the end of the cosine
WARMUP_STEPS = 50
PROBE_RATE = 8.0  # times the learning rate: the probes have nothing to unlearn
VERDICT_WEIGHT = 8.0  # a verdict is one token among dozens, and slow to learn


@dataclass(frozen=True)
class Batch:
    """Right-padded conversations.

    ids [rows, length]; weights [rows, length - 1] of the next tokens, 0: skipped; truth and grades [rows, length]: the
    targets of the probes (`marks`), NONE where there is none.
    """

    ids: torch.Tensor
    weights: torch.Tensor
    truth: torch.Tensor
    grades: torch.Tensor


@dataclass(frozen=True)
class Stage:
    """A part of the curriculum: so many steps on these batches."""

    name: str
    steps: int
    batches: Iterator[Batch]


def learned(ids: list[int], assistant: int, eos: int) -> list[bool]:
    """For every token but the first: does an assistant's turn speak it (its end-of-turn token included)?"""
    speaking, mask = False, []
    for previous, _ in pairwise(ids):
        speaking = previous == assistant or (speaking and previous != eos)
        mask.append(speaking)
    return mask


def batches(
    tokenizer: Any, seed: int, shares: Mapping[str, float], tokens: int, values_only: bool = False
) -> Iterator[Batch]:
    """Endless batches of at most `tokens` tokens with padding, rows of similar length together.

    Of the assistant's tokens, those that give a verdict weigh VERDICT_WEIGHT, the others 1. With `values_only` just
    the world's values are learned: where most words are drawn by chance, their noise would drown the lesson.
    """
    stream, rng = conversations(seed, shares), random.Random(f"batches {seed}")
    assistant, eos = tokenizer.convert_tokens_to_ids("<|assistant|>"), tokenizer.eos_token_id
    values = frozenset(tokenizer.convert_tokens_to_ids([f"Ġ{value}" for value in VALUES]))
    labels = frozenset(tokenizer.convert_tokens_to_ids(list(LABELS)))
    marker = Marker(tokenizer, make_world())

    def row_of(messages: list[Message], text: str, ids: list[int], offsets: list[tuple[int, int]]) -> Row:
        weights = [
            float(yes and (token in values or not values_only)) * (VERDICT_WEIGHT if token in labels else 1.0)
            for yes, token in zip(learned(ids, assistant, eos), ids[1:], strict=True)
        ]
        return ids, weights, marker.truth(ids), marker.grades(messages, text, offsets)

    while True:
        some = list(islice(stream, POOL))
        texts = [tokenizer.apply_chat_template(m, tokenize=False) for m in some]
        encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
        rows = sorted(
            map(row_of, some, texts, encoded["input_ids"], encoded["offset_mapping"]), key=lambda row: len(row[0])
        )
        groups: list[list[Row]] = [[]]
        for row in rows:
            if len(row[0]) * (len(groups[-1]) + 1) > tokens:
                groups.append([])
            groups[-1].append(row)
        rng.shuffle(groups)
        for group in groups:
            padding = (tokenizer.pad_token_id, 0.0, NONE, NONE)
            yield Batch(*map(_padded, zip(*group, strict=True), padding))


def _padded(rows: Sequence[list[Any]], fill: float) -> torch.Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=fill)


@dataclass(frozen=True)
class Probe:
    """A classifier on the hidden states after some layer, there during training only; see `marks`."""

    layer: int
    head: torch.nn.Linear

    def loss(self, hidden: torch.Tensor, marks: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy over the marked tokens, 0 if there are none. hidden [rows, length, width]."""
        marked = marks != NONE
        normed = torch.nn.functional.rms_norm(hidden[marked], hidden.shape[-1:])
        total = torch.nn.functional.cross_entropy(self.head(normed), marks[marked], reduction="sum")
        return total / marked.sum().clamp(min=1)


def loss_of(model: Any, batch: Batch, truth: Probe, grades: Probe) -> torch.Tensor:
    """Weighted mean cross-entropy of the learned tokens, only their positions through the head, plus the probes'."""
    output = model.model(input_ids=batch.ids, use_cache=False, output_hidden_states=True)
    states, hidden = output.hidden_states, output.last_hidden_state[:, :-1]
    learned_N = batch.weights > 0
    losses_N = torch.nn.functional.cross_entropy(
        model.lm_head(hidden[learned_N]), batch.ids[:, 1:][learned_N], reduction="none"
    )
    weights_N = batch.weights[learned_N]
    spoken = (losses_N * weights_N).sum() / weights_N.sum()
    return spoken + truth.loss(states[truth.layer], batch.truth) + grades.loss(states[grades.layer], batch.grades)


def train(model: Any, stages: list[Stage], report: Callable[[str], None], peak: float = LEARNING_RATE) -> None:
    """Train through the stages in order, cosine schedule over all of them together; `report` is told now and then.

    peak: the highest learning rate.

    Muon for the weight matrices, AdamW for embeddings and norms: after four minutes Muon knew two fifths of the facts
    by heart where AdamW alone, on the same batches, was still at chance.
    """
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    # The last layer compares what the probes found, so they sit before it, one behind the other.
    layers, width = model.config.num_hidden_layers, model.config.hidden_size
    truth = Probe(layers - 2, torch.nn.Linear(width, 2))
    grades = Probe(layers - 1, torch.nn.Linear(width, len(GRADES)))
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers = [
        torch.optim.Muon(matrices, lr=peak, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=peak, betas=(0.9, 0.98), weight_decay=0.0),
        torch.optim.AdamW([*truth.head.parameters(), *grades.head.parameters()], lr=PROBE_RATE * peak),
    ]
    total, step = sum(stage.steps for stage in stages), 0
    for stage in stages:
        for batch in islice(stage.batches, stage.steps):
            cosine = 0.5 * (1 + math.cos(math.pi * step / total))
            rate = peak * min(1.0, (step + 1) / WARMUP_STEPS) * (LAST_RATE + (1 - LAST_RATE) * cosine)
            for optimizer, multiple in zip(optimizers, (1.0, 1.0, PROBE_RATE), strict=True):
                optimizer.param_groups[0]["lr"] = rate * multiple
                optimizer.zero_grad()
            loss = loss_of(model, batch, truth, grades)
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
            step += 1
            if step % 100 == 0:
                report(f"step {step}/{total}  {stage.name}  rate {rate:.2e}  loss {loss.item():.4f}")
