"""Optimiser steps: a few queries as distinct (query, document) rows, and the places at which the losses read them.

A document that stands in a query's classification, list and contrast is one row, tokenised and encoded once. Rows of
similar length are padded together: all of them in one call of the encoder, unless their lengths differ so much that
padding would cost more than it saves. Shape letters: U rows, n classified ones, Q queries, K places of a list,
C places of a contrast group.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from prefloop.config import RerankSection
from prefloop.rerank.groups import Group
from prefloop.train.steps import permutation

PADDING = 0.05
"""Share of padding among a call's tokens above which its shorter rows get a call of their own."""


@dataclass(frozen=True)
class Batch:
    """One optimiser step. Rows are counted in the order in which the calls give them.

    Attributes:
        calls: features of each call of the encoder.
        rows: U.
        pair_tokens: tokens of all rows, padding left out.
        point_n, label_n: rows that are classified, and 1 or 0 for each.
        rank_QK, target_QK, in_list_QK: rows of the lists, their targets, and which places are filled.
        side_QC, positive_QC, in_group_QC: rows of the contrast groups, which of them are aligned, which are filled.
        query_Q: rows of the queries alone; empty unless the contrast is anchored on them.
        ids: of the groups.
    """

    calls: tuple[dict[str, Tensor], ...]
    rows: int
    pair_tokens: int
    point_n: Tensor
    label_n: Tensor
    rank_QK: Tensor
    target_QK: Tensor
    in_list_QK: Tensor
    side_QC: Tensor
    positive_QC: Tensor
    in_group_QC: Tensor
    query_Q: Tensor
    ids: tuple[str, ...]

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        moved: dict[str, Any] = {n: v.to(device) if isinstance(v, Tensor) else v for n, v in vars(self).items()}
        moved["calls"] = tuple({name: t.to(device) for name, t in call.items()} for call in self.calls)
        return Batch(**moved)


