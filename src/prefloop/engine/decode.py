"""Sampling, one token a step, for many rows at once.

Each sample draws from its own stream: a number that is a hash of (seed, prompt, sample index, step). So a sample does
not depend on what else is in the batch, on torch's random state, or on how many samples are asked for; a run can
be cut into batches, stopped and continued. `transformers.generate` is not used because it merges a checkpoint's own
sampling defaults into every call and computes finished rows to the end.

Shape letters: U distinct prompts, S rows that still run, T positions, V vocabulary.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prefloop.errors import PrefloopError, UsageError

VERSION = 1
"""Goes into the cache key: raise it when the same stream would give another sample."""


@dataclass(frozen=True)
class Stream:
    """The random numbers of one sample."""

    seed: int
    prompt: str
    sample_index: int

    def uniform(self, step: int) -> float:
        """A number in [0, 1) with 53 random bits."""
        name = f"{self.seed}/{self.prompt}/{self.sample_index}/{step}"
        bits = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
        return (bits >> 11) * 2.0**-53


def distribution(logits_SV: Tensor, *, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Probabilities to sample from, [S, V] float64: temperature, then top-k, then top-p, then normalised.

    Top-k keeps everything as likely as the k-th token. Top-p keeps the most likely tokens up to and with the one that
    reaches `top_p` (Holtzman et al. 2020, section 3.1).
    """
    scaled_SV = logits_SV.double() / temperature
    if 0 < top_k < scaled_SV.shape[-1]:
        kth_S1 = scaled_SV.topk(top_k).values[:, -1:]
        scaled_SV = scaled_SV.masked_fill(scaled_SV < kth_S1, -torch.inf)
    probs_SV = scaled_SV.softmax(-1)
    if top_p < 1:
        sorted_SV, order_SV = probs_SV.sort(dim=-1, descending=True, stable=True)
        before_SV = sorted_SV.cumsum(-1) - sorted_SV
        sorted_SV = sorted_SV.masked_fill(before_SV >= top_p, 0)
        probs_SV = torch.zeros_like(probs_SV).scatter(-1, order_SV, sorted_SV)
        probs_SV = probs_SV / probs_SV.sum(-1, keepdim=True)
    return probs_SV


def pick(probs_SV: Tensor, uniforms_S: Sequence[float]) -> Tensor:
    """Inverse of the cumulative distribution at each row's number, [S]. Never a token of probability 0."""
    cumulative_SV = probs_SV.cumsum(-1)
    total_S1 = cumulative_SV[:, -1:]
    target_S1 = torch.tensor(uniforms_S, dtype=torch.float64, device=probs_SV.device)[:, None] * total_S1
    # Rounding could lift the product to the total, behind every token.
    target_S1 = torch.minimum(target_S1, torch.nextafter(total_S1, torch.zeros_like(total_S1)))
    return torch.searchsorted(cumulative_SV, target_S1, right=True).squeeze(-1)


def sampler(
    streams: Sequence[Stream], *, temperature: float, top_k: int, top_p: float
) -> Callable[[Tensor, Sequence[int], int], list[int]]:
    """The choice of the next token: f(logits [S, V], which row each is, step) -> S ids. Temperature 0 is greedy."""

    def choose(logits_SV: Tensor, rows: Sequence[int], step: int) -> list[int]:
        if torch.isnan(logits_SV).any():
            raise PrefloopError(
                "the model gives NaN instead of probabilities",
                fix="load it in float32 or bfloat16; float16 overflows in many models",
            )
        if temperature == 0:
            return [int(i) for i in logits_SV.argmax(-1)]
        if logits_SV.device.type == "mps":  # has no float64
            logits_SV = logits_SV.cpu()
        probs_SV = distribution(logits_SV, temperature=temperature, top_k=top_k, top_p=top_p)
        return [int(i) for i in pick(probs_SV, [streams[row].uniform(step) for row in rows])]

    return choose


def decode(
    model: Any,
    prompts: Sequence[Sequence[int]],
    rows: Sequence[int],
    choose: Callable[[Tensor, Sequence[int], int], list[int]],
    *,
    stops: Sequence[int],
    limits: Sequence[int],
    pad_id: int,
) -> Iterator[dict[int, int]]:
    """Continue prompts. Each distinct prompt is computed once, however many rows continue it.

    Prompts are padded on the left, and a row that has stopped leaves the batch at once, cache and all.

    Args:
        model: a causal model in eval mode, or a PEFT model around one.
        prompts: U prompts' ids, none empty.
        rows: for each row, the index of its prompt.
        choose: see `sampler`.
        stops: ids that end a row; the row yields its stop and then no more.
        limits: for each row, the most tokens it may get, at least 1.

    Yields:
        For each step, {row: id} of the rows that still ran.
    """
    accepted = inspect.signature(getattr(model, "get_base_model", lambda: model)().forward).parameters
    last_only = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
    width = max(map(len, prompts))
    device = next(model.parameters()).device
    ids_ST = torch.tensor([[pad_id] * (width - len(p)) + list(p) for p in prompts], device=device)
    mask_ST = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)

    def forward(cache: Any, new: int) -> Any:
        """Run the last `new` positions behind the cache."""
        positions = {}
        if "position_ids" in accepted:
            positions["position_ids"] = (mask_ST.cumsum(-1) - 1).clamp(min=0)[:, -new:]
        with torch.no_grad():
            return model(
                input_ids=ids_ST[:, -new:],
                attention_mask=mask_ST,
                past_key_values=cache,
                use_cache=True,
                **positions,
                **last_only,
            )

    def select(cache: Any, index: list[int]) -> None:
        nonlocal ids_ST, mask_ST
        if index != list(range(len(ids_ST))):
            index_S = torch.tensor(index, device=device)
            ids_ST, mask_ST = ids_ST[index_S], mask_ST[index_S]
            cache.reorder_cache(index_S)  # despite its name it selects: an index may repeat or be left out

    output = forward(None, width)
    cache, logits_SV = getattr(output, "past_key_values", None), output.logits[:, -1]
    if cache is None:
        raise UsageError(
            f"{type(model).__name__} keeps no key-value cache that prefloop can continue from",
            fix="serve this model over HTTP, or use one with attention layers",
        )
    select(cache, list(rows))
    logits_SV = logits_SV[list(rows)]
    running = list(range(len(rows)))
    for step in range(max(limits)):
        tokens = choose(logits_SV, running, step)
        yield dict(zip(running, tokens, strict=True))
        keep = [i for i, token in enumerate(tokens) if token not in stops and step + 1 < limits[running[i]]]
        if not keep:
            return
        select(cache, keep)
        running = [running[place] for place in keep]
        new_S1 = torch.tensor([[tokens[place]] for place in keep], device=device)
        ids_ST = torch.cat([ids_ST, new_S1], dim=1)
        mask_ST = torch.cat([mask_ST, torch.ones_like(new_S1)], dim=1)
        output = forward(cache, 1)
        cache, logits_SV = output.past_key_values, output.logits[:, -1]
