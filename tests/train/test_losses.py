"""`dpo` against numbers computed by hand; the margin made before the losses and the reduction after them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prefloop.train.losses import DPO_KINDS, dpo, reduce, scale_margin


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


# h = (-3 - -5) - (-4 - -4.5) = 2 - 0.5 = 1.5
FOUR = (column(-3.0), column(-5.0), column(-4.0), column(-4.5))


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize(
    ("kind", "beta", "margin", "smoothing", "expected"),
    [
        ("sigmoid", 0.1, None, 0.0, 0.620957),  # -log sigma(0.15)
        ("sigmoid", 0.1, 4.0, 0.0, 0.825939),  # -log sigma(0.1 * (1.5 - 4))
        ("sigmoid", 0.5, None, 0.2, 0.536871),  # 0.8 * 0.386871 + 0.2 * 1.136871 (beta h = 0.75)
        ("hinge", 0.4, None, 0.0, 0.4),  # 1 - 0.6
        ("hinge", 1.0, None, 0.0, 0.0),
        ("hinge", 1.0, 2.0, 0.0, 1.5),  # z = -0.5
        ("ipo", 0.25, None, 0.0, 0.25),  # (1.5 - 2)^2
        ("ipo", 0.25, 1.0, 0.0, 2.25),  # (0.5 - 2)^2
        ("ipo", 0.25, None, 0.1, 0.9 * 0.25 + 0.1 * 12.25),
        ("robust", 0.5, None, 0.2, 0.136871),  # (0.8 * 0.386871 - 0.2 * 1.136871) / 0.6
        ("robust", 0.1, 4.0, 0.0, 0.825939),  # no flips: sigmoid
    ],
)
def test_values_by_hand(kind: str, beta: float, margin: float | None, smoothing: float, expected: float) -> None:
    margins = None if margin is None else column(margin)
    loss = dpo(*FOUR, beta=beta, kind=kind, margin=margins, label_smoothing=smoothing)
    assert loss.shape == (1,)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_sigmoid_norm_divides_each_log_ratio_by_its_length() -> None:
    # the gap per token is 0.625: -log sigma(5 * 0.625), and with a margin of 1 per token -log sigma(-1.875)
    lengths = torch.tensor([[2], [4]])
    assert dpo(*FOUR, beta=5.0, kind="sigmoid_norm", lengths=lengths).item() == pytest.approx(0.042999, abs=1e-6)
    loss = dpo(*FOUR, beta=5.0, kind="sigmoid_norm", lengths=lengths, margin=column(1.0))
    assert loss.item() == pytest.approx(2.017675, abs=1e-6)


def test_ipo_norm_divides_each_log_ratio_by_its_length() -> None:
    # chosen ratio 1 over 2 tokens, rejected ratio -0.5 over 4: 0.5 + 0.125 = 0.625; (0.625 - 2)^2
    loss = dpo(*FOUR, beta=0.25, kind="ipo_norm", lengths=(torch.tensor([2]), torch.tensor([4])))
    assert loss.item() == pytest.approx(1.375**2)
    stacked = dpo(*FOUR, beta=0.25, kind="ipo_norm", lengths=torch.tensor([[2], [4]]))
    assert stacked.item() == loss.item()


def test_dlma_start() -> None:
    """specs/dlma.md section 4: beta 0.1, weight 0.2, range -40..40, policy equal to its reference."""
    zero = torch.zeros(5, dtype=torch.float64)
    policy = zero.clone().requires_grad_()
    margin = scale_margin(column(95.0, 40.0, 0.0, -40.0, -1e9), weight=0.2, low=-40, high=40)
    losses = dpo(policy, zero, zero, zero, beta=0.1, margin=margin)
    assert losses.tolist() == pytest.approx([1.1711, 1.1711, 0.6931, 0.3711, 0.3711], abs=5e-5)
    losses.sum().backward()
    assert (-policy.grad / 0.1).tolist() == pytest.approx([0.690, 0.690, 0.5, 0.310, 0.310], abs=5e-4)


@pytest.mark.parametrize("kind", DPO_KINDS)
def test_gradcheck(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(6, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(5)]
    lengths = (torch.arange(1, 7), torch.arange(6, 0, -1))
    assert torch.autograd.gradcheck(
        lambda a, b, c, d, m: dpo(a, b, c, d, beta=0.7, kind=kind, margin=m, label_smoothing=0.1, lengths=lengths),
        inputs,
    )


@given(
    st.lists(st.tuples(*[st.floats(-50, 50)] * 2, st.floats(-9, 9), st.floats(0, 3)), min_size=1, max_size=6),
    st.floats(0.01, 2),
)
def test_weight_and_margin_change_the_gradient_as_the_formula_says(
    pairs: list[tuple[float, float, float, float]], beta: float
) -> None:
    """d/d(policy_chosen_i) of sum(w l) / n is -w_i beta sigma(-beta (h_i - m_i)) / n."""
    chosen, rejected, margin, weight = (column(*values) for values in zip(*pairs, strict=True))
    zero = torch.zeros_like(chosen)
    chosen.requires_grad_()
    reduce(dpo(chosen, rejected, zero, zero, beta=beta, margin=margin), weight).backward()
    expected = [-w * beta * sigma(-beta * (c - r - m)) / len(pairs) for c, r, m, w in pairs]
    assert chosen.grad.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(0, 5)), min_size=2, max_size=9), st.integers(1, 8))
def test_reduction_of_a_batch_is_the_mean_of_its_parts_by_size(rows: list[tuple[float, float]], cut: int) -> None:
    losses, weight = (column(*values) for values in zip(*rows, strict=True))
    cut = min(cut, len(rows) - 1)
    parts = [(losses[:cut], weight[:cut]), (losses[cut:], weight[cut:])]
    whole = sum(reduce(part, w) * len(part) for part, w in parts) / len(rows)
    assert reduce(losses, weight).item() == pytest.approx(whole.item(), abs=1e-12)
    assert reduce(losses).item() == pytest.approx(losses.mean().item(), abs=1e-12)


def test_weights_are_not_rescaled() -> None:
    assert reduce(column(1.0, 3.0), column(2.0, 2.0)).item() == 4.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "aot"}, "sigmoid, sigmoid_norm, robust, hinge, ipo, ipo_norm"),
        ({"kind": "ipo_norm"}, "ipo_norm needs lengths"),
        ({"kind": "sigmoid_norm"}, "sigmoid_norm needs lengths"),
        ({"beta": 0.0}, "beta"),
        ({"beta": math.nan}, "beta"),
        ({"label_smoothing": 0.5}, "label_smoothing"),
        ({"margin": torch.zeros(2)}, "one length"),
    ],
)
def test_impossible_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dpo(*FOUR, **settings)  # type: ignore[arg-type]


def test_vectors_must_match() -> None:
    with pytest.raises(ValueError, match="one length"):
        dpo(torch.zeros(2), torch.zeros(2), torch.zeros(2), torch.zeros(1))
    with pytest.raises(ValueError, match="one length"):
        reduce(torch.zeros(2), torch.zeros(2, 1))
    with pytest.raises(ValueError, match="no losses"):
        reduce(torch.zeros(0))


@pytest.mark.parametrize(
    ("weight", "low", "high", "message"), [(0.0, -1, 1, "weight"), (-0.2, -1, 1, "weight"), (0.2, 1, 1, "range")]
)
def test_impossible_margins(weight: float, low: float, high: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scale_margin(column(1.0), weight, low, high)


def test_a_margin_that_is_no_number() -> None:
    with pytest.raises(ValueError, match="not a number"):
        scale_margin(column(1.0, math.nan), 0.2, -1, 1)
