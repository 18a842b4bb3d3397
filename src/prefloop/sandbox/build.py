"""Builds the sandbox's model: tokenizer, corpus, training, measurement. `python -m prefloop.sandbox.build --out DIR`.

Fifty minutes on two idle cores. The corpus is the same for the same seed, byte for byte; so are the weights, on the
same machine with the same libraries.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from prefloop.sandbox import VERSION, tasks
from prefloop.sandbox.competence import failures, measure
from prefloop.sandbox.corpus import FINISHING, MAIN, PAIRING, READING, REPEATING, SETTLING
from prefloop.sandbox.tokenizer import build_tokenizer
from prefloop.sandbox.training import Stage, batches, train

WIDTH, LAYERS, HEADS = 128, 4, 4
# Stages behind the curriculum, each with a schedule of its own: name, shares, steps, learning rate.
LATER = (("finishing", FINISHING, 2000, 8e-4), ("settling", SETTLING, 900, 3e-4))


def new_model(tokenizer: Any, seed: int) -> Any:
    """A Llama of a million parameters with random weights, tied embeddings and a context of 512."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    # A word at the start of a turn and the same word behind a space are two tokens. They begin as one vector: else the
    # model has to learn for every single name that the two mean the same person before it can match them.
    embeddings, vocabulary = model.get_input_embeddings().weight.data, tokenizer.get_vocab()
    for word, index in vocabulary.items():
        if word.startswith("Ġ") and word[1:] in vocabulary:
            embeddings[vocabulary[word[1:]]] = embeddings[index]
    return model


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write the plain Hugging Face folder; generation samples at temperature 1 by default."""
    model.generation_config.update(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=128)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def card(measured: dict[str, float], parameters: int, minutes: float, seed: int) -> dict[str, Any]:
    """What the folder's card.json says of the model."""
    intended = {
        "kind": tasks.KIND_SHARE,
        "correct": tasks.RIGHT_SHARE,
        "complete": tasks.COMPLETE_SHARE,
        "plain": tasks.PLAIN_SHARE,
        "misleading_followed": tasks.FOLLOW_SHARE,
    }
    return {
        "version": VERSION,
        "seed": seed,
        "parameters": parameters,
        "minutes": round(minutes, 1),
        "intended_shares": intended,
        "corpus_shares": {"main": MAIN} | {name: shares for name, shares, _, _ in LATER},
        "competence": measured,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--seed", type=int, default=0, help="seed of the corpus and of the first weights")
    options = parser.parse_args()
    torch.set_num_threads(2)
    started = time.monotonic()
    tokenizer = build_tokenizer(options.seed)
    model = new_model(tokenizer, options.seed)
    stages = [
        Stage("repeating", 400, batches(tokenizer, options.seed, REPEATING, 2048)),
        Stage("pairing", 800, batches(tokenizer, options.seed, PAIRING, 2048, values_only=True)),
        Stage("reading", 300, batches(tokenizer, options.seed, READING, 3072)),
        Stage("main", 4000, batches(tokenizer, options.seed, MAIN, 4096)),
    ]

    def report(line: str) -> None:
        print(line, flush=True)
        save(model, tokenizer, options.out)

    train(model, stages, report)
    for place, (name, shares, steps, rate) in enumerate(LATER, start=1):
        torch.manual_seed(options.seed)
        train(model, [Stage(name, steps, batches(tokenizer, options.seed + place, shares, 4096))], report, peak=rate)
    save(model, tokenizer, options.out)
    measured = measure(model, tokenizer, 1000)
    minutes = (time.monotonic() - started) / 60
    text = json.dumps(card(measured, model.num_parameters(), minutes, options.seed), indent=2)
    (options.out / "card.json").write_text(text + "\n", encoding="utf-8")
    print(text, *failures(measured), sep="\n")


if __name__ == "__main__":
    main()
