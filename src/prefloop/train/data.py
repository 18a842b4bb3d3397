"""Pairs as token ids, the order in which they are trained on, and batches of them.

Shape letters: n pairs in a batch.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch import Tensor
from torch.utils.data import Sampler

from prefloop.engine.layout import Layout, concatenated
from prefloop.engine.tokens import PromptError, encode_completion, encode_prompt
from prefloop.errors import UsageError
from prefloop.records import PreferenceRow, RejectRow, canonical_json

STAGE = "train"


@dataclass(frozen=True)
class Pair:
    """One tokenised preference row.

    Attributes:
        id: the row's id.
        prompt_ids, chosen_ids, rejected_ids: the answers end with the model's end of turn.
        weight, margin: what the loss uses; 1 and 0 where the row has none.
        reference_chosen, reference_rejected: summed log-probabilities in nats under the frozen start, once computed.
    """

    id: str
    prompt_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]
    weight: float = 1.0
    margin: float = 0.0
    reference_chosen: float | None = None
    reference_rejected: float | None = None

    @property
    def length(self) -> int:
        """Tokens of the prompt with the longer answer."""
        return len(self.prompt_ids) + max(len(self.chosen_ids), len(self.rejected_ids))


class Batch(TypedDict):
    """A micro-batch. Layout rows are the pairs in order, each with its chosen and then its rejected answer."""

    layout: Layout
    ids: list[str]
    weight: Tensor
    margin: Tensor
    reference: Tensor


def encode_pairs(
    rows: Sequence[PreferenceRow], tokenizer: Any, end_of_turn: int, max_length: int
) -> tuple[list[Pair], list[RejectRow]]:
    """Tokenise rows; what cannot be trained on as it is becomes a reject with its reason, never a shorter answer.

    Args:
        end_of_turn: the id that ends every answer.
        max_length: of the prompt with either answer, in tokens.

    Returns:
        (pairs in the order of the rows, rejects): together as many as rows.

    Raises:
        UsageError: a weight or margin is not finite.
    """
    pairs: list[Pair] = []
    rejects: list[RejectRow] = []
    for row in rows:
        pair = _encode(row, tokenizer, end_of_turn)
        if isinstance(pair, Pair) and not (pair.chosen_ids and pair.rejected_ids):
            # Cut off before its first character; an empty answer that ended on its own has its end of turn.
            pair = f"the {'rejected' if pair.chosen_ids else 'chosen'} answer is empty and was cut off"
        elif isinstance(pair, Pair) and pair.chosen_ids == pair.rejected_ids:
            pair = "the chosen and the rejected answer are the same tokens"
        elif isinstance(pair, Pair) and pair.length > max_length:
            pair = f"more tokens than max_length {max_length}"
        if isinstance(pair, Pair):
            pairs.append(pair)
        else:
            rejects.append(
                {"id": row["id"], "stage": STAGE, "reason": pair, "attempts": 1, "row": canonical_json(row)}
            )
    return pairs, rejects


def _encode(row: PreferenceRow, tokenizer: Any, end_of_turn: int) -> Pair | str:
    """The pair, or why there is none."""
    for side, answer in (("chosen", row["chosen"]), ("rejected", row["rejected"])):
        roles = [m["role"] for m in answer]
        if roles != ["assistant"]:
            return f"{side} is to be one assistant turn, not {roles}; earlier turns belong to the prompt"
    try:
        prompt_ids = encode_prompt(tokenizer, row["prompt"])
    except PromptError as error:
        return error.what
    # An end of turn behind an answer that was cut off would teach to stop in mid-sentence.
    chosen_ids, rejected_ids = (
        tuple(encode_completion(tokenizer, answer[0]["content"], None if finish == "length" else end_of_turn))
        for answer, finish in ((row["chosen"], row["chosen_finish"]), (row["rejected"], row["rejected_finish"]))
    )
    return Pair(
        id=row["id"],
        prompt_ids=tuple(prompt_ids),
        chosen_ids=chosen_ids,
        rejected_ids=rejected_ids,
        weight=_number(row["weight"], 1.0, row["id"], "weight"),
        margin=_number(row["margin"], 0.0, row["id"], "margin"),
    )


def _number(value: float | None, missing: float, row: str, column: str) -> float:
    if value is None:
        return missing
    if not math.isfinite(value):
        raise UsageError(f"{value} is no {column}", where=f"row {row}", fix="give a number, or null for none")
    return value


class Collator:
    """Pairs -> Batch, deterministically. A pair's prompt and its two answers are one row of the layout (K = 2)."""

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, pairs: Sequence[Pair]) -> Batch:
        return Batch(
            layout=concatenated([(p.prompt_ids, (p.chosen_ids, p.rejected_ids)) for p in pairs], self.pad_id),
            ids=[p.id for p in pairs],
            weight=torch.tensor([p.weight for p in pairs], dtype=torch.float32),
            margin=torch.tensor([p.margin for p in pairs], dtype=torch.float32),
            reference=torch.tensor(
                [[_known(p.reference_chosen), _known(p.reference_rejected)] for p in pairs], dtype=torch.float32
            ),
        )


def _known(value: float | None) -> float:
    # An objective without a reference never reads it; NaN makes one that does stop at once.
    return float("nan") if value is None else value


class EpochSampler(Sampler[int]):
    """A permutation that depends on seed and epoch alone, so a resumed run meets the rows in the same order.

    Random state of the process plays no part (tests/train/test_resume.py).
    """

    def __init__(self, rows: int, seed: int) -> None:
        self.rows, self.seed, self.epoch = rows, seed, 0

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[int]:
        mixed = hashlib.sha256(f"{self.seed}:{self.epoch}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(mixed[:7], "big"))
        return iter(torch.randperm(self.rows, generator=generator).tolist())
