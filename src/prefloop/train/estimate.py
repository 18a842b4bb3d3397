"""What a training will need, before any weight is loaded: memory of one process at its peak, and time.

The model is built from its configuration on the meta device, where tensors have shapes and no memory. Parameters are
counted there, with the adapter on; what autograd keeps for the backward pass is counted by running the forward pass
there and asking autograd, so it is right for any architecture. Only time rests on an assumption: the share of the
device's peak in matrix products that a training reaches (`UTILISATION`).
"""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from prefloop.config import ModelSection, TrainSection
from prefloop.engine import flops
from prefloop.engine.chunked import chunk_size
from prefloop.engine.layout import concatenated
from prefloop.engine.load import load_config
from prefloop.engine.logprob import parts, takes_positions
from prefloop.engine.sharing import Sharing, choose
from prefloop.train import adapters
from prefloop.train.check import check_trainable
from prefloop.train.launch import processes, shares_weights
from prefloop.train.meter import matmul_peak
from prefloop.train.objectives import OBJECTIVES
from prefloop.train.rhythm import Plan
from prefloop.train.steps import Cut

UTILISATION = (0.25, 0.4, 0.6)
"""Low, middle and high share of the peak; the step's record says what a training really reached (`utilisation`)."""
COUNTED = "prefloop_counted"
"""Name under which `_counted_attention` is known to transformers."""

NF4 = (4 + 8 / 64 + 32 / (64 * 256)) / 8
"""Bytes of a weight in 4 bits, with its share of a scale for each 64 and of a scale of 256 scales."""

Row = tuple[int, tuple[int, ...]]
"""Tokens of a prompt, and of each of its responses."""


@dataclass(frozen=True)
class Estimate:
    """Bytes of one process at the peak, and seconds.

    Attributes:
        parameters, trainable: of the whole model.
        weights, gradients, optimizer: bytes; of this process's share where the model is sharded.
        activations: what the largest micro-batch keeps for its backward pass.
        head: the chunk of logits with its gradient, and the states that it reads.
        peak: their sum.
        steps: optimiser steps in all.
        step_seconds, reference_seconds, validation_seconds, total_seconds: low, middle and high, by `UTILISATION`; of
            the validation all its passes together.
        assumed_rows: the rows' lengths were not known, and the longest that may come was taken.
    """

    parameters: int
    trainable: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    head: int
    peak: int
    steps: int
    step_seconds: tuple[float, float, float]
    reference_seconds: tuple[float, float, float]
    validation_seconds: tuple[float, float, float]
    total_seconds: tuple[float, float, float]
    assumed_rows: bool

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def estimate(model: ModelSection, section: TrainSection, rows: Sequence[Row] | None, count: int) -> Estimate:
    """Predict memory and time of a training.

    Args:
        rows: lengths of some examples, as they are trained on; None: not known yet, every one is taken to be as long
            as `train.max_length` allows, half of it prompt.
        count: examples that are trained on; those held out for validation (`train.validation_share`) come on top.

    Raises:
        UsageError: what `check_trainable` refuses.
    """
    precision = check_trainable(model, section)
    ranks = 1 if section.launch is None else processes(section.launch)
    shards = ranks if section.launch is not None and shares_weights(section.launch) else 1
    wide = precision.weights(frozen=section.lora is not None and shards == 1)
    policy = _hollow(model, section, precision.compute)
    decoder, head = parts(policy)
    trainable = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    everything = sum(p.numel() for p in policy.parameters())
    frozen = everything - trainable

    objective = OBJECTIVES[section.objective.type]
    assumed = rows is None
    if rows is None:
        half = section.max_length // 2
        if objective.takes == "judgments":  # behind another prompt the second time
            rows = [(section.max_length - half, (half, section.max_length))]
        else:
            responses = {"pairs": 2, "answers": 1, "unpaired": 2, "lists": 4}[objective.takes]
            rows = [(section.max_length - half, (half,) * responses)]
    cut = Cut(section.micro_batch_size or section.batch_size, section.micro_batch_tokens, ranks)
    micro = _largest(rows, section.batch_size, cut)
    # The second response of such an example is another prompt's: it is scored, once more in each step, not trained on.
    drift = [(prompt, found[1:]) for prompt, found in rows] if objective.drifts else []
    if drift:
        rows, micro = ([(prompt, found[:1]) for prompt, found in part] for part in (rows, micro))

    shape = flops.ModelShape.of(decoder, head)
    sharing = Sharing(shape, kinds=("segments",) if takes_positions(decoder) else ())
    layers = max(1, int(getattr(decoder.config, "num_hidden_layers", 1)))
    kept = _kept(policy, micro, sharing)
    if section.gradient_checkpointing:
        tokens = sum(p + sum(r) for p, r in micro)
        kept = kept // layers + layers * tokens * decoder.config.hidden_size * precision.compute.itemsize
    scored = sum(sum(responses) for _, responses in micro)
    vocabulary = head.weight.shape[0]
    chunk = min(scored, chunk_size(vocabulary, precision.device))
    logits = 2 * chunk * vocabulary * 4 + scored * decoder.config.hidden_size * 4
    if section.lora is None:
        logits += vocabulary * (decoder.config.hidden_size + min(scored, shape.kept)) * 4
    packed = _quantised(policy) if section.lora is not None and section.lora.quantize is not None else 0
    weights = round(packed * NF4 + (frozen - packed) * wide.itemsize + trainable * 4)
    gradients, optimizer = trainable * 4, trainable * 8
    shared = [amount // shards for amount in (weights, gradients, optimizer)]

    passes = flops.TRAIN if section.lora is None else flops.ADAPTER
    if section.gradient_checkpointing:  # the layers' forward pass once more, not the head's
        passes = replace(passes, trunk=passes.trunk + 1, attention=passes.attention + 1)

    def mean(part: Sequence[Row], passes: flops.Passes) -> float:
        return statistics.fmean(_operations([row], shape, sharing, passes) for row in part) if part else 0.0

    held = round(count * section.validation_share / (1 - section.validation_share))
    plan = Plan.of(count, section.batch_size, section.epochs, 0.0, log=1, save=1, validate=held > 0)
    scored_row = mean(rows, flops.SCORE) + mean(drift, flops.SCORE)
    peak = matmul_peak(precision.device, precision.compute) * ranks

    def seconds(operations: float) -> tuple[float, float, float]:
        quick, likely, slow = (operations / (peak * share) for share in reversed(UTILISATION))
        return quick, likely, slow

    in_step = section.batch_size * (mean(rows, passes) + mean(drift, flops.SCORE))
    reference = objective.needs_reference * (count + held) * scored_row
    # Before the first step, and at the end of each epoch, a part of one included.
    validation = (1 + math.ceil(plan.total / plan.epoch)) * held * scored_row
    return Estimate(
        parameters=everything,
        trainable=trainable,
        weights=shared[0],
        gradients=shared[1],
        optimizer=shared[2],
        activations=kept,
        head=logits,
        peak=sum(shared) + kept + logits,
        steps=plan.total,
        step_seconds=seconds(in_step),
        reference_seconds=seconds(reference),
        validation_seconds=seconds(validation),
        total_seconds=seconds(plan.total * in_step + reference + validation),
        assumed_rows=assumed,
    )


def _hollow(model: ModelSection, section: TrainSection, dtype: torch.dtype) -> Any:
    """The model with its adapter on the meta device, in training mode, its attention replaced by a counting one."""
    from transformers import AttentionInterface, AutoModelForCausalLM

    AttentionInterface.register(COUNTED, _counted_attention)
    config = load_config(model)
    with torch.device("meta"), warnings.catch_warnings():
        # peft asks the model for an attribute whose name transformers is about to change.
        warnings.simplefilter("ignore", FutureWarning)
        policy = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=COUNTED, trust_remote_code=model.trust_remote_code
        )
        if section.lora is not None:
            policy = adapters.add_lora(policy, section.lora)
    adapters.switch_off_dropout(policy)
    return policy.train()


