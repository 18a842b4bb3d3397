"""How a batch of prompts, each with one or more completions, lies in the tensors of one forward pass.

Everything behind the forward (losses, reference cache, scoring) reads gathered vectors and never learns which layout
made them. Shape letters: B rows, T positions in a row, N scored tokens, R responses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

Row = tuple[Sequence[int], Sequence[Sequence[int]]]
"""Prompt ids and the ids of each of its completions."""


@dataclass(frozen=True)
class Layout:
    """One forward pass that scores R responses.

    Attributes:
        input_ids_BT, attention_mask_BT, position_ids_BT: what the decoder reads, all int64; the mask is 1 on tokens.
        source_N: for each scored token, the flat index (into B*T) of the position whose hidden state predicts it.
        targets_N: the scored tokens.
        response_N: which response, 0..R-1, each scored token belongs to. Responses count in the order of the rows
            and, within a row, of its completions; a response's tokens stand together and in order.
        responses: R.
    """

    input_ids_BT: Tensor
    attention_mask_BT: Tensor
    position_ids_BT: Tensor
    source_N: Tensor
    targets_N: Tensor
    response_N: Tensor
    responses: int

    def to(self, device: torch.device | str) -> Layout:
        """The same layout with its tensors on `device`."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {name: v.to(device) for name, v in values.items() if isinstance(v, Tensor)}
        return replace(self, **moved)


def concatenated(rows: Sequence[Row], pad_id: int) -> Layout:
    """The plain layout: every response behind its own copy of the prompt, padded on the right.

    Right padding leaves the positions of all tokens as they are without a batch, so a causal model sees no
    difference between a row alone and a row among longer ones (tests/engine/test_logprob.py).

    Args:
        rows: (prompt ids, completions' ids) for each prompt; K >= 1 completions, K may differ between rows.
        pad_id: any id of the vocabulary; padding is masked.

    Raises:
        ValueError: an empty batch, prompt, list of completions or completion.
    """
    if not rows:
        raise ValueError("a layout needs at least one row")
    sequences: list[list[int]] = []
    prompt_lengths: list[int] = []
    for i, (prompt, completions) in enumerate(rows):
        if len(prompt) == 0:
            raise ValueError(f"row {i}: empty prompt; nothing predicts the first token (a prompt has at least BOS)")
        if len(completions) == 0:
            raise ValueError(f"row {i}: a prompt without completions")
        for k, completion in enumerate(completions):
            if len(completion) == 0:
                raise ValueError(f"row {i}, completion {k}: empty completion (it has at least its end-of-turn token)")
            sequences.append([*prompt, *completion])
            prompt_lengths.append(len(prompt))

    width = max(map(len, sequences))
    source: list[int] = []
    targets: list[int] = []
    response: list[int] = []
    for b, (ids, prompt_length) in enumerate(zip(sequences, prompt_lengths, strict=True)):
        source.extend(range(b * width + prompt_length - 1, b * width + len(ids) - 1))
        targets.extend(ids[prompt_length:])
        response.extend([b] * (len(ids) - prompt_length))
    return Layout(
        input_ids_BT=torch.tensor([ids + [pad_id] * (width - len(ids)) for ids in sequences]),
        attention_mask_BT=torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in sequences]),
        position_ids_BT=torch.arange(width).expand(len(sequences), width).contiguous(),
        source_N=torch.tensor(source),
        targets_N=torch.tensor(targets),
        response_N=torch.tensor(response),
        responses=len(sequences),
    )


def next_tokens(rows: Sequence[Row], pad_id: int) -> Layout:
    """The layout for completions of mostly one token, such as a judge's labels: their prompt is run once.

    A completion's last token is predicted but never read, so what the model must read is the prompt and the rest.
    Completions that need the same reading share it: all those of one token read the prompt alone.

    Args, raises: as `concatenated`; responses are numbered in the same way.
    """
    plain = concatenated(rows, pad_id)
    read: dict[tuple[int, ...], int] = {}
    place: list[tuple[int, int]] = []  # of each response: its sequence, and its prompt's length
    for prompt, completions in rows:
        for completion in completions:
            place.append((read.setdefault((*prompt, *completion[:-1]), len(read)), len(prompt)))
    width = max(map(len, read))
    source: list[int] = []
    lengths = torch.bincount(plain.response_N).tolist()
    for (sequence, prompt_length), length in zip(place, lengths, strict=True):
        first = sequence * width + prompt_length - 1
        source.extend(range(first, first + length))
    return Layout(
        input_ids_BT=torch.tensor([[*ids] + [pad_id] * (width - len(ids)) for ids in read]),
        attention_mask_BT=torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in read]),
        position_ids_BT=torch.arange(width).expand(len(read), width).contiguous(),
        source_N=torch.tensor(source),
        targets_N=plain.targets_N,
        response_N=plain.response_N,
        responses=plain.responses,
    )
