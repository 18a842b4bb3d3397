"""Losses of single answers and of rankings against plain arithmetic, and what they refuse."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from prefloop.train.losses import apo_zero, dpo, kto, plackett_luce, reduce, sft


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


logprob = st.floats(-30, 0)


# ---- sft


def test_sft_by_hand() -> None:
    policy = column(-6.0, -1.0).requires_grad_()
    assert sft(policy).tolist() == [6.0, 1.0]
    losses = sft(policy, torch.tensor([4, 2]))
    assert losses.tolist() == [1.5, 0.5]
    reduce(losses, column(3.0, 0.5)).backward()
    assert policy.grad is not None
    assert policy.grad.tolist() == [-3.0 / 4 / 2, -0.5 / 2 / 2]


def test_sft_refuses() -> None:
    with pytest.raises(ValueError, match="lengths is not a number of tokens, at least 1 in row 1: 0"):
        sft(column(-1.0, -1.0), torch.tensor([3, 0]))
    with pytest.raises(ValueError, match="one length"):
        sft(column(-1.0), torch.tensor([3, 1]))


# ---- kto


def test_kto_by_hand() -> None:
    """Log-ratio 1 and z0 0.25: sigma(-0.1 * 0.75) and 1.5 sigma(0.1 * 0.75); with a margin of 2, sigma(0.5 * 1.25)."""
    policy, reference = column(-3.0, -3.0), column(-4.0, -4.0)
    desirable = torch.tensor([True, False])
    losses = kto(policy, reference, desirable=desirable, z0=0.25, undesirable_weight=1.5)
    assert losses.tolist() == pytest.approx([0.481259, 0.778112], abs=1e-6)
    pushed = kto(policy, reference, desirable=desirable, z0=0.25, beta=0.5, margin=column(2.0, 2.0))
    assert pushed.tolist() == pytest.approx([0.651355, sigma(0.5 * 2.75)], abs=1e-6)


@given(
    rows=st.lists(
        st.tuples(logprob, logprob, st.booleans(), st.floats(-5, 5), st.floats(0, 3)), min_size=1, max_size=6
    ),
    beta=st.floats(0.01, 2),
    z0=st.floats(0, 5),
)
def test_kto_slopes(rows: list[tuple[float, float, bool, float, float]], beta: float, z0: float) -> None:
    """-+ lambda beta sigma(x) sigma(-x) by policy, the same but always up by margin; the baseline gets none."""
    policy, reference, margin, weight = (column(*[row[k] for row in rows]) for k in (0, 1, 3, 4))
    desirable = torch.tensor([row[2] for row in rows])
    baseline = torch.tensor(z0, dtype=torch.float64, requires_grad=True)
    policy.requires_grad_(), margin.requires_grad_()
    losses = kto(
        policy, reference, desirable=desirable, z0=baseline, beta=beta, desirable_weight=1.2, undesirable_weight=0.8,
        margin=margin,
    )  # fmt: skip
    reduce(losses, weight).backward()
    assert baseline.grad is None
    assert policy.grad is not None
    assert margin.grad is not None
    for i, (p, r, good, m, w) in enumerate(rows):
        side, scale = (1, 1.2) if good else (-1, 0.8)
        x = beta * (side * (p - r - z0) - m)
        assert losses[i].item() == pytest.approx(scale * sigma(-x), rel=1e-9)
        slope = w * scale * beta * sigma(x) * sigma(-x) / len(rows)
        assert policy.grad[i].item() == pytest.approx(-side * slope, rel=1e-8, abs=1e-12)
        assert margin.grad[i].item() == pytest.approx(slope, rel=1e-8, abs=1e-12)


def test_kto_at_a_baseline_of_zero_is_apo_zero_taken_apart() -> None:
    four = (column(-3.0), column(-5.0), column(-4.0), column(-4.5))
    good = kto(four[0], four[2], desirable=torch.tensor([True]), z0=0.0)
    bad = kto(four[1], four[3], desirable=torch.tensor([False]), z0=0.0)
    assert (good + bad).item() == pytest.approx(apo_zero(*four).item(), abs=1e-12)


def test_kto_is_finite_at_extremes_and_takes_a_baseline_per_row() -> None:
    policy = torch.tensor([1e4, -1e4, 1e4, -1e4], requires_grad=True)
    desirable = torch.tensor([True, True, False, False])
    losses = kto(policy, torch.zeros(4), desirable=desirable, z0=torch.tensor([0.0, 1.0, 2.0, 3.0]))
    losses.sum().backward()
    assert losses.tolist() == [0.0, 1.0, 1.0, 0.0]
    assert policy.grad is not None
    assert policy.grad.isfinite().all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta": 0.0}, "beta"),
        ({"desirable_weight": 0.0}, "desirable_weight must be above 0"),
        ({"undesirable_weight": -1.0}, "undesirable_weight must be above 0"),
        ({"desirable": column(1.0, 0.3)}, "must be of bool"),
        ({"desirable": torch.tensor([True])}, "one length"),
        ({"z0": -0.1}, "at least 0"),
        ({"z0": math.nan}, "z0 is not a finite number"),
        ({"z0": column(0.0, 0.0, 0.0)}, "one length"),
        ({"margin": column(0.0, math.nan)}, "margin is not a finite number in row 1"),
    ],
)
def test_kto_refuses(changes: dict[str, Any], message: str) -> None:
    settings = {"desirable": torch.tensor([True, False]), "z0": 0.0, **changes}
    with pytest.raises(ValueError, match=message):
        kto(column(-1.0, -1.0), column(-1.0, -1.0), **settings)


# ---- plackett_luce


def test_plackett_luce_by_hand() -> None:
    """Scores 0.3, -0.2, 0.1: log(e^.3 + e^-.2 + e^.1) - 0.3, plus log(e^-.2 + e^.1) + 0.2, plus 0."""
    policy = torch.tensor([[-1.0, -6.0, -3.0]], dtype=torch.float64)
    reference = torch.tensor([[-4.0, -4.0, -4.0]], dtype=torch.float64)
    assert plackett_luce(policy, reference).item() == pytest.approx(1.740295, abs=1e-6)
    # all alike: every order of three has probability 1/6
    assert plackett_luce(policy, policy).item() == pytest.approx(math.log(6))


ranking = st.lists(st.tuples(logprob, logprob, st.floats(-5, 5)), min_size=2, max_size=5)


@given(rows=st.lists(st.tuples(ranking, st.floats(0, 3)), min_size=1, max_size=4), beta=st.floats(0.01, 2))
def test_plackett_luce_slopes(rows: list[tuple[list[tuple[float, float, float]], float]], beta: float) -> None:
    """Padded, masked rankings: beta (sum over i <= k of softmax_{j >= i}(s)_k - 1), minus that by margin."""
    width = max(len(answers) for answers, _ in rows)
    padded = [answers + [(math.nan, math.nan, 0.0)] * (width - len(answers)) for answers, _ in rows]
    policy, reference, margin = torch.tensor(padded, dtype=torch.float64).unbind(dim=2)
    mask = ~policy.isnan()
    policy, margin = policy.clone().requires_grad_(), margin.clone().requires_grad_()
    losses = plackett_luce(policy, reference, beta=beta, margin=margin, mask=mask)
    reduce(losses, column(*[weight for _, weight in rows])).backward()
    assert policy.grad is not None
    assert margin.grad is not None
    for i, (answers, weight) in enumerate(rows):
        score = [beta * (p - r - m) for p, r, m in answers]
        total = [sum(math.exp(s - score[k]) for s in score[k:]) for k in range(len(score))]  # relative to place k
        assert losses[i].item() == pytest.approx(sum(math.log(t) for t in total), rel=1e-9, abs=1e-9)
        for k in range(len(score)):
            chance = sum(math.exp(score[k] - score[place]) / total[place] for place in range(k + 1))
            slope = weight * beta * (chance - 1) / len(rows)
            assert policy.grad[i, k].item() == pytest.approx(slope, rel=1e-7, abs=1e-10)
            assert margin.grad[i, k].item() == pytest.approx(-slope, rel=1e-7, abs=1e-10)


@given(st.lists(st.tuples(*[logprob] * 4, st.floats(-5, 5)), min_size=1, max_size=5), st.floats(0.01, 2))
def test_a_ranking_of_two_is_dpo(rows: list[tuple[float, ...]], beta: float) -> None:
    chosen, rejected, reference_chosen, reference_rejected, margin = (column(*v) for v in zip(*rows, strict=True))
    both = plackett_luce(
        torch.stack([chosen, rejected], dim=1),
        torch.stack([reference_chosen, reference_rejected], dim=1),
        beta=beta,
        margin=torch.stack([margin, torch.zeros_like(margin)], dim=1),
    )
    pair = dpo(chosen, rejected, reference_chosen, reference_rejected, beta=beta, margin=margin)
    assert both.tolist() == pytest.approx(pair.tolist(), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("hidden", [math.nan, math.inf, -math.inf, 1e30])
def test_masked_answers_are_not_read(hidden: float) -> None:
    """Also between the others: their gradient is 0 and the rest is the ranking without them."""
    policy = torch.tensor([[-1.0, hidden, -2.0, -4.0, hidden]], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([[-2.0, hidden, -2.0, -2.0, hidden]], dtype=torch.float64)
    mask = torch.tensor([[True, False, True, True, False]])
    loss = plackett_luce(policy, reference, mask=mask)
    loss.sum().backward()
    alone = plackett_luce(policy.detach()[mask][None], reference[mask][None])
    assert loss.item() == pytest.approx(alone.item(), abs=1e-12)
    assert policy.grad is not None
    assert policy.grad[0, [1, 4]].tolist() == [0.0, 0.0]
    assert policy.grad.isfinite().all()


def test_rankings_are_finite_at_extremes() -> None:
    for dtype in (torch.float32, torch.float64):
        policy = torch.tensor([[1e4, 0.0, -1e4], [-1e4, 0.0, 1e4]], dtype=dtype, requires_grad=True)
        losses = plackett_luce(policy, torch.zeros_like(policy), beta=1.0)
        losses.sum().backward()
        assert losses.tolist() == [0.0, 3e4]
        assert policy.grad is not None
        assert policy.grad.tolist() == [[0.0, 0.0, 0.0], [-1.0, -1.0, 2.0]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta": -1.0}, "beta"),
        ({"mask": torch.tensor([[True, True, False], [True, False, False]])}, "row 1 has 1"),
        ({"mask": torch.ones(2, 3)}, "must be of bool"),
        ({"mask": torch.ones(2, 2, dtype=torch.bool)}, r"tables \[n, K\] of one shape"),
        ({"margin": torch.zeros(2)}, r"tables \[n, K\] of one shape"),
        ({"margin": torch.full((2, 3), math.nan)}, "margin is not a finite number in row 0"),
    ],
)
def test_rankings_refuse(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plackett_luce(torch.zeros(2, 3), torch.zeros(2, 3), **changes)


def test_a_ranking_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="needs two answers, row 0 has 1"):
        plackett_luce(torch.zeros(2, 1), torch.zeros(2, 1))
    with pytest.raises(ValueError, match="tables"):
        plackett_luce(torch.zeros(2), torch.zeros(2))
