"""Which models can share a prompt among its responses, and which layout a batch gets.

`check_sharing` asks a model once; what it answers is small, has no model inside and travels into data workers, where
`build` makes each batch's layout with it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prefloop.engine import flops
from prefloop.engine.attention import Unsupported, layer_windows
from prefloop.engine.layout import Kind, Layout, Row, concatenated, shared
from prefloop.engine.logprob import parts, scored_states, takes_positions

logger = logging.getLogger(__name__)

PROBE_WINDOW = 1100
"""The largest sliding window, in tokens, that the probe reads beyond; it is one short forward pass."""
GAIN = 1.05
"""The least speed-up, in operations, for which a batch is shared."""
CALL_FLOPS = 5e6
"""What one piece in one layer costs on top (a call of the attention kernel, forward and backward), in operations."""


@dataclass(frozen=True)
class Sharing:
    """What a model can do with a shared prompt.

    Attributes:
        shape: the model's sizes.
        kinds: backends whose scores are those of the concatenated layout, best first; empty for none.
        reason: why there is none.
        longest: tokens of a prompt with one response up to which that was checked; None is any length.
    """

    shape: flops.ModelShape
    kinds: tuple[Kind, ...] = ()
    reason: str | None = None
    longest: int | None = None


def build(rows: Sequence[Row], pad_id: int, sharing: Sharing) -> Layout:
    """The layout of a batch: shared where the model can and it pays, concatenated otherwise.

    Args, raises: as `layout.concatenated`; responses are numbered in the same way.
    """
    kind = choose([(len(p), [len(c) for c in completions]) for p, completions in rows], sharing)
    return concatenated(rows, pad_id) if kind == "concatenated" else shared(rows, pad_id, kind=kind)


def choose(lengths: flops.Lengths, sharing: Sharing) -> Kind:
    """The cheapest layout for rows of these lengths, by `flops.count`; concatenated unless another gains `GAIN`."""
    if not sharing.kinds or not all(p and r and min(r) for p, r in lengths):  # `concatenated` says what is empty
        return "concatenated"
    if sharing.longest is not None and max(p + max(r) for p, r in lengths) > sharing.longest:
        return "concatenated"
    plain = flops.count(lengths, sharing.shape, "concatenated").total
    costs: dict[Kind, float] = {}
    for kind in sharing.kinds:
        costs[kind] = flops.count(lengths, sharing.shape, kind).total
        if kind == "segments":
            pieces = sum(len(responses) + 1 if len(responses) > 1 else 1 for _, responses in lengths)
            costs[kind] += CALL_FLOPS * pieces * len(sharing.shape.attention)
    best = min(costs, key=lambda kind: costs[kind])
    return best if plain >= GAIN * costs[best] else "concatenated"


@torch.no_grad()
def check_sharing(model: nn.Module) -> Sharing:
    """Find out which backends score this model's responses as the concatenated layout does.

    What cannot work is known from the configuration; what is left is tried on a small made-up batch, in eval mode, on
    the model's device and in its precision. Whatever differs or fails is refused, and one line in the log says why. To
    be called where `attach_scorer` is, before the model is wrapped for several processes.
    """
    decoder, head = parts(model)
    shape = flops.ModelShape.of(decoder, head)
    training = model.training
    model.eval()
    try:
        sharing = _check(model, decoder, shape)
    finally:
        model.train(training)
    if sharing.reason is not None:
        logger.info("%s: every response is run with its own copy of the prompt: %s", _name(model), sharing.reason)
    elif sharing.longest is not None:
        logger.info(
            "%s: prompts are shared among their responses up to %d tokens, its sliding window",
            _name(model),
            sharing.longest,
        )
    return sharing


def _check(model: nn.Module, decoder: Any, shape: flops.ModelShape) -> Sharing:
    if getattr(decoder.config, "is_encoder_decoder", False):
        return Sharing(shape, reason="it has an encoder")
    implementation = getattr(decoder.config, "_attn_implementation", None)
    if implementation not in (None, "sdpa", "eager"):
        return Sharing(shape, reason=f"its attention implementation is {implementation}; prompts are shared with sdpa")
    if not takes_positions(decoder):
        return Sharing(shape, reason="its decoder takes no position_ids, so a response cannot start behind its prompt")
    try:
        windows = [w for w in layer_windows(decoder.config).values() if w is not None]
    except Unsupported as error:
        return Sharing(shape, reason=str(error))
    reachable = [w for w in windows if w <= PROBE_WINDOW]
    rows = _probe(max(reachable, default=0))
    device = decoder.get_input_embeddings().weight.device
    expected_NH = scored_states(model, concatenated(rows, pad_id=0).to(device))
    kinds: list[Kind] = []
    reasons: list[str] = []
    for kind in _candidates(device, decoder.dtype):
        try:
            found_NH = scored_states(model, shared(rows, pad_id=0, kind=kind).to(device))
            differ = _difference(found_NH, expected_NH)
        except Exception as error:  # foreign code, and a model that fails here is scored the plain way
            reasons.append(f"{kind}: {error}".splitlines()[0])
            continue
        if differ <= _allowed(decoder.dtype):
            kinds.append(kind)
        else:
            reasons.append(f"{kind}: its hidden states differ by {differ:.2g} of their size")
    longest = min((w for w in windows if w > PROBE_WINDOW), default=None)
    return Sharing(shape, tuple(kinds), None if kinds else "; ".join(reasons), longest)


def _candidates(device: torch.device, dtype: torch.dtype) -> tuple[Kind, ...]:
    if device.type == "cuda" and dtype in (torch.float16, torch.bfloat16):
        return ("varlen", "segments", "dense")
    return ("segments", "dense")


def _probe(window: int) -> list[Row]:
    """Rows whose responses would see each other, or stand elsewhere, if anything were wrong; one beyond the window."""
    ids = [(7 * i + 3) % 11 for i in range(window + 8)]
    rows: list[Row] = [(ids[:5], [[1, 2, 3, 4], [5, 6], [4, 4, 4]]), (ids[:3], [[2, 5, 1]]), (ids[:1], [[3], [6, 2]])]
    return [*rows, (ids, [[1, 2, 3], [6, 5, 4, 3]])] if window else rows


def _difference(found_NH: Tensor, expected_NH: Tensor) -> float:
    """Largest relative error of a position's hidden state.

    Hidden states and not log-probabilities: in a model with small or random weights the latter hardly depend on what
    was read, the former do.
    """
    wide = torch.promote_types(expected_NH.dtype, torch.float32)
    found_NH, expected_NH = found_NH.to(wide), expected_NH.to(wide)
    differ_N = (found_NH - expected_NH).norm(dim=-1) / expected_NH.norm(dim=-1)
    return float(differ_N.max()) if bool(differ_N.isfinite().all()) else float("inf")


def _allowed(dtype: torch.dtype) -> float:
    return 0.05 if dtype in (torch.float16, torch.bfloat16) else 1e-4


def _name(model: Any) -> str:
    return type(getattr(model, "get_base_model", lambda: model)()).__name__
