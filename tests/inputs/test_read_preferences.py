"""Preference data in every layout: what is read, what is left and counted, and every mistake with its message."""

from __future__ import annotations

import json
import math
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefloop.config import PreferencesSection
from prefloop.errors import UsageError
from prefloop.inputs import PreferenceReader, validate_file
from prefloop.inputs.layouts import LAYOUTS
from prefloop.inputs.problems import Problem
from prefloop.inputs.readers import Record
from prefloop.records import PreferenceRow, completion_id, content_id, prompt_id
from prefloop.store.rows import to_table

Row = dict[str, Any]


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def section(path: Path | str, **settings: Any) -> PreferencesSection:
    return PreferencesSection.model_validate({"path": str(path), **settings})


def say(*turns: str, system: str | None = None) -> list[dict[str, str]]:
    """Messages, the user's first."""
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
    return messages if system is None else [{"role": "system", "content": system}, *messages]


def answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def shared(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": who, "value": text} for who, text in turns]


def read(path: Path, **settings: Any) -> tuple[PreferenceReader, list[PreferenceRow]]:
    """All rows of a file that has nothing but good ones."""
    reader = PreferenceReader(section(path, **settings))
    rows = [row for part, rejects in reader.parts(10) for row in part if rejects == []]
    return reader, rows


def sides(row: PreferenceRow) -> tuple[Any, Any, Any]:
    return row["prompt"], row["chosen"], row["rejected"]


# ------------------------------------------------------------------------------------------------------ every layout

Q, A, B = say("q"), answer("good"), answer("bad")
PKU = {"prompt": "q", "response_0": "bad", "response_1": "good", "better_response_id": 1}
SHAREGPT = {
    "conversations": shared(("human", "q")),
    "chosen": {"from": "gpt", "value": "good"},
    "rejected": {"from": "gpt", "value": "bad"},
}
MULTI = say("a", "b", "c")

CASES: list[tuple[str, str, Row, tuple[Any, Any, Any], dict[str, int]]] = [
    ("texts", "preference", {"prompt": "q", "chosen": "good", "rejected": "bad"}, (Q, A, B), {}),
    ("messages", "preference", {"prompt": Q, "chosen": A, "rejected": B}, (Q, A, B), {}),
    ("shared turns", "preference", {"chosen": [*Q, *A], "rejected": [*Q, *B]}, (Q, A, B), {}),
    (
        *("shared turns, some of the answers", "preference"),
        {"chosen": [*say("a", "b"), *say("c", "d")], "rejected": [*say("a", "b"), *say("c", "e")]},
        (MULTI, answer("d"), answer("e")),
        {},
    ),
    ("repeated prompt", "preference", {"prompt": "q", "chosen": [*Q, *A], "rejected": [*Q, *B]}, (Q, A, B), {}),
    (
        *("shared words", "preference"),
        {"chosen": "The sky is blue.", "rejected": "The sky is black."},
        (say("The sky is"), answer("blue."), answer("black.")),
        {},
    ),
    (
        *("dialogues", "preference"),
        {"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: I say d"}
        | {"rejected": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: I say e"},
        (MULTI, answer("I say d"), answer("I say e")),
        {},
    ),
    ("a good one alone", "preference", {"prompt": "q", "chosen": "good", "rejected": None}, (Q, A, None), {}),
    ("a bad one alone", "preference", {"prompt": "q", "chosen": None, "rejected": B}, (Q, None, B), {}),
    ("alone, whole", "preference", {"chosen": [*Q, *A], "rejected": None}, (Q, A, None), {}),
    ("unpaired, good", "unpaired", {"prompt": "q", "completion": "good", "label": True}, (Q, A, None), {}),
    ("unpaired, bad", "unpaired", {"prompt": Q, "completion": B, "label": False, "n": 1}, (Q, None, B), {"n": 1}),
    ("unpaired, in numbers", "unpaired", {"prompt": Q, "completion": B, "label": 0}, (Q, None, B), {}),
    ("unpaired conversation", "unpaired", {"messages": [*Q, *B], "label": False}, (Q, None, B), {}),
    ("completion", "completion", {"prompt": "q", "completion": "good", "topic": "x"}, (Q, A, None), {"topic": 1}),
    ("completion of messages", "completion", {"prompt": Q, "completion": A}, (Q, A, None), {}),
    (
        *("conversation", "messages", {"messages": say("a", "b", "c", "d", system="s"), "tools": None}),
        (say("a", "b", "c", system="s"), answer("d"), None),
        {},
    ),
    ("sharegpt pairs", "sharegpt_pairs", SHAREGPT | {"images": []}, (Q, A, B), {"images": 1}),
    (
        *("sharegpt pairs with a system column", "sharegpt_pairs"),
        SHAREGPT | {"system": "s", "conversations": shared(("human", "a"), ("gpt", "b"), ("human", "c"))},
        (say("a", "b", "c", system="s"), A, B),
        {},
    ),
    ("sharegpt pairs of texts", "sharegpt_pairs", SHAREGPT | {"chosen": "good", "rejected": "bad"}, (Q, A, B), {}),
    (
        *("sharegpt", "sharegpt"),
        {"conversations": shared(("system", "s"), ("human", "a"), ("gpt", "b")), "system": ""},
        (say("a", system="s"), answer("b"), None),
        {},
    ),
    (
        *("pku", "pku", PKU | {"is_response_0_safe": True, "safer_response_id": 0, "dataset": "x"}),
        (Q, A, B),
        {"is_response_0_safe": 1, "safer_response_id": 1, "dataset": 1},
    ),
    ("lima", "lima", {"conversations": ["q", "good"], "source": "wikihow"}, (Q, A, None), {"source": 1}),
    ("lima, several turns", "lima", {"conversations": ["a", "b", "c", "d"]}, (MULTI, answer("d"), None), {}),
]


@pytest.mark.parametrize(("layout", "value", "expected", "left"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_a_row_of_every_layout(
    tmp_path: Path, layout: str, value: Row, expected: tuple[Any, Any, Any], left: dict[str, int]
) -> None:
    path = write(tmp_path / "p.jsonl", value)
    for settings_ in ({}, {"format": layout}):
        reader, (row,) = read(path, **settings_)
        assert reader.layout is LAYOUTS[layout]
        assert sides(row) == expected
        assert reader.columns.left == left
    assert row["prompt_id"] == prompt_id(expected[0])
    assert (row["source"], row["strategy"]) == (layout, "given")
    # The same check, and the same words, before the run.
    report = validate_file(path, kind="preferences")
    assert (report.kind, report.layout, report.valid, report.left_columns) == ("preference", layout, 1, left)
    to_table("preference", [row], where="test")


def test_every_layout_has_its_setting_and_its_cases() -> None:
    assert set(get_args(PreferencesSection.model_fields["format"].annotation)) == {"auto", *LAYOUTS}
    # Several rows of votes make a pair, and judgments none: test_votes.py and test_read_judgments.py have theirs.
    ours = {name for name, layout in LAYOUTS.items() if layout.ballot is None and layout.judged is None}
    assert {case[1] for case in CASES} == ours


def test_validate_finds_out_itself_what_the_rows_are(tmp_path: Path) -> None:
    for name, layout, value, _, _ in CASES:
        report = validate_file(write(tmp_path / "p.jsonl", value))
        # LIMA's conversations are prompts where nothing else is said.
        expected = ("prompts", None) if layout == "lima" else ("preference", layout)
        assert (report.kind, report.layout) == expected, name
    with pytest.raises(UsageError, match="unknown kind"):
        validate_file(tmp_path / "p.jsonl", kind="pairs")


def test_numbers_travel_with_the_row(tmp_path: Path) -> None:
    numbers = {"weight": 0.5, "margin": -1, "label": 0.75, "score_chosen": 4, "score_rejected": 1.5}
    for value in ({"prompt": "q", "chosen": "good", "rejected": "bad"}, SHAREGPT, PKU):
        _, (row,) = read(write(tmp_path / "p.jsonl", value | numbers))
        assert {name: row[name] for name in numbers} == numbers  # type: ignore[literal-required]
    _, (row,) = read(write(tmp_path / "q.jsonl", {"messages": [*Q, *A], "weight": 2}))
    assert (row["weight"], row["margin"], row["label"]) == (2.0, None, None)


def test_csv_has_texts_alone(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("prompt,completion,label,weight\nq,good,true,\nq,bad,FALSE,0.5\nq,more,1,2\n")
    _, rows = read(tmp_path / "p.csv")
    assert [sides(row) for row in rows] == [(Q, A, None), (Q, None, B), (Q, answer("more"), None)]
    assert [row["weight"] for row in rows] == [None, 0.5, 2.0]


def test_the_id_of_a_row(tmp_path: Path) -> None:
    plain = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    _, (row,) = read(write(tmp_path / "p.jsonl", plain))
    ids = [completion_id(prompt_id(row["prompt"]), text, 0) for text in ("good", "bad")]
    assert [row["chosen_id"], row["rejected_id"]] == ids
    assert row["id"] == content_id("pair", row["prompt_id"], *ids)
    _, (own,) = read(write(tmp_path / "q.jsonl", plain | {"id": 7}))
    assert own == row | {"id": "7"}


# ---------------------------------------------------------------------------------------------------- containers

LINES = [{"prompt": f"q{i}", "chosen": "good", "rejected": "bad", "weight": float(i)} for i in range(5)]


def test_every_container(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    _, expected = read(write(tmp_path / "p.jsonl", *LINES))
    (tmp_path / "array.json").write_text("\n " + json.dumps(LINES))
    (tmp_path / "lines.json").write_text((tmp_path / "p.jsonl").read_text())
    (tmp_path / "p.csv").write_text(
        "prompt,chosen,rejected,weight\n" + "".join(f"q{i},good,bad,{i}\n" for i in range(5))
    )
    pq.write_table(pa.Table.from_pylist(LINES), tmp_path / "p.parquet")
    for name in ("array.json", "lines.json", "p.csv", "p.parquet"):
        assert read(tmp_path / name)[1] == expected, name


def test_a_hub_set(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load(name: str, config: str | None, *, split: str) -> Any:
        asked.append((name, config, split))
        return datasets.Dataset.from_list(LINES)

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert len(read(Path("hub:org/set"), split="train_prefs")[1]) == 5
    assert asked == [("org/set", None, "train_prefs")]


@pytest.mark.parametrize(
    ("name", "says"),
    [("p.txt", "rename the file"), ("nowhere.txt", "no such file"), ("sandbox:questions/train", "name a file")],
)
def test_no_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, says: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").write_text("one line\n")
    with pytest.raises(UsageError) as error:
        read(Path(name))
    assert says in str(error.value)


# ------------------------------------------------------------------------------------------------------- mistakes

BAD: list[tuple[Row, Row, str, str | None, str]] = [
    # a good first row, the bad one, then kind, field and reason
    ({"prompt": "1", "chosen": "a", "rejected": "b"}, {"chosen": "x", "rejected": "y"}, "missing_field", "prompt", ""),
    ({"prompt": "1", "chosen": "a", "rejected": "b"}, {"prompt": "q", "chosen": "x"}, "missing_field", "rejected", ""),
    (
        {"chosen": "all a", "rejected": "all b"},
        {"chosen": "all ", "rejected": "all b c"},
        *("empty_field", "chosen", "nothing behind the words that both share"),
    ),
    ({"chosen": "all a", "rejected": "all b"}, {"chosen": "x", "rejected": None}, "missing_field", "prompt", ""),
    (
        {"chosen": "all a", "rejected": "all b"},
        {"chosen": "\n\nHuman: a\n\nHuman: b\n\nAssistant: c", "rejected": "\n\nHuman: a\n\nHuman: b\n\nAssistant: d"},
        *("role_order", "chosen[1].role", "assistant's is due"),
    ),
    (
        {"chosen": "all a", "rejected": "all b"},
        {"chosen": "\n\nHuman: a\n\nAssistant:", "rejected": "\n\nHuman: a\n\nAssistant: d"},
        *("empty_field", "chosen", "is empty"),
    ),
    (
        {"chosen": [*Q, *A], "rejected": [*Q, *B]},
        {"chosen": [*Q, *A], "rejected": [*say("other"), *B]},
        *("missing_field", "prompt", "share no first turn"),
    ),
    (
        {"chosen": [*Q, *A], "rejected": [*Q, *B]},
        {"chosen": [*Q, *A], "rejected": [*Q, *B, *say("c", "d")]},
        *("role_order", "rejected", "holds 3 turns"),
    ),
    ({"chosen": [*Q, *A], "rejected": [*Q, *B]}, {"chosen": [*Q, *A], "rejected": [*Q, *A]}, "same_answers", None, ""),
    (PKU, PKU | {"prompt": "2", "better_response_id": 2}, "wrong_value", "better_response_id", "is 2"),
    (PKU, PKU | {"prompt": "2", "better_response_id": None}, "missing_field", "better_response_id", "is missing"),
    (PKU, PKU | {"prompt": "2", "response_0": ""}, "empty_field", "response_0", "is empty"),
    (PKU, PKU | {"prompt": "2", "response_0": "good"}, "same_answers", "response_1", ""),
    (SHAREGPT, SHAREGPT | {"conversations": None}, "missing_field", "conversations", "is null"),
    (
        SHAREGPT,
        SHAREGPT | {"conversations": shared(("human", "a"), ("gpt", "b"))},
        *("role_order", "conversations", "ends with a turn of assistant"),
    ),
    (
        SHAREGPT,
        SHAREGPT | {"conversations": shared(("critic", "a"))},
        *("unknown_role", "conversations[0].from", "unknown role 'critic'"),
    ),
    (SHAREGPT, SHAREGPT | {"conversations": [{"from": "human"}]}, "missing_field", "conversations[0].value", ""),
    (SHAREGPT, SHAREGPT | {"chosen": None}, "missing_field", "chosen", "is null"),
    (
        SHAREGPT,
        SHAREGPT | {"chosen": {"from": "human", "value": "x"}},
        "role_order",
        "chosen",
        "begins with a turn of",
    ),
    (
        SHAREGPT,
        SHAREGPT | {"system": "s", "conversations": shared(("system", "t"), ("human", "a"))},
        *("role_order", "system", "a system message of its own"),
    ),
    ({"messages": [*Q, *A]}, {"messages": Q}, "role_order", "messages", "ends with a turn of user"),
    ({"messages": [*Q, *A]}, {"messages": A}, "role_order", "messages[0].role", "user's is due"),
    ({"messages": [*Q, *A]}, {"message": "x"}, "missing_field", "messages", "is null"),
    ({"prompt": "1", "completion": "a"}, {"prompt": "1", "completion": ""}, "empty_field", "completion", "is empty"),
    ({"prompt": "1", "completion": "a"}, {"completion": "b"}, "missing_field", "prompt", "is null"),
    (
        {"prompt": "1", "completion": "a", "label": True},
        {"prompt": "1", "completion": "b"},
        *("missing_field", "label", "is missing"),
    ),
    (
        {"prompt": "1", "completion": "a", "label": True},
        {"prompt": "1", "completion": "b", "label": 0.5},
        *("wrong_value", "label", "is 0.5"),
    ),
    ({"conversations": ["q", "a"]}, {"conversations": ["q"]}, "role_order", "conversations", "without an answer"),
    ({"conversations": ["q", "a"]}, {"conversations": ["q", ""]}, "empty_field", "conversations[1]", "is empty"),
    ({"conversations": ["q", "a"]}, {"conversations": "q"}, "wrong_type", "conversations", "is a text"),
]


@pytest.mark.parametrize(("good", "bad", "kind", "at", "reason"), BAD)
def test_a_bad_row(tmp_path: Path, good: Row, bad: Row, kind: str, at: str | None, reason: str) -> None:
    path = write(tmp_path / "p.jsonl", good, bad)
    reader = PreferenceReader(section(path, ignore_columns="all"))
    (_, none), (row, problems) = list(reader)
    assert (none, row) == ([], None)
    found = problems[0]
    assert (found.row, found.kind, found.fix != "") == (2, kind, True)
    assert found.field == (at or found.field)
    assert reason in found.reason
    with pytest.raises(UsageError, match="line 2"):
        read(path, ignore_columns="all")
    reader = PreferenceReader(section(path, ignore_columns="all", on_bad_row="reject"))
    ((rows, rejects),) = reader.parts(10)
    assert (len(rows), len(rejects), reader.records) == (1, 1, 2)
    assert rejects[0]["reason"] == kind.replace("_", " ")
    assert rejects[0]["stage"] == "preferences"
    assert json.loads(rejects[0]["row"])["content"] == bad


def test_a_repeated_row_is_left_out_and_stops_nothing(tmp_path: Path) -> None:
    pair = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    swapped = {"prompt": "q", "chosen": "bad", "rejected": "good"}
    reader = PreferenceReader(section(write(tmp_path / "p.jsonl", pair, pair | {"weight": 2}, swapped)))
    ((rows, (reject,)),) = reader.parts(10)
    assert [row["chosen"] for row in rows] == [A, B]
    assert reject["reason"] == "duplicate row"
    assert "the same prompt and answers as in line 1" in reject["row"]


@pytest.mark.parametrize(
    ("value", "column", "says"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "b", "wieght": 2}, "wieght", "did you mean 'weight'?"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "topic": 2}, "topic", "set ignore_columns: [topic]"),
        # In formats of others any column may be there, but not one that seems to be a mistyped one of ours.
        ({"prompt": "q", "completion": "a", "wieght": 2}, "wieght", "did you mean 'weight'?"),
        (PKU | {"margins": 2}, "margins", "did you mean 'margin'?"),
    ],
)
def test_unknown_columns(tmp_path: Path, value: Row, column: str, says: str) -> None:
    path = write(tmp_path / "p.jsonl", value)
    for on_bad_row in ("stop", "reject"):
        with pytest.raises(UsageError) as error:
            read(path, on_bad_row=on_bad_row)
        assert says in str(error.value)
    assert read(path, ignore_columns=[column])[0].columns.left == {column: 1}


def test_a_label_that_comes_late_is_not_overlooked(tmp_path: Path) -> None:
    """Bad answers must not be learnt from because the first row has no label."""
    path = write(
        tmp_path / "p.jsonl", {"prompt": "1", "completion": "a"}, {"prompt": "2", "completion": "b", "label": 0}
    )
    with pytest.raises(UsageError, match="unknown column") as error:
        read(path)
    assert "field label" in str(error.value)


def test_a_file_of_something_else(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", {"question": "q", "answer": "a"})
    with pytest.raises(UsageError, match="columns question, answer fit no known format"):
        read(path)
    with pytest.raises(UsageError, match="is null"):
        read(path, format="messages", ignore_columns="all")
    write(path, *[{"prompt": "q", "chosen": "", "rejected": "b"}] * 3)
    with pytest.raises(UsageError, match="none of the 3 rows"):
        read(path, on_bad_row="reject")


def test_a_row_may_be_too_long_for_the_model(tmp_path: Path) -> None:
    from prefloop.inputs import TokenLimit

    limit = TokenLimit(lambda messages: len(messages[0]["content"].split()), 2)
    path = write(tmp_path / "p.jsonl", {"prompt": "one two three", "completion": "a"})
    assert [p.kind for p in validate_file(path, max_prompt_tokens=limit).log.kept] == ["too_long"]


# ------------------------------------------------------------------------------------------------- parts and memory


def test_limit_counts_good_rows(tmp_path: Path) -> None:
    bad = {"prompt": "", "chosen": "a", "rejected": "b"}
    path = write(tmp_path / "p.jsonl", LINES[0], bad, *LINES[1:])
    reader = PreferenceReader(section(path, limit=3, on_bad_row="reject"))
    (((rows, rejects)),) = reader.parts(10)
    assert ([r["weight"] for r in rows], len(rejects), reader.records) == ([0, 1, 2], 1, 4)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.booleans(), min_size=1, max_size=30), st.integers(1, 7), st.integers(1, 40))
def test_parts_are_full_and_hold_every_record_once(good: list[bool], size: int, limit: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        values = [{"prompt": f"q{i}" if fine else "", "completion": "a"} for i, fine in enumerate(good)]
        path = write(Path(folder) / "p.jsonl", *values)
        reader = PreferenceReader(section(path, on_bad_row="reject", limit=limit))
        if not any(good):
            with pytest.raises(UsageError, match="none of the"):
                list(reader.parts(size))
            return
        parts = list(reader.parts(size))
        assert all(len(rows) + len(rejects) == size for rows, rejects in parts[:-1])
        kept = [row["prompt"][0]["content"] for rows, _ in parts for row in rows]
        assert kept == [f"q{i}" for i, fine in enumerate(good) if fine][:limit]
        assert sum(len(rows) + len(rejects) for rows, rejects in parts) == reader.records


class Endless(PreferenceReader):
    """Rows without end, each of 10 kB; stops the test when too many were asked for."""

    asked = 0

    def stream(self) -> Iterator[Record | Problem]:
        for number in range(1, 100_001):
            self.asked = number
            yield Record(number, {"prompt": f"q{number}", "chosen": "x" * 10_000, "rejected": "bad"})


def test_no_more_than_a_part_is_held() -> None:
    reader = Endless(section("none.jsonl"))
    parts = reader.parts(20)
    tracemalloc.start()
    for number in range(1, 101):
        rows, _ = next(parts)
        assert reader.asked == 20 * number  # nothing is read ahead
        assert len(rows) == 20
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # 2,000 rows of 10 kB went through; a part with its copies is 0.2 MB, and what finds repeats a little.
    assert peak < 3e6


# --------------------------------------------------------------------------------------------------- round trips

text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(str.strip)
number = st.none() | st.floats(-1e6, 1e6)


@st.composite
def our_rows(draw: st.DrawFn) -> PreferenceRow:
    turns = draw(st.lists(text, min_size=1, max_size=3).filter(lambda t: len(t) % 2 == 1))
    prompt = say(*turns, system=draw(st.none() | text))
    finish = draw(st.sampled_from([None, "stop", "length"]))
    said = text if finish is None else st.just("") | text
    chosen, rejected = draw(st.lists(said, min_size=2, max_size=2, unique=True))
    alone = draw(st.sampled_from(["both", "chosen", "rejected"]))
    name = prompt_id(prompt)  # type: ignore[arg-type]
    return {
        "id": draw(st.uuids()).hex[:16],
        "prompt_id": name,
        "prompt": prompt,  # type: ignore[typeddict-item]
        "chosen": None if alone == "rejected" else answer(chosen),  # type: ignore[typeddict-item]
        "rejected": None if alone == "chosen" else answer(rejected),  # type: ignore[typeddict-item]
        "score_chosen": draw(number),
        "score_rejected": draw(number),
        "weight": draw(st.none() | st.floats(0, 10)),
        "margin": draw(number),
        "label": draw(st.none() | st.floats(0, 1)),
        "source": "judge",
        "strategy": "best_worst",
        "chosen_id": completion_id(name, chosen, 3),
        "rejected_id": completion_id(name, rejected, 1),
        "chosen_finish": finish,
        "rejected_finish": finish,
        "evidence": draw(st.lists(st.just("0123456789abcdef"), max_size=2)),
    }


def content(row: PreferenceRow) -> str:
    return json.dumps([row["prompt"], row["chosen"], row["rejected"]])


@settings(deadline=None, max_examples=60)
@given(st.lists(our_rows(), min_size=1, max_size=6, unique_by=(content, lambda r: r["id"])))
def test_rows_of_our_own_come_back_as_they_were(rows: list[PreferenceRow]) -> None:
    import pyarrow.parquet as pq

    with tempfile.TemporaryDirectory() as folder:
        pq.write_table(to_table("preference", rows, where="test"), Path(folder) / "part-00000.parquet")
        write(Path(folder) / "p.jsonl", *rows)
        for name in ("part-00000.parquet", "p.jsonl"):
            reader, found = read(Path(folder) / name)
            assert found == rows
            assert reader.columns.left == {}


@settings(deadline=None, max_examples=100)
@given(st.lists(text, min_size=2, max_size=6), st.sampled_from(["messages", "sharegpt", "lima"]), st.none() | text)
def test_demonstrations_come_back(turns: list[str], layout: str, system: str | None) -> None:
    turns = turns[: len(turns) // 2 * 2]
    messages = say(*turns, system=None if layout == "lima" else system)
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    value: Row = {
        "messages": {"messages": messages},
        "sharegpt": {"conversations": [{"from": names[m["role"]], "value": m["content"]} for m in messages]},
        "lima": {"conversations": turns},
    }[layout]
    with tempfile.TemporaryDirectory() as folder:
        reader, (row,) = read(write(Path(folder) / "p.jsonl", value))
    assert reader.layout is LAYOUTS[layout]
    assert [*row["prompt"], *(row["chosen"] or [])] == messages
    assert row["rejected"] is None


words = st.text("ab ", min_size=1, max_size=12)


@settings(deadline=None, max_examples=200)
@given(words, words)
def test_words_that_two_texts_share_are_split_and_none_is_lost(chosen: str, rejected: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "p.jsonl", {"chosen": chosen, "rejected": rejected})
        ((row, _),) = PreferenceReader(section(path))
    if row is None:
        return
    prompt = row["prompt"][0]["content"]
    for text_, side in ((chosen, row["chosen"]), (rejected, row["rejected"])):
        assert side is not None
        assert f"{prompt} {side[0]['content']}".split() == text_.split()
    assert chosen.split()[: len(prompt.split())] == rejected.split()[: len(prompt.split())]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
turn = st.fixed_dictionaries(
    {}, optional={"role": st.sampled_from(["user", "assistant", 3]), "content": json_values, "from": json_values}
)
columns = sorted({column for layout in LAYOUTS.values() for column in (*layout.reads, *layout.numbers, "id", "x")})
any_row = st.dictionaries(st.sampled_from(columns), json_values | st.lists(turn, max_size=3) | turn, max_size=6)


@settings(deadline=None, max_examples=300)
@given(st.lists(any_row, min_size=1, max_size=4), st.sampled_from(["auto", *LAYOUTS]))
def test_any_row_is_kept_or_has_a_problem(values: list[Row], layout: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "p.jsonl", *values)
        reader = PreferenceReader(section(path, format=layout, on_bad_row="reject", ignore_columns="all"))
        try:
            parts = list(reader.parts(2))
        except UsageError:
            return
        kept = [row for rows, _ in parts for row in rows]
        assert len(kept) + sum(len(rejects) for _, rejects in parts) == len(values)
        to_table("preference", kept, where="test")
        assert all(row["chosen"] or row["rejected"] for row in kept)
        assert all(row["weight"] is None or math.isfinite(row["weight"]) for row in kept)
