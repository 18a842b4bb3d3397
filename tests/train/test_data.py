"""Rows to ids, rejects, batches, and cached reference log-probabilities."""

from __future__ import annotations

import json
import math
import sqlite3
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from training_runs import make_rows, run

from prefloop.engine.logprob import attach_scorer, naive_logprobs, sequence_logprobs
from prefloop.engine.tokens import end_of_turn_ids
from prefloop.errors import PrefloopError, UsageError
from prefloop.store.cache import Cache
from prefloop.train.data import Collator, Pair, encode_pairs
from prefloop.train.precision import Precision
from prefloop.train.reference import add_reference
from tiny_models import load_tiny, tiny_model_folder

FLOAT32 = Precision(torch.device("cpu"), torch.float32)


def encode(rows: list[Any], max_length: int = 200, arch: str = "llama") -> tuple[list[Pair], list[Any]]:
    model, tokenizer = load_tiny(arch)
    return encode_pairs(rows, tokenizer, end_of_turn_ids(tokenizer, model.generation_config)[0], max_length)


def test_answers_end_with_the_end_of_turn() -> None:
    (pair,), rejects = encode(make_rows(1, weights=True))
    _, tokenizer = load_tiny("llama")
    eot = tokenizer.convert_tokens_to_ids("<|eot|>")
    assert not rejects
    for ids in (pair.chosen_ids, pair.rejected_ids):
        assert ids[-1] == eot
        assert eot not in ids[:-1]
    assert pair.prompt_ids.count(tokenizer.bos_token_id) == 1
    assert pair.weight == make_rows(1, weights=True)[0]["weight"]
    assert pair.margin == 0.0


def test_rejects_have_reasons_and_the_row() -> None:
    rows = make_rows(5)
    rows[1]["rejected"] = rows[1]["chosen"]
    rows[2]["chosen"] = [{"role": "assistant", "content": "kind " * 60}]
    rows[3]["chosen"] = [{"role": "user", "content": "and?"}, {"role": "assistant", "content": "yes"}]
    rows[4]["prompt"] = [{"role": "assistant", "content": "I begin"}]
    pairs, rejects = encode(rows, max_length=60)
    assert [p.id for p in pairs] == [rows[0]["id"]]
    assert [r["id"] for r in rejects] == [r["id"] for r in rows[1:]]
    assert rejects[0]["reason"] == "the chosen and the rejected answer are the same tokens"
    assert rejects[1]["reason"] == "more tokens than max_length 60"
    assert "chosen is to be one assistant turn, not ['user', 'assistant']" in rejects[2]["reason"]
    assert "ends with the user's turn" in rejects[3]["reason"]
    assert json.loads(rejects[0]["row"]) == rows[1]


def test_an_empty_answer_is_trained_on_only_where_it_ended() -> None:
    rows = make_rows(4)
    for row, side, finish in (
        (rows[1], "chosen", "length"),
        (rows[2], "rejected", "length"),
        (rows[3], "rejected", "stop"),
    ):
        row[side] = [{"role": "assistant", "content": ""}]  # type: ignore[literal-required]
        row[f"{side}_finish"] = finish  # type: ignore[literal-required]
    pairs, rejects = encode(rows)
    assert [p.id for p in pairs] == [rows[0]["id"], rows[3]["id"]]
    assert len(pairs[1].rejected_ids) == 1, "the end of turn"
    assert [(r["id"], r["reason"]) for r in rejects] == [
        (rows[1]["id"], "the chosen answer is empty and was cut off"),
        (rows[2]["id"], "the rejected answer is empty and was cut off"),
    ]


def test_a_row_is_counted_whole_or_not_at_all() -> None:
    rows = make_rows(20)
    longest = max(p.length for p in encode(rows)[0])
    pairs, rejects = encode(rows, max_length=longest)
    assert (len(pairs), len(rejects)) == (20, 0)
    pairs, rejects = encode(rows, max_length=longest - 1)
    assert len(pairs) + len(rejects) == 20
    assert {p.length for p in encode(rows)[0]} - {p.length for p in pairs} == {longest}


@pytest.mark.parametrize(("column", "value"), [("weight", math.inf), ("margin", math.nan)])
def test_numbers_must_be_finite(column: str, value: float) -> None:
    rows = make_rows(2)
    rows[1][column] = value  # type: ignore[literal-required]
    with pytest.raises(UsageError, match=f"row {rows[1]['id']}: .* is no {column}"):
        encode(rows)