def _quantised(policy: Any) -> int:
    """Weights that a quantised base holds in 4 bits: of its linear layers but the head, and not of adapters."""
    head = policy.get_output_embeddings()
    return sum(
        module.weight.numel()
        for module in policy.modules()
        if isinstance(module, nn.Linear) and module is not head and not module.weight.requires_grad
    )


class _Attended(torch.autograd.Function):
    """Keeps what fused attention keeps: queries, keys, values, output, and a number for each query and head."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.empty_like(query)
        normalizers = torch.empty(query.shape[:-1], dtype=torch.float32, device=query.device)
        ctx.save_for_backward(query, key, value, output, normalizers)
        return output


def _counted_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **_: Any
) -> tuple[Tensor, None]:
    groups = query.shape[1] // key.shape[1]
    if groups > 1:  # with a mask the kernels want keys and values for each head
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    output = _Attended.apply(query, key, value)  # type: ignore[no-untyped-call]
    return output.transpose(1, 2), None


def _kept(policy: Any, rows: Sequence[Row], sharing: Sharing) -> int:
    """Bytes that autograd keeps of the decoder's forward pass over these rows, weights left out."""
    decoder, _ = parts(policy)
    itemsize = next(decoder.parameters()).element_size()
    layers = len(sharing.shape.attention)
    if choose(rows, sharing) == "concatenated":
        shape = tuple(concatenated([([0] * p, [[0] * r for r in rs]) for p, rs in rows], 0).input_ids_BT.shape)
        # The padding's mask, which each layer keeps as numbers to be added to the scores.
        extra = layers * shape[0] * shape[1] ** 2 * 4
    else:
        shape = (1, sum(p + sum(r - 1 for r in rs) for p, rs in rows))
        # Each piece keeps its own queries and output, and each response its own copy of the prompt's keys and values.
        copies = shape[1] + sum(p + r - 1 for p, rs in rows if len(rs) > 1 for r in rs)
        extra = 2 * copies * sum(sharing.shape.attention) * itemsize
    own = {p.untyped_storage()._cdata for p in policy.parameters()} | {
        b.untyped_storage()._cdata for b in policy.buffers()
    }
    kept: dict[int, Any] = {}  # the storages themselves, so that none is freed and its place taken by another

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        ids = torch.zeros(shape, dtype=torch.int64, device="meta")
        inputs = {"position_ids": ids} if takes_positions(decoder) else {}
        decoder(input_ids=ids, use_cache=False, **inputs)
    return extra + sum(int(storage.nbytes()) for storage in kept.values())


def _largest(rows: Sequence[Row], batch_size: int, cut: Cut) -> list[Row]:
    """The micro-batch that the longest rows make when they meet in one step."""
    longest = sorted(rows, key=_tokens, reverse=True)[:batch_size]
    step = [longest[i % len(longest)] for i in range(batch_size)]
    first = cut(range(len(step)), [_tokens(row) for row in step])[0][0]
    return [step[i] for i in first.rows]


def _tokens(row: Row) -> int:
    prompt, responses = row
    return sum(prompt + response for response in responses)


def _operations(rows: Sequence[Row], shape: flops.ModelShape, sharing: Sharing, passes: flops.Passes) -> float:
    return flops.count(rows, shape, choose(rows, sharing), passes).total
