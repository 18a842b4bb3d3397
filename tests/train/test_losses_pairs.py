"""Every loss of a pair against plain arithmetic: values, slopes, labels, margins, weights, symmetries, extremes.

A case holds our function and, written a second time with `math` alone, the loss of two numbers with its two slopes.
The rules that all losses share (what a margin, a label and a length do to those two numbers) are written once, below.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prefloop.train.losses import (
    apo_down,
    apo_zero,
    bco,
    cpo,
    discopop,
    dpo,
    exo,
    nca,
    orpo,
    reduce,
    simpo,
    sppo,
)

BETA, GAMMA, DELTA, TAU, SMOOTHING = 0.7, 0.4, 0.3, 0.6, 0.2
Slopes = tuple[float, float, float]
"""A loss of (first, second) and its slopes with respect to either."""


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def logistic(x: float) -> float:
    """-log sigma(x)."""
    return math.log1p(math.exp(-x)) if x > -30 else -x


def of_gap(f: Callable[[float], tuple[float, float]]) -> Callable[[float, float], Slopes]:
    """From a function of beta (first - second) that gives value and slope."""

    def loss(first: float, second: float) -> Slopes:
        value, slope = f(BETA * (first - second))
        return value, BETA * slope, -BETA * slope

    return loss


def mixed(loss: Callable[[float, float], Slopes], share: float) -> Callable[[float, float], Slopes]:
    """share * loss(first, second) + (1 - share) * loss(second, first)."""

    def both(first: float, second: float) -> Slopes:
        value, d_first, d_second = loss(first, second)
        swapped, e_second, e_first = loss(second, first)
        rest = 1 - share
        return share * value + rest * swapped, share * d_first + rest * e_first, share * d_second + rest * e_second

    return both


def discopop_by_hand(x: float) -> tuple[float, float]:
    s = sigma(x / TAU)
    slope = -sigma(-x) * (1 - s) - logistic(x) * s * (1 - s) / TAU + math.exp(-x) * (s * (1 - s) / TAU - s)
    return (1 - s) * logistic(x) + s * math.exp(-x), slope


def nca_by_hand(a: float, b: float) -> Slopes:
    value = logistic(BETA * a) + 0.5 * logistic(-BETA * a) + 0.5 * logistic(-BETA * b)
    return value, BETA * (1.5 * sigma(BETA * a) - 1), 0.5 * BETA * sigma(BETA * b)


def bco_by_hand(a: float, b: float) -> Slopes:
    x, y = BETA * a - DELTA, BETA * b - DELTA
    return logistic(x) + logistic(-y), -BETA * sigma(-x), BETA * sigma(y)


def bump(x: float) -> float:
    return BETA * sigma(BETA * x) * sigma(-BETA * x)


def apo_zero_by_hand(a: float, b: float) -> Slopes:
    return 1 - sigma(BETA * a) + sigma(BETA * b), -bump(a), bump(b)


def apo_down_by_hand(a: float, b: float) -> Slopes:
    return sigma(BETA * a) + 1 - sigma(BETA * (a - b)), bump(a) - bump(a - b), bump(a - b)


SIGMOID = of_gap(lambda x: (logistic(x), -sigma(-x)))
HINGE = of_gap(lambda x: (max(0.0, 1 - x), -1.0 if x < 1 else 0.0))
SQUARED = of_gap(lambda x: ((x / BETA - 1 / (2 * BETA)) ** 2, 2 * (x / BETA - 1 / (2 * BETA)) / BETA))
UNBIASED = mixed(SIGMOID, (1 - SMOOTHING) / (1 - 2 * SMOOTHING))


@dataclass(frozen=True)
class Case:
    """One loss. `numbers`: which two numbers of a pair it compares."""

    call: Callable[..., Tensor]
    by_hand: Callable[[float, float], Slopes]
    numbers: str = "log-ratios"
    likelihood: float = 0.0  # weight of the chosen answer's negative log-likelihood, in the unit of `numbers`
    gap_only: bool = True  # whether it is a function of the difference alone


CASES = {
    "dpo": Case(partial(dpo, beta=BETA), SIGMOID),
    "dpo smoothed": Case(partial(dpo, beta=BETA, label_smoothing=SMOOTHING), mixed(SIGMOID, 1 - SMOOTHING)),
    "dpo robust": Case(partial(dpo, beta=BETA, kind="robust", label_smoothing=SMOOTHING), UNBIASED),
    "dpo hinge": Case(partial(dpo, beta=BETA, kind="hinge"), HINGE),
    "dpo ipo": Case(partial(dpo, beta=BETA, kind="ipo"), SQUARED),
    "dpo ipo_norm": Case(partial(dpo, beta=BETA, kind="ipo_norm"), SQUARED, "log-ratios per token"),
    "dpo sigmoid_norm": Case(partial(dpo, beta=BETA, kind="sigmoid_norm"), SIGMOID, "log-ratios per token"),
    "discopop": Case(partial(discopop, beta=BETA, tau=TAU), of_gap(discopop_by_hand)),
    "nca": Case(partial(nca, beta=BETA), nca_by_hand, gap_only=False),
    "bco": Case(partial(bco, beta=BETA, delta=DELTA), bco_by_hand, gap_only=False),
    "apo_zero": Case(partial(apo_zero, beta=BETA), apo_zero_by_hand, gap_only=False),
    "apo_down": Case(partial(apo_down, beta=BETA), apo_down_by_hand, gap_only=False),
    "cpo": Case(partial(cpo, beta=BETA, nll_weight=0.3), SIGMOID, "log-probs", likelihood=0.3, gap_only=False),
    "simpo": Case(
        partial(simpo, beta=BETA, gamma=GAMMA),
        of_gap(lambda x: (logistic(x - GAMMA), -sigma(GAMMA - x))),
        "log-probs per token",
    ),
    "orpo": Case(
        partial(orpo, odds_weight=BETA),
        lambda x, y: (BETA * logistic(x - y), -BETA * sigma(y - x), BETA * sigma(y - x)),
        "log-odds",
        likelihood=1.0,
        gap_only=False,
    ),
}
TAKES_LENGTHS = {"dpo ipo_norm", "dpo sigmoid_norm", "simpo", "orpo"}
REFERENCED = [name for name, case in CASES.items() if case.numbers.startswith("log-ratios")]


@dataclass(frozen=True)
class Pair:
    chosen: float
    rejected: float
    reference_chosen: float
    reference_rejected: float
    length_chosen: int = 1
    length_rejected: int = 1
    margin: float = 0.0
    label: float = 1.0
    weight: float = 1.0


def by_hand(case: Case, pair: Pair) -> tuple[float, float, float, float]:
    """A pair's loss and its slopes with respect to policy_chosen, policy_rejected and margin."""
    c, r, d_c, d_r = pair.chosen, pair.rejected, 1.0, 1.0
    if case.numbers.startswith("log-ratios"):
        c, r = c - pair.reference_chosen, r - pair.reference_rejected
    if case.numbers.endswith("per token") or case.numbers == "log-odds":
        c, r, d_c, d_r = (
            c / pair.length_chosen,
            r / pair.length_rejected,
            1 / pair.length_chosen,
            1 / pair.length_rejected,
        )
    anchor, d_anchor = -c, -d_c
    if case.numbers == "log-odds":
        c, d_c = c - math.log(1 - math.exp(c)), d_c / (1 - math.exp(c))
        r, d_r = r - math.log(1 - math.exp(r)), d_r / (1 - math.exp(r))
    loss = mixed(case.by_hand, pair.label)
    value, d_first, d_second = loss(c - pair.margin / 2, r + pair.margin / 2)
    value += case.likelihood * anchor
    return value, d_first * d_c + case.likelihood * d_anchor, d_second * d_r, (d_second - d_first) / 2


