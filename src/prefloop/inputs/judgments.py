"""Written judgments of answers, in each way in which people publish them.

A judgment says in words what is wrong with an answer; null says that nothing is. Published ones are dirty: marks of
failed calls, empty texts, and praise that was filed as criticism. The first two say nothing and are left out, counted;
what becomes of praise is a setting.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prefloop.config import PreferencesSection
from prefloop.inputs.messages import Fault, messages_of, order_faults, text_fault
from prefloop.records import JudgmentRow, Message, completion_id, content_id, message_text, prompt_id

SILENT = ("failed_judgment", "empty_judgment", "only_praise", "not_judged")
"""Kinds of rows that are left out and counted, and stop nothing."""


@dataclass
class Judged:
    """An answer with its judgment; it means something only without faults and without `left_out`.

    Attributes:
        completion: one turn of the assistant.
        judgment: null for an answer that nothing is wrong with.
        left_out: why the row says nothing; it is counted, and stops nothing.
    """

    prompt: list[Message] = field(default_factory=list)
    completion: list[Message] = field(default_factory=list)
    judgment: str | None = None
    score: float | None = None
    faults: list[Fault] = field(default_factory=list)
    left_out: Fault | None = None


# --------------------------------------------------------------------------------------------------------- layouts


def judgment(value: Mapping[str, Any]) -> Judged:
    """Our own rows: `prompt`, `completion`, `judgment` and, for whoever has one, `score`."""
    row = Judged()
    row.prompt, row.faults = messages_of(value.get("prompt"), "prompt")
    row.faults = row.faults or order_faults(row.prompt, "prompt", last="user")
    blank = value.get("finish") is not None  # what a model said, if it said nothing
    row.completion, found = messages_of(value.get("completion"), "completion", as_role="assistant", blank=blank)
    if not found and [turn["role"] for turn in row.completion] != ["assistant"]:
        fix = "keep only the answer in it; earlier turns belong to the prompt"
        found = [Fault("role_order", "completion", "is not one turn of the assistant", fix)]
    row.faults += found
    return _said(row, value, "judgment")


def cut(value: Mapping[str, Any]) -> Judged:
    """CUT's JSON (Xu et al. 2024): `instruction`, `input` in a line of its own, `output`, `judgment`."""
    text, more = value.get("instruction"), value.get("input")
    row = Judged(faults=[f for f in (text_fault(text, "instruction"),) if f is not None])
    if more not in (None, "") and (fault := text_fault(more, "input")) is not None:
        row.faults.append(fault)
    asked = text if more in (None, "") else f"{text}\n{more}"
    return _said(_answered(row, asked, value.get("output"), "output"), value, "judgment")


def shepherd(value: Mapping[str, Any]) -> Judged:
    """Shepherd's human data (Wang et al. 2023): `question`, `answer`, `feedback`."""
    row = Judged(faults=[f for f in (text_fault(value.get("question"), "question"),) if f is not None])
    return _said(_answered(row, value.get("question"), value.get("answer"), "answer"), value, "feedback", missing=True)


def critique(value: Mapping[str, Any]) -> Judged:
    """A question about a passage and the best answer to it, of `questions`."""
    text = f"{value['passage']}\n{value['question']}"
    row = Judged(faults=[f for f in (text_fault(value["passage"], "data.passage.text"),) if f is not None])
    if value["skip"] or value["answer"] == "":
        row.left_out = Fault("not_judged", "answer", "was skipped by the labeller, or is empty", "")
        return row
    row = _answered(row, text, value["answer"], "answer")
    said = value["critiques"]
    if said:
        row.judgment = " ".join(str(c.get("text") or "") for c in said).strip()
        if said[-1].get("refinement") == "":
            row.left_out = Fault("not_judged", "critiques", "ends without a refinement: the labeller gave up", "")
    elif value["rating"] != 7:
        row.left_out = Fault("not_judged", "critiques", f"is empty, and the rating is {value['rating']} of 7", "")
    return row


def completion(value: Mapping[str, Any]) -> Judged:
    """One of the answers to an instruction, with its critique, of `completions`."""
    row = Judged(faults=[f for f in (text_fault(value["instruction"], "instruction"),) if f is not None])
    said = {"critique": value.get("critique"), "score": value.get("overall_score")}
    answered = _answered(row, value["instruction"], value.get("response"), "completions.response")
    return _said(answered, said, "critique", missing=True)


