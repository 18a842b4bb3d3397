"""The losses against known numbers, by hand, and their general forms against the published ones."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rerank_numbers import LABELS, seq
from torch import Tensor

from prefloop.rerank import losses


def groups(positives: Tensor, negatives: Tensor, size: int = 2) -> Tensor:
    return torch.cat([positives.reshape(-1, size, 16), negatives.reshape(-1, size, 16)], 1)


def test_pointwise_known_number():
    found = losses.pointwise(seq(4, 2, a=0.9, scale=1.5), LABELS)
    assert float(found) == pytest.approx(0.395347094930, abs=1e-9)


def test_pairwise_known_number():
    scores = seq(16, 2, a=0.41, b=1.1, scale=2)[:, 1].reshape(4, 4)
    assert float(losses.pairwise(scores)) == pytest.approx(1.236974796594, abs=1e-9)


def test_pairwise_of_equal_scores_is_ln_2():
    assert float(losses.pairwise(torch.full((3, 4), 0.7, dtype=torch.float64))) == pytest.approx(math.log(2))


def test_pairwise_of_large_reversed_gaps_does_not_overflow():
    """Gaps of 100, 200, 300 in a list of four that stands worst first: their mean is 166.67."""
    scores = torch.tensor([[0.0, 100.0, 200.0, 300.0]])
    assert float(losses.pairwise(scores)) == pytest.approx(166.6667, abs=1e-3)


def test_contrastive_known_number():
    embeddings = groups(seq(8, 16, a=0.53), seq(8, 16, a=0.77, b=2))
    assert float(losses.contrastive(embeddings, positives=2)) == pytest.approx(5.063922811189, abs=1e-9)


def test_contrastive_of_identical_documents_is_ln_3():
    assert float(losses.contrastive(torch.ones(2, 4, 5), positives=2)) == pytest.approx(math.log(3), abs=1e-6)


def test_contrastive_by_hand():
    """One positive pair at a right angle to its two negatives, which point opposite ways."""
    z = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]], dtype=torch.float64)
    t = 0.5
    positive = math.log(math.exp(1 / t) + 2) - 1 / t
    negative = math.log(2 + math.exp(-1 / t)) + 1 / t
    assert float(losses.contrastive(z, 2, t)) == pytest.approx((2 * positive + 2 * negative) / 4)


def test_a_longer_list_with_gaps_is_the_shorter_one():
    scores, other = torch.randn(2, 3), torch.randn(2, 2)
    padded = torch.cat([scores, other], 1)
    mask = torch.tensor([True, True, True, False, False]).expand(2, 5)
    best_first = torch.tensor([3.0, 2.0, 1.0, 9.0, 0.0]).expand(2, 5)
    assert torch.allclose(losses.pairwise(padded, best_first, mask), losses.pairwise(scores))


def test_ties_make_no_pair():
    scores = torch.tensor([[0.3, 1.0, -2.0]])
    tied = losses.pairwise(scores, torch.tensor([[2.0, 1.0, 1.0]]))
    by_hand = (math.log1p(math.exp(1.0 - 0.3)) + math.log1p(math.exp(-2.0 - 0.3))) / 2
    assert float(tied) == pytest.approx(by_hand)


def test_every_query_counts_alike_however_long_its_list():
    scores = torch.tensor([[0.0, 1.0, 5.0], [2.0, 1.0, 0.0]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    first, second = losses.pairwise(scores[:1, :2]), losses.pairwise(scores[1:])
    targets = torch.tensor([[2.0, 1.0, 0.0]]).expand(2, 3)
    assert torch.allclose(losses.pairwise(scores, targets, mask), (first + second) / 2)


@pytest.mark.parametrize("nothing", ["pointwise", "pairwise", "grouped", "anchored"])
def test_nothing_eligible_is_zero_with_a_gradient_of_zero(nothing):
    z = torch.randn(2, 3, 4, requires_grad=True)
    if nothing == "pointwise":
        loss = losses.pointwise(z[:0, 0, :2], torch.zeros(0))
    elif nothing == "pairwise":
        loss = losses.pairwise(z[..., 0], torch.zeros(2, 3))
    elif nothing == "grouped":
        one_each = torch.tensor([True, False, False]).expand(2, 3)
        loss = losses.grouped(z, one_each, torch.tensor([True, True, False]).expand(2, 3))
    else:
        loss = losses.anchored(z[:, 0], z[:, 1], torch.tensor([0, 1]), torch.tensor([False, False]))
    assert loss.item() == 0
    (gradient,) = torch.autograd.grad(loss, z)
    assert bool((gradient == 0).all())


@given(st.integers(0, 3), st.integers(0, 3), st.integers(0, 4))
def test_padding_of_a_group_changes_nothing(positives, negatives, padding):
    size = positives + negatives
    z = seq(2, max(size + padding, 1), 6, a=0.37, b=float(positives))[:, : size + padding]
    positive = torch.arange(size + padding).expand(2, -1) < positives
    mask = torch.arange(size + padding).expand(2, -1) < size
    padded = losses.grouped(z, positive, mask)
    assert torch.allclose(padded, losses.contrastive(z[:, :size], positives)), (padded, positives)


def test_anchored_by_hand():
    """Two queries with one aligned document each; the first has an unaligned one too."""
    queries = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    documents = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]], dtype=torch.float64)
    found = losses.anchored(
        queries, documents, torch.tensor([0, 0, 1]), torch.tensor([True, False, True]), temperature=1.0
    )
    first = math.log(math.e + 1 + math.exp(0.6)) - 1
    second = math.log(math.exp(0.8) + 1 + math.e) - 0.8
    assert float(found) == pytest.approx((first + second) / 2)


def test_a_query_s_other_aligned_documents_are_no_negatives():
    query, documents = torch.randn(1, 4), torch.randn(3, 4)
    owner, positive = torch.zeros(3, dtype=torch.long), torch.tensor([True, True, False])
    both = losses.anchored(query, documents, owner, positive)
    each = [losses.anchored(query, documents[[i, 2]], owner[:2], torch.tensor([True, False])) for i in (0, 1)]
    assert torch.allclose(both, sum(each) / 2)


def test_a_document_on_both_sides_is_costly():
    """It has to lie near the aligned and near the unaligned ones: its loss is far above a clean group's."""
    positives, negatives = seq(8, 16, a=0.53), seq(8, 16, a=0.77, b=2)
    clean = losses.contrastive(groups(positives, negatives), 2)
    mixed = negatives.clone()
    mixed[0] = positives[0]
    assert float(losses.contrastive(groups(positives, mixed), 2)) > float(clean)
    assert float(losses.contrastive(groups(positives[:2], mixed[:2]), 2)) == pytest.approx(15.332460020093, abs=1e-9)


def test_two_documents_of_one_class_have_nothing_to_be_contrasted_with():
    """The loss would be 0 whatever they are, and a gradient of 0 takes all of MGDA's weight."""
    positive = torch.tensor([[True, True, False], [False, False, False]])
    filled = torch.tensor([[True, True, False], [True, True, True]])
    assert not losses.partners(positive, filled)[0].any()
    assert losses.partners(positive, filled)[1].sum() == 6
    z_QCd = seq(2, 3, 4)
    assert losses.grouped(z_QCd, positive, filled).item() == pytest.approx(
        losses.grouped(z_QCd[1:], positive[1:]).item()
    )
