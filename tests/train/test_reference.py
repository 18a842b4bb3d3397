"""Examples as tensors, and their cached reference log-probabilities."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from hypothesis import given, settings
from hypothesis import strategies as st
from training_runs import make_rows

from prefloop.engine.layout import concatenated
from prefloop.engine.logprob import attach_scorer, naive_logprobs, sequence_logprobs
from prefloop.engine.sharing import check_sharing
from prefloop.engine.tokens import end_of_turn_ids
from prefloop.errors import PrefloopError
from prefloop.store.cache import Cache
from prefloop.train.batches import Collator
from prefloop.train.encode import Encoder, Example
from prefloop.train.examples import Examples, Source, prepare
from prefloop.train.precision import Precision
from prefloop.train.reference import Reference
from prefloop.train.steps import Micro
from tiny_models import load_tiny

SHARING = check_sharing(attach_scorer(load_tiny("llama")[0]))
FLOAT32 = Precision(torch.device("cpu"), torch.float32)
ids = st.lists(st.integers(1, 300), min_size=1, max_size=9).map(tuple)
responses = st.lists(ids, min_size=1, max_size=4).map(tuple)
examples = st.builds(Example, st.text(), ids, responses, st.floats(0, 9), st.floats(-9, 9), st.floats(0, 1))


@settings(max_examples=40, deadline=None)
@given(st.lists(examples, min_size=1, max_size=5))
def test_a_batch_holds_every_example_in_order(given: list[Example]) -> None:
    (batch,) = Collator(0, SHARING)([(Micro((0,)), given)])
    layout = batch.layout
    assert batch.ids == tuple(e.id for e in given)
    assert batch.counts == tuple(len(e.responses) for e in given)
    answers = [answer for e in given for answer in e.responses]
    assert layout.responses == len(answers)
    for i, answer in enumerate(answers):
        assert tuple(layout.targets_N[layout.response_N == i].tolist()) == answer
    for column in ("weight", "margin", "label"):
        assert getattr(batch, column).tolist() == pytest.approx([getattr(e, column) for e in given])
    assert batch.reference.isnan().all(), "no reference was computed: whoever reads it must stop"
    assert batch.tokens == sum(len(e.prompt_ids) + len(r) for e in given for r in e.responses)


def test_a_filler_counts_for_nothing() -> None:
    example = Example("a", (1, 2), ((3, 4), (5, 6)), weight=3.0)
    (batch,) = Collator(0, SHARING)([(Micro((0,), filler=True), [example])])
    assert batch.ids == ()
    assert batch.weight.tolist() == [0.0]


def test_a_drifting_objective_gets_the_strangers_apart() -> None:
    given = [Example("a", (1, 2), ((3, 4), (7,)), reference=(-1.0, -2.0)), Example("b", (1,), ((8,), (9, 9)))]
    batch = Collator(0, SHARING, drifting=True).batch(given)
    assert batch.counts == (1, 1)
    assert batch.layout.targets_N.tolist() == [3, 4, 8]
    assert batch.drift is not None
    assert batch.drift.targets_N.tolist() == [7, 9, 9]
    assert batch.reference[0] == -1.0
    assert batch.drift_reference is not None
    assert batch.drift_reference[0] == -2.0


def load(folder: Path, rows: list[Any], model: Any = None) -> Examples:
    folder.mkdir(exist_ok=True)
    model, tokenizer = load_tiny("llama")
    encoder = Encoder(tokenizer, end_of_turn_ids(tokenizer, model.generation_config)[0], 200, "pairs")
    return prepare(Source.of(rows), encoder, folder)[0]


def reference(pairs: Examples, cache: Cache, model: Any, on_batch: Any = None, **changes: Any) -> list[Example]:
    arguments: dict[str, Any] = {"identity": {"model": "m"}, "name": "m", "precision": FLOAT32, "tokens": 60}
    Reference([pairs], cache=cache, pad_id=0, sharing=SHARING, **{**arguments, **changes}).compute(
        model, PartialState(cpu=True), on_batch
    )
    return list(pairs)


def test_reference_is_what_full_logits_say(tmp_path: Path) -> None:
    model = attach_scorer(load_tiny("llama")[0])
    with Cache(tmp_path / "cache.db") as cache:
        scored = reference(load(tmp_path / "x", make_rows(5)), cache, model)
    for pair in scored:
        layout = concatenated([(pair.prompt_ids, pair.responses)], 0)
        expected = sequence_logprobs(naive_logprobs(model, layout), layout).tolist()
        assert pair.reference == pytest.approx(expected, abs=1e-4)


def test_reference_is_computed_once(tmp_path: Path) -> None:
    rows = make_rows(7)
    model = attach_scorer(load_tiny("llama")[0])
    with Cache(tmp_path / "cache.db") as cache:
        first = reference(load(tmp_path / "x", rows), cache, model)
        again = reference(load(tmp_path / "y", rows[::-1]), cache, mute_model())
        assert again == first[::-1], "other order, nothing computed"
        assert stored(cache) == 14
        with pytest.raises(AssertionError, match="was called"):
            reference(load(tmp_path / "x", rows), cache, mute_model(), identity={"model": "other"})
        bfloat16 = Precision(torch.device("cpu"), torch.bfloat16)
        with pytest.raises(AssertionError, match="was called"):
            reference(load(tmp_path / "x", rows), cache, mute_model(), precision=bfloat16)


def test_a_response_that_stands_in_several_rows_is_scored_once(tmp_path: Path) -> None:
    rows = make_rows(3)
    rows.append({**rows[0], "id": "again", "chosen": rows[0]["rejected"], "rejected": rows[1]["chosen"]})
    model = attach_scorer(load_tiny("llama")[0])
    with Cache(tmp_path / "cache.db") as cache:
        scored = reference(load(tmp_path / "x", rows), cache, model)
        assert stored(cache) == 7
    assert scored[3].reference is not None
    assert scored[0].reference is not None
    assert scored[3].reference[0] == scored[0].reference[1]


def test_reference_batches_survive_a_kill(tmp_path: Path) -> None:
    """Bit-equal whether computed at once or after a kill between two batches."""
    pairs = load(tmp_path / "x", make_rows(7))
    model = attach_scorer(load_tiny("llama")[0])
    with Cache(tmp_path / "whole.db") as cache:
        whole = reference(pairs, cache, model)
    with Cache(tmp_path / "killed.db") as cache:
        with pytest.raises(KeyboardInterrupt):
            reference(pairs, cache, model, on_batch=lambda done, total: stop_at(done, 8))
        assert 8 <= stored(cache) < 14
        assert reference(pairs, cache, model) == whole


def test_a_reference_that_is_not_finite_is_an_error(tmp_path: Path) -> None:
    pairs = load(tmp_path / "x", make_rows(2))
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