def questions(value: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The questions of a record of OpenAI's critiques (Saunders et al. 2022), each with its highest-ranked answer.

    The rules are those of CUT's conversion. Empty where the record has another shape.
    """
    data = value.get("data")
    found: list[Mapping[str, Any]] = []
    try:
        for one in data["questions"]:  # type: ignore[index]
            best = max(range(len(one["rankings"])), key=lambda i: one["rankings"][i])
            answer = one["answers"][best]
            told = answer["feedback"]
            found.append(
                {
                    "passage": data["passage"]["text"],  # type: ignore[index]
                    "question": one["question"],
                    "answer": answer["answer"],
                    "critiques": [dict(c) for c in told.get("critiques") or ()],
                    "rating": told.get("rating"),
                    "skip": bool(told.get("skip")),
                }
            )
    except (KeyError, TypeError, IndexError, AttributeError, ValueError):
        return []
    return found


def completions(value: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The answers of a record of UltraFeedback (Cui et al. 2023). Empty where the record has another shape."""
    given = value.get("completions")
    if not isinstance(given, list) or not all(isinstance(one, Mapping) for one in given):
        return []
    return [{**one, "instruction": value.get("instruction")} for one in given]


def _answered(row: Judged, asked: Any, answer: Any, at: str) -> Judged:
    if not row.faults:
        row.prompt = [{"role": "user", "content": asked}]
    if (fault := text_fault(answer, at)) is not None:
        row.faults.append(fault)
    row.completion = [{"role": "assistant", "content": answer}]
    return row


def _said(row: Judged, value: Mapping[str, Any], column: str, *, missing: bool = False) -> Judged:
    """Read the judgment of `column`, and a score. missing: a null is no verdict there, but one that is not there."""
    if column not in value or (missing and value[column] is None):
        fix = "write what is wrong with the answer, or null if nothing is"
        row.faults.append(Fault("missing_field", column, "is missing", fix))
        return row
    said = value[column]
    if said is not None and not isinstance(said, str):
        row.faults.append(Fault("wrong_type", column, "is no text", "write what is wrong with the answer, or null"))
    elif said is not None and said.strip() and (fault := text_fault(said, column)) is not None:
        row.faults.append(fault)
    else:
        row.judgment = said
    try:
        score = float(value["score"]) if value.get("score") not in (None, "") else None
    except (TypeError, ValueError, OverflowError):
        score = None  # UltraFeedback writes "N/A"
    row.score = score if score is not None and math.isfinite(score) else None
    return row


# -------------------------------------------------------------------------------------------------------- verdicts

_FAILED = re.compile(r"\W*(error|failed|n/?a|none|null|nan|timeout)\W*", re.IGNORECASE)
# A word begins with a letter: were `'s` one, n of them could be read in 2^n ways (test_praise_is_found_at_once).
_PRAISE = re.compile(
    r"\W*(?:(?:the|this|your|its?|that|overall|response|answer|output|assistant|is|was|looks|seems|appears|provided|"
    r"given|generated|completely|absolutely|entirely|already|very|quite|both|no|nothing|mistakes?|errors?|issues?|"
    r"wrong|found|with|there|are|in|it|to|be|s|a|an)\W+)*"
    r"(?:perfect|perfectly|flawless|excellent|correct|accurate|great|good|well-written|satisfactory|fine)\b",
    re.IGNORECASE,
)
_DOUBT = re.compile(
    r"\b(but|however|although|though|except|unless|almost|nearly|mostly|largely|somewhat|partially|partly|"
    r"(?:not|\w+n['’]t|never|less than) (?:\w+ )?(?:perfect|correct|accurate|good|fine)|missing|miss(?:es|ed)|"
    r"lack(?:s|ed|ing)?|incorrect(?:ly)?|inaccurate|unnecessary|should(?:n't)?|could(?:n't)? (?:be|have)|"
    r"would (?:be|have been) (?:better|more)|improve\w*|forgot|fails?|failed|instead of|too \w+|"
    r"(?<!nothing )(?<!anything )wrong|(?<!no )(?<!any )(?:mistakes?|errors?|issues?))\b",
    re.IGNORECASE,
)


def is_failed(text: str) -> bool:
    """Whether a judgment is the mark of a call that failed, such as `$ERROR$`."""
    return _FAILED.fullmatch(text.strip()) is not None


def is_praise(text: str) -> bool:
    """Whether a judgment calls the answer perfect, correct or the like at once and doubts it nowhere.

    "Perfect.", "perfect!" and "The response is perfect. It names …" are; "The response is almost perfect" and
    "Perfect, but …" are criticism.
    """
    return _PRAISE.match(text.strip()) is not None and _DOUBT.search(text) is None


def decide(row: Judged, section: PreferencesSection) -> str:
    """Settle what a row says, by the section's rules; returns what is to be counted of it.

    criticised, satisfactory; praised or scored for one that is satisfactory by its text or score and not by a null.
    `row.left_out` says why a row is dropped.
    """
    if row.left_out is None and row.judgment is not None:
        if not row.judgment.strip():
            row.left_out = Fault("empty_judgment", "judgment", "is empty", "")
        elif is_failed(row.judgment):
            row.left_out = Fault("failed_judgment", "judgment", f"is {row.judgment.strip()!r}: the call failed", "")
    if row.left_out is not None:
        return ""
    if row.judgment is None:
        return "satisfactory"
    if section.satisfactory_score is not None and row.score is not None and row.score >= section.satisfactory_score:
        row.judgment = None
        return "scored"
    if section.praise != "keep" and is_praise(row.judgment):
        if section.praise == "reject":
            row.left_out = Fault("only_praise", "judgment", "only praises the answer", "")
        row.judgment = None
        return "praised"
    return "criticised"


def judgment_row(
    row: Judged, source: str, weight: float | None, own_id: str | None, facts: Mapping[str, Any]
) -> JudgmentRow:
    """The row that is trained on."""
    prompt = prompt_id(row.prompt)
    answer = facts.get("completion_id") or completion_id(prompt, message_text(row.completion[0]), 0)
    return {
        "id": own_id or content_id("judgment", prompt, answer, row.judgment),
        "prompt_id": prompt,
        "prompt": row.prompt,
        "completion": row.completion,
        "judgment": row.judgment,
        "score": row.score,
        "weight": weight,
        "source": facts.get("source") or source,
        "completion_id": answer,
        "finish": facts.get("finish") or None,
        "evidence": facts.get("evidence") or [],
    }


def verdicts_line(verdicts: Mapping[str, int]) -> str:
    """What a file of judgments says of its answers, in one line; `verdicts` as `decide` counts them."""
    line = f"{verdicts.get('criticised', 0):,} answers criticised, {verdicts.get('satisfactory', 0):,} satisfactory"
    more = [("praised", "more satisfactory because the judgment only praises"), ("scored", "more by their score")]
    return line + "".join(f", {verdicts[name]:,} {what}" for name, what in more if verdicts.get(name))
