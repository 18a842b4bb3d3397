"""Rows to Parquet and back."""

from __future__ import annotations

import math

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefloop.errors import PrefloopError
from prefloop.store import atomic
from prefloop.store.rows import read_rows, rows_digest, to_table

MESSAGES = st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": st.text()}))
COMPLETIONS = st.lists(
    st.fixed_dictionaries(
        {
            "id": st.text(),
            "text": st.text(),
            "token_ids": st.none() | st.lists(st.integers(0, 2**31 - 1), max_size=4),
            "finish_reason": st.sampled_from(["stop", "length"]),
            "sample_index": st.integers(0, 100),
        }
    ),
    max_size=3,
)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
SCORED = st.fixed_dictionaries(
    {
        "id": st.text(),
        "prompt": MESSAGES,
        "completions": COMPLETIONS,
        "scores": st.lists(st.none() | FINITE, max_size=3),
        "signal": st.text(),
        "evidence": st.lists(st.text(), max_size=2),
    }
)
PROMPT = {"id": "1", "prompt": [{"role": "user", "content": "hi"}], "source_id": None}


@settings(max_examples=60, deadline=None)
@given(st.lists(SCORED, max_size=6), st.integers(1, 3))
def test_round_trip_and_digest_do_not_depend_on_the_files(tmp_path_factory, rows, size):
    folder = tmp_path_factory.mktemp("rows")
    paths = []
    for start in range(0, len(rows), size):
        paths.append(folder / f"{start}.parquet")
        atomic.write_parquet(paths[-1], to_table("scored", rows[start : start + size], where="x"))
    assert list(read_rows(paths)) == rows
    assert rows_digest(read_rows(paths)) == rows_digest(rows)


@settings(deadline=None)
@given(st.lists(SCORED, min_size=2, max_size=4, unique_by=repr))
def test_digest_depends_on_order_and_content(rows):
    assert rows_digest(rows) != rows_digest(rows[::-1])
    assert rows_digest(rows) != rows_digest(rows[:-1])


def test_lone_surrogate_becomes_its_visible_escape():
    row = {**PROMPT, "prompt": [{"role": "user", "content": "a\ud800b\U0001f600"}]}
    (found,) = to_table("prompts", [row], where="x").to_pylist()
    assert found["prompt"][0]["content"] == "a\\ud800b\U0001f600"


def test_tools_survive_and_ordinary_messages_have_no_other_key(tmp_path):
    call = {"id": "c1", "type": "function", "function": {"name": "sum", "arguments": {"of": [1, 2], "note": None}}}
    prompt = [
        {"role": "user", "content": "1 + 2?", "tools": [{"type": "function", "function": {"name": "sum"}}]},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "3", "tool_call_id": "c1", "name": "sum"},
    ]
    rows = [{**PROMPT, "prompt": prompt}, PROMPT]
    atomic.write_parquet(tmp_path / "r.parquet", to_table("prompts", rows, where="x"))
    atomic.write_parquet(tmp_path / "plain.parquet", to_table("prompts", [PROMPT], where="x"))
    assert list(read_rows([tmp_path / "r.parquet", tmp_path / "plain.parquet"])) == [*rows, PROMPT]
    # Whoever reads the file elsewhere finds no key that an ordinary message has not.
    assert pq.read_table(tmp_path / "plain.parquet").to_pylist() == [PROMPT]


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=())))
def test_no_text_stops_the_writing(text):
    (found,) = to_table("prompts", [{**PROMPT, "id": text}], where="x").to_pylist()
    assert found["id"] == text or any("\ud800" <= c <= "\udfff" for c in text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"promt": []}, "unknown column 'promt'; did you mean prompt"),
        (
            {"prompt": [{"role": "user", "content": "x", "nam": "y"}]},
            r"prompt\[0\]: unknown column 'nam'; did you mean name",
        ),
        ({"prompt": [{"role": "user"}]}, r"prompt\[0\]: column 'content' is missing"),
        ({"prompt": "hi"}, r"prompt\[0\]: must be an object, is str"),
        ({"id": 5}, "id: must be text, is int"),
    ],
)
def test_rows_of_another_shape_are_errors_that_name_the_place(change, message):
    with pytest.raises(PrefloopError, match=message) as error:
        to_table("prompts", [PROMPT, {**PROMPT, **change}], where="part-00003.parquet")
    assert "part-00003.parquet, row 1" in str(error.value)


def test_missing_column_is_an_error():
    with pytest.raises(PrefloopError, match="'source_id' is missing"):
        to_table("prompts", [{"id": "1", "prompt": []}], where="x")


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_scores_must_be_finite_or_null(score):
    row = {"id": "1", "prompt": [], "completions": [], "scores": [None, score], "signal": "s", "evidence": []}
    with pytest.raises(PrefloopError, match=r"scores\[1\]: is (nan|inf)"):
        to_table("scored", [row], where="x")


def test_integer_that_does_not_fit_is_an_error():
    row = {"id": "1", "stage": "s", "reason": "r", "attempts": 2**40, "row": "{}"}
    with pytest.raises(PrefloopError, match="rejects"):
        to_table("rejects", [row], where="x")


def test_damaged_file_is_an_error_that_names_it(tmp_path):
    (tmp_path / "part-00000.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(PrefloopError, match=r"part-00000\.parquet"):
        list(read_rows([tmp_path / "part-00000.parquet"]))
