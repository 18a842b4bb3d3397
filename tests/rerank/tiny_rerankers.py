"""Random encoders and cross-encoders of real architectures, small enough for a test."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedTokenizerFast

ARCHITECTURES = ("bert", "xlm-roberta", "modernbert", "distilbert", "electra", "deberta-v2")
WORDS = [f"w{i}" for i in range(60)]


@functools.cache
def _session() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="tiny_rerankers_")


@functools.cache
def tiny_reranker(arch: str, labels: int | None = None, **settings: Any) -> Path:
    """A folder with a random model and a word tokenizer, made once in a test session.

    Args:
        labels: of a cross-encoder; None for a bare encoder.
        settings: further entries of the configuration.
    """
    name = "-".join([arch, str(labels), *(f"{k}={v}" for k, v in settings.items())])
    folder = Path(_session().name) / name
    tokenizer = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]", *WORDS])}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    inputs = ["input_ids", "attention_mask"] + (["token_type_ids"] if arch in ("bert", "electra") else [])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=120,
        model_input_names=inputs,
    )
    config = AutoConfig.for_model(
        arch,
        **{
            "vocab_size": len(fast),
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "max_position_embeddings": 128,
            "type_vocab_size": 2,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "cls_token_id": 1,
            "sep_token_id": 2,
            **({} if labels is None else {"num_labels": labels}),
            **settings,
        },
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        kind = AutoModel if labels is None else AutoModelForSequenceClassification
        model = kind.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(
                        3
                    )  # fresh weights give nearly equal outputs, and a comparison of those shows little
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder
