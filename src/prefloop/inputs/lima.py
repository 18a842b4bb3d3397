"""LIMA's rows (Zhou et al. 2023): `conversations`, a list of texts, the user's first, then in turn.

The prompt is everything before the last answer. A row that ends with the user, as all of test.jsonl do, is a prompt
as it is. `source` (Stack Exchange, wikiHow, …) is not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefloop.inputs.messages import Fault, text_fault
from prefloop.inputs.readers import json_type
from prefloop.records import Message

READ = ("conversations",)
LEFT = ("source",)


def looks_like_lima(value: Mapping[str, Any], column: str) -> bool:
    """Whether the first row of a file is LIMA's rather than one with a prompt column."""
    return "conversations" in value and column not in value


def lima_prompt(value: Any) -> tuple[list[Message], list[Fault]]:
    """The prompt in a row's `conversations`; it means something only when there are no faults.

    Example:
        >>> lima_prompt(["How?", "So.", "And then?", "That."])[0][-1]
        {'role': 'user', 'content': 'And then?'}
    """
    field = "conversations"
    if value is None:
        return [], [Fault("missing_field", field, "is missing", "write a list of texts, the user's first")]
    if not isinstance(value, list):
        fix = "write a list of texts, the user's first"
        return [], [Fault("wrong_type", field, f"is a {json_type(value)}, not a list of texts", fix)]
    if not value:
        return [], [Fault("empty_field", field, "is an empty list", "write at least the user's text")]
    turns = value[:-1] if len(value) % 2 == 0 else value
    faults = [fault for i, turn in enumerate(turns) if (fault := text_fault(turn, f"{field}[{i}]")) is not None]
    if faults:
        return [], faults
    return [{"role": "assistant" if i % 2 else "user", "content": turn} for i, turn in enumerate(turns)], []
