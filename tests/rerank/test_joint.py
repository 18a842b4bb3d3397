"""One pass over distinct rows against the published way: four calls, a backward pass for each task and one more."""

from __future__ import annotations

import pytest
import torch
from four_calls import four_calls, published_groups, published_step
from tiny_rerankers import WORDS, tiny_reranker

from prefloop.config import RerankSection
from prefloop.errors import PrefloopError
from prefloop.rerank.batches import Collator, similar
from prefloop.rerank.groups import Group
from prefloop.rerank.joint import JointLoss, _least, backward
from prefloop.rerank.model import load_two_logits
from prefloop.train.precision import Precision

TASKS = ("pointwise", "pairwise", "contrastive")
EXACT = Precision(torch.device("cpu"), torch.float32)


def setup(arch="bert", groups=None, **settings):
    """(joint loss, batch) in float64 and without dropout."""
    section = RerankSection(model=str(tiny_reranker(arch)), device="cpu", max_length=64, **settings)
    model = load_two_logits(section, seed=3).double().eval()
    batch = Collator(model.tokenizer, 64, section)(published_groups() if groups is None else groups)
    return JointLoss(model, section, EXACT), batch


def gradients(model) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def assert_same(first, other, allowed=1e-9):
    assert first.keys() == other.keys()
    for name, gradient in first.items():
        assert torch.allclose(gradient, other[name], atol=allowed, rtol=1e-7), name


@pytest.mark.parametrize("weighting", ["fixed", "mgda", "mgda_ub"])
@pytest.mark.parametrize("arch", ["bert", "xlm-roberta", "modernbert"])
def test_losses_are_those_of_the_four_calls(arch, weighting):
    joint, batch = setup(arch, weighting=weighting)
    found, _ = joint(batch)
    theirs = four_calls(joint.model, published_groups())
    assert list(found) == list(theirs) == list(TASKS)
    for name, loss in found.items():
        assert loss.item() == pytest.approx(theirs[name].item(), abs=1e-6)


def test_exact_mgda_is_the_published_step_with_the_exact_solver():
    joint, batch = setup(weighting="mgda")
    weighed = backward(joint, batch)
    ours = gradients(joint.model)
    weights, gram = published_step(joint.model, published_groups())
    theirs = gradients(joint.model)
    assert torch.allclose(weighed.gram, gram)
    assert torch.allclose(weighed.weights, weights, atol=1e-9)
    assert_same(ours, theirs)


@pytest.mark.parametrize("tasks", [TASKS[:1], TASKS[1:2], TASKS[2:], TASKS[:2], TASKS[1:]])
def test_any_subset_of_the_losses(tasks):
    joint, batch = setup(losses=tasks, weighting="mgda")
    weighed = backward(joint, batch)
    ours = gradients(joint.model)
    weights, _ = published_step(joint.model, published_groups(), tasks)
    assert torch.allclose(weighed.weights, weights, atol=1e-9)
    assert_same(ours, gradients(joint.model))


def test_fixed_weights_are_one_backward_pass_of_the_weighted_sum():
    joint, batch = setup(weighting="fixed", weights=(0.5, 2.0, 1.0))
    backward(joint, batch)
    ours = gradients(joint.model)
    theirs = four_calls(joint.model, published_groups())
    (0.5 * theirs["pointwise"] + 2 * theirs["pairwise"] + theirs["contrastive"]).backward()
    assert_same(ours, gradients(joint.model))


def test_on_disjoint_rows_the_upper_bound_has_its_closed_form():
    """Where no row is shared the Gram matrix is diagonal, and weights go by one over the squared gradients."""
    joint, batch = setup(groups=published_groups(shared=False), weighting="mgda_ub")
    weighed = backward(joint, batch)
    diagonal = weighed.gram.diagonal()
    assert torch.allclose(weighed.gram, torch.diag(diagonal))
    assert torch.allclose(weighed.weights, (1 / diagonal) / (1 / diagonal).sum())


def test_the_upper_bound_is_the_weighted_sum_s_gradient():
    joint, batch = setup(weighting="mgda_ub")
    weighed = backward(joint, batch)
    ours = gradients(joint.model)
    theirs = four_calls(joint.model, published_groups())
    sum(w * theirs[name] for w, name in zip(weighed.weights.tolist(), TASKS)).backward()
    assert_same(ours, gradients(joint.model))


