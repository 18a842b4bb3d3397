"""Checks of candidates files: prompts with answers that were sampled elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefloop.inputs.messages import Fault, messages_of, order_faults, text_fault
from prefloop.inputs.readers import json_type
from prefloop.records import CandidatesRow, Completion

CANDIDATES_COLUMNS = tuple(CandidatesRow.__annotations__)


def candidates_faults(value: Mapping[str, Any]) -> list[Fault]:
    """What is wrong with a candidates row: a prompt and a list of answers, texts or `Completion` objects."""
    faults: list[Fault] = []
    if "prompt" not in value:
        faults.append(Fault("missing_field", "prompt", "is missing", "write a text or a list of messages"))
    else:
        prompt, found = messages_of(value["prompt"], "prompt")
        faults += found or order_faults(prompt, "prompt", last="user")
    completions = value.get("completions")
    if not isinstance(completions, list):
        reason = "is missing" if completions is None else f"is a {json_type(completions)}, not a list"
        kind = "missing_field" if completions is None else "wrong_type"
        return [*faults, Fault(kind, "completions", reason, "write a list of answers")]  # type: ignore[arg-type]
    if not completions:
        faults.append(Fault("empty_field", "completions", "is an empty list", "write answers, or take the row out"))
    for index, item in enumerate(completions):
        faults += _completion_faults(item, f"completions[{index}]")
    return faults


def _completion_faults(item: Any, at: str) -> list[Fault]:
    if isinstance(item, str):
        fault = text_fault(item, at)
        # An empty answer is what the model said, and a judge may rate it.
        return [] if fault is None or fault.kind == "empty_field" else [fault]
    if not isinstance(item, dict):
        return [Fault("wrong_type", at, f"is a {json_type(item)}", "write a text, or an object with `text`")]
    if "text" not in item:
        return [Fault("missing_field", f"{at}.text", "is missing", "write the answer's text")]
    faults = [f for f in [text_fault(item["text"], f"{at}.text")] if f is not None and f.kind != "empty_field"]
    for key in item:
        if key not in Completion.__annotations__:
            known = ", ".join(Completion.__annotations__)
            faults.append(Fault("unknown_column", f"{at}.{key}", f"unknown (known: {known})", "take it out"))
    return faults
