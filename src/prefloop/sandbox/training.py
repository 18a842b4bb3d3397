"""Training from scratch on two cores: a plain loop, loss on the assistant's words only."""

import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

import torch

from prefloop.sandbox.corpus import conversations
from prefloop.sandbox.exercises import VALUES
from prefloop.sandbox.verdicts import GRADES, SEATS

POOL = 1024  # conversations sorted by length at a time
# Three times this rate, or first weights of three times the usual width, and it never learns to attend.
LEARNING_RATE = 2e-3
LAST_RATE = 0.02  # of the learning rate, at the end of the cosine
WARMUP_STEPS = 50
VERDICT_WEIGHT = 8.0  # a verdict is one token among dozens, and slow to learn


@dataclass(frozen=True)
class Batch:
    """Right-padded conversations. ids [rows, length]; weights [rows, length - 1] of the next tokens, 0: skipped."""

    ids: torch.Tensor
    weights: torch.Tensor


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
    labels = frozenset(tokenizer.convert_tokens_to_ids([*SEATS, *GRADES]))
    while True:
        texts = [tokenizer.apply_chat_template(m, tokenize=False) for m in islice(stream, POOL)]
        rows = sorted(tokenizer(texts, add_special_tokens=False)["input_ids"], key=len)
        groups: list[list[list[int]]] = [[]]
        for row in rows:
            if len(row) * (len(groups[-1]) + 1) > tokens:
                groups.append([])
            groups[-1].append(row)
        rng.shuffle(groups)
        for group in groups:
            length = max(map(len, group))
            ids = torch.full((len(group), length), tokenizer.pad_token_id)
            weights = torch.zeros(len(group), length - 1)
            for i, row in enumerate(group):
                ids[i, : len(row)] = torch.tensor(row)
                mask = learned(row, assistant, eos)
                weights[i, : len(row) - 1] = torch.tensor(
                    [
                        float(yes and (token in values or not values_only))
                        * (VERDICT_WEIGHT if token in labels else 1.0)
                        for yes, token in zip(mask, row[1:], strict=True)
                    ]
                )
            yield Batch(ids, weights)


def loss_of(model: Any, batch: Batch) -> torch.Tensor:
    """Weighted mean cross-entropy of the learned tokens; only their positions go through the head."""
    hidden = model.model(input_ids=batch.ids, use_cache=False).last_hidden_state[:, :-1]
    learned_N = batch.weights > 0
    losses_N = torch.nn.functional.cross_entropy(
        model.lm_head(hidden[learned_N]), batch.ids[:, 1:][learned_N], reduction="none"
    )
    weights_N = batch.weights[learned_N]
    return (losses_N * weights_N).sum() / weights_N.sum()


def train(model: Any, stages: list[Stage], report: Callable[[str], None]) -> None:
    """Train through the stages in order, cosine schedule over all of them together; `report` is told now and then.

    Muon for the weight matrices, AdamW for embeddings and norms: after four minutes Muon knew two fifths of the facts
    by heart where AdamW alone, on the same batches, was still at chance.
    """
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers = [
        torch.optim.Muon(matrices, lr=LEARNING_RATE, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    total, step = sum(stage.steps for stage in stages), 0
    for stage in stages:
        for batch in islice(stage.batches, stage.steps):
            cosine = 0.5 * (1 + math.cos(math.pi * step / total))
            rate = LEARNING_RATE * min(1.0, (step + 1) / WARMUP_STEPS) * (LAST_RATE + (1 - LAST_RATE) * cosine)
            for optimizer in optimizers:
                optimizer.param_groups[0]["lr"] = rate
                optimizer.zero_grad()
            loss = loss_of(model, batch)
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
            step += 1
            if step % 100 == 0:
                report(f"step {step}/{total}  {stage.name}  rate {rate:.2e}  loss {loss.item():.4f}")
