"""Training from scratch on two cores: a plain loop, loss on the assistant's words only, measured in minutes."""

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from prefloop.sandbox.corpus import conversations

BATCH_TOKENS = 4096
POOL = 1024  # conversations sorted by length at a time
LEARNING_RATE = 1e-3
WARMUP_STEPS = 50


@dataclass(frozen=True)
class Batch:
    """Right-padded conversations. ids [rows, length]; targets [rows, length - 1] bool: is the next token learned?"""

    ids: torch.Tensor
    targets: torch.Tensor


def learned(ids: list[int], assistant: int, eos: int) -> list[bool]:
    """For every token but the first: does an assistant's turn speak it (its end-of-turn token included)?"""
    speaking, mask = False, []
    for previous, token in zip(ids, ids[1:], strict=False):
        speaking = previous == assistant or (speaking and previous != eos)
        mask.append(speaking)
    return mask


def batches(tokenizer: Any, seed: int, shares: Mapping[str, float]) -> Iterator[Batch]:
    """Endless batches of about BATCH_TOKENS tokens, rows of similar length together."""
    stream, rng = conversations(seed, shares), random.Random(f"batches {seed}")
    assistant, eos = tokenizer.convert_tokens_to_ids("<|assistant|>"), tokenizer.eos_token_id
    while True:
        texts = [tokenizer.apply_chat_template(m, tokenize=False) for m in islice(stream, POOL)]
        rows = sorted(tokenizer(texts, add_special_tokens=False)["input_ids"], key=len)
        groups: list[list[list[int]]] = [[]]
        for row in rows:
            if len(row) * (len(groups[-1]) + 1) > BATCH_TOKENS:
                groups.append([])
            groups[-1].append(row)
        rng.shuffle(groups)
        for group in groups:
            length = max(map(len, group))
            ids = torch.full((len(group), length), tokenizer.pad_token_id)
            targets = torch.zeros(len(group), length - 1, dtype=torch.bool)
            for i, row in enumerate(group):
                ids[i, : len(row)] = torch.tensor(row)
                targets[i, : len(row) - 1] = torch.tensor(learned(row, assistant, eos))
            yield Batch(ids, targets)


def loss_of(model: Any, batch: Batch) -> torch.Tensor:
    """Mean cross-entropy of the learned tokens; only their positions go through the head."""
    hidden = model.model(input_ids=batch.ids, use_cache=False).last_hidden_state[:, :-1]
    logits = model.lm_head(hidden[batch.targets])
    return torch.nn.functional.cross_entropy(logits, batch.ids[:, 1:][batch.targets])


def train(
    model: Any,
    stages: list[tuple[float, Iterator[Batch]]],
    log: Callable[[str], None],
    save: Callable[[], None] | None = None,
    kind='adamw', lr=LEARNING_RATE,
) -> None:
    """Train for the given minutes per stage."""
    hidden = [p for n, p in model.named_parameters() if p.ndim == 2 and 'embed' not in n]
    rest = [p for n, p in model.named_parameters() if not (p.ndim == 2 and 'embed' not in n)]
    if kind == 'muon':
        opts = [torch.optim.Muon(hidden, lr=lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
                torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.0)]
    else:
        opts = [torch.optim.AdamW([{"params": hidden, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}], lr=lr, betas=(0.9, 0.98))]
    start, step, tokens = time.monotonic(), 0, 0
    total = 60 * sum(minutes for minutes, _ in stages)
    end = 0.0
    for minutes, stream in stages:
        end += 60 * minutes
        for batch in stream:
            elapsed = time.monotonic() - start
            if elapsed > end:
                break
            rate = min(1.0, (step + 1) / WARMUP_STEPS) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * elapsed / total)))
            for o in opts:
                for g in o.param_groups:
                    g["lr"] = lr * rate
            loss = loss_of(model, batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for o in opts:
                o.step(); o.zero_grad()
            step += 1
            tokens += batch.ids.numel()
            if step % 50 == 0:
                log(f"{elapsed:6.0f}s step {step} tokens {tokens/1e6:.2f}M ({tokens/elapsed:.0f}/s) loss {loss.item():.4f}")
                if save and step % 500 == 0: save()
