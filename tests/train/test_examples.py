"""The examples' file: written once, mapped, and never taken for another's."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from training_runs import make_rows

from prefloop.engine.tokens import end_of_turn_ids
from prefloop.store import atomic
from prefloop.train import examples as module
from prefloop.train.encode import Encoder
from prefloop.train.examples import Source, prepare
from tiny_models import load_tiny


def encoder(max_length: int = 200, takes: Any = "pairs") -> Encoder:
    model, tokenizer = load_tiny("llama")
    return Encoder(tokenizer, end_of_turn_ids(tokenizer, model.generation_config)[0], max_length, takes)


@pytest.mark.parametrize("chunk", [1, 3, 1024])
def test_what_was_written_is_read(chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", chunk)
    rows = make_rows(8, weights=True, margins=True)
    rows[2]["rejected"] = rows[2]["chosen"]
    expected = [e for _, found in encoder()(rows) if isinstance(found, list) for e in found]
    train, held, facts = prepare(Source.of(rows[:6], rows[6:]), encoder(), tmp_path)
    assert list(train) == expected[:5]
    assert list(held) == expected[5:]
    assert train.tokens.tolist() == [e.tokens for e in expected[:5]]
    assert facts["rejected"] == {"the chosen and the rejected answer are the same tokens": 1}
    assert pq.read_table(tmp_path / "rejects.parquet")["id"].to_pylist() == [rows[2]["id"]]
    assert list(pickle.loads(pickle.dumps(train))) == expected[:5], "loaders may carry it to another process"


def test_the_same_rows_are_tokenised_once(tmp_path: Path) -> None:
    rows = make_rows(5)
    first, _, facts = prepare(Source.of(rows), encoder(), tmp_path)
    digest = Source.of(rows).digest
    again, _, same = prepare(Source(unread, digest), encoder(), tmp_path)
    assert list(again) == list(first)
    assert same == facts
    for changed in (encoder(max_length=100), encoder(takes="answers")):
        with pytest.raises(AssertionError, match="read again"):
            prepare(Source(unread, digest), changed, tmp_path)
    with pytest.raises(AssertionError, match="read again"):
        prepare(Source(unread, digest, frozenset({rows[0]["prompt_id"]})), encoder(), tmp_path)


def unread() -> Any:
    raise AssertionError("the rows were read again")


def test_a_kill_while_writing_leaves_nothing_that_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = make_rows(5)
    whole_folder, out = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole_folder, out):
        folder.mkdir()
    whole, _, _ = prepare(Source.of(rows), encoder(), whole_folder)
    for point in range(6):
        with monkeypatch.context() as patch:
            calls = iter(range(100))

            def crash(name: str, calls: Any = calls, point: int = point) -> None:
                if next(calls) == point:
                    raise KeyboardInterrupt

            patch.setattr(atomic, "crash_point", crash)
            try:
                prepare(Source.of(rows), encoder(), out)
            except KeyboardInterrupt:
                continue
            break
    assert list(prepare(Source.of(rows), encoder(), out)[0]) == list(whole)


def test_other_rows_replace_the_file(tmp_path: Path) -> None:
    prepare(Source.of(make_rows(5)), encoder(), tmp_path)
    prepare(Source.of(make_rows(6)), encoder(), tmp_path)
    assert len(list(tmp_path.glob("examples-*"))) == 2, "the ids and their facts"
