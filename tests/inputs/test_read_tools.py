"""Tool calls, their results and the tools on offer, as people write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prefloop.backends.base import freeze, thaw
from prefloop.config import PreferencesSection, PromptsSection
from prefloop.inputs.messages import messages_of, order_faults
from prefloop.inputs.preferences import PreferenceReader
from prefloop.inputs.prompts import read_prompts
from prefloop.records import message_text, prompt_id
from prefloop.store import atomic
from prefloop.store.rows import to_table

SCHEMA = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"place": "Oslo"}}}
ASKED = [{"role": "user", "content": "How is Oslo?"}]
CALLED = [*ASKED, {"role": "assistant", "content": "", "tool_calls": [CALL]}]
TOLD = [*CALLED, {"role": "tool", "content": "rain", "name": "weather"}]
OFFERED = [{**TOLD[0], "tools": [SCHEMA]}, *TOLD[1:]]


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def preferences(path: Path) -> list[Any]:
    reader = PreferenceReader(PreferencesSection.model_validate({"path": str(path)}))
    found = list(reader)
    assert not reader.unknown_columns()
    assert all(not problems for _, problems in found), found
    return [row for row, _ in found]


@pytest.mark.parametrize(
    "calls",
    [
        [CALL],
        CALL,
        [{"name": "weather", "arguments": {"place": "Oslo"}}],
        [{"function": {"name": "weather", "arguments": '{"place": "Oslo"}'}, "id": None}],
        json.dumps([CALL]),
    ],
)
def test_every_way_to_write_a_call(calls: Any) -> None:
    value = [*ASKED, {"role": "assistant", "content": None, "tool_calls": calls}, TOLD[2]]
    messages, faults = messages_of(value, "prompt")
    assert not faults
    assert messages == TOLD
    assert not order_faults(messages, "prompt", last="user")


@pytest.mark.parametrize(
    ("turn", "kind", "field"),
    [
        ({"role": "assistant", "content": None}, "missing_field", "prompt[0].content"),
        ({"role": "user", "content": "x", "tool_calls": [CALL]}, "unknown_column", "prompt[0].tool_calls"),
        ({"role": "assistant", "tool_calls": []}, "empty_field", "prompt[0].tool_calls"),
        ({"role": "assistant", "tool_calls": "weather"}, "wrong_type", "prompt[0].tool_calls"),
        (
            {"role": "assistant", "tool_calls": [{"function": {}}]},
            *("missing_field", "prompt[0].tool_calls[0].function.name"),
        ),
        (
            {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "none"}]},
            *("wrong_type", "prompt[0].tool_calls[0].function.arguments"),
        ),
        (
            {"role": "assistant", "tool_calls": [{"name": "f", "argument": {}}]},
            *("unknown_column", "prompt[0].tool_calls[0].argument"),
        ),
        (
            {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"x": float("nan")}}]},
            *("wrong_value", "prompt[0].tool_calls"),
        ),
        ({"role": "tool", "content": "x", "tool_call_id": 1}, "wrong_type", "prompt[0].tool_call_id"),
    ],
)
def test_what_is_wrong_is_named(turn: dict[str, Any], kind: str, field: str) -> None:
    _, (fault, *_) = messages_of([turn], "prompt")
    assert (fault.kind, fault.field) == (kind, field)


@pytest.mark.parametrize(
    ("messages", "place"),
    [
        ([*ASKED, TOLD[2]], "prompt[1].role"),
        ([*CALLED, *ASKED], "prompt[2].role"),
        ([*TOLD, *ASKED], "prompt[3].role"),
        (CALLED, "prompt"),
    ],
)
def test_results_stand_behind_calls(messages: Any, place: str) -> None:
    (fault,) = order_faults(messages, "prompt", last="user")
    assert (fault.kind, fault.field) == ("role_order", place)


def test_rows_with_a_column_of_tools(tmp_path: Path) -> None:
    pair = {"chosen": [{"role": "assistant", "content": "It rains."}], "rejected": "no idea"}
    other = {"chosen": [CALLED[1]], "rejected": [{"role": "assistant", "content": "Sunny."}]}
    path = write(
        tmp_path / "p.jsonl",
        {"prompt": TOLD, **pair, "tools": [SCHEMA]},
        {"prompt": ASKED, **other, "tools": json.dumps([SCHEMA["function"]])},
        {"prompt": ASKED, **pair, "tools": None},
    )
    first, second, third = preferences(path)
    assert first["prompt"] == OFFERED
    assert second["prompt"] == [{**ASKED[0], "tools": [SCHEMA]}]
    assert second["chosen"] == [CALLED[1]]
    assert second["chosen_id"] != third["chosen_id"]
    assert third["prompt"] == ASKED
    assert third["prompt_id"] == prompt_id(ASKED) != second["prompt_id"]
    # What is written as Parquet, with JSON text for calls and schemas, is read as what it was.
    atomic.write_parquet(tmp_path / "p.parquet", to_table("preference", [first, second, third], where="x"))
    assert preferences(tmp_path / "p.parquet") == [first, second, third]


def test_sharegpt_with_calls(tmp_path: Path) -> None:
    turns = [("human", "How is Oslo?"), ("function_call", json.dumps(CALL["function"])), ("observation", "rain")]
    told = [
        {"role": "user", "content": "How is Oslo?", "tools": [SCHEMA]},
        CALLED[1],
        {"role": "tool", "content": "rain"},
    ]
    shared = [{"from": role, "value": text} for role, text in turns]
    side, offered = {"from": "gpt", "value": "It rains."}, json.dumps([SCHEMA])
    rows = preferences(
        write(
            tmp_path / "p.jsonl",
            {"conversations": shared, "chosen": side, "rejected": {"from": "gpt", "value": "?"}, "tools": offered},
            {"conversations": shared[:1], "chosen": shared[1], "rejected": side, "tools": ""},
        )
    )
    assert rows[0]["prompt"] == told
    assert rows[1]["chosen"] == [CALLED[1]]
    alone = preferences(write(tmp_path / "s.jsonl", {"conversations": [*shared, side], "tools": offered}))
    assert alone[0]["prompt"] == told


def test_prompts(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", {"prompt": TOLD, "tools": [SCHEMA]}, {"prompt": "plain"})
    section = PromptsSection.model_validate({"path": str(path), "system": "Be brief."})
    rows, rejects = read_prompts(section)
    assert not rejects
    assert rows[0]["prompt"] == [{"role": "system", "content": "Be brief."}, *OFFERED]


def test_frozen_messages_keep_everything_and_plain_ones_are_what_they_were() -> None:
    assert thaw(freeze(OFFERED)) == OFFERED
    assert hash(freeze(OFFERED)) != hash(freeze(TOLD))
    assert freeze(ASKED) == (("user", "How is Oslo?"),)
    assert prompt_id(ASKED) == "d64b319497f4da4c"
    assert message_text(CALLED[1]) == '{"arguments":{"place":"Oslo"},"name":"weather"}'
