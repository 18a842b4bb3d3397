"""Chunked log-probabilities against whole logits: values, gradients, precision, memory."""

import pytest
import torch

from prefloop.engine import chunked
from prefloop.engine.chunked import checkpointed_logprobs, chunked_logprobs


def whole(hidden, weight, targets, bias=None, *, scale=1.0, softcap=None):
    logits = torch.nn.functional.linear(hidden, weight, bias).to(torch.promote_types(hidden.dtype, torch.float32))
    logits = logits * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return logits.log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)


def problem(n=7, h=5, v=11, *, dtype=torch.float64, bias=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, h, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(v, h, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    offset = torch.randn(v, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() if bias else None
    return hidden, weight, offset, torch.randint(v, (n,), generator=generator)


def test_known_value():
    # logits (0, ln 3): probabilities 1/4 and 3/4
    weight = torch.tensor([[0.0], [3.0]]).clamp(min=1).log()
    logps = chunked_logprobs(torch.ones(2, 1), weight, torch.tensor([0, 1]))
    assert logps.exp().tolist() == pytest.approx([0.25, 0.75])


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.25, None), (1.0, 2.0), (3.0, 1.5)])
def test_gradcheck(bias, scale, softcap):
    hidden, weight, offset, targets = problem(bias=bias)

    def f(h, w, *b):
        return chunked_logprobs(h, w, targets, *b, scale=scale, softcap=softcap, chunk=3)

    inputs = (hidden, weight, offset) if bias else (hidden, weight)
    assert torch.autograd.gradcheck(f, inputs)


@pytest.mark.parametrize("chunk", [1, 3, 7, 100, None])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_equals_whole_logits(chunk, softcap):
    hidden, weight, offset, targets = problem(dtype=torch.float32)
    upstream = torch.linspace(-1, 2, len(targets))
    ours = chunked_logprobs(hidden, weight, targets, offset, scale=0.5, softcap=softcap, chunk=chunk)
    theirs = whole(hidden, weight, targets, offset, scale=0.5, softcap=softcap)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)
    for one, other in zip(
        torch.autograd.grad(ours, (hidden, weight, offset), upstream),
        torch.autograd.grad(theirs, (hidden, weight, offset), upstream),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=3e-6)


def test_checkpointed_equals_whole_logits_for_any_head():
    hidden, weight, offset, targets = problem(dtype=torch.float32)
    extra = torch.randn(11, 5, generator=torch.Generator().manual_seed(1), requires_grad=True)

    def head(h):
        return torch.nn.functional.linear(h, weight, offset) + h @ extra.t()

    ours = checkpointed_logprobs(hidden, head, targets, scale=0.5, softcap=2.0, chunk=3)
    theirs = whole(hidden, weight + extra, targets, offset, scale=0.5, softcap=2.0)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)
    for one, other in zip(
        torch.autograd.grad(ours.sum(), (hidden, extra)),
        torch.autograd.grad(theirs.sum(), (hidden, extra)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=3e-6)


def test_only_the_needed_gradients():
    hidden, weight, _, targets = problem(dtype=torch.float32, bias=False)
    frozen = weight.detach()
    (grad,) = torch.autograd.grad(chunked_logprobs(hidden, frozen, targets, chunk=2).sum(), hidden)
    (expected,) = torch.autograd.grad(whole(hidden, frozen, targets).sum(), hidden)
    torch.testing.assert_close(grad, expected)


def test_bfloat16_accumulates_in_float32():
    # 4096 tokens pull on the same head; summed over chunks in bfloat16 their gradient would stall far too low.
    hidden, weight, _, targets = problem(4096, 16, 64, dtype=torch.bfloat16, bias=False)
    ours = chunked_logprobs(hidden, weight, targets, chunk=16)
    assert ours.dtype == torch.float32
    exact_hidden, exact_weight = hidden.detach().double(), weight.detach().double().requires_grad_()
    theirs = whole(exact_hidden, exact_weight, targets)
    assert (ours - theirs).abs().max() < 0.1  # logits themselves are rounded to 8 bits
    (grad,) = torch.autograd.grad(ours.sum(), weight)
    (expected,) = torch.autograd.grad(theirs.sum(), exact_weight)
    assert grad.dtype == torch.bfloat16
    assert (grad.double() - expected).norm() / expected.norm() < 0.01


def test_autocast_is_that_of_a_linear_layer():
    hidden, weight, offset, targets = problem(32, 16, 40, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        ours = chunked_logprobs(hidden, weight, targets, offset, chunk=5)
        theirs = whole(hidden, weight, targets, offset)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    for one, other in zip(
        torch.autograd.grad(ours.sum(), (hidden, weight, offset)),
        torch.autograd.grad(theirs.sum(), (hidden, weight, offset)),
        strict=True,
    ):
        assert one.dtype == torch.float32
        assert (one - other).norm() / other.norm() < 0.01


def test_never_holds_all_logits(monkeypatch):
    """With a chunk of 2 tokens no tensor of the function has more than 2 x V elements (the gradients aside)."""
    largest = 0
    original = chunked._logits

    def watched(*args):
        nonlocal largest
        logits = original(*args)
        largest = max(largest, logits.numel())
        return logits

    monkeypatch.setattr(chunked, "_logits", watched)
    hidden, weight, _, targets = problem(50, 4, 1000, dtype=torch.float32, bias=False)
    chunked_logprobs(hidden, weight, targets, chunk=2).sum().backward()
    assert largest == 2 * 1000


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_chunk_size_holds_the_byte_limit(device):
    size = chunked.chunk_size(151_936, torch.device(device))
    limit = {"cpu": 32, "cuda": 256}[device] * 2**20
    assert size * 151_936 * 4 <= limit < (size + 1) * 151_936 * 4
    assert chunked.chunk_size(10**12, torch.device(device)) == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.5, None), (1.0, 3.0), (2.0, 3.0)])
