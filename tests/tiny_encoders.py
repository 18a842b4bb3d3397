"""Random encoders and cross-encoders of sentence-transformers, small enough for a test."""

from __future__ import annotations

from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from tests.tiny_rewards import encoder_tokenizer, make_tiny_reward
from transformers import BertConfig, BertModel


def make_tiny_encoder(
    folder: Path,
    *,
    pooling: str = "mean",
    similarity: str | None = None,
    prompts: dict[str, str] | None = None,
    normalize: bool = False,
    seed: int = 0,
    positions: int = 128,
) -> Path:
    """Write a random BERT encoder as sentence-transformers does, and return its folder.

    Args:
        pooling: mean, cls, …
        similarity: cosine, dot, …; cosine, sentence-transformers' own default, without it.
        prompts: by name, such as query and document.
        normalize: vectors of length 1.
    """
    base = make_tiny_transformer(folder / "base", seed=seed, positions=positions)
    modules = [Transformer(str(base), max_seq_length=positions), Pooling(32, pooling)]
    if normalize:
        modules.append(Normalize())
    model = SentenceTransformer(modules=modules, prompts=prompts, similarity_fn_name=similarity, device="cpu")
    model.save_pretrained(str(folder / "encoder"), create_model_card=False)
    return folder / "encoder"


def make_tiny_transformer(folder: Path, *, seed: int = 0, positions: int = 128) -> Path:
    """Write a random BERT as transformers does, which says nothing of pooling."""
    tokenizer = encoder_tokenizer("bert", positions)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=positions,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertModel(config, add_pooling_layer=False)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(4.0)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_tiny_cross_encoder(folder: Path, labels: int = 1) -> Path:
    """Write a random BERT with a classification head of so many outputs."""
    return make_tiny_reward(folder, "bert", tuple(f"label_{i}" for i in range(labels)))
