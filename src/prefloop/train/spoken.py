"""What judgments speak of, token by token, before anything is trained: to choose CUT's threshold by."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch

from prefloop.config import ModelSection
from prefloop.engine.load import choose_device, load_model
from prefloop.engine.logprob import attach_scorer
from prefloop.engine.sharing import check_sharing
from prefloop.engine.tokens import end_of_turn_ids, load_tokenizer
from prefloop.records import JudgmentRow
from prefloop.train.batches import Collator
from prefloop.train.detector import contexts
from prefloop.train.encode import Encoder
from prefloop.train.judged import JudgedPrompt
from prefloop.train.precision import Precision

SWEEP = (1.01, 1.05, 1.1, 1.2, 1.3, 1.4, 1.5, 2.0, 3.0, 5.0, 10.0)
"""Thresholds whose flag rates are told."""


@dataclass(frozen=True)
class Spoken:
    """A criticised answer.

    Attributes:
        row: as given.
        texts: of its tokens; the end of turn is one.
        judged, plain: their log-probabilities in nats, behind the judged and the plain prompt.
    """

    row: JudgmentRow
    texts: list[str]
    judged: list[float]
    plain: list[float]

    def flags(self, threshold: float) -> list[bool]:
        """Which tokens a threshold flags; see `losses.flags`."""
        return [a - b > math.log(threshold) for a, b in zip(self.judged, self.plain, strict=True)]

    def at(self, places: Iterable[int]) -> set[int]:
        """The tokens that hold some characters of the answer; behind its last one is the end of turn.

        Raises:
            ValueError: a place is no whole number, or in front of the answer.
        """
        ends, found = list(accumulate(map(len, self.texts))), set()
        for place in places:
            if not isinstance(place, int) or place < 0:
                raise ValueError(f"{place!r} is no place in an answer")
            found.add(min(bisect_right(ends, place), len(ends) - 1))
        return found

    def tokens(self, threshold: float) -> list[dict[str, Any]]:
        """Of each token: `text`, probabilities `judged` and `plain`, their `ratio`, and whether it is `flagged`."""
        columns = zip(self.texts, self.judged, self.plain, self.flags(threshold), strict=True)
        return [
            {
                "text": text,
                "judged": math.exp(a),
                "plain": math.exp(b),
                "ratio": math.exp(min(a - b, 700.0)),  # beyond, no float holds it
                "flagged": flagged,
            }
            for text, a, b, flagged in columns
        ]


@torch.no_grad()
def spoken(
    model: ModelSection, rows: Iterable[JudgmentRow], *, judged_prompt: str, max_length: int, limit: int
) -> tuple[list[Spoken], dict[str, int]]:
    """The first criticised answers of some rows, scored by a model as it is.

    Args:
        judged_prompt: see `CutObjectiveSection`.
        max_length: of a prompt with its answer, in tokens; longer ones are left out.
        limit: answers at most.

    Returns:
        (answers, reason -> rows left out).
    """
    tokenizer = load_tokenizer(model)
    device = choose_device(model.device)
    loaded = load_model(model).eval()
    attach_scorer(loaded)
    precision = Precision(device, next(loaded.parameters()).dtype)
    collate = Collator(0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id, check_sharing(loaded))
    end = end_of_turn_ids(tokenizer, loaded.generation_config)[0]
    encoder = Encoder(tokenizer, end, max_length, "judgments", JudgedPrompt(judged_prompt))
    found: list[Spoken] = []
    left_out: dict[str, int] = {}
    for row in rows:
        if row["judgment"] is None:
            continue
        if len(found) == limit:
            break
        given: Any = [row]
        ((_, encoded),) = encoder(given)
        if not isinstance(encoded, list):
            left_out[encoded["reason"]] = left_out.get(encoded["reason"], 0) + 1
            continue
        judged_M, plain_M = contexts(collate, encoded, loaded, precision)
        found.append(Spoken(row, texts(tokenizer, encoded[0].responses[0]), judged_M.tolist(), plain_M.tolist()))
    return found, left_out


def texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """What each token adds to an answer; a character of several tokens is the last one's.

    Alone, a token of SentencePiece has no space in front of it, and a part of a character is none.
    """
    found, done = [], 0
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:end], clean_up_tokenization_spaces=False)
        whole = text if end == len(ids) else text.rstrip("\N{REPLACEMENT CHARACTER}")
        found.append(whole[done:])
        done = max(done, len(whole))
    return found


def sweep(
    found: Sequence[Spoken], thresholds: Sequence[float] = SWEEP, wrong: Sequence[set[int]] | None = None
) -> list[dict[str, float]]:
    """Of each threshold: the share of all tokens that it flags (`rate`), and of answers in which it flags any.

    Args:
        wrong: the tokens of each answer that should be flagged, where that is known: adds `precision` (of the flagged
            tokens those that should be; 0 of none) and `recall` (of those that should be the flagged ones).
    """
    tokens = sum(len(answer.texts) for answer in found)
    told = []
    for threshold in thresholds:
        flags = [answer.flags(threshold) for answer in found]
        rate, any_flag = sum(map(sum, flags)) / tokens, sum(map(any, flags)) / len(found)
        row = {"threshold": threshold, "rate": rate, "answers": any_flag}
        if wrong is not None:
            hits = sum(sum(own[token] for token in places) for own, places in zip(flags, wrong, strict=True))
            row["precision"] = hits / max(1, sum(map(sum, flags)))
            row["recall"] = hits / max(1, sum(map(len, wrong)))
        told.append(row)
    return told
