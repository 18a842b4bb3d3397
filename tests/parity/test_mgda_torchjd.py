"""Our weights and gradients against TorchJD's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefloop.rerank.weighting import gram_of, mgda

aggregation = pytest.importorskip("torchjd.aggregation")


@settings(max_examples=15)
@given(st.integers(1, 3), st.integers(0, 10_000))
def test_weights(tasks, seed):
    """TorchJD iterates (Frank–Wolfe) and ours is exact: its vector is never the shorter one, and hardly longer."""
    torch.manual_seed(seed)
    jacobian = torch.randn(tasks, 6, dtype=torch.float64) * torch.rand(tasks, 1, dtype=torch.float64)
    gram = gram_of([[row] for row in jacobian])
    theirs = aggregation.MGDA(epsilon=1e-9, max_iters=3_000)(jacobian)
    ours = mgda(gram) @ jacobian
    assert float(ours.norm()) <= float(theirs.norm()) + 1e-9
    assert float((ours - theirs).norm()) <= 2e-2 * float(jacobian.norm())
