"""log p(token | hidden state) through the output head, without a [tokens, vocabulary] tensor.

Shape letters: N scored tokens, H hidden width, V vocabulary, C tokens in a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK_BYTES = {"cpu": 32 * 2**20}
"""Size of the [C, V] tensor in float32 that is worked on at a time. A processor wants it near its cache."""
_CHUNK_BYTES_ELSEWHERE = 256 * 2**20  # a GPU wants few and large products
KEPT_BYTES = 256 * 2**20
"""Of probabilities that forward keeps for backward; the chunks behind them are computed again."""


def kept_tokens(vocabulary: int, softcap: float | None = None, itemsize: int = 4) -> int:
    """Tokens whose probabilities forward keeps where the head is trained. None under a cap, whose slope needs more."""
    return KEPT_BYTES // (itemsize * vocabulary) if softcap is None else 0


def chunk_size(vocabulary: int, device: torch.device) -> int:
    """Tokens in a chunk."""
    return max(1, CHUNK_BYTES.get(device.type, _CHUNK_BYTES_ELSEWHERE) // (4 * vocabulary))


class _ChunkedLogProb(torch.autograd.Function):
    """The closed form of the gradient.

    With z = scale * (W h + b), u = cap * tanh(z / cap) (u = z without a cap) and logp = u_y - logsumexp(u):
    d logp / d u = onehot(y) - softmax(u), d u / d z = 1 - (u / cap)^2.

    Where the head is frozen, the gradient with respect to a hidden state is the upstream gradient times a vector that
    is known in forward, so it is made there and backward only scales it. Where the head is trained, the last chunks'
    exponentials are kept for backward as far as KEPT_BYTES reaches, and the logits of the others are computed again.
    So memory does not grow with N: above what is kept there is one [C, V] tensor (two with a cap), as everything is
    done in place.
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
        need_hidden, *need_head = ctx.needs_input_grad[:3]
        top_N = torch.empty(len(targets_N), dtype=wide, device=hidden_NH.device)
        sums_N, logps_N = torch.empty_like(top_N), torch.empty_like(top_N)
        unit_NH = torch.empty_like(hidden_NH) if need_hidden and not any(need_head) else None
        # The last ones: backward begins with them, so they are gone before the first one that is computed again.
        room = kept_tokens(len(weight_VH), softcap, wide.itemsize) if any(need_head) else 0
        ctx.kept = {}
        for start in range(0, len(targets_N), chunk):
            part = slice(start, start + chunk)
            logits_CV = _logits(hidden_NH[part], weight_VH, bias_V, scale, softcap, wide)
            slope_CV = _slope(logits_CV, scale, softcap) if unit_NH is not None else None
            top_C1 = logits_CV.amax(-1, keepdim=True)
            picked_C = logits_CV.gather(-1, targets_N[part, None]).sub_(top_C1).squeeze(-1)
            sums_C = logits_CV.sub_(top_C1).exp_().sum(-1)
            logps_N[part] = picked_C - sums_C.log()
            top_N[part], sums_N[part] = top_C1.squeeze(-1), sums_C
            if start + room >= len(targets_N):
                ctx.kept[start] = logits_CV
            if unit_NH is not None:
                grad_CV = logits_CV.mul_(-1 / sums_C[:, None])
                grad_CV.scatter_add_(1, targets_N[part, None], torch.ones_like(top_C1))
                unit_NH[part] = _times(grad_CV, slope_CV).to(hidden_NH.dtype) @ weight_VH
        ctx.save_for_backward(hidden_NH, weight_VH, bias_V, targets_N, top_N, sums_N, unit_NH)
        ctx.settings = (scale, softcap, chunk, wide)
        return logps_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_N,) = grads
        hidden_NH, weight_VH, bias_V, targets_N, top_N, sums_N, unit_NH = ctx.saved_tensors
        scale, softcap, chunk, wide = ctx.settings
        if unit_NH is not None:
            return (unit_NH * grad_N[:, None]).to(hidden_NH.dtype), None, None, None, None, None, None
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        # The weight's gradient sums over all chunks: kept wide, or bfloat16 would lose the later ones.
        grad_hidden_NH = torch.empty_like(hidden_NH) if need_hidden else None
        grad_weight_VH = torch.zeros(weight_VH.shape, dtype=wide, device=weight_VH.device) if need_weight else None
        grad_bias_V = torch.zeros(len(weight_VH), dtype=wide, device=weight_VH.device) if need_bias else None
        kept, ctx.kept = ctx.kept, {}  # overwritten below: another backward pass computes them again
        for start in reversed(range(0, len(targets_N), chunk)):
            part = slice(start, start + chunk)
            upstream_C1 = grad_N[part, None].to(wide)
            slope_CV: Tensor | float | None = scale
            exp_CV = kept.pop(start, None)
            if exp_CV is None:
                exp_CV = _logits(hidden_NH[part], weight_VH, bias_V, scale, softcap, wide)
                slope_CV = _slope(exp_CV, scale, softcap)
                exp_CV.sub_(top_N[part, None]).exp_()
            grad_CV = exp_CV.mul_(-upstream_C1 / sums_N[part, None])
            del exp_CV
            grad_CV.scatter_add_(1, targets_N[part, None], upstream_C1)
            grad_CV = _times(grad_CV, slope_CV)
            narrow_CV = grad_CV.to(hidden_NH.dtype)
            if grad_hidden_NH is not None:
                torch.mm(narrow_CV, weight_VH, out=grad_hidden_NH[part])
            if grad_weight_VH is not None:
                if wide == hidden_NH.dtype:
                    grad_weight_VH.addmm_(narrow_CV.t(), hidden_NH[part])
                else:
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


def _slope(logits_CV: Tensor, scale: float, softcap: float | None) -> Tensor | float:
    """d u / d (W h + b), before the logits are overwritten."""
    return scale if softcap is None else (logits_CV / softcap).square_().neg_().add_(1).mul_(scale)


def _times(grad_CV: Tensor, slope_CV: Tensor | float | None) -> Tensor:
    return grad_CV if slope_CV is None or (isinstance(slope_CV, float) and slope_CV == 1.0) else grad_CV.mul_(slope_CV)


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

    The head's output is computed a chunk of tokens at a time, so memory is about two chunks plus the gradients, and
    KEPT_BYTES where the head is trained, whatever N is. The price is one more head matmul for the tokens beyond
    those kept. Under autocast, hidden states and head are cast as a Linear layer would cast them.

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
    chunk = chunk or chunk_size(len(weight_VH), hidden_NH.device)
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
