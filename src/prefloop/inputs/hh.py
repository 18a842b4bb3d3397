"""HH-RLHF's conversations (Bai et al. 2022) as turns: transcripts with marked speakers, or lists of turns.

`Anthropic/hh-rlhf` has whole transcripts in `chosen` and `rejected`; `PKU-Alignment/processed-hh-rlhf` has the turns
before the last answer in `context`, as {"role", "text"}. A prompt is everything before the last answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from prefloop.inputs.messages import Fault, order_faults, text_fault
from prefloop.records import Message

READ = ("chosen", "rejected", "context")

SPEAKER = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant", "human": "user", "user": "user", "assistant": "assistant"}


def dialogue(text: str) -> list[Message]:
    """Turns of a transcript marked `\\n\\nHuman:` and `\\n\\nAssistant:`.

    Example:
        >>> dialogue("\\n\\nHuman: How? \\n\\nAssistant: So.")[1]
        {'role': 'assistant', 'content': 'So.'}
    """
    parts = SPEAKER.split(text)[1:]
    return [{"role": _ROLES[who], "content": said.strip()} for who, said in zip(parts[::2], parts[1::2], strict=True)]


def hh_prompt(value: Mapping[str, Any]) -> tuple[list[Message], list[Fault]]:
    """The prompt of a row; it means something only when there are no faults."""
    field = "context" if "context" in value else "chosen"
    given = value.get(field)
    turns: list[Message] = []
    if field == "context" and isinstance(given, list):
        for i, turn in enumerate(given):
            role = turn.get("role") if isinstance(turn, dict) else None
            if role not in _ROLES:
                fix = 'write {"role": "human" or "assistant", "text": "…"}'
                return [], [Fault("wrong_value", f"{field}[{i}]", "is not a turn of a known role", fix)]
            fault = text_fault(turn.get("text"), f"{field}[{i}].text")
            if fault is not None:
                return [], [fault]
            turns.append({"role": _ROLES[role], "content": turn["text"].strip()})
    elif field == "chosen" and isinstance(given, str) and SPEAKER.match(given):
        turns = dialogue(given)
        # The last turn is the answer that people preferred.
        turns = turns[:-1] if turns[-1]["role"] == "assistant" else turns
        empty = [i for i, turn in enumerate(turns) if not turn["content"]]
        if empty:
            fix = "write a text, or take the row out"
            return [], [Fault("empty_field", field, f"turn {empty[0] + 1} is empty", fix)]
    else:
        fix = "give a transcript that begins with two line breaks and Human:, or a list of turns in `context`"
        return [], [Fault("wrong_type", field, "is no conversation of HH-RLHF", fix)]
    if not turns:
        return [], [Fault("empty_field", field, "has nothing before the last answer", "take the row out")]
    return turns, order_faults(turns, field, last="user")