def test_a_frozen_heads_gradient_is_made_in_forward(scale, softcap, dtype):
    """Against autograd through the whole logits, rows weighted unequally by what comes from above."""
    hidden, weight, offset, targets = problem(9, 6, 23, dtype=dtype)
    weight, offset = weight.detach(), None if offset is None else offset.detach()
    above = torch.linspace(-2, 3, 9, dtype=torch.float64).to(dtype)

    def gradient(logps):
        return torch.autograd.grad((logps * above).sum(), hidden)[0].double()

    found = gradient(chunked_logprobs(hidden, weight, targets, offset, scale=scale, softcap=softcap, chunk=4))
    logits = chunked.transform_logits(torch.nn.functional.linear(hidden, weight, offset).double(), scale, softcap)
    expected = gradient(logits.log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1))
    assert torch.allclose(found, expected, atol=1e-9 if dtype == torch.float64 else 0.05)


@pytest.mark.parametrize(("kept", "again"), [(0, 4), (6, 2), (7, 1), (10, 0), (10**6, 0)])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_what_is_kept_for_backward_is_not_computed_again(monkeypatch, kept, again, scale):
    """Ten tokens in chunks of three: whole chunks at the end are kept, as far as the room reaches."""
    hidden, weight, offset, targets = problem(10, 4, 23)
    above = torch.linspace(-2, 3, 10, dtype=torch.float64)
    monkeypatch.setattr(chunked, "KEPT_BYTES", 23 * 8 * kept)
    calls = []
    original = chunked._logits
    monkeypatch.setattr(chunked, "_logits", lambda *args: calls.append(1) or original(*args))
    logps = chunked_logprobs(hidden, weight, targets, offset, scale=scale, chunk=3)
    assert len(calls) == 4
    once = torch.autograd.grad(logps, (hidden, weight, offset), above, retain_graph=True)
    assert len(calls) == 4 + again
    # What was kept is overwritten in use, so a second pass computes everything again.
    twice = torch.autograd.grad(logps, (hidden, weight, offset), above)
    assert len(calls) == 4 + again + 4
    expected = torch.autograd.grad(
        whole(hidden, weight, targets, offset, scale=scale), (hidden, weight, offset), above
    )
    for first, second, other in zip(once, twice, expected, strict=True):
        assert torch.allclose(first, other, atol=1e-12)
        assert torch.allclose(second, other, atol=1e-12)


def test_under_a_cap_nothing_is_kept():
    assert chunked.kept_tokens(1000) > 0
    assert chunked.kept_tokens(1000, softcap=30.0) == 0
