"""Pairs around the human text: the published code's pairs and weights, prompts, filters, and what is left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.config import PairSection
from prefloop.errors import UsageError
from prefloop.pairs.build import build_pairs
from prefloop.pairs.splits import holdout_pairs
from prefloop.pairs.straddle import straddle, weigh
from prefloop.signals.retriever import QUERY, SIMILARITY, in_run

PARITY = Path(__file__).parents[3] / "shared" / "data" / "parity" / "sbm.json"
WORDINGS = {"a": "Again:\n{passage}", "b": "Once more:\n{passage}", "c": "Say it:\n{passage}"}


def scored(
    name: str,
    favours: dict[str, list[float]],
    likeness: list[float] | None = None,
    *,
    key: str = "",
    texts: Any = None,
) -> dict[str, Any]:
    """A passage with one rewrite of each wording, scored by its queries."""
    width = len(next(iter(favours.values()), texts or []))
    texts = texts or [f"rewrite {i} of {name}" for i in range(width)]
    return {
        "id": name,
        "prompt": [{"role": "user", "content": f"passage {name}"}],
        "completions": [
            {
                "id": f"{name}{i}",
                "text": text,
                "token_ids": None,
                "finish_reason": "stop",
                "sample_index": i,
                "rewrite": {
                    "document": f"doc-{name}",
                    "variant": variant,
                    "system": "S" if key else "",
                    "request": WORDINGS[variant],
                    "key": key,
                },
            }
            for i, (text, variant) in enumerate(zip(texts, WORDINGS, strict=False))
        ],
        "scores": [0.0] * len(texts),
        "signal": "retriever",
        "evidence": ["e"],
        "parts": [
            *({"name": QUERY + query, "scores": some} for query, some in favours.items()),
            *([] if likeness is None else [{"name": SIMILARITY, "scores": likeness}]),
        ],
    }


def build(*rows: Any, **section: Any) -> Any:
    settings = {"strategy": "straddle", "weight": "gap", "min_similarity": None} | section
    return build_pairs(rows, PairSection(**settings), 0, "retriever")


# ------------------------------------------------------------------------------------------------------------ parity


def published_rows(by: str) -> tuple[list[dict[str, Any]], dict[str, Any], list[tuple[str, str]]]:
    """The toy runs as scored rows: one passage each, its favours by the run of each wording."""
    known = json.loads(PARITY.read_text())["pairs"]
    names = list(known["runs"])
    rows, units = [], []
    for query, documents in known["qrels"].items():
        for document in documents:
            favours = []
            for name in names:
                found = 0.0
                for run in known["runs"][name]:  # one a retriever
                    keys = {tuple(key.split("-", 1)): value for key, value in run.get(query, {}).items()}
                    found += in_run(keys, (document, "human"), (document, name), by)
                favours.append(found / len(known["runs"][name]))
            row = scored(f"{query}/{document}", {query: favours}, [known["sim"][f"{document}|{n}"] for n in names])
            rows.append(row)
            units.append((query, document))
    return rows, known, units


@pytest.mark.skipif(not PARITY.is_file(), reason="the parity data is not here")
@pytest.mark.parametrize("by", ["rank", "score"])
@pytest.mark.parametrize(("largest", "expected"), [("proposed", "weights"), ("kept", "weights_if_max_over_kept")])
def test_the_published_pairs_and_weights(by: str, largest: str, expected: str) -> None:
    rows, known, _ = published_rows(by)
    names = list(known["runs"])
    every = build(*rows)
    assert every.counts["pairs_proposed"] == len(every.pairs) == known[by]["n_pairs"] == 13
    kept = build(*rows, min_similarity=0.92, largest=largest)
    assert len(kept.pairs) == known[by]["n_kept"] == 8
    said = [
        [*pair["prompt_id"].split("/"), *(names[int(pair[side][-1])] for side in ("chosen_id", "rejected_id"))]
        for pair in kept.pairs
    ]
    assert said == [row[:4] for row in known[by][expected]]
    assert [pair["weight"] for pair in kept.pairs] == pytest.approx([row[4] for row in known[by][expected]], abs=1e-12)
    first = [-p["score_rejected"] + p["score_chosen"] for p in every.pairs[:3]]
    assert first == pytest.approx([row[4] for row in known[by]["first"]], abs=1e-12)
    squares = [pair["weight"] ** 2 for pair in kept.pairs]
    effective = sum(squares) ** 2 / sum(s**2 for s in squares) / len(squares)
    assert effective == pytest.approx(known[by]["ess_alpha2_over_n"], abs=1e-12)


@pytest.mark.skipif(not PARITY.is_file(), reason="the parity data is not here")
def test_published_replication_puts_every_pair_behind_every_wording() -> None:
    rows, _, _ = published_rows("score")
    own, every = (build(*rows, min_similarity=0.92, replicate=which) for which in ("own", "all"))
    assert len(every.pairs) == 3 * len(own.pairs) == 24
    # By wording first, and the same pairs behind each.
    sides = [
        [(p["chosen_id"], p["rejected_id"], p["weight"]) for p in every.pairs[i * 8 : i * 8 + 8]] for i in range(3)
    ]
    assert sides[0] == sides[1] == sides[2] == [(p["chosen_id"], p["rejected_id"], p["weight"]) for p in own.pairs]
    heads = [p["prompt"][0]["content"].split("\n")[0] for p in every.pairs]
    assert heads == ["Again:"] * 8 + ["Once more:"] * 8 + ["Say it:"] * 8
    assert len({p["id"] for p in every.pairs}) == 24


def test_a_text_that_a_run_lacks_makes_no_difference() -> None:
    run = {("d", ""): 2.0, ("e", ""): 1.5, ("d", "a"): 1.0}
    assert in_run(run, ("d", ""), ("d", "a"), "score") == -1.0
    assert in_run(run, ("d", ""), ("d", "a"), "rank") == -2.0
    assert in_run(run, ("d", ""), ("d", "b"), "score") == in_run(run, ("x", ""), ("d", "a"), "rank") == 0.0


# -------------------------------------------------------------------------------------------------------------- pairs


def test_both_sides_must_be_further_from_the_human_text_than_the_threshold() -> None:
    assert straddle([-0.2, 0.1, 0.3, None, -0.1, 0.0], 0.0) == [(0, 1), (0, 2), (4, 1), (4, 2)]
    assert straddle([-0.2, 0.1, 0.3, None, -0.1, 0.0], 0.1) == [(0, 2)]
    assert straddle([0.1, 0.2], 0.0) == []


@given(st.lists(st.one_of(st.none(), st.floats(-1, 1)), max_size=7), st.floats(0, 1))
def test_the_human_text_lies_between(favours: list[float | None], threshold: float) -> None:
    for c, r in straddle(favours, threshold):
        below, above = favours[c], favours[r]
        assert below is not None
        assert above is not None
        assert below < -threshold <= threshold < above


@given(st.lists(st.tuples(st.floats(1e-6, 10), st.booleans()), max_size=20), st.sampled_from(["kept", "proposed"]))
def test_weights_are_above_0_and_at_most_1(pairs: list[tuple[float, bool]], largest: str) -> None:
    found = weigh([gap for gap, _ in pairs], [kept for _, kept in pairs], largest)
    assert len(found) == sum(kept for _, kept in pairs)
    assert all(0 < weight <= 1 for weight in found)
    if found and largest == "kept":
        assert max(found) == 1


def test_prompt_and_answers_of_a_pair() -> None:
    built = build(scored("p", {"q": [0.5, -0.25]}, key="New", texts=['say "a"', "b\nc"]))
    (pair,) = built.pairs
    assert pair["prompt"] == [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "Once more:\npassage p"},  # the chosen rewrite was asked so
    ]
    assert json.loads(pair["chosen"][0]["content"]) == {"New": "b\nc"}
    assert json.loads(pair["rejected"][0]["content"]) == {"New": 'say "a"'}
    assert (pair["prompt_id"], pair["document"], pair["query"], pair["evidence"]) == ("p", "doc-p", "q", ["e"])
    # Whatever the signal says of it, the chosen one has the higher score.
    assert (pair["score_chosen"], pair["score_rejected"], pair["weight"]) == (0.25, -0.5, 1.0)
    (plain,) = build(scored("p", {"q": [0.5, -0.25]}), weight=None).pairs
    assert plain["weight"] is None
    assert plain["chosen"][0]["content"] == "rewrite 1 of p"


def test_what_gives_no_pair_and_why() -> None:
    built = build(
        scored("good", {"q": [0.5, -0.5]}, [0.99, 0.99]),
        scored("above", {"q": [0.5, 0.1]}, [0.99, 0.99]),
        scored("unlike", {"q": [0.5, -0.5]}, [0.99, 0.5]),
        scored("unjudged", {}, [0.9, 0.9], texts=["x", "y"]),
        scored("same", {"q": [0.5, -0.5]}, [0.9, 0.9], texts=["x", "x"]),
        min_similarity=0.92,
    )
    assert [pair["prompt_id"] for pair in built.pairs] == ["good"]
    reasons = {reject["id"]: reject["reason"] for reject in built.rejects}
    assert reasons == {"above": "one_sided", "unlike": "dissimilar", "unjudged": "no_query", "same": "duplicate"}
    assert built.counts["rows"] == built.counts["rows_with_pairs"] + len(built.rejects)
    assert built.counts["pairs_dropped/dissimilar"] == 1
    with pytest.raises(UsageError, match="no similarity"):
        build(scored("p", {"q": [0.5, -0.5]}), min_similarity=0.92)


def test_every_query_has_its_own_pairs() -> None:
    built = build(scored("p", {"q1": [0.4, -0.1], "q2": [-0.2, 0.3]}))
    assert [(p["query"], p["chosen_id"], round(p["weight"] or 0, 9)) for p in built.pairs] == [
        ("q1", "p1", 1.0),
        ("q2", "p0", 1.0),
    ]


# ------------------------------------------------------------------------------------------------------------- splits


@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=60, unique=True),
    st.sampled_from([0.0, 0.1, 0.3, 0.6]),
)
def test_neither_a_query_nor_a_document_stands_on_both_sides(pairs: list[tuple[int, int]], share: float) -> None:
    rows = [{"id": f"{d}/{q}", "prompt_id": f"d{d}", "query": f"q{q}"} for d, q in pairs]
    held = holdout_pairs(rows, share)
    sides: dict[bool, list[Any]] = {True: [], False: []}
    for row in rows:
        if row["id"] not in held.crossing:
            sides[row["prompt_id"] in held.prompts].append(row)
    for column in ("prompt_id", "query"):
        assert not {row[column] for row in sides[True]} & {row[column] for row in sides[False]}
    assert len(sides[True]) + len(sides[False]) + len(held.crossing) == len(rows)
    if share == 0:
        assert not sides[True]
        assert not held.crossing
    assert sides[False], "something is left to train on"


def test_where_every_passage_has_other_queries_no_pair_is_lost_for_nothing() -> None:
    rows = [{"id": f"{d}/{q}", "prompt_id": f"d{d}", "query": f"q{q}"} for d in range(5) for q in range(10)]
    assert holdout_pairs(rows, 0.1) == (set(), set())


def test_pairs_without_queries_are_split_by_prompt() -> None:
    rows = [{"id": str(i), "prompt_id": f"p{i % 10}"} for i in range(30)]
    held = holdout_pairs(rows, 0.2)
    assert len(held.prompts) == 2
    assert not held.crossing