def columns(pairs: list[Pair], dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    return {
        name: torch.tensor([getattr(p, name) for p in pairs], dtype=torch.int64 if "length" in name else dtype)
        for name in Pair.__dataclass_fields__
    }


def ours(name: str, table: dict[str, Tensor], **changes: Any) -> Tensor:
    """The loss of a case for columns as `columns` makes them."""
    table = {**table, **changes}
    policy = table["chosen"], table["rejected"]
    reference = (table["reference_chosen"], table["reference_rejected"]) if name in REFERENCED else ()
    lengths = {"lengths": (table["length_chosen"], table["length_rejected"])} if name in TAKES_LENGTHS else {}
    return CASES[name].call(*policy, *reference, margin=table["margin"], label=table["label"], **lengths)


logprob = st.floats(-30, -0.2)
pair_strategy = st.builds(
    Pair,
    *[logprob] * 4,
    *[st.integers(1, 9)] * 2,
    margin=st.floats(-5, 5),
    label=st.floats(0, 1),
    weight=st.floats(0, 3),
)


def away_from_the_kink(pair: Pair) -> bool:
    """Hinge has no slope where beta z is 1 or -1."""
    gap = pair.chosen - pair.rejected - pair.reference_chosen + pair.reference_rejected - pair.margin
    return abs(abs(BETA * gap) - 1) > 1e-6


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=50)
@given(pairs=st.lists(pair_strategy.filter(away_from_the_kink), min_size=1, max_size=5))
def test_value_and_slopes_are_the_formulas(name: str, pairs: list[Pair]) -> None:
    """Weight, margin and label change loss and gradient exactly as the formula says."""
    table = columns(pairs)
    leaves = [table[key].requires_grad_() for key in ("chosen", "rejected", "margin")]
    losses = ours(name, table)
    expected = [by_hand(CASES[name], pair) for pair in pairs]
    assert losses.tolist() == pytest.approx([row[0] for row in expected], rel=1e-9, abs=1e-9)
    slopes = torch.autograd.grad(reduce(losses, table["weight"]), leaves)
    for k, slope in enumerate(slopes, start=1):
        wanted = [pair.weight * row[k] / len(pairs) for pair, row in zip(pairs, expected, strict=True)]
        assert slope.tolist() == pytest.approx(wanted, rel=1e-8, abs=1e-10), ("chosen", "rejected", "margin")[k - 1]


