"""Builds the sandbox's PairRM: `python -m prefloop.sandbox.build_pairrm --out DIR`, ten minutes on one core.

A DeBERTa-v3 of three layers learns to tell which of two answers has the higher grade (`checkers.grade`). Questions
are about all people known by heart: who lives where cannot be inferred, so who judges facts has to have seen them. The
prompts of `questions/heldout` are kept out of training and are what is measured on. The same seed gives the same
pairs, and on the same machine with the same libraries the same weights.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from transformers import DebertaV2Config

from prefloop.records import Message
from prefloop.sandbox import VERSION, tasks
from prefloop.sandbox.checkers import asked, grade
from prefloop.sandbox.corpus import MAIN, conversations
from prefloop.sandbox.prompts import POOL, prompts
from prefloop.sandbox.verdicts import possible_answer
from prefloop.sandbox.world import ATTRIBUTES, NAMES, World, make_world
from prefloop.signals.pairrm.model import PairRM
from prefloop.signals.pairrm.network import PairRMNetwork
from prefloop.signals.pairrm.text import CLS, PREFIXES, SEP, Batch, Encoded, Encoder, Limits, Pair
from prefloop.signals.pairrm.training import pair_loss, seat

WIDTH, LAYERS, HEADS = 96, 3, 4
LIMITS = Limits(source=96, candidate=64)
SAMPLE, RAREST = 20_000, 3  # conversations counted for the vocabulary, and how often a word has to be seen

GARBLED_SHARE = 0.05  # of the answers
ANSWERS, PAIRS = 4, 4  # answers drawn for a question, and pairs made of them
BATCH = 64  # pairs in one step
SORTED = 16  # batches made at a time, of pairs of similar length
STEPS = 2400
FACT_STEPS, FACT_RATE = 100, 1e-2
LEARNING_RATE, LAST_RATE, WARMUP_STEPS = 4e-3, 0.02, 50
PROBE_RATE = 4.0  # times the learning rate: the probe has nothing to unlearn
REACH = 8  # tokens from a name to the value that is stated of it


@dataclass(frozen=True)
class Step:
    """What one step learns from: pairs, their signs [B], and where values are stated, with whether they are true.

    rows, columns and truth [V]: the V stated values of the batch.
    """

    batch: Batch
    signs_B: torch.Tensor
    rows_V: torch.Tensor
    columns_V: torch.Tensor
    truth_V: torch.Tensor


def build_tokenizer(seed: int = 0) -> Any:
    """Whole words and punctuation marks of the world; what it does not know is [UNK]."""
    from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

    splitter = pre_tokenizers.Whitespace()
    counts: dict[str, int] = {}
    for messages in islice(conversations(seed, MAIN), SAMPLE):
        for message in messages:
            for word, _ in splitter.pre_tokenize_str(message["content"]):
                counts[word] = counts.get(word, 0) + 1
    common = sorted(word for word, count in counts.items() if count >= RAREST)
    words = dict.fromkeys(["[PAD]", CLS, SEP, "[UNK]", *NAMES, *sum(ATTRIBUTES.values(), ()), *common])
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Strip()
    tokenizer.pre_tokenizer = splitter
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in ("[PAD]", CLS, SEP, "[MASK]")])
    tokenizer.add_tokens([AddedToken(token, normalized=True) for token in PREFIXES])
    return tokenizer


def new_network(tokenizer: Any, seed: int) -> PairRMNetwork:
    """Random weights. Positions are relative, exact up to half the buckets and coarser beyond, as in PairRM."""
    torch.manual_seed(seed)
    config = DebertaV2Config(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=2 * WIDTH,
        position_buckets=32,
        max_position_embeddings=512,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        share_att_key=True,
        norm_rel_ebd="layer_norm",
        position_biased_input=False,
        type_vocab_size=0,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return PairRMNetwork(config, dropout=0.0)


def questions(rng: random.Random, world: World, kept_out: frozenset[str]) -> Iterator[tuple[str, list[str]]]:
    """Endless questions about people known by heart, each with answers of different grades as a rule."""
    while True:
        name, attributes = rng.choice(world.heart), tasks.some_attributes(rng)
        text = tasks.question(rng, name, attributes)
        if text not in kept_out:
            answers = [possible_answer(rng, world, name, attributes) for _ in range(ANSWERS)]
            yield text, [_garbled(rng, answer) if rng.random() < GARBLED_SHARE else answer for answer in answers]


def _garbled(rng: random.Random, answer: str) -> str:
    """One word in place of another that nobody knows: what a model in training may come to say reads as [UNK]."""
    said = answer.split(" ")
    said[rng.randrange(len(said))] = "xyzzy"
    return " ".join(said)


def grades(question: str, answers: Sequence[str]) -> list[float]:
    prompt: list[Message] = [tasks.user(question)]
    return [float(grade(prompt, answer) or 0) for answer in answers]


class Truth:
    """Where a pair states values of the person asked about, and whether they are true."""

    def __init__(self, tokenizer: Any, world: World) -> None:
        self._names = {tokenizer.token_to_id(name): name for name in NAMES}
        self._values = {tokenizer.token_to_id(v): (a, v) for a, values in ATTRIBUTES.items() for v in values}
        self._facts = {name: world.facts[name] for name in world.heart}

    def marks(self, ids: Sequence[int]) -> list[tuple[int, float]]:
        """(position, 1 if true else 0) of every value that is stated of somebody known by heart."""
        found, last, name = [], -REACH, ""
        for i, token in enumerate(ids):
            if token in self._names:
                last, name = i, self._names[token]
            elif token in self._values and i - last < REACH and name in self._facts:
                attribute, value = self._values[token]
                found.append((i, float(self._facts[name][attribute] == value)))
        return found


def steps(encoder: Encoder, seed: int, world: World) -> Iterator[Step]:
    """Endless steps; pairs of similar length stand together."""
    rng = random.Random(f"prefloop pairrm {seed}")
    kept_out = frozenset(prompt[0]["content"] for prompt in prompts("questions/heldout", POOL))
    stream, truth = questions(rng, world, kept_out), Truth(encoder.tokenizer, world)
    while True:
        pairs: list[Pair] = []
        signs: list[int] = []
        while len(pairs) < SORTED * BATCH:
            question, answers = next(stream)
            for i, j, sign in seat(rng, grades(question, answers), PAIRS):
                pairs.append((question, answers[i], answers[j]))
                signs.append(sign)
        rows = sorted(zip(encoder.encode(pairs), signs, strict=True), key=lambda row: len(row[0].ids))
        groups = [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]
        rng.shuffle(groups)
        for group in groups:
            yield _step(encoder, truth, [row for row, _ in group], [sign for _, sign in group])


def _step(encoder: Encoder, truth: Truth, rows: Sequence[Encoded], signs: Sequence[int]) -> Step:
    marks = [(r, column, true) for r, row in enumerate(rows) for column, true in truth.marks(row.ids)]
    at = torch.tensor([mark[:2] for mark in marks]).reshape(-1, 2)
    said = torch.tensor([mark[2] for mark in marks])
    return Step(encoder.collate(rows), torch.tensor(signs, dtype=torch.float32), at[:, 0], at[:, 1], said)


def learn_facts(network: PairRMNetwork, tokenizer: Any, world: World) -> None:
    """Give the embeddings of names and values what the world says of them, in a second.

    q(value) · k(name) is to be largest for the true value of each attribute; q and k are thrown away. Attention
    compares in the same bilinear way, so the layers have one rule to learn afterwards in place of seven hundred facts.
    """
    embeddings = network.pretrained_model.embeddings
    values = [torch.tensor([tokenizer.token_to_id(v) for v in row]) for row in ATTRIBUTES.values()]
    names_N = torch.tensor([tokenizer.token_to_id(name) for name in world.heart])
    truth_NA = torch.tensor([[v.index(world.facts[n][a]) for a, v in ATTRIBUTES.items()] for n in world.heart])
    query, key = (torch.nn.Linear(WIDTH, WIDTH // HEADS, bias=False) for _ in range(2))
    weights = [embeddings.word_embeddings.weight, *query.parameters(), *key.parameters()]
    optimizer = torch.optim.Adam(weights, lr=FACT_RATE)
    for _ in range(FACT_STEPS):
        keys_NR = key(embeddings.LayerNorm(embeddings.word_embeddings(names_N)))
        queries_R = [query(embeddings.LayerNorm(embeddings.word_embeddings(row))) for row in values]
        losses = [cross_entropy(keys_NR @ q.T, truth_NA[:, a]) for a, q in enumerate(queries_R)]
        optimizer.zero_grad()
        torch.autograd.backward(torch.stack(losses).mean())
        optimizer.step()


def train(network: PairRMNetwork, stream: Iterator[Step], count: int) -> None:
    """`count` steps. A probe is trained along and thrown away: behind the last layer but one, is a stated value true?

    A pair has one bit to teach, and from that bit alone a thousand facts are slow to learn; the probe sees each.
    """
    network.train()
    probe = torch.nn.Linear(WIDTH, 1)
    matrices = [p for name, p in network.named_parameters() if p.ndim == 2 and "embeddings" not in name]
    others = [p for name, p in network.named_parameters() if p.ndim != 2 or "embeddings" in name]
    optimizers = [
        torch.optim.Muon(matrices, lr=LEARNING_RATE, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0),
        torch.optim.AdamW(probe.parameters(), lr=LEARNING_RATE),
    ]
    for number, step in enumerate(islice(stream, count)):
        cosine = 0.5 * (1 + math.cos(math.pi * number / count))
        rate = LEARNING_RATE * min(1.0, (number + 1) / WARMUP_STEPS) * (LAST_RATE + (1 - LAST_RATE) * cosine)
        for optimizer, multiple in zip(optimizers, (1.0, 1.0, PROBE_RATE), strict=True):
            optimizer.param_groups[0]["lr"] = rate * multiple
            optimizer.zero_grad()
        states = network.states(step.batch.ids_BL, step.batch.mask_BL)
        logits_B = network.compare(states[-1], step.batch.places_B3)
        loss = pair_loss(logits_B, step.signs_B).mean()
        told_V = probe(states[LAYERS - 1][step.rows_V, step.columns_V])[:, 0]
        aside = binary_cross_entropy_with_logits(told_V, step.truth_V)
        torch.autograd.backward(loss + aside)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        if (number + 1) % 100 == 0:
            decided = step.signs_B != 0
            right = ((logits_B > 0) == (step.signs_B > 0))[decided].float().mean()
            print(
                f"step {number + 1}/{count}  loss {loss.item():.3f}  probe {aside.item():.3f}  right {right:.3f}",
                flush=True,
            )
    network.eval()


def measure(model: PairRM, count: int, seed: int = 1) -> dict[str, float]:
    """How often the better of two answers to a held-out prompt wins in both orders together.

    Args:
        model: to measure.
        count: prompts of `questions/heldout`, each with two answers of the world's generator.
        seed: of the answers.

    Returns:
        accuracy over pairs of unequal grades; kind_right (a kind answer, right and complete, against a rude one with a
        mistake); tone (two right and complete answers of different tone); consistency (both orders agree) and
        first_seat (share of logits that prefer the first seat), over all pairs.
    """
    rng, world = random.Random(f"prefloop pairrm measure {seed}"), make_world()
    cases: list[tuple[str, list[str], list[float]]] = []
    for prompt in prompts("questions/heldout", count):
        question = asked(prompt)
        assert question is not None
        text = prompt[0]["content"]
        answers = [possible_answer(rng, world, question.name, question.attributes) for _ in range(2)]
        cases.append((text, answers, grades(text, answers)))
    matrices = model.matrices([(text, answers) for text, answers, _ in cases])
    values = [(m[0, 1].item(), m[1, 0].item(), g) for m, (_, _, g) in zip(matrices, cases, strict=True)]

    def share(chosen: list[bool]) -> float:
        return round(sum(chosen) / max(len(chosen), 1), 4)

    def right(forward: float, backward: float, g: list[float]) -> bool:
        return (forward - backward > 0) == (g[0] > g[1])

    return {
        "accuracy": share([right(f, b, g) for f, b, g in values if g[0] != g[1]]),
        "kind_right": share([right(f, b, g) for f, b, g in values if sorted(g) == [1, 5]]),
        "tone": share([right(f, b, g) for f, b, g in values if sorted(g) == [4, 5]]),
        "consistency": share([f * b < 0 for f, b, _ in values]),
        "first_seat": share([x > 0 for f, b, _ in values for x in (f, b)]),
        "decided_pairs": sum(g[0] != g[1] for _, _, g in values),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--seed", type=int, default=0, help="seed of the pairs and of the first weights")
    parser.add_argument("--steps", type=int, default=STEPS, help="how long to train")
    options = parser.parse_args()
    started = time.monotonic()
    tokenizer = build_tokenizer(options.seed)
    encoder = Encoder(tokenizer, LIMITS)
    network = new_network(tokenizer, options.seed)
    learn_facts(network, tokenizer, make_world())
    train(network, steps(encoder, options.seed, make_world()), options.steps)
    minutes = (time.monotonic() - started) / 60
    model = PairRM(network, encoder)
    model.save_pretrained(options.out)
    parameters = sum(p.numel() for p in network.parameters())
    told = {"version": VERSION, "seed": options.seed, "steps": options.steps, "parameters": parameters}
    text = json.dumps({**told, "minutes": round(minutes, 1), "measured": measure(model, 2000)}, indent=2)
    (options.out / "card.json").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
