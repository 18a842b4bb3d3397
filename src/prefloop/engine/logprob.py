"""Token log-probabilities of the responses in a layout, for training and for scoring alike.

Scoring happens *inside* the model's own forward: `model(score=layout)`. DDP and FSDP wrap that forward, so ranks
synchronise; code that runs decoder and head on the unwrapped model trains each rank on its own without a word.
Only the instance gets the new keyword: its names, checkpoints and generation stay as they are.

Shape letters: B rows, T positions, N scored tokens, R responses, H hidden width, V vocabulary.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prefloop.engine.attention import attention_mask
from prefloop.engine.chunked import checkpointed_logprobs, chunk_size, chunked_logprobs, transform_logits
from prefloop.engine.layout import Layout, concatenated
from prefloop.errors import UsageError

SCALES: dict[str, Callable[[float], float]] = {
    "logit_scale": lambda x: x,  # Cohere
    "logits_scaling": lambda x: 1 / x,  # Granite
    "lm_head_multiplier": lambda x: x,  # Falcon-H1
}
SOFTCAPS = ("final_logit_softcapping",)  # Gemma 2


@dataclass(frozen=True)
class LogitTransform:
    """What a model does to its head's output before the softmax: see `chunked.transform_logits`."""

    scale: float = 1.0
    softcap: float | None = None


def attach_scorer(model: nn.Module) -> nn.Module:
    """Teach a causal model, or a PEFT model around one, the call `model(score=layout) -> [N]`. Returns the model.

    Without `score` the model's forward is what it was. Must come before DDP, FSDP or accelerate wrap the model.
    Calling it twice changes nothing. What the model does between its decoder and its softmax is read from its
    configuration and checked, once, against the logits of its own forward (`check_exact`).

    Raises:
        UsageError: the model has no decoder and linear head, uses virtual prompt tokens, or its logits are not what
            its decoder, head and configuration give; it would be scored wrongly.
    """
    if "_logit_transform" in vars(model):  # not hasattr: a PEFT model answers for its base
        return model
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        raise UsageError(
            "this adapter puts virtual tokens in front of the prompt; its log-probabilities are not supported",
            fix="use LoRA, or another adapter that changes weights",
        )
    _, head = parts(model)
    original = model.forward

    @functools.wraps(type(model).forward)  # generation and the trainer read the signature
    def forward(self: Any, *args: Any, score: Layout | None = None, **kwargs: Any) -> Any:
        return self._forward_without_score(*args, **kwargs) if score is None else _score(self, score)

    # Bound methods, not closures: a deep copy of the model must score with its own weights
    # (tests/engine/test_logprob.py::test_a_copy_scores_with_its_own_weights).
    vars(model)["_forward_without_score"] = original
    vars(model)["forward"] = types.MethodType(forward, model)
    vars(model)["_logit_transform"] = _configured_transform(model)
    vocabulary = min(head.weight.shape[0], 50) if hasattr(head, "weight") else 2
    probe = concatenated([([1 % vocabulary, 0], [[1 % vocabulary], [0]])], pad_id=0)
    try:
        check_exact(model, probe)
    except UsageError:
        for name in ("_forward_without_score", "forward", "_logit_transform"):
            del vars(model)[name]
        raise
    return model


def token_logprobs(model: nn.Module, layout: Layout) -> Tensor:
    """Log-probabilities [N] of the layout's scored tokens, float32 or wider, differentiable.

    `model` had `attach_scorer`, and may be wrapped by DDP or FSDP since; `layout` lies on its device.
    """
    result = model(score=layout)
    assert isinstance(result, Tensor)
    return result


def sequence_logprobs(token_logps_N: Tensor, layout: Layout) -> Tensor:
    """Sum of each response's token log-probabilities, [R]."""
    sums_R = torch.zeros(layout.responses, dtype=token_logps_N.dtype, device=token_logps_N.device)
    return sums_R.index_add(0, layout.response_N, token_logps_N)


def response_lengths(layout: Layout) -> Tensor:
    """Scored tokens in each response, [R], int64."""
    return torch.bincount(layout.response_N, minlength=layout.responses)


@torch.no_grad()
def naive_logprobs(model: nn.Module, layout: Layout) -> Tensor:
    """The same [N] from the full logits of the model's own forward: the oracle, [B, T, V] in memory.

    For layouts without pieces; the model's own forward knows no other.
    """
    if layout.pieces is not None:
        raise ValueError("the model's own forward cannot score a shared layout; give the concatenated one")
    logits_BTV = model(input_ids=layout.input_ids_BT, attention_mask=layout.attention_mask_BT, use_cache=False).logits
    logits_NV = logits_BTV.flatten(0, 1)[layout.source_N]
    wide = torch.promote_types(logits_NV.dtype, torch.float32)
    logps_N: Tensor = logits_NV.to(wide).log_softmax(-1).gather(-1, layout.targets_N[:, None]).squeeze(-1)
    return logps_N