def test_a_shared_row_is_encoded_once():
    _, batch = setup()
    assert batch.rows == 4 * 8, "four queries of eight documents; the classified one is the first of its side"
    assert sum(len(call["input_ids"]) for call in batch.calls) == batch.rows
    _, apart = setup(weighting="mgda")
    assert apart.rows == batch.rows


def test_a_loss_that_is_off_brings_no_rows():
    _, batch = setup(losses=("pairwise",))
    assert batch.rows == 16


def test_lists_of_any_length_and_groups_of_any_size():
    """Three queries, none of the published shape; each loss against one query at a time."""
    texts = tuple(f"{WORDS[i]} {WORDS[i + 1]}" for i in range(7))
    groups = [
        Group("a", "a", "w1", texts, ((0, 1), (3, 0)), tuple((i, float(-i)) for i in range(7)), (0, 1, 2), (3,)),
        Group("b", "b", "w2", texts[:3], ((2, 1),), ((0, 1.0), (1, 1.0), (2, 0.0)), (2,), (0, 1)),
        Group("c", "c", "w3", texts[:2], ((1, 0),)),
    ]
    joint, batch = setup(groups=groups)
    found, _ = joint(batch)
    alone = []
    for group in groups:
        one, single = setup(groups=[group])
        alone.append(one(single)[0])
    assert found["pointwise"].item() == pytest.approx(
        (2 * alone[0]["pointwise"] + alone[1]["pointwise"] + alone[2]["pointwise"]).item() / 4
    )
    assert list(alone[2]) == ["pointwise"]
    for name in ("pairwise", "contrastive"):
        assert found[name].item() == pytest.approx((alone[0][name] + alone[1][name]).item() / 2)


def test_a_task_without_anything_to_learn_gets_no_weight():
    """A vanished gradient would otherwise take all of MGDA's weight, and the step would teach nothing."""
    group = Group("a", "a", "w1", ("w2", "w3"), ((0, 1),), ((0, 1.0), (1, 0.0)), (0,), (1,))
    joint, batch = setup(groups=[group])
    weighed = backward(joint, batch)
    assert list(weighed.losses) == ["pointwise", "pairwise"]
    assert bool((weighed.weights > 0).all())


def test_a_batch_that_teaches_nothing_adds_nothing():
    joint, batch = setup(groups=[Group("a", "a", "w1", ("w2",), positives=(0,))], losses=("contrastive",))
    weighed = backward(joint, batch)
    assert weighed.losses == {}
    assert weighed.total.item() == 0
    assert not gradients(joint.model)


def test_queries_as_anchors():
    joint, batch = setup(contrastive="query")
    assert batch.rows == 4 * 8 + 4, "each query once by itself"
    found, _ = joint(batch)
    backward(joint, batch)
    assert found["contrastive"].item() > 0
    assert gradients(joint.model)


@pytest.mark.parametrize("weighting", ["mgda", "mgda_ub"])
def test_gradients_that_are_not_finite_stop_the_step(weighting):
    joint, batch = setup(weighting=weighting)
    with torch.no_grad():
        next(p for n, p in joint.model.named_parameters() if "word_embeddings" in n).fill_(float("nan"))
    with pytest.raises(PrefloopError, match="not finite"):
        backward(joint, batch)


def test_calls_hold_little_padding():
    lengths = [100, 20, 98, 22, 21, 97, 5]
    calls = similar(range(7), lengths, padding=0.1)
    assert calls == [[0, 2, 5], [3, 4, 1], [6]]
    assert sorted(i for call in calls for i in call) == list(range(7))


@pytest.mark.parametrize("how", ["l2", "loss", "loss+"])
def test_a_normalised_gradient_of_length_zero_gets_no_weight(how):
    section = RerankSection(model="none", normalize=how)
    gram = torch.diag(torch.tensor([4.0, 0.0, 1.0], dtype=torch.float64))
    found = dict(zip(TASKS, torch.tensor([2.0, 0.0, 1.0]), strict=True))
    weights = _least(section, gram, found)
    assert weights[1] == 0
    assert weights.sum().item() == pytest.approx(1)
    assert (weights[[0, 2]] > 0).all()
    assert _least(section, torch.zeros(3, 3, dtype=torch.float64), found).tolist() == pytest.approx([1 / 3] * 3)
    as_they_are = RerankSection(model="none")
    assert _least(as_they_are, gram, found).tolist() == [0, 1, 0]
