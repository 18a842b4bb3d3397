"""A JSON array read item by item gives what `json.loads` gives, wherever the chunks end."""

from __future__ import annotations

import io
import itertools
import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefloop.inputs import json_array
from prefloop.inputs.json_array import BadBytesError, BrokenJsonError, items


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_array, "CHUNK", 3)


def read(data: bytes) -> list[Any]:
    return list(items(io.BytesIO(data), dict))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None, max_examples=200)
@given(st.lists(values, max_size=4), st.sampled_from([None, 1]), st.booleans())
def test_items_come_back(array: list[Any], indent: int | None, ascii_only: bool) -> None:
    text = "\n " + json.dumps(array, indent=indent, ensure_ascii=ascii_only) + "\n\t"
    assert read(text.encode("utf-8", "surrogatepass" if ascii_only else "replace")) == json.loads(
        text.encode("utf-8", "replace")
    )


@settings(deadline=None, max_examples=400)
@given(st.text('[]{}",: \n1e-a\\tu', max_size=14))
def test_what_json_refuses_is_refused_at_the_same_place(tail: str) -> None:
    text = "[" + tail
    expected: Any = None
    try:
        expected = json.loads(text)
    except json.JSONDecodeError as error:
        expected = error
    if not isinstance(expected, json.JSONDecodeError):
        assert read(text.encode()) == expected
        return
    with pytest.raises(BrokenJsonError) as found:
        read(text.encode())
    if str(found.value) == expected.msg:
        assert (found.value.line, found.value.column) == (expected.lineno, expected.colno)


@pytest.mark.parametrize(
    ("data", "line", "column", "says"),
    [
        (b'[{"a": 1}\n {"a": 2}]', 2, 2, "Expecting ',' delimiter"),
        (b'[{"a": 1},\n {"a" 2}]', 2, 7, "Expecting ':' delimiter"),
        (b'[{"a": 1}', 1, 10, "Expecting ',' delimiter"),
        (b"[1]\n\n]", 3, 1, "Extra data"),
    ],
)
def test_where_it_breaks(data: bytes, line: int, column: int, says: str) -> None:
    with pytest.raises(BrokenJsonError) as error:
        read(data)
    assert (error.value.line, error.value.column) == (line, column)
    assert says in str(error.value)


def test_where_a_byte_is_bad() -> None:
    with pytest.raises(BadBytesError) as error:
        read('["é", "x'.encode() + b"\xe9" + b'y"]')
    assert error.value.offset == 9
    assert error.value.data[error.value.bad] == 0xE9


def test_a_large_array_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_array, "CHUNK", 10_000)

    pieces = (b'[""' if number == 0 else b', "' + b"x" * 10_000 + b'"' for number in range(2000))
    pieces = itertools.chain(pieces, [b"]"])

    class Long(io.RawIOBase):
        """An array of 2,000 texts of 10 kB that is never there as a whole."""

        def read(self, size: int = -1) -> bytes:
            return next(pieces, b"")

    tracemalloc.start()
    count = sum(1 for _ in items(Long(), dict))  # type: ignore[arg-type]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 2000
    assert peak < 500_000
