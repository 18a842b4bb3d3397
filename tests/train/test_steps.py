"""How steps are made and cut: the laws that keep a training the same on any machine."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from prefloop.train.steps import Cut, StepSampler, permutation

sizes = st.lists(st.integers(1, 50), min_size=1, max_size=24)
cuts = st.builds(Cut, st.integers(1, 9), st.none() | st.integers(1, 120), st.integers(1, 4))


@given(sizes, cuts)
def test_every_row_is_in_one_micro_batch_and_every_process_has_as_many(lengths: list[int], cut: Cut) -> None:
    places = list(range(100, 100 + len(lengths)))
    shares = cut(places, lengths)
    assert len(shares) == cut.ranks
    assert len({len(share) for share in shares}) == 1
    real = [row for share in shares for micro in share if not micro.filler for row in micro.rows]
    assert sorted(real) == places
    for share in shares:
        for micro in share:
            assert 1 <= len(micro.rows) <= cut.rows
            padded = len(micro.rows) * max(lengths[row - 100] for row in micro.rows)
            assert cut.tokens is None or padded <= cut.tokens or len(micro.rows) == 1


@given(sizes, st.integers(1, 5))
def test_a_step_of_one_process_is_cut_as_for_several(lengths: list[int], rows: int) -> None:
    places = list(range(len(lengths)))
    alone = [m.rows for m in Cut(rows)(places, lengths)[0]]
    shares = Cut(rows, ranks=3)(places, lengths)
    together = [shares[i % 3][i // 3] for i in range(3 * len(shares[0]))]
    assert [m.rows for m in together if not m.filler] == alone


def test_by_hand() -> None:
    shares = Cut(rows=4, tokens=20, ranks=2)([7, 8, 9], [5, 20, 4])
    assert [[(m.rows, m.filler) for m in share] for share in shares] == [[((8,), False)], [((7, 9), False)]]
    assert [[m.filler for m in share] for share in Cut(rows=4, ranks=2)([7], [5])] == [[False], [True]]


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    def sampler(seed: int, epoch: int = 0) -> list[int]:
        made = StepSampler(np.ones(10, dtype=np.int64), 4, Cut(4), seed=seed)
        made.epoch = epoch
        assert len(made) == 3
        return [row for step in made for micro in step for row in micro.rows]

    first = sampler(3)
    torch.manual_seed(1)
    assert sampler(3) == first == permutation(10, 3, 0)
    assert sorted(first) == list(range(10))
    assert sampler(3, epoch=1) != first
    assert sampler(4) != first