class Collator:
    """Groups to a `Batch`, with only the rows that the section's losses read.

    Args:
        tokenizer: of the model.
        max_length: tokens of a pair; of a longer one the longer text is cut, token by token.
        section: `losses` and the form of the contrast decide which rows there are.
    """

    def __init__(self, tokenizer: Any, max_length: int, section: RerankSection) -> None:
        self.tokenizer, self.max_length, self.section = tokenizer, max_length, section

    def __call__(self, groups: Sequence[Group]) -> Batch:
        tasks = self.section.losses
        rows: dict[tuple[str, str | None], set[str]] = {}

        def row(group: Group, document: int | None, task: str) -> tuple[str, str | None]:
            key = (group.query, None if document is None else group.documents[document])
            rows.setdefault(key, set()).add(task)
            return key

        point = [(row(g, d, "pointwise"), label) for g in groups for d, label in g.classified if "pointwise" in tasks]
        lists = [[(row(g, d, "pairwise"), t) for d, t in g.ranked] for g in groups if "pairwise" in tasks]
        sides = [
            [(row(g, d, "contrastive"), True) for d in g.positives]
            + [(row(g, d, "contrastive"), False) for d in g.negatives]
            for g in groups
            if "contrastive" in tasks
        ]
        anchors = [
            row(g, None, "contrastive")
            for g in groups
            if "contrastive" in tasks and self.section.contrastive == "query"
        ]
        # Exact MGDA goes backward once for each loss: rows of different losses in different calls, so that each of
        # these passes touches its own rows alone.
        apart = self.section.weighting == "mgda"
        calls, places, tokens = self._calls(rows, apart=apart)
        rank = [[(places[key], target) for key, target in some] for some in lists]
        side = [[(places[key], positive) for key, positive in some] for some in sides]
        rank_QK, target_QK, in_list_QK = _padded(rank, torch.float32)
        side_QC, positive_QC, in_group_QC = _padded(side, torch.bool)
        return Batch(
            calls=calls,
            rows=len(rows),
            pair_tokens=tokens,
            point_n=torch.tensor([places[key] for key, _ in point], dtype=torch.long),
            label_n=torch.tensor([label for _, label in point], dtype=torch.long),
            rank_QK=rank_QK,
            target_QK=target_QK,
            in_list_QK=in_list_QK,
            side_QC=side_QC,
            positive_QC=positive_QC,
            in_group_QC=in_group_QC,
            query_Q=torch.tensor([places[key] for key in anchors], dtype=torch.long),
            ids=tuple(group.id for group in groups),
        )

    def _calls(
        self, rows: dict[tuple[str, str | None], set[str]], *, apart: bool
    ) -> tuple[tuple[dict[str, Tensor], ...], dict[tuple[str, str | None], int], int]:
        """Features of the calls, the place of each row among what they give, and all rows' tokens."""
        keys = list(rows)
        encoded = self._tokens(keys)
        lengths = [len(one["input_ids"]) for one in encoded]
        parts: dict[frozenset[str], list[int]] = {}
        for i, key in enumerate(keys):
            parts.setdefault(frozenset(rows[key]) if apart else frozenset(), []).append(i)
        cut = [call for part in parts.values() for call in similar(part, lengths)]
        calls = tuple(
            dict(self.tokenizer.pad([encoded[i] for i in call], padding=True, return_tensors="pt")) for call in cut
        )
        order = [i for call in cut for i in call]
        return calls, {keys[i]: place for place, i in enumerate(order)}, sum(lengths)

    def _tokens(self, keys: Sequence[tuple[str, str | None]]) -> list[dict[str, list[int]]]:
        found: list[dict[str, list[int]]] = [{} for _ in keys]
        for alone in (False, True):
            chosen = [i for i, (_, document) in enumerate(keys) if (document is None) == alone]
            if not chosen:
                continue
            texts: list[list[str]] = [[keys[i][0] for i in chosen]]
            if not alone:
                texts.append([keys[i][1] or "" for i in chosen])
            encoded = self.tokenizer(*texts, truncation="longest_first", max_length=self.max_length)
            for place, i in enumerate(chosen):
                found[i] = {name: values[place] for name, values in encoded.items()}
        return found


def similar(rows: Sequence[int], lengths: Sequence[int], padding: float = PADDING) -> list[list[int]]:
    """Rows in calls, longest first, with at most this share of padding in each."""
    calls: list[list[int]] = []
    tokens = 0
    for i in sorted(rows, key=lambda i: (-lengths[i], i)):
        if calls:
            padded = lengths[calls[-1][0]] * (len(calls[-1]) + 1)
            if padded - tokens - lengths[i] <= padding * padded:
                calls[-1].append(i)
                tokens += lengths[i]
                continue
        calls.append([i])
        tokens = lengths[i]
    return calls


class QuerySampler(Sampler[list[int]]):
    """The steps of an epoch as places of groups; the order follows from seed and `epoch` alone."""

    def __init__(self, groups: int, batch_size: int, seed: int) -> None:
        self.groups, self.batch_size, self.seed, self.epoch = groups, batch_size, seed, 0

    def __len__(self) -> int:
        return -(-self.groups // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = permutation(self.groups, self.seed, self.epoch)
        for start in range(0, self.groups, self.batch_size):
            yield order[start : start + self.batch_size]


def _padded(lists: Sequence[Sequence[tuple[int, Any]]], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, values and which places are filled, all [Q, longest]; an empty place reads row 0 and is masked."""
    longest = max(map(len, lists), default=0)
    rows = torch.zeros(len(lists), longest, dtype=torch.long)
    values = torch.zeros(len(lists), longest, dtype=dtype)
    filled = torch.zeros(len(lists), longest, dtype=torch.bool)
    for i, some in enumerate(lists):
        for j, (row, value) in enumerate(some):
            rows[i, j], values[i, j], filled[i, j] = row, value, True
    return rows, values, filled
