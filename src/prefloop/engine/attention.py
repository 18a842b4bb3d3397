"""Attention of a `shared` layout: a response reads its prompt and itself, never another response or row.

Nothing of the model is replaced or switched. Transformers hands a four-dimensional `attention_mask` through to each
layer as it is, and a dict of them, one for each type of layer, in models that mix types. So a backend is a mask:

- `dense`: an ordinary boolean mask; quadratic in the sequence, for any attention that takes a mask.
- `segments`: a `PieceMask`, a tensor subclass that answers when the layer calls `scaled_dot_product_attention` with it
  (the mechanism of torch's own `torch.nn.attention.bias.CausalBias`). Each piece is one call: causal where it stands
  alone, lower-right causal behind the keys of its prompt otherwise. No mask of the whole sequence, nothing computed
  that is not used, nothing padded.
- `varlen`: the same mask and pieces in one kernel for variable lengths; on CUDA in half precision.

A mask travels with the call, so gradient checkpointing sees the same one when it runs a layer again, and a forward
without a shared layout (generation, evaluation) is untouched.

Shape letters: B sequences, T positions, h heads, d width of a head, n queries and m keys of one piece.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from prefloop.engine.layout import Layout, Piece

FULL, SLIDING = "full_attention", "sliding_attention"


class Unsupported(Exception):
    """A model cannot attend as a shared layout asks; the text says why."""


def layer_windows(config: Any) -> dict[str, int | None]:
    """How far back each type of layer reads, itself included, in tokens; None is everything.

    Args:
        config: the decoder's configuration. Without `layer_types` all layers are alike.

    Raises:
        Unsupported: a type of layer is not attention that a causal mask describes.
    """
    window: int | None = getattr(config, "sliding_window", None)
    if not getattr(config, "use_sliding_window", True):
        window = None
    # Windows under names of their own (GPT-Neo, Llama 4) count tokens in the sequence, which sharing rearranges.
    unknown = [n for n, v in vars(config).items() if _names_a_window(n) and isinstance(v, int) and v is not False]
    if unknown:
        raise Unsupported(
            f"its configuration limits attention by {', '.join(sorted(unknown))}, which is not known here"
        )
    types = getattr(config, "layer_types", None)
    if not types:
        return {FULL: None} if window is None else {SLIDING: window}
    others = sorted(set(types) - {FULL, SLIDING})
    if others:
        raise Unsupported(f"it has layers of type {', '.join(others)}")
    return {kind: window if kind == SLIDING else None for kind in sorted(set(types))}


def _names_a_window(name: str) -> bool:
    known = ("sliding_window", "use_sliding_window", "max_window_layers")
    return name == "attention_chunk_size" or ("window" in name and name not in known and not name.endswith("pattern"))


def attention_mask(layout: Layout, config: Any, dtype: torch.dtype) -> Any:
    """What a decoder is to be given as `attention_mask` for a layout.

    Args:
        config: the decoder's configuration.
        dtype: of its weights.

    Returns:
        The 2-D mask where nothing is shared; otherwise a 4-D mask, or a dict of them by type of layer.
    """
    if layout.pieces is None or all(len(pieces) == 1 for pieces in layout.pieces):  # plain causal rows
        return layout.attention_mask_BT
    masks: dict[str, Tensor] = {}
    for name, window in layer_windows(config).items():
        if layout.kind == "dense":
            allowed_B1TT = dense_mask(layout, window)
            # Eager attention adds its mask; the scaled_dot_product one wants booleans.
            masks[name] = allowed_B1TT if _calls_sdpa(config) else _additive(allowed_B1TT, dtype)
        elif not _calls_sdpa(config):
            raise Unsupported(f"its attention implementation is {config._attn_implementation}, not sdpa")
        else:
            device = layout.input_ids_BT.device
            (pieces,) = layout.pieces
            masks[name] = PieceMask.of(pieces, window, _packed(pieces, device) if layout.kind == "varlen" else None)
    return masks if len(masks) > 1 else next(iter(masks.values()))


def _calls_sdpa(config: Any) -> bool:
    return bool(config._attn_implementation == "sdpa")


def dense_mask(layout: Layout, window: int | None) -> Tensor:
    """Which position (third dimension) may read which (fourth), [B, 1, T, T] bool. Padding reads padding only."""
    assert layout.pieces is not None
    width = layout.input_ids_BT.shape[1]
    own = torch.full(layout.input_ids_BT.shape, -1)
    prefix = own.clone()
    for b, pieces in enumerate(layout.pieces):
        lengths = torch.tensor([p.length for p in pieces])
        roots = torch.tensor([i if p.prefix is None else p.prefix for i, p in enumerate(pieces)])
        used = int(lengths.sum())
        own[b, :used] = torch.arange(len(pieces)).repeat_interleave(lengths)
        prefix[b, :used] = roots.repeat_interleave(lengths)
    device = layout.position_ids_BT.device
    own_BT, prefix_BT = own.to(device), prefix.to(device)
    key_BT = own_BT[:, None, :].expand(-1, width, -1)
    allowed_BTT = (key_BT == own_BT[:, :, None]) | (key_BT == prefix_BT[:, :, None])
    back_BTT = layout.position_ids_BT[:, :, None] - layout.position_ids_BT[:, None, :]
    allowed_BTT = allowed_BTT & (back_BTT >= 0)
    if window is not None:
        allowed_BTT &= back_BTT < window
    return allowed_BTT[:, None]


def _additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(
        ~allowed, torch.finfo(dtype).min
    )


class _Packed(NamedTuple):
    """What the kernel for variable lengths reads: where each piece's queries and keys end, and which keys they are."""

    cu_q: Tensor
    cu_k: Tensor
    keys: Tensor
    max_q: int
    max_k: int