@torch.no_grad()
def check_exact(model: nn.Module, layout: Layout) -> float:
    """Largest difference between `token_logprobs` and the full-logits forward, in nats, in eval mode.

    Raises:
        UsageError: the two differ by more than the precision of the weights allows.
    """
    training = model.training
    model.eval()
    try:
        layout = layout.to(_device(model))
        ours_N, theirs_N = token_logprobs(model, layout), naive_logprobs(model, layout)
    finally:
        model.train(training)
    difference = float((ours_N - theirs_N).abs().max())
    half = any(p.dtype in (torch.float16, torch.bfloat16) for p in model.parameters())
    # Logits carry the rounding of their dtype, which grows with their size; log-probabilities show that size.
    allowed = (5e-2 if half else 1e-4) * (1 + float(theirs_N.abs().max()))
    if not difference <= allowed:  # also when it is NaN
        raise UsageError(
            f"{type(model).__name__}: log-probabilities from decoder and head differ from the model's own logits "
            f"by {difference:.3g} nats",
            fix="this architecture changes its logits in a way that is not supported; please report it by name",
        )
    return difference


def scored_states(model: nn.Module, layout: Layout) -> Tensor:
    """The decoder's hidden states that predict the layout's scored tokens, [N, H]."""
    decoder, _ = parts(model)
    inputs = {
        "input_ids": layout.input_ids_BT,
        "attention_mask": attention_mask(layout, decoder.config, decoder.dtype),
        "use_cache": False,
    }
    # Models with relative attention biases (BLOOM) know no position ids; the concatenated layout's are the default.
    if takes_positions(decoder):
        inputs["position_ids"] = layout.position_ids_BT
    hidden_BTH: Tensor = decoder(**inputs).last_hidden_state
    return hidden_BTH.flatten(0, 1)[layout.source_N.to(hidden_BTH.device)]


def takes_positions(decoder: nn.Module) -> bool:
    """Whether a decoder can be told the position of each token."""
    return "position_ids" in inspect.signature(decoder.forward).parameters


def _score(model: Any, layout: Layout) -> Tensor:
    _, head = parts(model)
    hidden_NH = scored_states(model, layout)
    targets_N = layout.targets_N.to(hidden_NH.device)
    transform: LogitTransform = model._logit_transform
    if _is_plain(head):
        return chunked_logprobs(
            hidden_NH, head.weight, targets_N, head.bias, scale=transform.scale, softcap=transform.softcap
        )
    vocabulary = head.out_features if hasattr(head, "out_features") else head.weight.shape[0]
    chunk = chunk_size(vocabulary, hidden_NH.device)
    return checkpointed_logprobs(
        hidden_NH, head, targets_N, scale=transform.scale, softcap=transform.softcap, chunk=chunk
    )


def _is_plain(head: nn.Module) -> bool:
    """Whether the head is weight @ hidden + bias and nothing else: no adapter, no sharding, no hook, no offloading."""
    return (
        type(head) is nn.Linear
        and type(head.weight) in (Tensor, nn.Parameter)
        and head.weight.device.type != "meta"
        and "forward" not in vars(head)
        and not head._forward_hooks
        and not head._forward_pre_hooks
    )


def parts(model: Any) -> tuple[Any, Any]:
    """The decoder and the output head. Not `base_model`, which is something else on a PEFT model."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if decoder is None or head is None or decoder is model:
        raise UsageError(
            f"{type(model).__name__} has no decoder with an output head, so it gives no token log-probabilities",
            fix="use a causal language model (one that AutoModelForCausalLM loads)",
        )
    return decoder, head


def _configured_transform(model: Any) -> LogitTransform:
    config = model.config.get_text_config()
    scale = 1.0
    for name, rule in SCALES.items():
        value = getattr(config, name, None)
        if value is not None:
            scale *= rule(float(value))
    caps = [float(cap) for name in SOFTCAPS if (cap := getattr(config, name, None)) is not None]
    return LogitTransform(scale, caps[0] if caps else None)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


__all__ = [
    "LogitTransform",
    "attach_scorer",
    "check_exact",
    "checkpointed_logprobs",
    "chunked_logprobs",
    "naive_logprobs",
    "response_lengths",
    "scored_states",
    "sequence_logprobs",
    "takes_positions",
    "token_logprobs",
    "transform_logits",
]
