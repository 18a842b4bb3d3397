"""log p(token | hidden state) through the output head, without a [tokens, vocabulary] tensor.

Shape letters: N scored tokens, H hidden width, V vocabulary, C tokens in a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK_BYTES = 256 * 2**20
"""Size of the largest [C, V] tensor in float32; forward and backward hold about two of them."""


def chunk_size(vocabulary: int) -> int:
    """Tokens in a chunk, so that [C, V] float32 stays at CHUNK_BYTES."""
    return max(1, CHUNK_BYTES // (4 * vocabulary))


class _ChunkedLogProb(torch.autograd.Function):
    """The closed form of the gradient, with each chunk's logits computed again in backward.

    With z = scale * (W h + b), u = cap * tanh(z / cap) (u = z without a cap) and logp = u_y - logsumexp(u):
    d logp / d u = onehot(y) - softmax(u), d u / d z = 1 - (u / cap)^2.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        scale: float,
        softcap: float | None,
        chunk: int,
    ) -> Tensor:
        wide = torch.promote_types(hidden_NH.dtype, torch.float32)
        lse_N = torch.empty(len(targets_N), dtype=wide, device=hidden_NH.device)
        picked_N = torch.empty_like(lse_N)
        for start in range(0, len(targets_N), chunk):
            part = slice(start, start + chunk)
            logits_CV = _logits(hidden_NH[part], weight_VH, bias_V, scale, softcap, wide)
            lse_N[part] = logits_CV.logsumexp(-1)
            picked_N[part] = logits_CV.gather(-1, targets_N[part, None]).squeeze(-1)
        ctx.save_for_backward(hidden_NH, weight_VH, bias_V, targets_N, lse_N)
        ctx.settings = (scale, softcap, chunk, wide)
        return picked_N - lse_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_N,) = grads
        hidden_NH, weight_VH, bias_V, targets_N, lse_N = ctx.saved_tensors
        scale, softcap, chunk, wide = ctx.settings
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        # The weight's gradient sums over all chunks: kept wide, or bfloat16 would lose the later ones.
        grad_hidden_NH = torch.empty_like(hidden_NH) if need_hidden else None
        grad_weight_VH = torch.zeros(weight_VH.shape, dtype=wide, device=weight_VH.device) if need_weight else None
        grad_bias_V = torch.zeros(len(weight_VH), dtype=wide, device=weight_VH.device) if need_bias else None
        for start in range(0, len(targets_N), chunk):
            part = slice(start, start + chunk)
            logits_CV = _logits(hidden_NH[part], weight_VH, bias_V, scale, softcap, wide)
            upstream_C1 = grad_N[part, None].to(wide)
            grad_CV = torch.exp(logits_CV - lse_N[part, None]).mul_(-upstream_C1)
            grad_CV.scatter_add_(1, targets_N[part, None], upstream_C1)
            if softcap is not None:
                grad_CV *= 1 - (logits_CV / softcap) ** 2
            grad_CV *= scale
            narrow_CV = grad_CV.to(hidden_NH.dtype)
            if grad_hidden_NH is not None:
                grad_hidden_NH[part] = narrow_CV @ weight_VH
            if grad_weight_VH is not None:
                grad_weight_VH += narrow_CV.t() @ hidden_NH[part]
            if grad_bias_V is not None:
                grad_bias_V += grad_CV.sum(0)
        return (
            grad_hidden_NH,
            None if grad_weight_VH is None else grad_weight_VH.to(weight_VH.dtype),
            None if grad_bias_V is None or bias_V is None else grad_bias_V.to(bias_V.dtype),
            None,
            None,
            None,
            None,
        )


def _logits(
    hidden_CH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    scale: float,
    softcap: float | None,
    wide: torch.dtype,
) -> Tensor:
    return transform_logits(torch.nn.functional.linear(hidden_CH, weight_VH, bias_V).to(wide), scale, softcap)


def transform_logits(logits: Tensor, scale: float, softcap: float | None) -> Tensor:
    """What a model does to its head's output: scale * z, then softcap * tanh(z / softcap)."""
    if scale != 1.0:
        logits = logits * scale
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def chunked_logprobs(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    targets_N: Tensor,
    bias_V: Tensor | None = None,
    *,
    scale: float = 1.0,
    softcap: float | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Natural log-probability of each target under a linear head.

    The head's output is computed a chunk of tokens at a time, once in forward and once more in backward, so memory is
    about two chunks plus the gradients, whatever N is. The price is one more head matmul. Under autocast, hidden
    states and head are cast as a Linear layer would cast them.

    Args:
        hidden_NH: hidden states that predict the targets.
        weight_VH, bias_V: the head.
        targets_N: token ids, int64.
        scale, softcap: see `transform_logits`.
        chunk: tokens at a time; by default what fits CHUNK_BYTES.

    Returns:
        [N] in float32, or float64 for float64 input; differentiable in hidden states, weight and bias.
    """
    kind = hidden_NH.device.type
    if torch.is_autocast_enabled(kind):
        # Cast here and not inside: backward runs outside autocast, and what it recomputes must have the precision of
        # the logsumexp that forward saved.
        cast = torch.get_autocast_dtype(kind)
        hidden_NH, weight_VH = hidden_NH.to(cast), weight_VH.to(cast)
        bias_V = None if bias_V is None else bias_V.to(cast)
    chunk = chunk or chunk_size(len(weight_VH))
    result = _ChunkedLogProb.apply(hidden_NH, weight_VH, bias_V, targets_N, scale, softcap, chunk)  # type: ignore[no-untyped-call]
    assert isinstance(result, Tensor)
    return result


def checkpointed_logprobs(
    hidden_NH: Tensor,
    head: Callable[[Tensor], Tensor],
    targets_N: Tensor,
    *,
    scale: float = 1.0,
    softcap: float | None = None,
    chunk: int,
) -> Tensor:
    """The same through any module (a head with LoRA, a sharded head), by checkpointing each chunk.

    Autograd differentiates `head` itself, so whatever it does is right; it costs about twice the memory of
    `chunked_logprobs`. Returns [N], float32 or wider.
    """
    wide = torch.promote_types(hidden_NH.dtype, torch.float32)

    def one(hidden_CH: Tensor, targets_C: Tensor) -> Tensor:
        logits_CV = transform_logits(head(hidden_CH).to(wide), scale, softcap)
        return logits_CV.log_softmax(-1).gather(-1, targets_C[:, None]).squeeze(-1)

    parts = []
    for start in range(0, len(targets_N), chunk):
        part = slice(start, start + chunk)
        parts.append(checkpoint(one, hidden_NH[part], targets_N[part], use_reentrant=False))
    return torch.cat(parts)