def _packed(pieces: Sequence[Piece], device: torch.device) -> _Packed:
    starts: list[int] = []
    keys: list[int] = []
    cu_q, cu_k = [0], [0]
    for piece in pieces:
        starts.append(cu_q[-1])
        if piece.prefix is not None:
            keys += range(starts[piece.prefix], starts[piece.prefix] + pieces[piece.prefix].length)
        keys += range(starts[-1], starts[-1] + piece.length)
        cu_q.append(cu_q[-1] + piece.length)
        cu_k.append(len(keys))
    return _Packed(
        cu_q=torch.tensor(cu_q, dtype=torch.int32, device=device),
        cu_k=torch.tensor(cu_k, dtype=torch.int32, device=device),
        keys=torch.tensor(keys, device=device),
        max_q=max(b - a for a, b in itertools.pairwise(cu_q)),
        max_k=max(b - a for a, b in itertools.pairwise(cu_k)),
    )


class PieceMask(Tensor):
    """Stands where a mask stands, and computes the attention itself when it reaches scaled_dot_product_attention.

    Underneath is an empty tensor of shape [1, 1, 0, 0], so a model that does anything else with it than pass it on
    fails at once (tests/engine/test_attention.py) instead of attending wrongly.
    """

    pieces: tuple[Piece, ...]
    window: int | None
    packed: _Packed | None

    @staticmethod
    def of(pieces: tuple[Piece, ...], window: int | None, packed: _Packed | None = None) -> PieceMask:
        """The mask of one sequence that consists of `pieces`; with `packed`, through the `varlen` kernel."""
        mask = torch.empty(1, 1, 0, 0, dtype=torch.bool).as_subclass(PieceMask)
        mask.pieces, mask.window, mask.packed = pieces, window, packed
        return mask

    def to(self, *args: Any, **kwargs: Any) -> PieceMask:
        """Itself: it works on the device and in the precision of the queries."""
        return self

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is scaled_dot_product_attention:
            return _attend(*args, **kwargs)
        # Before each layer FSDP2 casts its floating-point inputs, and so asks (tests/engine/test_distributed.py).
        if getattr(func, "__name__", "") == "__get__" or func in (Tensor.dim, Tensor.size, torch.is_floating_point):
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        raise Unsupported(f"it does more with its attention mask than pass it on ({getattr(func, '__name__', func)})")


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: PieceMask,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention within the pieces of a mask: [1, h, T, d] in and out, as scaled_dot_product_attention has them."""
    length = sum(p.length for p in attn_mask.pieces)
    if is_causal or not query.shape[0] == key.shape[0] == 1 or not query.shape[2] == key.shape[2] == length:
        raise Unsupported(
            f"its attention reads queries {list(query.shape)} and keys {list(key.shape)} of a sequence of {length}"
        )
    if attn_mask.packed is not None:
        return _varlen(query, key, value, attn_mask, dropout_p, scale, enable_gqa)
    lengths = [p.length for p in attn_mask.pieces]
    # Split once and not sliced for each piece: backward of a slice fills a gradient of the whole sequence.
    queries, keys, values = (torch.split(x, lengths, dim=2) for x in (query, key, value))
    parts: list[Tensor] = []
    for piece, q_1hnd, k_1hmd, v_1hmd in zip(attn_mask.pieces, queries, keys, values, strict=True):
        if piece.prefix is not None:
            k_1hmd = torch.cat([keys[piece.prefix], k_1hmd], dim=2)
            v_1hmd = torch.cat([values[piece.prefix], v_1hmd], dim=2)
        if attn_mask.window is not None:  # keys before the first query's window
            reach = piece.length + attn_mask.window - 1
            k_1hmd, v_1hmd = k_1hmd[:, :, -reach:], v_1hmd[:, :, -reach:]
        n, m = q_1hnd.shape[2], k_1hmd.shape[2]
        causal = n == m and _fits(m, attn_mask.window)
        plain = causal or n == 1  # a single query reads all that is left
        part_1hnd = scaled_dot_product_attention(
            q_1hnd,
            k_1hmd,
            v_1hmd,
            attn_mask=None if plain else lower_right(n, m, attn_mask.window, query.device),
            dropout_p=dropout_p,
            is_causal=causal,
            scale=scale,
            enable_gqa=enable_gqa,
        )
        parts.append(part_1hnd.transpose(1, 2))
    return torch.cat(parts, dim=1).transpose(1, 2)  # in memory as the layer wants it next: [1, T, h, d]


def _fits(keys: int, window: int | None) -> bool:
    return window is None or keys <= window


def lower_right(n: int, m: int, window: int | None, device: torch.device) -> Tensor:
    """The mask of the last n of m positions, causal and within the window: [n, m] bool, or torch's own for CUDA."""
    if device.type == "cuda" and _fits(m, window):
        bias: Tensor = causal_lower_right(n, m)  # reaches the flash kernel, which a boolean mask does not
        return bias
    mask_nm = torch.ones(n, m, dtype=torch.bool, device=device).tril_(m - n)
    return mask_nm if _fits(m, window) else mask_nm.triu_(m - n - window + 1)  # type: ignore[operator]


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, mask: PieceMask, dropout_p: float, scale: float | None, gqa: bool
) -> Tensor:
    """One kernel for all pieces. Its causal mask is lower-right where a piece has more keys than queries."""
    from torch.nn.attention.varlen import varlen_attn

    if dropout_p:
        raise Unsupported("its attention has dropout, which the kernel for variable lengths lacks")
    packed = mask.packed
    assert packed is not None
    # [1, h, T, d] -> [T, h, d]; the keys of each piece behind one another, its prompt's first.
    q_Thd, k_Thd, v_Thd = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
    out_Thd = varlen_attn(
        q_Thd.contiguous(),
        k_Thd[packed.keys],
        v_Thd[packed.keys],
        packed.cu_q,
        packed.cu_k,
        packed.max_q,
        packed.max_k,
        scale=scale,
        window_size=(-1 if mask.window is None else mask.window - 1, 0),
        enable_gqa=gqa,
    )
    assert isinstance(out_Thd, Tensor)
    return out_Thd.transpose(0, 1).unsqueeze(0)
