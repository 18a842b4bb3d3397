"""Checks of message lists, shared by prompts and preferences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefloop.inputs.problems import Kind, nearest
from prefloop.inputs.readers import json_type
from prefloop.records import Message

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Fault:
    """A problem without its file and row."""

    kind: Kind
    field: str
    reason: str
    fix: str


def text_fault(value: Any, field: str) -> Fault | None:
    """What is wrong with a text: not one, blank, or not Unicode."""
    if value is None:
        return Fault("missing_field", field, "is null", "write a text")
    if not isinstance(value, str):
        return Fault("wrong_type", field, f"is a {json_type(value)}, not a text", "write a text")
    if not value.strip():
        return Fault("empty_field", field, "is empty", "write a text, or take the row out")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        reason = f"half of a surrogate pair (U+{ord(value[error.start]):04X}) at character {error.start}"
        return Fault("bad_text", field, reason, "write the whole character; something cut the text inside one")
    return None


def messages_of(
    value: Any, field: str, *, as_role: str = "user", blank: bool = False
) -> tuple[list[Message], list[Fault]]:
    """A text or a list of {role, content} as messages; the messages mean something only when there are no faults.

    Roles and contents are checked here, their order by `order_faults`.

    Args:
        value: as read.
        field: its column, for the faults.
        as_role: whose turn a bare text is.
        blank: whether texts may be blank, as a model's answer may.
    """
    if not isinstance(value, list):
        if value is None or isinstance(value, str):
            fault = _without_blank(text_fault(value, field), blank)
        else:
            reason = f"is a {json_type(value)}, neither a text nor a list of messages"
            fault = Fault("wrong_type", field, reason, 'write a text or [{"role": "user", "content": "…"}]')
        return ([], [fault]) if fault else ([{"role": as_role, "content": value}], [])
    if not value:
        return [], [Fault("empty_field", field, "is an empty list", "write at least one message, or take the row out")]
    messages: list[Message] = []
    faults: list[Fault] = []
    for index, item in enumerate(value):
        found = _message_faults(item, f"{field}[{index}]", blank)
        faults += found
        if not found:
            messages.append({"role": item["role"], "content": item["content"]})
    return messages, faults


def _without_blank(fault: Fault | None, blank: bool) -> Fault | None:
    return None if blank and fault is not None and fault.kind == "empty_field" else fault


def _message_faults(item: Any, at: str, blank: bool) -> list[Fault]:
    shape = '{"role": "user", "content": "…"}'
    if not isinstance(item, dict):
        return [Fault("wrong_type", at, f"is a {json_type(item)}, not a message", f"write {shape}")]
    faults = []
    # Parquet gives every message the keys of all of them, as nulls: a null key is one that is not there.
    for key in [k for k, v in item.items() if k not in ("role", "content") and v is not None]:
        reason = "a message has a role and a content, nothing else"
        meant = {"from": "role", "value": "content"}.get(key) or nearest(key, ("role", "content"))
        fix = f"call it {meant}" if meant else "take it out"
        faults.append(Fault("unknown_column", f"{at}.{key}", reason, fix))
    role = item.get("role")
    if role is None:
        faults.append(Fault("missing_field", f"{at}.role", "is missing", f"write {shape}"))
    elif role not in ROLES:
        meant = nearest(role, ROLES) if isinstance(role, str) else None
        meant = meant or {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}.get(str(role))
        fix = f"did you mean {meant!r}?" if meant else f"use one of: {', '.join(ROLES)}"
        faults.append(Fault("unknown_role", f"{at}.role", f"unknown role {role!r}", fix))
    if "content" not in item:
        faults.append(Fault("missing_field", f"{at}.content", "is missing", f"write {shape}"))
    elif (fault := _without_blank(text_fault(item["content"], f"{at}.content"), blank)) is not None:
        faults.append(fault)
    return faults


def order_faults(messages: Sequence[Message], field: str, *, last: str) -> list[Fault]:
    """At most one fault of the order: a system message first if any, then user and assistant in turn, `last` last."""
    roles = [m["role"] for m in messages]
    start = 1 if roles[0] == "system" else 0
    for index, role in enumerate(roles[start:], start=start):
        due = "user" if (index - start) % 2 == 0 else "assistant"
        if role != due:
            reason = f"a turn of {role} where {due}'s is due"
            fix = "put an optional system message first, then user and assistant in turn"
            return [Fault("role_order", f"{field}[{index}].role", reason, fix)]
    if roles[-1] != last:
        fix = f"end with a turn of {last}"
        if last == "user":
            fix = "end with a user message" + (
                "; the answer is the model's to give" if roles[-1] == "assistant" else ""
            )
        return [Fault("role_order", field, f"ends with a turn of {roles[-1]}", fix)]
    return []


def given_id(value: Mapping[str, Any]) -> tuple[str | None, list[Fault]]:
    """A row's own `id`, a text or a whole number, as text; None where it has none."""
    given = value.get("id")
    if given is None or given == "":
        return None, []
    if isinstance(given, bool) or not isinstance(given, str | int):
        return None, [Fault("wrong_type", "id", f"is a {json_type(given)}", "write a text or a whole number")]
    if isinstance(given, str) and not given.isprintable():
        return None, [Fault("bad_text", "id", "holds characters that cannot be printed", "write a plain text")]
    return str(given), []