def test_rejects_are_written_and_counted(tmp_path: Path) -> None:
    rows = make_rows(6)
    rows[2]["rejected"] = rows[2]["chosen"]
    validation = make_rows(3, seed=1)
    validation[0]["rejected"] = validation[0]["chosen"]
    result = run(tmp_path / "t", tiny_model_folder("llama"), rows, validation=validation)
    assert result["rejected"] == {"the chosen and the rejected answer are the same tokens": 2}
    assert (result["pairs"], result["validation_pairs"]) == (5, 2)
    written = pq.read_table(tmp_path / "t" / "rejects.parquet").to_pylist()
    assert [r["id"] for r in written] == [rows[2]["id"], validation[0]["id"]]


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PrefloopError, match=r"no pair is left.*'more tokens than max_length 3': 2") as error:
        run(tmp_path / "t", tiny_model_folder("llama"), make_rows(2), max_length=3)
    assert "max_length" in str(error.value)
    assert pq.read_table(tmp_path / "t" / "rejects.parquet").num_rows == 2


ids = st.lists(st.integers(1, 300), min_size=1, max_size=9).map(tuple)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.builds(Pair, st.text(), ids, ids, ids, st.floats(0, 9), st.floats(-9, 9)), min_size=1, max_size=5))
def test_a_batch_holds_every_pair_in_order(pairs: list[Pair]) -> None:
    batch = Collator(pad_id=0)(pairs)
    layout = batch["layout"]
    assert batch["ids"] == [p.id for p in pairs]
    assert layout.responses == 2 * len(pairs)
    answers = [answer for p in pairs for answer in (p.chosen_ids, p.rejected_ids)]
    for i, answer in enumerate(answers):
        assert tuple(layout.targets_N[layout.response_N == i].tolist()) == answer
    assert batch["weight"].tolist() == pytest.approx([p.weight for p in pairs])
    assert batch["margin"].tolist() == pytest.approx([p.margin for p in pairs])
    assert batch["reference"].isnan().all(), "no reference was computed: whoever reads it must stop"


def reference(pairs: list[Pair], cache: Cache, model: Any, **changes: Any) -> list[Pair]:
    arguments: dict[str, Any] = {"identity": {"model": "m"}, "name": "m", "precision": FLOAT32, "batch_size": 4}
    return add_reference(pairs, model, cache=cache, pad_id=0, **{**arguments, **changes})


def test_reference_is_what_full_logits_say(tmp_path: Path) -> None:
    pairs, _ = encode(make_rows(5))
    model = attach_scorer(load_tiny("llama")[0])
    with Cache(tmp_path / "cache.db") as cache:
        scored = reference(pairs, cache, model)
    for pair in scored:
        layout = Collator(0)([pair])["layout"]
        expected = sequence_logprobs(naive_logprobs(model, layout), layout).tolist()
        assert [pair.reference_chosen, pair.reference_rejected] == pytest.approx(expected, abs=1e-4)


def test_reference_is_computed_once(tmp_path: Path) -> None:
    pairs, _ = encode(make_rows(7))
    model = attach_scorer(load_tiny("llama")[0])
    with Cache(tmp_path / "cache.db") as cache:
        first = reference(pairs, cache, model)
        assert reference(pairs[::-1], cache, mute_model()) == first[::-1], "other order, nothing computed"
        assert stored(cache) == 14
        with pytest.raises(AssertionError, match="was called"):
            reference(pairs, cache, mute_model(), identity={"model": "other"})
        bfloat16 = Precision(torch.device("cpu"), torch.bfloat16)
        with pytest.raises(AssertionError, match="was called"):
            reference(pairs, cache, mute_model(), precision=bfloat16)


def test_reference_batches_survive_a_kill(tmp_path: Path) -> None:
    """Bit-equal whether computed at once or after a kill between two batches."""
    pairs, _ = encode(make_rows(7))
    model = attach_scorer(load_tiny("llama")[0])
    with Cache(tmp_path / "whole.db") as cache:
        whole = reference(pairs, cache, model)
    with Cache(tmp_path / "killed.db") as cache:
        with pytest.raises(KeyboardInterrupt):
            reference(pairs, cache, model, on_batch=lambda done, total: stop_at(done, 8))
        assert stored(cache) == 8
        assert reference(pairs, cache, model) == whole


def test_a_reference_that_is_not_finite_is_an_error(tmp_path: Path) -> None:
    pairs, _ = encode(make_rows(2))
    model = attach_scorer(load_tiny("llama")[0])
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(float("nan"))
    with Cache(tmp_path / "cache.db") as cache, pytest.raises(PrefloopError, match="not finite, before any training"):
        reference(pairs, cache, model)


def stored(cache: Cache) -> int:
    with sqlite3.connect(cache.path) as database:
        return database.execute("SELECT count(*) FROM entries WHERE kind = 'reference'").fetchone()[0]


def stop_at(done: int, limit: int) -> None:
    if done >= limit:
        raise KeyboardInterrupt


def mute_model() -> torch.nn.Module:
    """A model that must not be asked."""

    class Mute(torch.nn.Module):
        def forward(self, **_: Any) -> None:
            raise AssertionError("the model was called")

    return Mute()
