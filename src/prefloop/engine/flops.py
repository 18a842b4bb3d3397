"""How many floating-point operations a batch costs in a layout: what `sharing.choose` and the benchmarks count with.

One multiply-add is two operations. Norms, activations, rotary embeddings, the embedding table and the optimiser are
left out: all layouts pay them alike, or they are small.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from prefloop.engine.chunked import kept_tokens
from prefloop.engine.layout import Kind

Lengths = Sequence[tuple[int, Sequence[int]]]
"""Of each row: tokens of the prompt, and of each of its responses."""


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a model that its cost depends on.

    Attributes:
        trunk: weights that each token is multiplied with, in all layers together; of experts those in use.
        attention: width of all heads together, of each layer with attention.
        windows: how far back each of those layers reads, in tokens; None is everything.
        head: weights of the output head.
        kept: tokens whose probabilities are kept for backward in a batch, where the head is trained (`chunked.py`).
    """

    trunk: int
    attention: tuple[int, ...]
    windows: tuple[int | None, ...]
    head: int
    kept: int = 0

    @classmethod
    def of(cls, decoder: nn.Module, head: nn.Module) -> ModelShape:
        """Counted on the modules themselves, which may lie on the meta device; adapters are counted with them."""
        config: Any = decoder.config
        experts = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None)
        share = (getattr(config, "num_experts_per_tok", None) or 1) / experts if experts else 1.0
        tables = {id(m.weight) for m in decoder.modules() if isinstance(m, nn.Embedding)}
        weights = 0.0
        for name, parameter in decoder.named_parameters():
            if parameter.dim() >= 2 and id(parameter) not in tables:
                packed = getattr(parameter, "quant_state", None)  # in 4 bits two of its weights are one number
                size = parameter.numel() if packed is None else packed.shape.numel()
                weights += size * (share if ".experts." in name else 1.0)
        layers = int(getattr(config, "num_hidden_layers", 0))
        heads = getattr(config, "num_attention_heads", None)  # recurrent models have none
        width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads) if heads else 0
        types = getattr(config, "layer_types", None)
        window = getattr(config, "sliding_window", None)
        windows = [window if t == "sliding_attention" else None for t in types] if types else [window] * layers
        last = sum(p.numel() for p in head.parameters() if p.dim() == 2)
        output: Any = head
        kept = kept_tokens(output.weight.shape[0], getattr(config, "final_logit_softcapping", None))
        return cls(round(weights), (width,) * layers, tuple(windows[:layers]), last, kept)


@dataclass(frozen=True)
class Passes:
    """How often each part's forward cost is paid in one step.

    Defaults are full training: backward takes two products for each of forward's. Fused attention computes its scores
    once more in backward instead of keeping them, and so does the head for the tokens beyond those that it keeps
    (`head_again`; `chunked.py`).
    """

    trunk: float = 3
    attention: float = 3.5
    head: float = 3
    head_again: float = 1


TRAIN = Passes()
ADAPTER = Passes(trunk=2, attention=3.5, head=2, head_again=0)  # frozen weights get no gradient
SCORE = Passes(1, 1, 1, 0)


@dataclass(frozen=True)
class Flops:
    """Operations by part."""

    trunk: float
    attention: float
    head: float

    @property
    def total(self) -> float:
        return self.trunk + self.attention + self.head


def count(lengths: Lengths, shape: ModelShape, kind: Kind, passes: Passes = TRAIN) -> Flops:
    """Operations of one step over a batch in a layout.

    Counted is what the layout needs: padding where it pads, for `dense` the whole square of each sequence, of causal
    attention the lower triangle only.

    Args:
        lengths: of each row, the prompt's and its responses'.
        kind: the layout (`layout.Kind`).
        passes: what of it is trained.
    """
    if kind == "concatenated":
        width = max(prompt + max(responses) for prompt, responses in lengths)
        sequences = sum(len(responses) for _, responses in lengths)
        tokens = width * sequences
    elif kind == "dense":
        width = max(_read(prompt, responses) for prompt, responses in lengths)
        sequences = len(lengths)
        tokens = width * sequences
    else:
        tokens = sum(_read(prompt, responses) for prompt, responses in lengths)

    pairs: dict[int | None, float] = {}
    for window in set(shape.windows):
        if kind == "concatenated":
            pairs[window] = sequences * _triangle(0, width, window)
        elif kind == "dense":
            pairs[window] = sequences * width**2
        else:
            pairs[window] = sum(
                _triangle(0, prompt, window) + sum(_triangle(prompt, response - 1, window) for response in responses)
                for prompt, responses in lengths
            )
    scored = sum(sum(responses) for _, responses in lengths)
    # Scores and weighted values are a product of the heads' width each.
    attention = sum(4 * d * pairs[window] for d, window in zip(shape.attention, shape.windows, strict=True))
    again = passes.head_again * max(0, scored - shape.kept)
    return Flops(
        trunk=passes.trunk * 2 * shape.trunk * tokens,
        attention=passes.attention * attention,
        head=2 * shape.head * (passes.head * scored + again),
    )


def _read(prompt: int, responses: Iterable[int]) -> int:
    """Tokens of a row in the shared layout: a response's last one is never read."""
    return prompt + sum(response - 1 for response in responses)


def _triangle(start: int, length: int, window: int | None) -> int:
    """(query, key) pairs of causal attention for queries at positions start .. start + length - 1."""
    full = range(start, start + length) if window is None else range(start, min(start + length, window))
    seen = sum(position + 1 for position in (full[0], full[-1])) * len(full) // 2 if full else 0
    return seen + (length - len(full)) * (window or 0)