@pytest.mark.parametrize("name", CASES)
def test_a_row_does_not_see_the_others(name: str) -> None:
    pairs = [
        Pair(-3.0, -5.0, -4.0, -4.5, 2, 4, margin=0.5, label=0.9),
        Pair(-25.0, -1.0, -2.0, -9.0, 9, 1, margin=-3.0, label=0.0),
        Pair(-0.3, -0.3, -0.3, -0.3),
    ]
    together = ours(name, columns(pairs)).tolist()
    alone = [ours(name, columns([pair])).item() for pair in pairs]
    assert together == pytest.approx(alone, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("name", sorted(set(CASES) - {"cpo", "orpo"}))
@settings(max_examples=20)
@given(pairs=st.lists(pair_strategy, min_size=1, max_size=3))
def test_a_reversed_label_is_the_pair_the_other_way_round(name: str, pairs: list[Pair]) -> None:
    """cpo and orpo are left out: they hold on to the likelihood of the answer called chosen."""
    table = columns(pairs)
    turned = {}
    for key, value in table.items():
        here, there = ("chosen", "rejected") if "chosen" in key else ("rejected", "chosen")
        turned[key.replace(here, there)] = value
    other = ours(name, turned, margin=-table["margin"], label=1 - table["label"])
    assert ours(name, table).tolist() == pytest.approx(other.tolist(), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("name", [n for n in REFERENCED if "norm" not in n])
@settings(max_examples=20)
@given(pairs=st.lists(pair_strategy, min_size=1, max_size=3))
def test_a_margin_is_a_reference_that_is_already_ahead(name: str, pairs: list[Pair]) -> None:
    table = columns(pairs)
    half = table["margin"] / 2
    moved = {
        "reference_chosen": table["reference_chosen"] + half,
        "reference_rejected": table["reference_rejected"] - half,
        "margin": torch.zeros_like(half),
    }
    assert ours(name, table).tolist() == pytest.approx(ours(name, table, **moved).tolist(), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_only_the_anchored_losses_see_more_than_the_lead(name: str) -> None:
    table = columns([Pair(-3.0, -5.0, -4.0, -4.5)])
    both_up = ours(name, table, chosen=table["chosen"] + 1, rejected=table["rejected"] + 1)
    assert (abs(both_up.item() - ours(name, table).item()) < 1e-12) == CASES[name].gap_only


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_at_extreme_gaps(name: str, dtype: torch.dtype) -> None:
    """Leads of +-1e4 nats, however divided, with a certain, a soft and a reversed label."""
    pairs = [
        Pair(chosen, rejected, reference, reference, label=label)
        for chosen, rejected in [(-1e4, -1.0), (-1.0, -1e4), (-1e4, -1e4), (-1e-9, -1e4), (-1e4, -1e-9), (0.0, 0.0)]
        for reference in (-1e4, -1.0, 0.0)
        for label in (0.0, 0.3, 1.0)
    ]
    table = columns(pairs, dtype)
    leaves = [table[key].requires_grad_() for key in ("chosen", "rejected", "margin")]
    losses = ours(name, table)
    assert losses.dtype == dtype
    assert losses.isfinite().all()
    assert all(slope.isfinite().all() for slope in torch.autograd.grad(losses.sum(), leaves))


@given(pair=pair_strategy, flips=st.floats(0, 0.45))
def test_robust_is_unbiased_under_flipped_labels(pair: Pair, flips: float) -> None:
    """The mean over labels flipped at the rate e is the loss with true labels."""
    table = columns([pair])
    four = [table[k] for k in ("chosen", "rejected", "reference_chosen", "reference_rejected")]
    turned = [four[1], four[0], four[3], four[2]]
    robust = partial(dpo, beta=BETA, kind="robust", label_smoothing=flips)
    mean = (1 - flips) * robust(*four) + flips * robust(*turned)
    assert mean.item() == pytest.approx(dpo(*four, beta=BETA).item(), rel=1e-8, abs=1e-8)


@given(pair=pair_strategy, smoothing=st.floats(1e-4, 0.4))
def test_exo(pair: Pair, smoothing: float) -> None:
    """KL(q || s), its slope beta q (1 - q) (beta z - logit s), and 0 where q = s."""
    table = columns([pair])
    four = [table[k] for k in ("chosen", "rejected", "reference_chosen", "reference_rejected")]
    four[0].requires_grad_()
    loss = exo(*four, beta=BETA, label_smoothing=smoothing, margin=table["margin"], label=table["label"])
    x = BETA * (pair.chosen - pair.rejected - pair.reference_chosen + pair.reference_rejected - pair.margin)
    q, s = sigma(x), (1 - smoothing) * pair.label + smoothing * (1 - pair.label)
    value = q * (-logistic(x) - math.log(s)) + (1 - q) * (-logistic(-x) - math.log(1 - s))
    assert loss.item() == pytest.approx(value, rel=1e-8, abs=1e-10)
    (slope,) = torch.autograd.grad(loss.sum(), [four[0]])
    assert slope.item() == pytest.approx(BETA * q * sigma(-x) * (x - math.log(s / (1 - s))), rel=1e-7, abs=1e-9)

    zero = torch.zeros(1, dtype=torch.float64)
    lead = torch.tensor([math.log(s / (1 - s)) / BETA], dtype=torch.float64)
    at_target = exo(lead, zero, zero, zero, beta=BETA, label_smoothing=smoothing, label=table["label"])
    assert at_target.item() == pytest.approx(0, abs=1e-12)


def test_exo_is_finite_at_extreme_gaps() -> None:
    for dtype in (torch.float32, torch.float64):
        lead = torch.tensor([1e4, -1e4, 0.0], dtype=dtype, requires_grad=True)
        zero = torch.zeros(3, dtype=dtype)
        loss = exo(lead, zero, zero, zero, beta=1.0)
        loss.sum().backward()
        assert loss.tolist() == pytest.approx([-math.log(0.999), -math.log(0.001), 2.761231], rel=1e-4)
        assert lead.grad is not None
        assert lead.grad.isfinite().all()


@given(
    pairs=st.lists(st.tuples(pair_strategy, st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=4),
    beta=st.floats(1e-3, 2),
)
def test_sppo(pairs: list[tuple[Pair, float, float]], beta: float) -> None:
    table = columns([pair for pair, _, _ in pairs])
    win_chosen, win_rejected = (torch.tensor([row[k] for row in pairs], dtype=torch.float64) for k in (1, 2))
    leaves = [table[key].requires_grad_() for key in ("chosen", "rejected", "margin")]
    losses = sppo(
        *[table[k] for k in ("chosen", "rejected", "reference_chosen", "reference_rejected")],
        beta=beta,
        win_chosen=win_chosen,
        win_rejected=win_rejected,
        margin=table["margin"],
    )
    slopes = torch.autograd.grad(reduce(losses, table["weight"]), leaves)
    for i, (pair, p, q) in enumerate(pairs):
        left = pair.chosen - pair.reference_chosen - pair.margin / 2 - (p - 0.5) / beta
        right = pair.rejected - pair.reference_rejected + pair.margin / 2 - (q - 0.5) / beta
        assert losses[i].item() == pytest.approx(left**2 + right**2, rel=1e-9, abs=1e-9)
        share = pair.weight / len(pairs)
        wanted = [2 * left * share, 2 * right * share, (right - left) * share]
        assert [slope[i].item() for slope in slopes] == pytest.approx(wanted, rel=1e-9, abs=1e-9)


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# Log-ratios 1 and -0.5, log-probabilities per token -1.5 and -1.25 for lengths 2 and 4.
FOUR = (column(-3.0), column(-5.0), column(-4.0), column(-4.5))
TWO, LENGTHS = FOUR[:2], (torch.tensor([2]), torch.tensor([4]))


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (nca(*FOUR, beta=1.0), 1.206931),  # 0.313262 + 1.313262 / 2 + 0.474077 / 2
        (nca(*FOUR, beta=1.0, label=column(0.25)), 1.702542),  # first term: 0.25 * 0.313262 + 0.75 * 0.974077
        (bco(*FOUR, beta=1.0, delta=0.0), 0.787339),  # 0.313262 + 0.474077
        (bco(*FOUR, beta=2.0, delta=column(0.5)), 0.402827),  # twice -log sigma(1.5)
        (apo_zero(*FOUR, beta=1.0), 0.646482),  # sigma(-1) + sigma(-0.5)
        (apo_zero(*FOUR, beta=1.0, margin=column(2.0)), 1.122459),  # sigma(0) + sigma(0.5)
        (apo_down(*FOUR, beta=1.0), 0.913484),  # sigma(1) + sigma(-1.5)
        (apo_down(*FOUR, beta=2.0), 0.928223),  # sigma(2) + sigma(-3)
        (exo(*FOUR, beta=1.0), 0.785917),  # q = 0.817574 against 0.999
        (exo(*FOUR, beta=0.2, label_smoothing=0.1, label=column(0.5)), 0.0111247),  # q = 0.574443 against 1/2
        (discopop(*FOUR), 0.878234),  # x = 0.075: 0.182426 * 0.656351 + 0.817574 * 0.927743
        (discopop(*FOUR, margin=column(3.0)), 0.794567),  # x = -0.075
        (sppo(*FOUR, beta=0.5), 0.25),  # (1 - 1)^2 + (-0.5 + 1)^2
        (sppo(*FOUR, beta=0.5, win_chosen=column(0.8), win_rejected=column(0.3)), 0.17),  # 0.4^2 + 0.1^2
        (simpo(*TWO, lengths=LENGTHS), 1.701413),  # -log sigma(2 * -0.25 - 1)
        (simpo(*TWO, lengths=LENGTHS, gamma=0.5, margin=column(-1.0)), 0.313262),  # -log sigma(1.5 - 0.5)
        (orpo(*TWO, lengths=LENGTHS), 1.587467),  # 1.5 + 0.1 * -log sigma(-0.335097)
        (orpo(*TWO, lengths=LENGTHS, odds_weight=0.5, margin=column(1.0)), 2.284346),  # -log sigma(-1.335097)
        (cpo(*TWO), 3.598139),  # -log sigma(0.2) + 3
        (cpo(*TWO, beta=0.5, nll_weight=0.5, margin=column(3.0), lengths_chosen=LENGTHS[0]), 1.724077),  # + 0.75
    ],
)
def test_values_by_hand(loss: Tensor, expected: float) -> None:
    assert loss.shape == (1,)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_a_baseline_passes_no_gradient() -> None:
    delta = column(0.2).requires_grad_()
    chosen = column(-1.0).requires_grad_()
    bco(chosen, *FOUR[1:], delta=delta).sum().backward()
    assert delta.grad is None
    assert chosen.grad is not None


PAIR_LOSSES: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...], dict[str, Any]]] = {
    "dpo": (dpo, FOUR, {}),
    "exo": (exo, FOUR, {}),
    "discopop": (discopop, FOUR, {}),
    "nca": (nca, FOUR, {}),
    "bco": (bco, FOUR, {"delta": 0.0}),
    "apo_zero": (apo_zero, FOUR, {}),
    "apo_down": (apo_down, FOUR, {}),
    "sppo": (sppo, FOUR, {}),
    "simpo": (simpo, TWO, {"lengths": LENGTHS}),
    "orpo": (orpo, TWO, {"lengths": LENGTHS}),
    "cpo": (cpo, TWO, {}),
}


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_columns_that_mean_nothing(name: str) -> None:
    loss, vectors, fixed = PAIR_LOSSES[name]
    assert loss(*vectors, **fixed).isfinite().all()
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match=r"margin is not a finite number in row 0: (nan|inf)"):
            loss(*vectors, **fixed, margin=column(bad))
    with pytest.raises(ValueError, match=r"one length, got .*margin \(2,\)"):
        loss(*vectors, **fixed, margin=column(0.0, 0.0))
    with pytest.raises(ValueError, match="one length"):
        loss(column(-1.0, -2.0), *vectors[1:], **fixed)
    with pytest.raises(ValueError, match="one length"):
        loss(*[vector[:, None] for vector in vectors], **fixed)
    if name == "sppo":
        return
    for bad in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"label is not within 0..1 in row 0"):
            loss(*vectors, **fixed, label=column(bad))
    with pytest.raises(ValueError, match=r"one length, got .*label \(2,\)"):
        loss(*vectors, **fixed, label=column(1.0, 1.0))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        *[
            (name, {"beta": beta}, "beta must be above 0")
            for name in PAIR_LOSSES
            if name != "orpo"
            for beta in (0, -1)
        ],
        ("orpo", {"odds_weight": 0.0}, "odds_weight must be above 0"),
        ("cpo", {"nll_weight": -1.0}, "nll_weight must be at least 0"),
        ("cpo", {"lengths_chosen": torch.tensor([0])}, "not a number of tokens"),
        ("simpo", {"gamma": -0.1}, "gamma must be at least 0"),
        ("simpo", {"lengths": (torch.tensor([2]), torch.tensor([0]))}, "lengths_rejected is not a number of tokens"),
        ("orpo", {"lengths": (torch.tensor([2, 2]), torch.tensor([1]))}, "one length"),
        (
            "dpo",
            {"kind": "ipo_norm", "lengths": (torch.tensor([0]), torch.tensor([1]))},
            "lengths_chosen is not a number of tokens",
        ),
        ("dpo", {"label_smoothing": -0.1}, "label_smoothing"),
        ("dpo", {"kind": "robust", "label_smoothing": 0.5}, "label_smoothing"),
        ("exo", {"label_smoothing": 0.5}, "label_smoothing"),
        ("exo", {"label_smoothing": 0.0}, "certain label"),
        ("exo", {"label_smoothing": 0.0, "label": column(0.0)}, "certain label"),
        ("discopop", {"tau": 0.0}, "tau"),
        ("discopop", {"tau": 1.5}, "tau"),
        ("bco", {"delta": math.nan}, "delta is not a finite number"),
        ("bco", {"delta": column(0.0, 0.0)}, "one length"),
        ("sppo", {"win_chosen": column(1.0)}, "together"),
        ("sppo", {"win_chosen": column(1.0), "win_rejected": column(-0.5)}, "win_rejected is not within"),
    ],
)
def test_impossible_settings_of_pairs(name: str, changes: dict[str, Any], message: str) -> None:
    loss, vectors, fixed = PAIR_LOSSES[name]
    with pytest.raises(ValueError, match=message):
        loss(*vectors, **{**fixed, **changes})
