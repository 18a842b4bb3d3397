"""A DeBERTa-v3 tokenizer from its SentencePiece file, for checkpoints that come without a tokenizer.json.

The file is a protocol buffer of three messages that matter here (sentencepiece_model.proto): pieces with their
scores, the trainer's unknown id, and the normaliser's character map. The wire format is simple enough to read without
a library. The pipeline equals transformers 4.57's conversion; transformers 5 leaves the character map out.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefloop.errors import UsageError

SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]")

# Field numbers of sentencepiece_model.proto.
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_TEXT, _SCORE = 1, 2
_UNK_ID = 40
_CHARSMAP = 2

_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5


def load(path: Path) -> Any:
    """A `tokenizers.Tokenizer`; its ids are the pieces' places in the file, [MASK] behind them.

    Raises:
        UsageError: the file is no SentencePiece model.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

    try:
        pieces, unk_id, charsmap = _read(path.read_bytes())
    except (ValueError, KeyError, struct.error) as error:
        raise UsageError(
            f"is no SentencePiece model: {error}", where=str(path), fix="fetch the checkpoint again"
        ) from error
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=unk_id, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Strip(),
            *([normalizers.Precompiled(charsmap)] if charsmap else []),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.add_special_tokens([AddedToken(token, normalized=token == "[UNK]", special=True) for token in SPECIAL])
    return tokenizer


def _read(data: bytes) -> tuple[list[tuple[str, float]], int, bytes]:
    """Pieces with scores, the unknown piece's id, and the character map (empty where there is none)."""
    pieces: list[tuple[str, float]] = []
    unk_id, charsmap = 0, b""
    for number, value in _fields(data):
        if number == _PIECES:
            inner = dict(_fields(_message(value)))
            pieces.append((_message(inner[_TEXT]).decode("utf-8"), float(inner.get(_SCORE, 0.0))))
        elif number == _TRAINER:
            unk_id = int(dict(_fields(_message(value))).get(_UNK_ID, 0))
        elif number == _NORMALIZER:
            charsmap = _message(dict(_fields(_message(value))).get(_CHARSMAP, b""))
    if not pieces:
        raise ValueError("it has no pieces")
    return pieces, unk_id, charsmap


def _message(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a number stands where a message or text should")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """Field numbers and values of one message of protocol buffers."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield number, value
        elif kind == _BYTES:
            size, at = _varint(data, at)
            if at + size > len(data):
                raise ValueError("it is cut off")
            yield number, data[at : at + size]
            at += size
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            size, form = (8, "<d") if kind == _EIGHT_BYTES else (4, "<f")
            yield number, struct.unpack_from(form, data, at)[0]
            at += size
        else:
            raise ValueError(f"unknown wire type {kind}")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data):
            raise ValueError("it is cut off")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
