"""Attention within pieces: against one written out, for any shapes; and loud where a mask is not just passed on."""

import types

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from prefloop.engine import attention
from prefloop.engine.attention import PieceMask, Unsupported, dense_mask, layer_windows
from prefloop.engine.layout import Piece, shared

SHAPES = st.lists(st.tuples(st.integers(1, 9), st.lists(st.integers(1, 7), max_size=4)), min_size=1, max_size=3)
WINDOWS = st.none() | st.integers(1, 12)


def pieces_of(shapes):
    pieces = []
    for prompt, branches in shapes:
        root = len(pieces)
        pieces += [Piece(prompt), *(Piece(n, root) for n in branches)]
    return tuple(pieces)


def written_out(query, key, value, pieces, window, scale):
    """Each position by itself, from the definition."""
    starts = [sum(p.length for p in pieces[:i]) for i in range(len(pieces))]
    out = []
    for start, piece in zip(starts, pieces):
        before = []
        if piece.prefix is not None:
            before = list(range(starts[piece.prefix], starts[piece.prefix] + pieces[piece.prefix].length))
        for i in range(piece.length):
            read = [*before, *range(start, start + i + 1)]
            read = read if window is None else read[-window:]
            scores = scale * (key[0][:, read] @ query[0, :, start + i, :, None])
            out.append((scores.softmax(1) * value[0][:, read]).sum(1))
    return torch.stack(out, dim=1)[None]


def tensors(length, heads=2, width=4):
    generator = torch.Generator().manual_seed(length)
    return [
        torch.randn(1, heads, length, width, dtype=torch.float64, generator=generator).requires_grad_()
        for _ in range(3)
    ]


@settings(deadline=None)
@given(SHAPES, WINDOWS)
def test_pieces_are_what_the_definition_says(shapes, window):
    pieces = pieces_of(shapes)
    qkv = tensors(sum(p.length for p in pieces))
    expected = written_out(*qkv, pieces, window, 0.7)
    found = scaled_dot_product_attention(*qkv, attn_mask=PieceMask.of(pieces, window), scale=0.7)
    torch.testing.assert_close(found, expected)
    weight = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for ours, theirs in zip(
        torch.autograd.grad((found * weight).sum(), qkv), torch.autograd.grad((expected * weight).sum(), qkv)
    ):
        torch.testing.assert_close(ours, theirs)


@settings(deadline=None)
@given(SHAPES, WINDOWS)
def test_the_dense_mask_means_the_same(shapes, window):
    rows = [([1] * p, [[1] * (n + 1) for n in (*branches, 1)]) for p, branches in shapes]  # K >= 1
    layout = shared(rows, pad_id=0, kind="dense")
    allowed = dense_mask(layout, window)
    assert allowed.diagonal(dim1=2, dim2=3).all()  # no position reads nothing, padding neither
    for b, pieces in enumerate(layout.pieces):
        length = sum(p.length for p in pieces)
        qkv = tensors(length)
        found = scaled_dot_product_attention(*qkv, attn_mask=allowed[b : b + 1, :, :length, :length])
        torch.testing.assert_close(found, written_out(*qkv, pieces, window, 0.5))
        assert not allowed[b, 0, :length, length:].any()


def emulated_varlen(query, key, value, cu_q, cu_k, max_q, max_k, *, scale, window_size, enable_gqa):
    """What the CUDA kernel promises: lower-right causal attention within each pair of stretches."""
    out = []
    for i in range(len(cu_q) - 1):
        q, k, v = query[cu_q[i] : cu_q[i + 1]], key[cu_k[i] : cu_k[i + 1]], value[cu_k[i] : cu_k[i + 1]]
        assert len(q) <= max_q
        assert len(k) <= max_k
        back = torch.arange(len(q))[:, None] + len(k) - len(q) - torch.arange(len(k))[None]
        seen = (back >= 0) & ((back <= window_size[0]) | (window_size[0] < 0))
        out.append(scaled_dot_product_attention(*(x.transpose(0, 1) for x in (q, k, v)), attn_mask=seen, scale=scale))
    return torch.cat([x.transpose(0, 1) for x in out])


@settings(deadline=None)
@given(SHAPES, WINDOWS)
def test_what_the_variable_length_kernel_is_asked(shapes, window):
    # There is no GPU here: the kernel is played by its documentation, what it is given is ours.
    import torch.nn.attention.varlen as varlen

    pieces = pieces_of(shapes)
    qkv = tensors(sum(p.length for p in pieces))
    mask = PieceMask.of(pieces, window, attention._packed(pieces, torch.device("cpu")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(varlen, "varlen_attn", emulated_varlen)
        found = scaled_dot_product_attention(*qkv, attn_mask=mask, scale=0.7)
    torch.testing.assert_close(found, written_out(*qkv, pieces, window, 0.7))


def test_a_mask_that_is_not_just_passed_on_fails_at_once():
    mask = PieceMask.of((Piece(3),), None)
    q = torch.zeros(1, 1, 3, 2)
    assert mask.to("cpu", torch.float32) is mask
    assert mask.dim() == len(mask.shape) == 4
    assert not torch.is_floating_point(mask)
    for misuse in (lambda: torch.zeros(1, 1, 3, 3) + mask, lambda: mask[:, :, :, :3], lambda: mask.logical_not()):
        with pytest.raises(Unsupported, match="more with its attention mask than pass it on"):
            misuse()
    with pytest.raises(Unsupported, match="keys"):  # a cache, or a sequence of another length
        scaled_dot_product_attention(q, torch.zeros(1, 1, 5, 2), torch.zeros(1, 1, 5, 2), attn_mask=mask)
    with pytest.raises(Unsupported, match="queries"):
        scaled_dot_product_attention(q.expand(2, 1, 3, 2), q, q, attn_mask=mask)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, {"full_attention": None}),
        ({"sliding_window": 8}, {"sliding_attention": 8}),
        ({"sliding_window": 8, "use_sliding_window": False}, {"full_attention": None}),
        ({"sliding_window": 8, "layer_types": ["full_attention"] * 2}, {"full_attention": None}),
        (
            {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
            {"full_attention": None, "sliding_attention": 8},
        ),
    ],
)
def test_windows_by_type_of_layer(config, expected):
    assert layer_windows(types.SimpleNamespace(**config)) == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"layer_types": ["full_attention", "conv"]}, "layers of type conv"),
        ({"attention_chunk_size": 8192}, "limits attention by attention_chunk_size"),
        ({"window_size": 256}, "limits attention by window_size"),
    ],
)
def test_what_a_mask_does_not_describe(config, message):
    with pytest.raises(Unsupported, match=message):
        layer_windows(types.SimpleNamespace(**config))
