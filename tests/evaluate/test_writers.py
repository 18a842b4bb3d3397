"""Source bias of writers: one that says the queries' words again is favoured, one that does not is not."""

from __future__ import annotations

import pytest

from prefloop.config import RetrieverSection
from prefloop.errors import UsageError
from prefloop.evaluate.source_task import Settings
from prefloop.evaluate.writers import DELTA, lines, measure_writers
from prefloop.retrieve.corpus import Query
from prefloop.retrieve.retriever import open_retriever

WORDS = [
    f"{first}{second}" for first in ("amber", "birch", "cedar") for second in ("dell", "ford", "gate", "holt", "mere")
]
HUMAN = {f"d{i}": f"the {word} by the old road and the long wall" for i, word in enumerate(WORDS)}
REWRITES = {
    # Once more, and no longer: BM25 counts it.
    "base": {f"d{i}": f"{word} {word} by old road and the long wall" for i, word in enumerate(WORDS)},
    "aligned": {f"d{i}": f"that {word} by an old road and a long wall" for i, word in enumerate(WORDS)},
    "copied": dict(HUMAN),
}
QUERIES = [Query(f"q{i}", word) for i, word in enumerate(WORDS)]
QRELS = {f"q{i}": {f"d{i}": 1, "elsewhere": 1} for i in range(len(WORDS))}


def measured(rewrites=REWRITES, **changes):
    settings = Settings(ties="neutral", no_hit="zero", resamples=500)
    bm25 = {"bm25": open_retriever(RetrieverSection(path="bm25"))}
    given = {"human": HUMAN, "queries": QUERIES, "qrels": QRELS} | changes
    return measure_writers(given["human"], rewrites, given["queries"], given["qrels"], bm25, settings)


def test_bias_before_and_after_and_the_gap_that_is_closed():
    bias, texts = measured()
    entry = bias["bm25"]
    before, after, copied = (entry[DELTA][model]["value"] for model in ("base", "aligned", "copied"))
    assert before < -20
    assert after == pytest.approx(0, abs=20)
    assert copied == pytest.approx(0, abs=1e-9), "equal scores count for neither side"
    change = entry["change"]["aligned"]
    assert change["value"] == pytest.approx(after - before)
    assert (change["ci_low"] > 0, change["verdict"]) == (True, "higher")
    assert entry["gap_closed"]["copied"]["value"] == pytest.approx(1)
    assert entry["queries"] == entry["passages"] == len(WORDS)
    assert {name: said["copied"]["value"] for name, said in texts.items()} == {"base": 0, "aligned": 0, "copied": 1}
    told = lines(bias, texts)
    assert any(line.startswith("source bias by bm25: Relative Δ@10 -") for line in told)
    assert any("100.0 % copies" in line for line in told)


def test_a_passage_that_one_model_lacks_is_measured_for_none():
    fewer = {**REWRITES, "aligned": {k: v for k, v in REWRITES["aligned"].items() if k != "d3"}}
    bias, texts = measured(fewer)
    assert bias["bm25"]["passages"] == len(WORDS) - 1
    assert {said["passages"] for said in texts.values()} == {len(WORDS) - 1}


def test_judgments_of_other_passages_are_told():
    with pytest.raises(UsageError, match="no query is judged relevant to any of the 15"):
        measured(qrels={"q0": {"elsewhere": 1}})
