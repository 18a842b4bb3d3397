"""PairRM's objective: known numbers, ties, seats, and that a network learns from it."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.tiny_pairrm import tiny_pairrm

from prefloop.signals.pairrm.training import pair_loss, seat


def test_the_loss_by_hand():
    logits = torch.tensor([2.0, 2.0, 2.0, -1.5], requires_grad=True)
    losses = pair_loss(logits, torch.tensor([1, -1, 0, -1]))
    expected = [math.log(1 + math.exp(x)) for x in (-2, 2, 0, -1.5)]
    assert losses.tolist() == pytest.approx(expected)
    losses.sum().backward()
    sigmoid = 1 / (1 + math.exp(-2))
    # d/dl of -log σ(g·l) is -g·σ(-g·l); a tie costs log 2 and teaches nothing
    assert logits.grad.tolist() == pytest.approx([sigmoid - 1, sigmoid, 0, 1 - 1 / (1 + math.exp(-1.5))])


def test_the_loss_does_not_overflow():
    assert pair_loss(torch.tensor([-500.0, 500.0]), torch.tensor([1.0, 1.0])).tolist() == [500.0, 0.0]


@given(st.lists(st.integers(0, 3), max_size=6), st.integers(0, 20), st.integers(0, 99))
def test_seated_pairs(qualities, most, seed):
    drawn = seat(random.Random(seed), qualities, most)
    n = len(qualities)
    assert len(drawn) == min(most, n * (n - 1) // 2)
    assert len({frozenset(pair[:2]) for pair in drawn}) == len(drawn)
    for i, j, sign in drawn:
        assert i != j
        assert sign == (qualities[i] > qualities[j]) - (qualities[i] < qualities[j])


def test_seats_are_drawn_by_a_coin():
    rng = random.Random(0)
    counts = Counter(pair for _ in range(1000) for pair in seat(rng, [1, 2], 4))
    assert set(counts) == {(0, 1, -1), (1, 0, 1)}
    assert 430 < counts[0, 1, -1] < 570  # 500 ± 4.4 standard deviations


def test_a_network_learns_which_word_is_better():
    model = tiny_pairrm(seed=5)
    rng = random.Random(0)
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.network.parameters(), lr=3e-3)
    words, quality = ("hello", "Paris", "capital"), (2, 0, 1)
    for _ in range(40):
        seated = [pair for _ in range(4) for pair in seat(rng, quality, 3)]
        batch = model.encoder.collate(model.encode([("the", words[i], words[j]) for i, j, _ in seated]))
        logits = model.network(batch.ids_BL, batch.mask_BL, batch.places_B3)
        loss = pair_loss(logits, torch.tensor([g for *_, g in seated])).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert model.rank("the", words) == [1, 3, 2]
    assert loss.item() < 0.2
