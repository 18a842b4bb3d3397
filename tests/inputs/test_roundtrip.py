"""Property tests: what is written is what is read, and no bytes at all make a reader fail in an unexpected way."""

from __future__ import annotations

import csv
import json
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from prefloop.config import PromptsSection
from prefloop.errors import UsageError
from prefloop.inputs import read_prompts, validate_file
from prefloop.inputs.prompts import PromptReader

# Any Unicode that can be encoded, NUL, newlines, quotes and separators among it; a prompt is not blank.
text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).filter(str.strip)
spiced = st.one_of(text, st.sampled_from(['"', "a,b", "\r\n x", "\ufeffx", "\x00x", "\u2028x", "[1]", "{}", "null"]))


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, str]]:
    turns = draw(st.lists(spiced, min_size=1, max_size=5).filter(lambda t: len(t) % 2 == 1))
    messages = [{"role": "assistant" if i % 2 else "user", "content": t} for i, t in enumerate(turns)]
    return draw(st.sampled_from([[], [{"role": "system", "content": "s"}]])) + messages


def read(path: Path) -> list[list[dict[str, str]]]:
    rows, rejects = read_prompts(PromptsSection(path=str(path)))
    assert rejects == []
    return [list(map(dict, row["prompt"])) for row in rows]


@settings(deadline=None, max_examples=60)
@given(st.lists(conversations(), min_size=1, max_size=8, unique_by=json.dumps), st.booleans())
def test_messages_come_back_from_jsonl_json_and_parquet(prompts: list[list[dict[str, str]]], ascii_only: bool) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        rows = [{"prompt": p, "id": i} for i, p in enumerate(prompts)]
        dumped = [json.dumps(r, ensure_ascii=ascii_only) for r in rows]
        (base / "p.jsonl").write_bytes("\n".join(dumped).encode())
        (base / "p.json").write_bytes(f"[{','.join(dumped)}]".encode())
        pq.write_table(pa.Table.from_pylist(rows), base / "p.parquet")
        for name in ("p.jsonl", "p.json", "p.parquet"):
            assert read(base / name) == prompts


@settings(deadline=None, max_examples=60)
@given(st.lists(spiced, min_size=1, max_size=8, unique=True))
def test_texts_come_back_from_csv(prompts: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "p.csv"
        with path.open("w", newline="", encoding="utf-8") as f:
            writer = csv.writer(f, quoting=csv.QUOTE_ALL)
            writer.writerows([["prompt"], *[[p] for p in prompts]])
        assert [p[0]["content"] for p in read(path)] == prompts


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
rows_like_ours = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(("prompt", "id", "chosen", "rejected", "completions", "weight", "x"), json_values),
)


@settings(deadline=None, max_examples=150)
@given(st.lists(rows_like_ours | json_values, max_size=5))
def test_any_json_is_kept_or_has_a_problem(values: list[object]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "p.jsonl"
        path.write_text("".join(json.dumps(v) + "\n" for v in values), encoding="utf-8")
        validate_file(path).as_dict()
        section = PromptsSection(path=str(path), ignore_columns="all", on_bad_row="reject")
        reader = PromptReader(section)
        list(reader)
        try:
            rows, rejects = read_prompts(section)
        except UsageError:
            return
        assert len(rows) + len(rejects) == reader.records == len(values)


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=200), st.sampled_from(["p.jsonl", "p.json", "p.csv", "p.parquet"]))
def test_any_bytes_are_a_report_not_a_crash(data: bytes, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        report = validate_file(path)
        assert report.ok or report.problems > 0
        assert report.valid <= report.rows
