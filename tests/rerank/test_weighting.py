"""Exact MGDA against known weights, its optimality, and its indifference to scale."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rerank_numbers import LABELS, seq

from prefloop.errors import PrefloopError, UsageError
from prefloop.rerank import losses
from prefloop.rerank.weighting import MOST_TASKS, fixed, gram_of, mgda, normalized

BALANCED = [[1, 0.2, 0.1], [0.2, 1.2, -0.3], [0.1, -0.3, 0.9]]
GAP = [[1, 0.5, 0.2], [0.5, 25, 3], [0.2, 3, 400]]
PAIR = [[1, -0.4], [-0.4, 2]]


@pytest.mark.parametrize(
    ("gram", "weights"),
    [
        (BALANCED, [6 / 29, 10 / 29, 13 / 29]),
        (GAP, [0.978408, 0.019758, 0.001834]),
        (PAIR, [0.631579, 0.368421]),
        ([[4.0]], [1.0]),
    ],
)
@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1.0, 1e6, 1e12])
def test_known_weights_at_any_scale(gram, weights, scale):
    found = mgda(torch.tensor(gram, dtype=torch.float64) * scale)
    assert found.tolist() == pytest.approx(weights, abs=1e-6)
    assert float(found.sum()) == pytest.approx(1, abs=1e-12)


gradients = st.integers(1, 4).flatmap(
    lambda t: st.lists(st.lists(st.floats(-4, 4, width=32), min_size=5, max_size=5), min_size=t, max_size=t)
)


@given(gradients)
def test_no_weights_give_a_shorter_vector(rows):
    """At the minimum g = Σ w_i g_i has ⟨g_j, g⟩ ≥ ⟨g, g⟩ for every j (the conditions of Karush, Kuhn and Tucker)."""
    g = np.array(rows)
    w = mgda(torch.from_numpy(g @ g.T)).numpy()
    assert (w >= 0).all()
    assert w.sum() == pytest.approx(1)
    shortest = w @ g
    assert (g @ shortest >= shortest @ shortest - 1e-7 * max((g**2).sum(1).max(), 1e-30)).all()


@given(gradients, st.integers(-12, 12))
def test_scale_does_not_matter(rows, power):
    g = np.array(rows)
    gram = g @ g.T
    first, other = (mgda(torch.from_numpy(gram * factor)).numpy() for factor in (1.0, 10.0**power))
    size = max(np.abs(gram).max(), 1e-300)
    assert first @ gram @ first / size == pytest.approx(other @ gram @ other / size, abs=1e-9)


def test_opposite_gradients_cancel():
    assert mgda([[1.0, -2.0], [-2.0, 4.0]]).tolist() == pytest.approx([2 / 3, 1 / 3])


def test_equal_gradients_have_any_weights_of_the_same_length():
    found = mgda(torch.ones(3, 3))
    assert float(found.sum()) == pytest.approx(1)


def test_vanished_gradients_count_alike():
    assert mgda(torch.zeros(3, 3)).tolist() == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_gradients_that_are_not_finite_stop_with_a_message(bad):
    gram = torch.eye(3)
    gram[0, 2] = bad
    with pytest.raises(PrefloopError, match=r"not finite.*Gram matrix"):
        mgda(gram)


def test_too_many_tasks_are_refused_with_the_reason():
    assert len(mgda(torch.eye(MOST_TASKS))) == MOST_TASKS
    with pytest.raises(UsageError, match="every face"):
        mgda(torch.eye(MOST_TASKS + 1))


def test_a_matrix_that_is_not_square_is_refused():
    with pytest.raises(UsageError, match="square"):
        mgda(torch.ones(2, 3))


def test_gradients_of_a_shared_encoder():
    """One encoder tanh(xW) behind all three losses: their values, the Gram matrix over W, the weights, the total."""
    w, c = seq(12, 16, a=0.31, scale=0.4).requires_grad_(), seq(16, 2, a=1.3, scale=0.3).requires_grad_()

    def encode(*shape: int, a: float) -> torch.Tensor:
        return torch.tanh(seq(*shape, a=a) @ w)

    positives, negatives = (encode(8, 12, a=a).reshape(4, 2, 16) for a in (0.71, 0.83))
    tasks = [
        losses.pointwise(encode(4, 12, a=0.61) @ c, LABELS),
        losses.pairwise((encode(16, 12, a=0.67) @ c)[:, 1].reshape(4, 4)),
        losses.contrastive(torch.cat([positives, negatives], 1), positives=2),
    ]
    assert [t.item() for t in tasks] == pytest.approx([0.733068639963, 0.690783149894, 7.669010928369], abs=1e-9)
    gram = gram_of([torch.autograd.grad(t, [w, c], retain_graph=True, allow_unused=True)[:1] for t in tasks])
    known = [0.298982746760, -0.032899925334, -0.041624353153, 0.104611043041, -0.001201537253, 17.602016744514]
    assert gram[*torch.triu_indices(3, 3)].tolist() == pytest.approx(known, abs=1e-9)
    # The published solver stops early: its vector is longer than the shortest one.
    published, exact = torch.tensor([0.292126, 0.702654, 0.005220], dtype=torch.float64), mgda(gram)
    assert float(sum(w * t for w, t in zip(published, tasks)).detach()) == pytest.approx(0.739563, abs=1e-5)
    assert exact.tolist() == pytest.approx(published.tolist(), abs=1e-3)
    assert float(exact @ gram @ exact) < float(published @ gram @ published)


def test_gram_skips_pieces_that_a_loss_does_not_reach():
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([[3.0]])
    assert gram_of([[a, None], [a, b]]).tolist() == [[5, 5], [5, 14]]


@pytest.mark.parametrize("weights", [[-1.0, 2.0], [0.0, 0.0], [float("nan"), 1.0]])
def test_bad_fixed_weights_are_refused(weights):
    with pytest.raises(UsageError, match="at least 0"):
        fixed(weights)


def test_fixed_weights_are_taken_as_they_are():
    assert fixed([1, 0.5, 2]).tolist() == [1, 0.5, 2]


def test_normalised_gradients():
    """Lengths 1 and 3, at a right angle: as they are, in units of their length, of their loss, of both."""
    gram, values = torch.tensor([[1.0, 0.0], [0.0, 9.0]]), [2.0, 6.0]
    found = {how: mgda(normalized(gram, values, how)).tolist() for how in ("none", "l2", "loss", "loss+")}
    assert found["none"] == pytest.approx([0.9, 0.1])
    assert found["l2"] == pytest.approx([0.5, 0.5])
    assert found["loss"] == pytest.approx([0.5, 0.5])
    assert found["loss+"] == pytest.approx([0.1, 0.9])


def test_a_gradient_without_length_is_not_divided_by_it():
    assert normalized(torch.zeros(2, 2), [0.0, 1.0], "loss+").isfinite().all()
