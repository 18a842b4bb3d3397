"""HH-RLHF's conversations as prompts of real turns, and prompts that are too long."""

from __future__ import annotations

import json

import pytest

from prefloop.config import PromptsSection
from prefloop.errors import UsageError
from prefloop.inputs.hh import hh_prompt
from prefloop.inputs.prompts import read_prompts

TALK = "\n\nHuman: Hi\n\nAssistant: Hello. What is it?\n\nHuman: How do I\n\nbake bread?\n\nAssistant: With flour."


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_transcript_becomes_turns_without_its_answer():
    assert hh_prompt({"chosen": TALK, "rejected": TALK}) == (
        [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello. What is it?"},
            {"role": "user", "content": "How do I\n\nbake bread?"},
        ],
        [],
    )


def test_a_list_of_turns_is_a_prompt():
    context = [
        {"role": "human", "text": "Hi"},
        {"role": "assistant", "text": "Hello."},
        {"role": "human", "text": "Bye"},
    ]
    turns, faults = hh_prompt({"context": context, "chosen": {"role": "assistant", "text": "So long."}})
    assert not faults
    assert [(t["role"], t["content"]) for t in turns] == [("user", "Hi"), ("assistant", "Hello."), ("user", "Bye")]


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": "Hi"},
        {"chosen": None},
        {"chosen": "\n\nAssistant: So."},
        {"chosen": "\n\nHuman: \n\nAssistant: So."},
        {"context": []},
        {"context": [{"role": "robot", "text": "Hi"}]},
        {"context": [{"role": "human", "text": ""}]},
        {"context": [{"role": "human", "text": "Hi"}, {"role": "assistant", "text": "Ho"}]},
    ],
)
def test_what_is_no_conversation_is_a_fault(row):
    assert hh_prompt(row)[1]


def test_a_file_of_them(tmp_path):
    path = write(tmp_path / "hh.jsonl", [{"chosen": TALK, "rejected": TALK}, {"chosen": TALK, "rejected": "x"}])
    rows, rejects = read_prompts(PromptsSection(path=path, format="hh"))
    assert [len(row["prompt"]) for row in rows] == [3]
    assert [r["reason"] for r in rejects] == ["duplicate prompt"]
    with pytest.raises(UsageError, match="prompt"):
        read_prompts(PromptsSection(path=path, format="jsonl"))


def test_long_prompts_are_left_out_and_counted(tmp_path):
    path = write(tmp_path / "p.jsonl", [{"prompt": "one two three"}, {"prompt": "one two three four"}])
    rows, rejects = read_prompts(PromptsSection(path=path, max_words=3))
    assert [row["prompt"][0]["content"] for row in rows] == ["one two three"]
    assert [r["reason"] for r in rejects] == ["too long"]
