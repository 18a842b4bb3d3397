"""The benchmark of source bias at toy size: its collection can be read and searched, its figures have their shape."""

from __future__ import annotations

import pytest
from benchmarks import source_bias

from prefloop.retrieve.corpus import read_collection


def test_the_made_up_collection(tmp_path):
    source_bias.write_collection(tmp_path / "c", 120)
    found = read_collection(tmp_path / "c", judged=True)
    assert {s: len(p) for s, p in found.passages.items()} == {"human": 120, "other": 120}
    assert len(found.queries) == source_bias.QUERIES
    same = [a.text == b.text for a, b in zip(found.passages["human"], found.passages["other"], strict=True)]
    assert sum(same) < 5
    entry = source_bias.evaluate(tmp_path / "c").retrievers["bm25"]
    assert entry["ndcg@10"]["all"] > 0.1


def test_figures_and_growth():
    found = source_bias.measure(150)
    assert found["us_per_passage"] == pytest.approx(1e6 * found["seconds"] / 150)
    twice = {"seconds": 4.0, "us_per_passage": 3.0, "memory_bytes": 400}
    cases = source_bias.with_growth({"10": {"seconds": 1.0, "us_per_passage": 2.0, "memory_bytes": 100}, "20": twice})
    assert cases["20"]["time_per_passage_vs_smaller"] == 1.5
    assert cases["20"]["memory_per_passage_vs_smaller"] == 2.0
    assert "time_per_passage_vs_smaller" not in cases["10"]
    assert source_bias.table(cases).row_count == 2
