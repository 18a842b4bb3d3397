"""From a source and two answers to one token sequence, as PairRM was trained on it.

`[CLS] <|source|> x [SEP] [CLS] <|candidate1|> a [SEP] [CLS] <|candidate2|> b [SEP]`, each of the three encoded apart.
The tokenizer is a `tokenizers.Tokenizer` and never comes through AutoTokenizer: transformers 5 rebuilds DeBERTa's
normalisation without the character map of its SentencePiece model, which changes the ids of ligatures, full-width
forms, "…" and more without a word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from prefloop.errors import UsageError

VERSION = 1
"""Part of the cache key: raise it when the same texts would become other tokens."""

SOURCE, FIRST, SECOND, EITHER = PREFIXES = ("<|source|>", "<|candidate1|>", "<|candidate2|>", "<|candidate|>")
CLS, SEP = "[CLS]", "[SEP]"

Pair = tuple[str, str, str]
"""Source, first answer, second answer."""


@dataclass(frozen=True)
class Limits:
    """Most tokens of a segment, [CLS], prefix and [SEP] counted. What a source leaves free its answers share."""

    source: int = 1224
    candidate: int = 412


@dataclass(frozen=True)
class Encoded:
    """One pair as tokens.

    Attributes:
        ids: the joint sequence.
        places: positions of the three prefixes in it.
        cut: how many of the three texts did not fit and lost their ends.
    """

    ids: list[int]
    places: tuple[int, int, int]
    cut: int


@dataclass(frozen=True)
class Batch:
    """Right-padded pairs: ids and mask [B, L] (mask 1 on tokens), places [B, 3]."""

    ids_BL: torch.Tensor
    mask_BL: torch.Tensor
    places_B3: torch.Tensor


class Encoder:
    """Encodes pairs.

    Args:
        tokenizer: a `tokenizers.Tokenizer` that knows [CLS], [SEP] and the prefixes.
        limits: of a segment.
        pad_id: what fills a batch up; masked, so any id does.

    Raises:
        UsageError: the tokenizer lacks one of the tokens, or the limits leave no room for text.
    """

    def __init__(self, tokenizer: Any, limits: Limits, pad_id: int = 0) -> None:
        self.tokenizer, self.limits, self.pad_id = tokenizer, limits, pad_id
        # A tokenizer.json may carry a truncation of its own; the limits here depend on the row.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        if min(limits.source, limits.candidate) < 4:
            raise UsageError(
                f"limits of {limits.source} and {limits.candidate} tokens leave no room for text", where="PairRM"
            )
        self._cls, self._sep = (_id(tokenizer, token) for token in (CLS, SEP))
        for prefix in (SOURCE, FIRST, SECOND):
            found = tokenizer.encode(f"{prefix}x", add_special_tokens=False).ids[:1]
            if found != [_id(tokenizer, prefix)]:
                raise UsageError(f"the tokenizer does not keep {prefix} whole at the head of a text", where="PairRM")

    def encode(self, pairs: Sequence[Pair]) -> list[Encoded]:
        """Each pair by itself: how much of it is read does not depend on what else is encoded."""
        texts = {(prefix, text) for pair in pairs for prefix, text in zip((SOURCE, FIRST, SECOND), pair, strict=True)}
        segments = self._segments(sorted(texts))
        return [self._joined(segments[SOURCE, x], segments[FIRST, a], segments[SECOND, b]) for x, a, b in pairs]

    def collate(self, rows: Sequence[Encoded]) -> Batch:
        """Rows as one batch."""
        ids_BL = pad_sequence([torch.tensor(r.ids) for r in rows], batch_first=True, padding_value=self.pad_id)
        lengths_B1 = torch.tensor([len(r.ids) for r in rows])[:, None]
        mask_BL = (torch.arange(ids_BL.shape[1]) < lengths_B1).long()
        return Batch(ids_BL, mask_BL, torch.tensor([r.places for r in rows]))

    def _segments(self, texts: Sequence[tuple[str, str]]) -> dict[tuple[str, str], list[int]]:
        # A [SEP] written in a text would end its segment for the network.
        encodings = self.tokenizer.encode_batch(
            [prefix + text.replace(SEP, " ") for prefix, text in texts], add_special_tokens=False
        )
        return {key: [self._cls, *e.ids, self._sep] for key, e in zip(texts, encodings, strict=True)}

    def _joined(self, source: list[int], first: list[int], second: list[int]) -> Encoded:
        limit = self.limits.source
        x = self._cut(source, limit)
        # By this row's own source. llm-blender takes the longest of a batch, so a score depends on its neighbours.
        each = self.limits.candidate + (limit - len(x)) // 2
        a, b = self._cut(first, each), self._cut(second, each)
        # The prefix stands behind [CLS]. Positions are counted, not looked for: an answer may contain a prefix.
        places = (1, len(x) + 1, len(x) + len(a) + 1)
        cut = (len(x) < len(source)) + (len(a) < len(first)) + (len(b) < len(second))
        return Encoded([*x, *a, *b], places, cut)

    def _cut(self, ids: list[int], limit: int) -> list[int]:
        return ids if len(ids) <= limit else [*ids[: limit - 1], self._sep]


def _id(tokenizer: Any, token: str) -> int:
    found = tokenizer.token_to_id(token)
    if found is None:
        raise UsageError(
            f"the tokenizer has no {token}", where="PairRM", fix="give a PairRM checkpoint with its own tokenizer.json"
        )
    return int(found)
