"""Tool calls and tool schemas of conversations: what people write, and the one form of it that rows hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from prefloop.inputs.problems import Kind
from prefloop.inputs.readers import json_type
from prefloop.records import canonical_json

Found = tuple[list[dict[str, Any]], tuple[Kind, str, str, str] | None]
"""What was read, and (kind, field, reason, fix) of the first thing that is wrong with it."""

CALL = '[{"type": "function", "function": {"name": "…", "arguments": {…}}}]'
SCHEMA = '[{"type": "function", "function": {"name": "…", "parameters": {…}}}]'


def calls_of(value: Any, at: str) -> Found:
    """Tool calls as OpenAI and transformers write them.

    Taken are also calls without the envelope (`{"name", "arguments"}`), one call alone, arguments as JSON text (as
    OpenAI's service sends them), and the whole as JSON text (as our own Parquet files hold it).
    """
    items, wrong = _items(value, at, CALL)
    calls = []
    for index, item in enumerate(items):
        place = f"{at}[{index}]"
        function, wrong = _function(item, place, ("id",), CALL)
        if wrong is not None:
            return [], wrong
        arguments, inside = function.get("arguments", {}), f"{place}.function.arguments"
        if isinstance(arguments, str):
            arguments = _parsed(arguments)
        if not isinstance(arguments, dict):
            return [], ("wrong_type", inside, "are no JSON object", 'write {"parameter": value}')
        call = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
        calls.append(call if item.get("id") is None else {"id": str(item["id"]), **call})
    return calls, wrong or _unwritable(calls, at)


def schemas_of(value: Any, at: str) -> Found:
    """JSON schemas of the tools that a conversation offers; also without the envelope, and as JSON text."""
    items, wrong = _items(value, at, SCHEMA)
    schemas = []
    for index, item in enumerate(items):
        function, wrong = _function(item, f"{at}[{index}]", None, SCHEMA)
        if wrong is not None:
            return [], wrong
        schemas.append(item if "function" in item else {"type": "function", "function": function})
    return schemas, wrong or _unwritable(schemas, at)


def _items(value: Any, at: str, shape: str) -> Found:
    if isinstance(value, str):
        value = _parsed(value)
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        return [], ("wrong_type", at, f"is a {json_type(value)}, not a list of objects", f"write {shape}")
    if not value:
        return [], ("empty_field", at, "is an empty list", f"write {shape}, or leave it out")
    # Parquet gives every object the keys of all of them, as nulls.
    return [{key: other for key, other in item.items() if other is not None} for item in value], None


def _function(
    item: Mapping[str, Any], at: str, beside: tuple[str, ...] | None, shape: str
) -> tuple[dict[str, Any], tuple[Kind, str, str, str] | None]:
    """The function that a call or schema names. beside: keys that it may have; None: any."""
    wrapped = "function" in item
    if wrapped and item.get("type", "function") != "function":
        return {}, ("wrong_value", f"{at}.type", f"is {item['type']!r}", "functions are the only tools")
    function: Any = item["function"] if wrapped else dict(item)
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name.strip():
        return {}, ("missing_field", f"{at}{'.function' * wrapped}.name", "is missing", f"write {shape}")
    if beside is not None:
        known = {"type", "function", *beside} if wrapped else {"name", "arguments", "type", *beside}
        for key in item.keys() - known:
            return {}, ("unknown_column", f"{at}.{key}", "a tool call has no such key", "take it out")
    return function, None


def _parsed(text: str) -> Any:
    """JSON, or the text itself where it is none."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _unwritable(value: Any, at: str) -> tuple[Kind, str, str, str] | None:
    """NaN and half characters, which no JSON file holds."""
    try:
        canonical_json(value).encode("utf-8")
    except UnicodeEncodeError:
        return "bad_text", at, "holds half of a surrogate pair", "write the whole character"
    except (ValueError, TypeError):
        return "wrong_value", at, "holds what JSON cannot (NaN, an infinity, another type)", "take it out"
    return None
