"""Checks of message lists, shared by prompts and preferences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefloop.inputs.problems import Kind, nearest
from prefloop.inputs.readers import json_type
from prefloop.inputs.tools import calls_of, schemas_of
from prefloop.records import EXTRAS, Message, canonical_json

ROLES = ("system", "user", "assistant", "tool")
_OF_ROLE = {"tool_calls": "assistant", "tool_call_id": "tool", "name": "tool"}
"""Whose turns have such a key."""


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

    Turns may have what `records.Message` knows of tools; a turn that calls some may have a content of null. Roles and
    contents are checked here, their order by `order_faults`.

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
        message, found = _message(item, f"{field}[{index}]", blank)
        faults += found
        if not found:
            messages.append(message)
    return messages, faults


def with_tools(messages: list[Message], value: Any, field: str = "tools") -> tuple[list[Message], list[Fault]]:
    """A conversation that offers the tools of a column of its row, which may be null or empty."""
    if value is None or value in ("", [], "[]"):
        return messages, []
    schemas, wrong = schemas_of(value, field)
    if wrong is None and any("tools" in message for message in messages):
        wrong = "role_order", field, "the conversation has tools of its own", "keep one of them"
    if wrong is not None or not messages:
        return messages, [] if wrong is None else [Fault(*wrong)]
    first: Message = {**messages[0], "tools": schemas}
    return [first, *messages[1:]], []


def _without_blank(fault: Fault | None, blank: bool) -> Fault | None:
    return None if blank and fault is not None and fault.kind == "empty_field" else fault


def _message(item: Any, at: str, blank: bool) -> tuple[Message, list[Fault]]:
    message: Message = {"role": "", "content": ""}
    shape = '{"role": "user", "content": "…"}'
    if not isinstance(item, dict):
        return message, [Fault("wrong_type", at, f"is a {json_type(item)}, not a message", f"write {shape}")]
    faults = []
    role = item.get("role")
    # Parquet gives every message the keys of all of them, as nulls: a null key is one that is not there.
    given = {k: v for k, v in item.items() if k not in ("role", "content") and v is not None}
    for key in list(given):
        if key in EXTRAS and _OF_ROLE.get(key, role) == role:
            continue
        del given[key]
        reason = "a message has a role and a content, nothing else"
        if key in _OF_ROLE:
            reason = f"a turn of {role} has a role and a content, nothing else (one of {_OF_ROLE[key]} may have it)"
        meant = {"from": "role", "value": "content"}.get(key) or nearest(key, ("role", "content", *EXTRAS))
        fix = f"call it {meant}" if meant and key not in EXTRAS else "take it out"
        faults.append(Fault("unknown_column", f"{at}.{key}", reason, fix))
    if role is None:
        faults.append(Fault("missing_field", f"{at}.role", "is missing", f"write {shape}"))
    elif role not in ROLES:
        meant = nearest(role, ROLES) if isinstance(role, str) else None
        meant = meant or _OTHER_NAMES.get(str(role))
        fix = f"did you mean {meant!r}?" if meant else f"use one of: {', '.join(ROLES)}"
        faults.append(Fault("unknown_role", f"{at}.role", f"unknown role {role!r}", fix))
    else:
        message["role"] = role
    for key, value in given.items():
        faults += _take(message, key, value, f"{at}.{key}")
    content, bare = item.get("content"), "tool_calls" in message
    if content is None and bare:
        content = ""
    elif "content" not in item:
        faults.append(Fault("missing_field", f"{at}.content", "is missing", f"write {shape}"))
    elif role == "tool" and isinstance(content, dict | list):
        content = canonical_json(content)  # a result as an object: templates want text
    elif (fault := _without_blank(text_fault(content, f"{at}.content"), blank or bare or role == "tool")) is not None:
        faults.append(fault)
    message["content"] = str(content)
    return message, faults


_OTHER_NAMES = {
    **{"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"},
    **{"function": "tool", "observation": "tool"},
}


def _take(message: Message, key: str, value: Any, at: str) -> list[Fault]:
    """Put what a message has beside its content into it."""
    if key in ("tool_call_id", "name"):
        if (fault := text_fault(value, at)) is not None:
            return [fault]
        message[key] = value  # type: ignore[literal-required]
        return []
    read, wrong = (calls_of if key == "tool_calls" else schemas_of)(value, at)
    message[key] = read  # type: ignore[literal-required]
    return [] if wrong is None else [Fault(*wrong)]


def order_faults(messages: Sequence[Message], field: str, *, last: str) -> list[Fault]:
    """At most one fault of the order.

    A system message first if any, then user and assistant in turn, `last` last. Behind a turn that calls tools come
    their results, and then the assistant again; a prompt (`last` user) may end with results, too.
    """
    roles = [m["role"] for m in messages]
    start = 1 if roles[0] == "system" else 0
    due: tuple[str, ...] = ("user",)
    for index, message in enumerate(messages[start:], start=start):
        role = message["role"]
        if role not in due:
            reason = f"a turn of {role} where {' or '.join(due)}'s is due"
            fix = "put an optional system message first, then user and assistant in turn"
            if "tool" in (role, *due):
                fix = "a turn with tool_calls is followed by their results (role tool), then by the assistant"
            return [Fault("role_order", f"{field}[{index}].role", reason, fix)]
        calls = message.get("tool_calls")
        if role == "assistant":
            due = ("tool",) if calls else ("user",)
        else:
            due = ("assistant",) if role == "user" else ("tool", "assistant")
    if roles[-1] != last and not (last == "user" and roles[-1] == "tool"):
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
