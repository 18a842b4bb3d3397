"""Random reward models of real architectures, small enough for a test: decoders with and without padding, encoders."""

from __future__ import annotations

from pathlib import Path

import torch
from tests.tiny_models import CORPUS, make_tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast

DECODERS = ("llama", "qwen3", "gemma3")
ENCODERS = ("bert", "deberta-v2", "roberta")
SPECIAL = {
    "bert": ("[PAD]", "[UNK]", "[CLS]", "[SEP]"),
    "deberta-v2": ("[PAD]", "[UNK]", "[CLS]", "[SEP]"),
    "roberta": ("<pad>", "<unk>", "<s>", "</s>"),
}


def encoder_tokenizer(arch: str, positions: int) -> PreTrainedTokenizerFast:
    """Texts between CLS and SEP; a pair has two SEPs between its texts in RoBERTa, one elsewhere."""
    pad, unknown, first, last = SPECIAL[arch]
    tokenizer = Tokenizer(models.BPE(unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[pad, unknown, first, last],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 8, trainer)
    between = f"{last} {last}" if arch == "roberta" else last
    second = 0 if arch == "roberta" else 1
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {between} $B:{second} {last}:{second}",
        special_tokens=[(mark, tokenizer.token_to_id(mark)) for mark in (first, last)],
    )
    inputs = ["input_ids", "attention_mask"] + ([] if arch == "roberta" else ["token_type_ids"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        unk_token=unknown,
        cls_token=first,
        sep_token=last,
        bos_token=first if arch == "roberta" else None,
        eos_token=last if arch == "roberta" else None,
        model_max_length=positions,
        model_input_names=inputs,
        clean_up_tokenization_spaces=False,
    )


def make_tiny_reward(
    folder: Path,
    arch: str,
    labels: tuple[str, ...] = ("reward",),
    *,
    positions: int = 128,
    padded: bool = True,
    template: bool = True,
) -> Path:
    """Write a random reward model and return its folder.

    Args:
        labels: names of its heads.
        padded: whether a decoder's configuration names a padding token.
        template: whether a decoder's tokenizer has its chat template.
    """
    encoder = arch in ENCODERS
    tokenizer = encoder_tokenizer(arch, positions) if encoder else make_tiny_tokenizer(arch)
    if not template:
        tokenizer.chat_template = None
    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": positions + (2 if arch == "roberta" else 0),
        "pad_token_id": tokenizer.pad_token_id if padded else None,
        "id2label": dict(enumerate(labels)),
        "label2id": {name: i for i, name in enumerate(labels)},
    }
    if not encoder:
        settings |= {"num_key_value_heads": 2, "head_dim": 8}
    if arch == "roberta":
        settings |= {"type_vocab_size": 1}
    if arch == "gemma3":
        settings |= {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
    kind = "gemma3_text" if arch == "gemma3" else arch
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(kind, **settings))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(4.0)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
