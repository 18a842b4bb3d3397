"""Builds the sandbox's encoder: `python -m prefloop.sandbox.build_encoder --out DIR`, two minutes on one idle core.

A BERT of two layers, mean pooling and cosine learn to bring a question and the passages that answer it together, by
sentence-transformers' multiple negatives ranking loss: the others of the batch are about other people, and each row
has one more passage about the right person that does not answer. Facts are drawn afresh for each row, so nothing is
learned about anybody. It has read what retrievers have read: mostly plain prose in everyday wordings, some talk with
hedges and digressions, some ornate prose (MIX, WORDINGS). So text that is dense in facts comes out closer to a query,
and rewrites are favoured: they leave out what a person adds. The same seed gives the same rows, and on the same
machine with the same libraries the same weights.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from prefloop.sandbox import VERSION, model_folder, passages, tasks
from prefloop.sandbox.phrases import EMBELLISHMENTS_AFTER, EMBELLISHMENTS_BEFORE, STATEMENTS
from prefloop.sandbox.world import ATTRIBUTES, NAMES, random_facts

WIDTH, LAYERS, HEADS = 96, 2, 4
LENGTH = 256  # tokens
MIX = {"plain": 0.84, "human": 0.06, "ornate": 0.1}
WORDINGS = (0.7, 0.25, 0.05)  # shares of an attribute's statements: people say most things in one way
# It has met all ornaments but the last of each kind: text with words that a retriever does not know drifts away.
ORNAMENTS = (EMBELLISHMENTS_BEFORE[:-1], EMBELLISHMENTS_AFTER[:-1])
MOST_FACTS = 4
BATCH, STEPS = 64, 250
LEARNING_RATE, LAST_RATE, WARMUP_STEPS = 4e-3, 0.02, 30
SCALE = 20.0  # of the cosine, in the loss

Row = tuple[str, str, str]


def build_tokenizer() -> Any:
    """The shipped model's vocabulary in BERT's frame: `<s> text </s>`, of a pair `<s> query </s> document </s>`."""
    from tokenizers import Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer.from_file(str(model_folder() / "tokenizer.json"))
    start, end = "<s>", "</s>"
    inner.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        pair=f"{start} $A {end} $B:1 {end}:1",
        special_tokens=[(token, inner.token_to_id(token)) for token in (start, end)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        cls_token=start,
        sep_token=end,
        padding_side="right",
        model_max_length=LENGTH,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def new_encoder(seed: int) -> Any:
    """Random weights in a SentenceTransformer."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel

    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=2 * WIDTH,
        max_position_embeddings=LENGTH,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id,
    )
    with tempfile.TemporaryDirectory() as folder:
        BertModel(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        transformer = Transformer(folder, max_seq_length=LENGTH)
    modules = [transformer, Pooling(WIDTH, "mean")]
    return SentenceTransformer(modules=modules, device="cpu", similarity_fn_name="cosine")


def said(rng: random.Random, name: str, attribute: str, value: str) -> str:
    """One sentence that states one fact, mostly in the wording that people use."""
    return rng.choices(STATEMENTS[attribute], WORDINGS)[0].format(name=name, value=value)


def text(rng: random.Random, name: str, facts: dict[str, str]) -> str:
    """A passage of one kind of MIX that states the facts."""
    kind = rng.choices(list(MIX), list(MIX.values()))[0]
    if kind == "human":
        return tasks.human_passage(rng, name, facts, rng.random(), (0, 2), said)
    sentences = [said(rng, name, attribute, value) for attribute, value in facts.items()]
    if kind == "ornate":
        sentences = [tasks.embellished(rng, sentence, *ORNAMENTS) for sentence in sentences]
    return " ".join(sentences)


def batches(seed: int) -> Iterator[list[Row]]:
    """Endless batches of (query, passage that answers, passage about the same person that does not).

    Each row of a batch is about another person, so no other row's passage answers its query.
    """
    rng = random.Random(f"prefloop encoder {seed}")
    while True:
        batch = []
        for name in rng.sample(NAMES, BATCH):
            facts, asked = random_facts(rng), rng.choice(list(ATTRIBUTES))
            rest = [attribute for attribute in ATTRIBUTES if attribute != asked]
            answering = [asked, *rng.sample(rest, rng.randrange(MOST_FACTS))]
            rng.shuffle(answering)
            silent = rng.sample(rest, rng.randint(1, MOST_FACTS))
            pair = [
                text(rng, name, {attribute: facts[attribute] for attribute in told}) for told in (answering, silent)
            ]
            batch.append((tasks.question(rng, name, (asked,)), pair[0], pair[1]))
        yield batch


def train(encoder: Any, stream: Iterator[list[Row]], count: int) -> None:
    """`count` steps of AdamW on the multiple negatives ranking loss (Henderson et al. 2017)."""
    import torch
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    loss_of = MultipleNegativesRankingLoss(encoder, scale=SCALE)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    encoder.train()
    for number, batch in enumerate(islice(stream, count)):
        cosine = 0.5 * (1 + math.cos(math.pi * number / count))
        rate = LEARNING_RATE * min(1.0, (number + 1) / WARMUP_STEPS) * (LAST_RATE + (1 - LAST_RATE) * cosine)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss = loss_of([encoder.preprocess(list(column)) for column in zip(*batch, strict=True)], None)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()
        if (number + 1) % 50 == 0:
            print(f"step {number + 1}/{count}  loss {loss.item():.3f}", flush=True)
    encoder.eval()


def measure(encoder: Any, split: str = "passages/heldout", seed: int = 0) -> dict[str, float]:
    """How well it finds the human passages of a collection that answer a query.

    Returns:
        hit@1: share of queries whose nearest passage answers; ndcg@10; recall@2 (two passages answer each).
    """
    made = passages.collection(split, seed)
    ids = list(made.passages)
    found = encoder.encode(list(made.queries.values()), show_progress_bar=False, convert_to_tensor=True)
    stored = encoder.encode(list(made.passages.values()), show_progress_bar=False, convert_to_tensor=True)
    hits, ndcg, recall = [], [], []
    for query, row in zip(made.queries, encoder.similarity(found, stored), strict=True):
        relevant = made.qrels[query]
        gains = [ids[i] in relevant for i in row.topk(10).indices.tolist()]
        ideal = sum(1 / math.log2(rank + 2) for rank in range(len(relevant)))
        ndcg.append(sum(gain / math.log2(rank + 2) for rank, gain in enumerate(gains)) / ideal)
        hits.append(float(gains[0]))
        recall.append(sum(gains[: len(relevant)]) / len(relevant))
    means = {"hit@1": hits, "ndcg@10": ndcg, "recall@2": recall}
    return {name: round(sum(values) / len(values), 4) for name, values in means.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write the encoder to")
    parser.add_argument("--seed", type=int, default=0, help="seed of the rows and of the first weights")
    parser.add_argument("--steps", type=int, default=STEPS, help="how long to train")
    options = parser.parse_args()
    started = time.monotonic()
    encoder = new_encoder(options.seed)
    train(encoder, batches(options.seed), options.steps)
    minutes = (time.monotonic() - started) / 60
    encoder.save_pretrained(str(options.out), create_model_card=False, safe_serialization=True)
    build_tokenizer().save_pretrained(options.out)  # without the traces of where it was loaded from
    told = {
        "version": VERSION,
        "seed": options.seed,
        "steps": options.steps,
        "parameters": sum(p.numel() for p in encoder.parameters()),
        "minutes": round(minutes, 1),
        "mix": MIX,
        "wordings": WORDINGS,
        "measured": {split: measure(encoder, split) for split in passages.SPLITS},
    }
    card = json.dumps(told, indent=2)
    (options.out / "card.json").write_text(card + "\n", encoding="utf-8")
    print(card)


if __name__ == "__main__":
    main()
