"""Conversations as ShareGPT and LLaMA-Factory write them: turns of `from` and `value`, a system message beside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from prefloop.inputs.messages import Fault, messages_of, text_fault
from prefloop.records import Message

_ROLES = {"human": "user", "gpt": "assistant", "function_call": "assistant", "observation": "tool"}


def turns_of(value: Any, at: str) -> tuple[list[Message], list[Fault]]:
    """Turns of {from, value} as messages; faults name the keys that the file has."""
    if isinstance(value, list):
        value = [_renamed(turn) if isinstance(turn, dict) and "role" not in turn else turn for turn in value]
    turns, faults = messages_of(value, at)
    keys = {".role": ".from", ".content": ".value", ".tool_calls": ".value"}
    for old, new in keys.items():
        faults = [replace(f, field=f.field.removesuffix(old) + new) if f.field.endswith(old) else f for f in faults]
    return turns, faults


def _renamed(turn: Mapping[str, Any]) -> dict[str, Any]:
    others = {key: other for key, other in turn.items() if key not in ("from", "value")}
    if "from" in turn:
        speaker = turn["from"]
        others["role"] = _ROLES.get(speaker, speaker) if isinstance(speaker, str) else speaker
    if turn.get("from") == "function_call":
        others |= {"content": "", "tool_calls": turn.get("value")}  # one call, or a list of them, as JSON text
    elif "value" in turn:
        others["content"] = turn["value"]
    return others


def with_system(value: Mapping[str, Any], turns: list[Message]) -> tuple[list[Message], list[Fault]]:
    """The turns behind the system message of the column of that name, if there is one."""
    system = value.get("system")
    if system is None or (isinstance(system, str) and not system.strip()):
        return turns, []
    fault = text_fault(system, "system")
    if fault is None and turns and turns[0]["role"] == "system":
        fault = Fault("role_order", "system", "the conversation has a system message of its own", "keep one of them")
    return ([], [fault]) if fault else ([{"role": "system", "content": system}, *turns], [])
