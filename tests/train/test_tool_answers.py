"""Conversations with tools, from rows to a finished training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from training_runs import make_rows, run

from prefloop.engine.tokens import end_of_turn_ids
from prefloop.train.encode import Encoder
from tiny_models import copy_tiny_model, load_tiny
from tool_templates import ASKED, JSONED, TAGGED, TOLD, call

TEMPLATES = {"qwen3": TAGGED, "llama": JSONED}


def rows(count: int = 4) -> list[Any]:
    """Half of the pairs choose between two calls, the other half between two answers to a tool's result."""
    made: list[Any] = make_rows(count)
    for i, row in enumerate(made):
        row["prompt"] = ASKED if i % 2 else TOLD
        if i % 2:
            row["chosen"], row["rejected"] = [call("Paris")], [call(f"the world {i}")]
    return made


@pytest.mark.parametrize("arch", TEMPLATES)
def test_calls_are_answers_that_the_template_writes(arch: str) -> None:
    model, tokenizer = load_tiny(arch)
    tokenizer.chat_template = TEMPLATES[arch]
    end = end_of_turn_ids(tokenizer, model.generation_config)[0]
    encoder = Encoder(tokenizer, end, 1000, "pairs")
    made = rows()
    made[3]["chosen_finish"] = "length"
    examples = [e for _, found in encoder(made) for e in found]
    assert len(examples) == 4
    chosen, rejected = (tokenizer.decode(ids) for ids in examples[1].responses)
    assert chosen == rejected.replace("the world 1", "Paris")
    assert [e.responses[0][-1] == end for e in examples] == [True, True, True, False]


def test_a_template_without_tools_rejects_the_row_and_says_why() -> None:
    model, tokenizer = load_tiny("qwen3")
    tokenizer.chat_template = TAGGED.replace("m.tool_calls or []", "[]")
    encoder = Encoder(tokenizer, end_of_turn_ids(tokenizer, model.generation_config)[0], 1000, "pairs")
    reasons = [found["reason"] for _, found in encoder(rows()) if isinstance(found, dict)]
    assert reasons == ["the chat template leaves out tool_calls, which these messages have"] * 4


def test_a_training(tmp_path: Path) -> None:
    folder = copy_tiny_model(tmp_path / "model", "qwen3")
    (folder / "chat_template.jinja").write_text(TAGGED, encoding="utf-8")
    records: list[dict[str, Any]] = []
    result = run(tmp_path / "t", folder, rows(8), max_length=1000, epochs=2, records=records, learning_rate=5e-3)
    assert (result["pairs"], result["rejected"]) == (8, {})
    assert records[0]["loss"] == pytest.approx(math.log(2), abs=1e-3)
    assert records[-1]["rewards/margins"] > 0
