"""A tiny random PairRM, and its folder in every format that is about."""

from __future__ import annotations

import functools
import json
import struct
from pathlib import Path

import torch
from transformers import DebertaV2Config

from prefloop.signals.pairrm import PairRM, spm
from prefloop.signals.pairrm.network import PairRMNetwork
from prefloop.signals.pairrm.text import PREFIXES, Encoder, Limits

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,!?[]()<>|-'▁"
WORDS = ("▁the", "▁is", "▁hello", "▁Paris", "▁capital", "ing", "▁of", "llo", "he")
PIECES = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *LETTERS, *WORDS]
LIMITS = Limits(source=24, candidate=12)
BACKBONE = {
    "model_type": "deberta-v2",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 512,
    "position_buckets": 8,
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
    "type_vocab_size": 0,
    "initializer_range": 0.3,
}


def _varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def _field(number: int, payload: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def spm_bytes(pieces=PIECES, unk_id=3) -> bytes:
    """A SentencePiece model of these pieces, as its protocol buffer; longer pieces are likelier."""
    data = b""
    for place, piece in enumerate(pieces):
        score = 0.0 if place < 4 else -4.0 - 1 / len(piece)
        kind = _varint(3 << 3) + _varint(3 if place < 3 else 2 if place == unk_id else 1)
        data += _field(1, _field(1, piece.encode()) + _varint(2 << 3 | 5) + struct.pack("<f", score) + kind)
    trainer = _varint(40 << 3) + _varint(unk_id) + _varint(43 << 3) + b"\xff" * 9 + b"\x01"  # pad_id = -1
    return data + _field(2, trainer)


@functools.cache
def _spm_file() -> Path:
    import tempfile

    file = Path(tempfile.mkdtemp(prefix="tiny-pairrm-"), "spm.model")
    file.write_bytes(spm_bytes())
    return file


def tiny_tokenizer():
    """Letters and a few words; the prefixes behind [MASK]."""
    from tokenizers import AddedToken

    tokenizer = spm.load(_spm_file())
    tokenizer.add_tokens([AddedToken(token, normalized=True, special=False) for token in PREFIXES])
    return tokenizer


def tiny_pairrm(seed=0, n_tasks=1, limits=LIMITS) -> PairRM:
    tokenizer = tiny_tokenizer()
    torch.manual_seed(seed)
    network = PairRMNetwork(DebertaV2Config.from_dict({**BACKBONE, "vocab_size": tokenizer.get_vocab_size()}), n_tasks)
    with torch.no_grad():  # a head of the usual small weights says next to nothing
        for parameter in network.head_layer.parameters():
            parameter.mul_(4)
    return PairRM(network, Encoder(tokenizer, limits))


def save_blender(
    model: PairRM, folder: Path, *, weights="model.safetensors", spelling="maxlength", beside=True
) -> Path:
    """The folder as llm-blender writes it.

    Args:
        weights: model.safetensors or pytorch_model.bin.
        spelling: of the two limits: maxlength or, as in the 2023 ranker, max_length.
        beside: whether deberta_config.json lies beside it.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "ranker_type": "pairranker",
        "model_type": "deberta",
        "model_name": "nobody/tiny",
        f"source_{spelling}": model.encoder.limits.source,
        f"candidate_{spelling}": model.encoder.limits.candidate,
        "n_tasks": model.network.n_tasks,
        "drop_out": 0.05,
    }
    (folder / "config.json").write_text(json.dumps(config))
    if beside:
        # The backbone's own vocabulary is larger than what the ranker keeps of it.
        (folder / "deberta_config.json").write_text(json.dumps({**BACKBONE, "vocab_size": 999}))
    tensors = {name: tensor.contiguous() for name, tensor in model.network.state_dict().items()}
    if weights.endswith(".bin"):
        tensors["pretrained_model.embeddings.position_ids"] = torch.arange(512)[None]
        torch.save(tensors, folder / weights)
    else:
        save_file(tensors, folder / weights)
    vocabulary = model.encoder.tokenizer.get_vocab()
    (folder / "added_tokens.json").write_text(json.dumps({token: vocabulary[token] for token in PREFIXES}))
    (folder / "spm.model").write_bytes(spm_bytes())
    return folder
