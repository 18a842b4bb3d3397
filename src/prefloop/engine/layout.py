"""How a batch of prompts, each with one or more completions, lies in the tensors of one forward pass.

Everything behind the forward (losses, reference cache, scoring) reads gathered vectors and never learns which layout
made them. Shape letters: B sequences, T positions in a sequence, N scored tokens, R responses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

Row = tuple[Sequence[int], Sequence[Sequence[int]]]
"""Prompt ids and the ids of each of its completions."""

Kind = Literal["concatenated", "segments", "varlen", "dense"]
"""How a layout's tokens attend: plain causal rows, or pieces (`shared`) by one of the backends of `attention.py`."""


class Piece(NamedTuple):
    """Tokens that follow one another in a sequence and attend causally among themselves.

    Attributes:
        length: in tokens, at least 1.
        prefix: index, within its sequence, of the earlier piece that it continues and reads whole; None for none.
            That piece continues nothing itself.
    """

    length: int
    prefix: int | None = None


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
        kind: how tokens attend.
        pieces: of each sequence, what it consists of, in order; padding follows. None where every sequence is
            a single causal one (`concatenated`, `next_tokens`).
    """

    input_ids_BT: Tensor
    attention_mask_BT: Tensor
    position_ids_BT: Tensor
    source_N: Tensor
    targets_N: Tensor
    response_N: Tensor
    responses: int
    kind: Kind = "concatenated"
    pieces: tuple[tuple[Piece, ...], ...] | None = None

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
    _refuse_empty(rows)
    sequences: list[list[int]] = []
    prompt_lengths: list[int] = []
    for prompt, completions in rows:
        for completion in completions:
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


def shared(rows: Sequence[Row], pad_id: int, *, kind: Kind = "segments") -> Layout:
    """The layout that runs each prompt once: [prompt | response 1 | ... | response K], positions restarting behind it.

    Every response's first token is predicted from the prompt's last position, which is gathered once for each of them.
    A response's last token is predicted but never read, so it is left out of the input. A prompt with one response is
    one piece. `segments` and `varlen` put all rows into one sequence without padding; `dense`, whose attention is
    quadratic in the sequence, gives each row a sequence of its own, padded on the right.

    Only for models that `sharing.check_sharing` found to score it exactly.

    Args, raises: as `concatenated`; responses are numbered in the same way.
    """
    _refuse_empty(rows)
    ids: list[list[int]] = []
    positions: list[list[int]] = []
    pieces: list[list[Piece]] = []
    place: list[tuple[int, int]] = []  # of each scored token: its sequence, and where in it its source stands
    targets: list[int] = []
    response: list[int] = []
    responses = 0
    for prompt, completions in rows:
        if kind == "dense" or not ids:
            ids.append([])
            positions.append([])
            pieces.append([])
        sequence, root, end = len(ids) - 1, len(pieces[-1]), len(ids[-1]) + len(prompt)
        ids[-1] += prompt
        positions[-1] += range(len(prompt))
        pieces[-1].append(Piece(len(prompt)))
        for completion in completions:
            read = len(completion) - 1
            start = len(ids[-1])
            place += [(sequence, end - 1), *((sequence, start + i) for i in range(read))]
            ids[-1] += completion[:read]
            positions[-1] += range(len(prompt), len(prompt) + read)
            if len(completions) == 1:
                pieces[-1][root] = Piece(len(prompt) + read)
            elif read:
                pieces[-1].append(Piece(read, root))
            targets += completion
            response += [responses] * len(completion)
            responses += 1
    width = max(map(len, ids))
    return Layout(
        input_ids_BT=torch.tensor([row + [pad_id] * (width - len(row)) for row in ids]),
        attention_mask_BT=torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids]),
        position_ids_BT=torch.tensor([row + [0] * (width - len(row)) for row in positions]),
        source_N=torch.tensor([sequence * width + where for sequence, where in place]),
        targets_N=torch.tensor(targets),
        response_N=torch.tensor(response),
        responses=responses,
        kind=kind,
        pieces=tuple(map(tuple, pieces)),
    )


def _refuse_empty(rows: Sequence[Row]) -> None:
    if not rows:
        raise ValueError("a layout needs at least one row")
    for i, (prompt, completions) in enumerate(rows):
        if len(prompt) == 0:
            raise ValueError(f"row {i}: empty prompt; nothing predicts the first token (a prompt has at least BOS)")
        if len(completions) == 0:
            raise ValueError(f"row {i}: a prompt without completions")
        for k, completion in enumerate(completions):
            if len(completion) == 0:
                raise ValueError(f"row {i}, completion {k}: empty completion (it has at least its end-of-turn token)")
