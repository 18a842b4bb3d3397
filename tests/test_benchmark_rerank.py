"""The reranker's benchmark at toy size: what it compares is equal, and what it prints has its shape. Never times."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import rerank
from benchmarks.rerank import OURS, PUBLISHED, Case, Contender

from prefloop.config import RerankSection
from prefloop.rerank.model import last_layer, load_two_logits

TOY = {"layers": 2, "width": 32, "words": 50}


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def those(tmp_path: Path) -> list[Contender]:
    section = RerankSection(model=str(rerank.start(tmp_path, **TOY)), device="cpu", head="linear")
    base = load_two_logits(section, seed=0).double()
    return [Contender(name, base, section) for name in (PUBLISHED, *OURS)]


@pytest.mark.parametrize("name", ["distinct", "apart", "shared"])
def test_all_contenders_compute_the_same(those: list[Contender], name: str) -> None:
    groups = Case(name, length=12).groups(0, TOY["words"])
    rerank.check_equal(those, groups)
    assert all(value > 0.01 for value in those[0].gradients(groups).values())
    rows = {"distinct": 32, "apart": 36, "shared": 16}[name]
    assert those[1]._collate(groups).rows == rows


def test_unequal_losses_are_refused(those: list[Contender]) -> None:
    with torch.no_grad():
        last_layer(those[1].model).weight.mul_(3)
    with pytest.raises(rerank.UnequalWork, match="of fixed is"):
        rerank.check_equal(those, Case("distinct", length=12).groups(0, TOY["words"]))


def test_unequal_gradients_are_refused(those: list[Contender]) -> None:
    parameter = next(p for n, p in those[3].model.named_parameters() if "output.dense.weight" in n)
    parameter.register_hook(lambda gradient: gradient * 1.01)
    groups = Case("distinct", length=12).groups(0, TOY["words"])
    with pytest.raises(rerank.UnequalWork, match="gradients of"):
        rerank.check_equal(those, groups)


def test_shape_of_a_case() -> None:
    found: dict[str, Any] = rerank.measure(Case("shared", length=12), repeats=1, warmup=0, model=TOY)
    assert list(found) == [f"shared/{name}" for name in OURS]
    for name, one in found.items():
        seconds = one["seconds"]
        assert one[f"vs_{PUBLISHED}"] == seconds[PUBLISHED] / seconds[name.partition("/")[2]]
    assert json.loads(json.dumps(found)) == found
    assert rerank.table(found).row_count == 3


def test_what_the_rows_allow() -> None:
    assert rerank.allowed(Case("distinct"))["fixed"] == pytest.approx(45 / 24)
    assert rerank.allowed(Case("shared"))["mgda"] == pytest.approx(45 / 22)
