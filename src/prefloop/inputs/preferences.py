"""Checks of preference and candidates files, those made here and those from elsewhere."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import Any

from prefloop.inputs.messages import Fault, messages_of, order_faults, text_fault
from prefloop.inputs.readers import json_type
from prefloop.records import CandidatesRow, Completion, Message, PreferenceRow

PREFERENCE_COLUMNS = tuple(PreferenceRow.__annotations__)
CANDIDATES_COLUMNS = tuple(CandidatesRow.__annotations__)


def kind_of(value: Mapping[str, Any]) -> str:
    """What the rows of a file are, by the keys of its first: preference, candidates or prompts."""
    if "chosen" in value or "rejected" in value:
        return "preference"
    return "candidates" if "completions" in value else "prompts"


def preference_faults(value: Mapping[str, Any]) -> list[Fault]:
    """What is wrong with a preference row.

    `chosen` and `rejected` are texts or lists of messages that begin with the assistant. A row without `prompt` holds
    the whole conversation in both, as older data sets do; the turns they share are the prompt then.
    """
    answers: dict[str, list[Message]] = {}
    faults: list[Fault] = []
    for side in ("chosen", "rejected"):
        if side not in value:
            faults.append(Fault("missing_field", side, "is missing", "a preference needs chosen and rejected"))
            continue
        answers[side], found = messages_of(value[side], side, as_role="assistant")
        faults += found
    prompt: list[Message] = []
    if "prompt" in value:
        prompt, found = messages_of(value["prompt"], "prompt")
        faults += found or order_faults(prompt, "prompt", last="user")
    if not faults:
        if answers["chosen"] == answers["rejected"]:
            fix = "take the row out: a pair of equal answers teaches nothing"
            faults.append(Fault("same_answers", "rejected", "the same as chosen", fix))
        elif not prompt:
            faults += _whole_conversation_faults(answers)
        else:
            for side, answer in answers.items():
                faults += _answer_faults(prompt, answer, side)
    for name in ("weight", "margin", "score_chosen", "score_rejected"):
        faults += _number_faults(value, name)
    return faults


def _answer_faults(prompt: list[Message], answer: list[Message], side: str) -> list[Fault]:
    if answer[0]["role"] != "assistant":
        if answer[: len(prompt)] == prompt:
            return [Fault("role_order", side, "repeats the prompt", f"keep only the answer in {side}")]
        reason = f"begins with a turn of {answer[0]['role']}, not the assistant's"
        return [Fault("role_order", side, reason, f"keep only the answer in {side}")]
    return order_faults([{"role": "user", "content": "…"}, *answer], side, last="assistant")


def _whole_conversation_faults(answers: dict[str, list[Message]]) -> list[Fault]:
    chosen, rejected = answers["chosen"], answers["rejected"]
    if chosen[0] != rejected[0] or chosen[0]["role"] == "assistant":
        fix = "write the prompt into `prompt`, or the whole conversation into chosen and rejected"
        return [Fault("missing_field", "prompt", "is missing, and chosen and rejected share no first turn", fix)]
    return [fault for side in ("chosen", "rejected") for fault in order_faults(answers[side], side, last="assistant")]


def _number_faults(value: Mapping[str, Any], name: str) -> list[Fault]:
    number = value.get(name)
    if number is None:
        return []
    if isinstance(number, str):  # CSV has nothing but texts
        with contextlib.suppress(ValueError):
            number = float(number)
    if isinstance(number, bool) or not isinstance(number, int | float):
        return [Fault("wrong_type", name, f"is a {json_type(number)}, not a number", "write a number or null")]
    if not math.isfinite(number):
        return [Fault("wrong_value", name, f"is {number}", "write a finite number, or null for none")]
    if name == "weight" and number < 0:
        fix = "write 0 or more; a pair that is the wrong way round has its answers swapped"
        return [Fault("wrong_value", name, f"is negative ({number})", fix)]
    return []


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
