"""CUT's terms of tokens: numbers by hand, the published formula, gradients, extremes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from prefloop.train.losses import cut
from prefloop.train.losses.unlikelihood import log1mexp

PARITY = Path(__file__).parents[3] / "shared" / "data" / "parity" / "cut.npz"
CASES = ("all_negative_alpha1_lam1.1", "all_negative_alpha.5_lam1.2", "mixed_one_alignP", "alignP_only", "single_row")


def logs(*probabilities: float) -> Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def naive(judged: Tensor, plain: Tensor, threshold: float, weight: float, gamma: float) -> tuple[Tensor, Tensor]:
    """The formula in probabilities."""
    a, b = judged.exp().detach(), plain.exp()
    flagged = a / b.detach() > threshold
    return torch.where(flagged, -weight * a**gamma * (1 - b).log(), -b.log()), flagged


def test_numbers_by_hand() -> None:
    """0.5 : 0.25 is 2 and flagged, 0.26 : 0.25 is 1.04 and kept, 0.1 : 0.4 is kept."""
    judged, plain = logs(0.5, 0.26, 0.1), logs(0.25, 0.25, 0.4)
    terms, flagged = cut(judged, plain, threshold=1.1, unlike_weight=0.5)
    assert flagged.tolist() == [True, False, False]
    assert terms.tolist() == pytest.approx([-0.5 * math.log(0.75), -math.log(0.25), -math.log(0.4)])
    focal, _ = cut(judged, plain, threshold=1.1, unlike_weight=0.5, gamma=2.0)
    assert focal.tolist() == pytest.approx([-0.5 * 0.5**2 * math.log(0.75), -math.log(0.25), -math.log(0.4)])


def test_a_ratio_of_exactly_the_threshold_is_kept() -> None:
    _, flagged = cut(torch.tensor([-1.0]), torch.tensor([-1.0]), threshold=1.0, unlike_weight=1.0)
    assert flagged.tolist() == [False]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@given(
    seed=st.integers(0, 10**6), threshold=st.sampled_from([1.1, 1.2, 1.5, 3.0]), gamma=st.sampled_from([0.0, 0.5, 2])
)
def test_the_formula_in_probabilities(
    dtype: torch.dtype, tolerance: float, seed: int, threshold: float, gamma: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 40, 11, generator=generator, dtype=torch.float64) * 2
    judged, plain = logits.log_softmax(-1)[..., 0]
    ratio = (judged - plain - math.log(threshold)).abs()
    judged, plain = judged[ratio > 1e-5], plain[ratio > 1e-5]  # rounding alone decides there
    terms, flagged = cut(judged.to(dtype), plain.to(dtype), threshold=threshold, unlike_weight=0.7, gamma=gamma)
    expected, expected_flags = naive(judged, plain, threshold, 0.7, gamma)
    assert torch.equal(flagged, expected_flags)
    assert torch.allclose(terms.to(torch.float64), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", CASES)
def test_the_published_function(case: str, dtype: torch.dtype) -> None:
    """Whole losses of the published code, with likelihood and unlikelihood averaged over tokens as it does."""
    if not PARITY.is_file():
        pytest.skip("the expected values are not here")
    data = {n.split("/")[1]: v for n, v in np.load(PARITY, allow_pickle=False).items() if n.startswith(f"{case}/")}
    lam, weights = float(data["lam"]), data["w"]

    def scores(side: str) -> list[Tensor]:
        logps = torch.from_numpy(data[f"logits_{side}"]).to(dtype).log_softmax(-1)
        labels = torch.from_numpy(data[f"labels_{side}"])
        return [
            own[:-1].gather(-1, wanted[1:, None].clamp(min=0))[:, 0][wanted[1:] != -100]
            for own, wanted in zip(logps, labels, strict=True)
        ]

    first, second = scores("a"), scores("b")
    bad = [i for i, w in enumerate(weights) if w != -1]
    loss = -torch.cat(first).mean()
    if bad:
        judged, plain = torch.cat([first[i] for i in bad]), torch.cat([second[i] for i in bad])
        terms, _ = cut(judged, plain, threshold=lam, unlike_weight=float(weights[bad[0]]))
        loss = (loss + terms.mean()) / 2
    assert float(loss) == pytest.approx(float(data["loss"]), abs=1e-10 if dtype == torch.float64 else 2e-6)


@pytest.mark.parametrize("gamma", [0.0, 1.5])
def test_gradients(gamma: float) -> None:
    """Of `plain` alone; the ratio and the focal factor are taken as given."""
    judged = logs(0.5, 0.26, 0.1, 0.9, 0.999).requires_grad_()
    plain = logs(0.25, 0.25, 0.4, 0.7, 1e-4).requires_grad_()

    def terms(values: Tensor) -> Tensor:
        return cut(judged.detach(), values, threshold=1.2, unlike_weight=0.5, gamma=gamma)[0]

    assert torch.autograd.gradcheck(terms, (plain,))
    theirs, _ = naive(judged, plain, 1.2, 0.5, gamma)
    (expected,) = torch.autograd.grad(theirs.sum(), plain)
    cut(judged, plain, threshold=1.2, unlike_weight=0.5, gamma=gamma)[0].sum().backward()
    assert torch.allclose(plain.grad, expected, atol=1e-12)
    assert judged.grad is None


def test_the_slope_of_a_flagged_token_is_bounded() -> None:
    plain = torch.linspace(-8, math.log(1 / 1.1) - 1e-6, 500, dtype=torch.float64).requires_grad_()
    terms, flagged = cut(torch.zeros_like(plain), plain, threshold=1.1, unlike_weight=1.0)
    terms.sum().backward()
    assert flagged.all()
    assert float(plain.grad.max()) < 1 / (1.1 - 1)
    assert float(terms.detach().max()) < -math.log(1 - 1 / 1.1)


def test_certain_tokens_have_finite_gradients() -> None:
    """At probability 1, where log(1 - p) has none; and far below, where 1 - p is 1."""
    for low in (-1e4, -2e4, -1e30):
        plain = torch.tensor([0.0, 0.0, low, low], requires_grad=True)
        judged = torch.tensor([0.0, low, 0.0, low])
        terms, flagged = cut(judged, plain, threshold=1.1, unlike_weight=1.0, gamma=1.0)
        terms.sum().backward()
        assert flagged.tolist() == [False, False, True, False]
        assert bool(terms.isfinite().all() & plain.grad.isfinite().all())
    loose = torch.zeros(1, requires_grad=True)
    terms, flagged = cut(torch.zeros(1), loose, threshold=0.5, unlike_weight=1.0)
    terms.sum().backward()
    assert flagged.item()
    assert bool(terms.isfinite() & loose.grad.isfinite())


@given(st.floats(-700, -1e-12))
def test_log1mexp(x: float) -> None:
    expected = math.log(-math.expm1(x)) if x > -math.log(2) else math.log1p(-math.exp(x))
    assert float(log1mexp(torch.tensor(x, dtype=torch.float64))) == pytest.approx(expected, rel=1e-12)


def test_flags_decided_elsewhere() -> None:
    judged, plain = logs(0.5, 0.26), logs(0.25, 0.25)
    given_flags = torch.tensor([False, True])
    terms, flagged = cut(judged, plain, threshold=1.1, unlike_weight=1.0, flagged=given_flags)
    assert flagged is given_flags
    assert terms.tolist() == pytest.approx([-math.log(0.25), -math.log(0.75)])


@pytest.mark.parametrize("settings", [{"threshold": 0.0}, {"unlike_weight": -1.0}, {"gamma": float("nan")}])
def test_settings_that_mean_nothing(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        cut(torch.zeros(2), torch.zeros(2), **{"threshold": 1.1, "unlike_weight": 1.0, **settings})
    with pytest.raises(ValueError, match="vectors of one length"):
        cut(torch.zeros(2), torch.zeros(3), threshold=1.1, unlike_weight=1.0)
