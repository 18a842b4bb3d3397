"""What the columns of preference data mean: one layout for each way in which people write them.

A layout says which columns it reads and which ones it knows and leaves, and turns a row into a prompt with a chosen
answer, a rejected one, or both. `layout_of` recognises it by the columns of a file's first row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from prefloop.inputs import ballots, judgments, sharegpt
from prefloop.inputs.hh import SPEAKER, dialogue
from prefloop.inputs.lima import lima_prompt
from prefloop.inputs.messages import Fault, messages_of, order_faults, text_fault
from prefloop.inputs.votes import Parse
from prefloop.records import Message, PreferenceRow

NUMBERS = ("weight", "margin", "label", "score_chosen", "score_rejected")
"""Columns that a layout of pairs may have, each a number; of single answers there is a weight alone."""


@dataclass
class Answers:
    """What a row says; it means something only without faults.

    Attributes:
        chosen, rejected: one turn of the assistant each; None where the row has no such answer, but not both.
    """

    prompt: list[Message] = field(default_factory=list)
    chosen: list[Message] | None = None
    rejected: list[Message] | None = None
    faults: list[Fault] = field(default_factory=list)


@dataclass(frozen=True)
class Layout:
    """One way to write preference data.

    Attributes:
        reads: its columns, beside `id` and `numbers`; the first is where a prompt stands.
        leaves: columns that its files are known to have and that are not read.
        own: a format of ours, or one in which our names are used: any other column is an error.
        ballot: what a row of votes means, where several make a preference; `parse` gets what is counted from them.
        judged: what a row of written judgments means; such a layout gives no preferences, and `parse` is not asked.
        parts: takes a record of several judgments apart, each a row; none where it has another shape.
        part: what each of them is called.
    """

    name: str
    parse: Callable[[Mapping[str, Any]], Answers]
    reads: tuple[str, ...]
    leaves: tuple[str, ...] = ()
    numbers: tuple[str, ...] = NUMBERS
    own: bool = False
    ballot: Parse | None = None
    judged: Callable[[Mapping[str, Any]], judgments.Judged] | None = None
    parts: Callable[[Mapping[str, Any]], list[Mapping[str, Any]]] | None = None
    part: str = ""


# ------------------------------------------------------------------------------------------------------------- pairs


def _preference(value: Mapping[str, Any]) -> Answers:
    """`chosen` and `rejected`, texts or messages of the assistant, behind `prompt`.

    One of the two may be null: a good or a bad answer that stands alone. Without `prompt` both hold the whole
    conversation, as older data sets do; what they share up to the last common turn that is not the assistant's is
    the prompt then.
    """
    row = Answers()
    texts, sides = {}, {}
    for side in ("chosen", "rejected"):
        if side not in value:
            fix = "a preference needs chosen and rejected; null where there is no such answer"
            row.faults.append(Fault("missing_field", side, "is missing", fix))
        elif value[side] is not None:
            blank = value.get(f"{side}_finish") is not None  # what a model said, if it said nothing
            sides[side], found = messages_of(value[side], side, as_role="assistant", blank=blank)
            row.faults += found
            if isinstance(value[side], str):
                texts[side] = value[side]
    if not row.faults and not sides:
        row.faults.append(Fault("missing_field", "chosen", "is null, and so is rejected", "write one of them"))
    explicit = value.get("prompt") is not None
    if explicit:
        row.prompt, found = messages_of(value["prompt"], "prompt")
        row.faults += found or order_faults(row.prompt, "prompt", last="user")
    if row.faults:
        return row
    if not explicit:
        _split_shared(row, sides, texts)
    else:
        # Some data sets repeat the prompt in front of both answers.
        sides = {s: turns[len(row.prompt) :] if _begins(turns, row.prompt) else turns for s, turns in sides.items()}
    for side, turns in sides.items() if not row.faults else ():
        row.faults += _answer_faults(turns, side)
    row.chosen, row.rejected = sides.get("chosen"), sides.get("rejected")
    return _different(row, "rejected")


def _begins(turns: list[Message], prompt: list[Message]) -> bool:
    return len(turns) > len(prompt) and turns[: len(prompt)] == prompt


def _answer_faults(turns: list[Message], side: str) -> list[Fault]:
    """An answer is one turn of the assistant: whatever comes before it belongs to the prompt."""
    if turns[0]["role"] != "assistant":
        reason = f"begins with a turn of {turns[0]['role']}, not the assistant's"
        return [Fault("role_order", side, reason, f"keep only the answer in {side}")]
    faults = order_faults([{"role": "user", "content": "…"}, *turns], side, last="assistant")
    if not faults and len(turns) > 1:
        reason = f"holds {len(turns)} turns, and an answer is one turn of the assistant"
        faults = [Fault("role_order", side, reason, "put the earlier turns into prompt, or take the row out")]
    return faults


def _different(row: Answers, place: str) -> Answers:
    if not row.faults and row.chosen == row.rejected:
        fix = "take the row out: a pair of equal answers teaches nothing"
        row.faults.append(Fault("same_answers", place, "the same as chosen", fix))
    return row


def _split_shared(row: Answers, sides: dict[str, list[Message]], texts: dict[str, str]) -> None:
    """Take what two whole conversations share out of them and make it the prompt."""
    fix = "write the prompt into `prompt`, or the whole conversation into chosen and rejected"
    missing = [Fault("missing_field", "prompt", "is missing, and chosen and rejected share no first turn", fix)]
    if len(sides) < 2 and not texts:
        ((side, turns),) = sides.items()
        alone = _demonstration(turns, side)
        row.prompt, row.faults, sides[side] = alone.prompt, alone.faults, turns[-1:]
        return
    if len(sides) < 2 or len(texts) == 1:
        row.faults += missing
        return
    if texts and all(SPEAKER.match(text) for text in texts.values()):
        for side, text in texts.items():
            sides[side] = dialogue(text)
            row.faults += [f for turn in sides[side] if (f := text_fault(turn["content"], side)) is not None][:1]
    elif texts:
        _split_texts(row, sides, texts)
        row.faults += [] if row.prompt else missing
        return
    chosen, rejected = sides["chosen"], sides["rejected"]
    same = next((i for i, (a, b) in enumerate(zip(chosen, rejected)) if a != b), min(len(chosen), len(rejected)))
    # The last turn is an answer even where both are equal.
    same = min(same, len(chosen) - 1, len(rejected) - 1)
    while same and chosen[same - 1]["role"] not in ("user", "tool"):
        same -= 1
    if not same:
        row.faults += missing
        return
    row.prompt = chosen[:same]
    row.faults += order_faults(row.prompt, "chosen", last="user")
    for side in sides:
        sides[side] = sides[side][same:]


def _split_texts(row: Answers, sides: dict[str, list[Message]], texts: dict[str, str]) -> None:
    """Two texts share whole words: up to the white space before the first difference."""
    chosen, rejected = texts["chosen"], texts["rejected"]
    same = next((i for i, (a, b) in enumerate(zip(chosen, rejected)) if a != b), min(len(chosen), len(rejected)))
    while same and not chosen[same - 1].isspace():
        same -= 1
    if not chosen[:same].strip():
        return
    row.prompt = [{"role": "user", "content": chosen[:same].strip()}]
    for side, text in texts.items():
        answer = text[same:].strip()
        fault = text_fault(answer, side)
        row.faults += [] if fault is None else [replace(fault, reason="has nothing behind the words that both share")]
        sides[side] = [{"role": "assistant", "content": answer}]


def _pku(value: Mapping[str, Any]) -> Answers:
    """Two responses and the number of the better one (Ji et al. 2024, PKU-SafeRLHF)."""
    row = Answers()
    row.prompt, row.faults = messages_of(value.get("prompt"), "prompt")
    row.faults = row.faults or order_faults(row.prompt, "prompt", last="user")
    responses = []
    for name in ("response_0", "response_1"):
        turns, found = messages_of(value.get(name), name, as_role="assistant")
        row.faults += found or _answer_faults(turns, name)
        responses.append(turns)
    better = value.get("better_response_id")
    if str(better) not in ("0", "1"):
        kind: Any = "missing_field" if better is None else "wrong_value"
        reason = "is missing" if better is None else f"is {better!r}"
        row.faults.append(Fault(kind, "better_response_id", reason, "write the number of the better response, 0 or 1"))
    else:
        row.chosen, row.rejected = responses[int(better)], responses[1 - int(better)]  # type: ignore[arg-type]
    return _different(row, "response_1")


# -------------------------------------------------------------------------------------------------- single answers


def _demonstration(turns: list[Message], at: str) -> Answers:
    """A whole conversation: its last turn is the answer, everything before it the prompt."""
    faults = order_faults(turns, at, last="assistant")
    if not faults and len(turns) < 2:
        faults = [Fault("role_order", at, "has no turn of the user before the answer", "put the user's turn first")]
    return Answers(turns[:-1], turns[-1:], None, faults)


def _messages(value: Mapping[str, Any]) -> Answers:
    turns, faults = messages_of(value.get("messages"), "messages")
    return Answers(faults=faults) if faults else _demonstration(turns, "messages")


def _completion(value: Mapping[str, Any]) -> Answers:
    """`completion`, the answer to `prompt`."""
    row = Answers()
    row.prompt, row.faults = messages_of(value.get("prompt"), "prompt")
    row.faults = row.faults or order_faults(row.prompt, "prompt", last="user")
    turns, found = messages_of(value.get("completion"), "completion", as_role="assistant")
    row.faults += found or _answer_faults(turns, "completion")
    row.chosen = turns
    return row


_VERDICTS = {"true": True, "1": True, "false": False, "0": False}


def _unpaired(value: Mapping[str, Any]) -> Answers:
    """An answer (`completion`, or the last of `messages`) and `label`: whether it is a good one."""
    row = _messages(value) if value.get("messages") is not None else _completion(value)
    label = value.get("label")
    good = _VERDICTS.get(str(label).strip().lower()) if isinstance(label, bool | int | str) else None
    if good is None:
        kind: Any = "missing_field" if label is None else "wrong_value"
        reason = "is missing" if label is None else f"is {label!r}"
        row.faults.append(Fault(kind, "label", reason, "write true for a good answer, false for a bad one"))
    elif not good:
        row.chosen, row.rejected = None, row.chosen
    return row


# ------------------------------------------------------------------------------------------- lists of conversations


def _sharegpt(value: Mapping[str, Any]) -> Answers:
    turns, faults = sharegpt.turns_of(value.get("conversations"), "conversations")
    if not faults:
        turns, faults = sharegpt.with_system(value, turns)
    return Answers(faults=faults) if faults else _demonstration(turns, "conversations")


def _sharegpt_pairs(value: Mapping[str, Any]) -> Answers:
    """`conversations` is the prompt; `chosen` and `rejected` are one turn each (LLaMA-Factory's ranking data)."""
    row = Answers()
    row.prompt, row.faults = sharegpt.turns_of(value.get("conversations"), "conversations")
    if not row.faults:
        row.prompt, row.faults = sharegpt.with_system(value, row.prompt)
    row.faults = row.faults or order_faults(row.prompt, "conversations", last="user")
    sides = {}
    for side in ("chosen", "rejected"):
        given = value.get(side)
        turns, found = sharegpt.turns_of([given] if isinstance(given, dict) else given, side)
        if isinstance(given, str) and not found:
            turns = [{"role": "assistant", "content": given}]
        row.faults += found or _answer_faults(turns, side)
        sides[side] = turns
    row.chosen, row.rejected = sides["chosen"], sides["rejected"]
    return _different(row, "rejected")


def _lima(value: Mapping[str, Any]) -> Answers:
    """LIMA's conversations: the last answer, with everything before it as the prompt."""
    texts = value.get("conversations")
    prompt, faults = lima_prompt(texts)
    if faults or not isinstance(texts, list):
        return Answers(faults=faults)
    answer = texts[-1]
    if len(texts) % 2:
        fix = "end with an answer, or take the row out: there is nothing to learn from it"
        return Answers(faults=[Fault("role_order", "conversations", "ends with the user, without an answer", fix)])
    fault = text_fault(answer, f"conversations[{len(texts) - 1}]")
    return Answers(prompt, [{"role": "assistant", "content": answer}], None, [fault] if fault else [])


# -------------------------------------------------------------------------------------------------------- the table

_PKU_LEFT = (
    *("prompt_source", "response_0_source", "response_1_source", "safer_response_id"),
    *("is_response_0_safe", "is_response_1_safe", "response_0_sha256", "response_1_sha256"),
    *("response_0_harm_category", "response_1_harm_category"),
    *("response_0_severity_level", "response_1_severity_level"),
)
_SINGLE = ("weight",)
_VOTES, _RATINGS = ("prompt", "answer_a", "answer_b", "vote"), ("prompt", "answer", "rating")
_ARGILLA_LEFT = ("suggestions", "metadata", "vectors", "status", "_server_id", "external_id")
_JUDGMENT = ("prompt", "completion", "judgment", "score", "source", "completion_id", "finish", "evidence")
_CUT = ("instruction", "input", "output", "judgment", "score")
_SHEPHERD, _SHEPHERD_LEFT = ("question", "answer", "feedback"), ("dataset", "prompt", "metadata", "context")
_ULTRA_LEFT = ("source", "models", "correct_answers", "incorrect_answers")
_OWN = tuple(c for c in PreferenceRow.__annotations__ if c not in ("id", "prompt", "chosen", "rejected", *NUMBERS))

LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout("preference", _preference, ("prompt", "chosen", "rejected", "tools", *_OWN), own=True),
        Layout("unpaired", _unpaired, ("prompt", "completion", "messages", "label", "tools"), numbers=_SINGLE),
        Layout("completion", _completion, ("prompt", "completion", "tools"), numbers=_SINGLE),
        Layout("messages", _messages, ("messages", "tools"), numbers=_SINGLE),
        Layout("sharegpt_pairs", _sharegpt_pairs, ("conversations", "chosen", "rejected", "system", "tools")),
        Layout("sharegpt", _sharegpt, ("conversations", "system", "tools"), numbers=_SINGLE),
        Layout("pku", _pku, ("prompt", "response_0", "response_1", "better_response_id"), _PKU_LEFT),
        Layout("lima", _lima, ("conversations",), ("source",), numbers=_SINGLE),
        Layout("votes", _preference, (*_VOTES, "voter"), ("comment",), (), own=True, ballot=ballots.vote),
        Layout("ratings", _preference, (*_RATINGS, "voter"), ("comment",), (), own=True, ballot=ballots.rating),
        Layout("argilla", _preference, ("fields", "responses"), _ARGILLA_LEFT, (), ballot=ballots.argilla),
        Layout("judgment", _preference, _JUDGMENT, ("prompt_id",), _SINGLE, own=True, judged=judgments.judgment),
        Layout("cut", _preference, _CUT, ("i_ans", "reason", "ref"), (), judged=judgments.cut),
        Layout("shepherd", _preference, _SHEPHERD, _SHEPHERD_LEFT, (), judged=judgments.shepherd),
        Layout(
            *("critiques", _preference, ("data",), (), ()),
            judged=judgments.critique,
            parts=judgments.questions,
            part="question",
        ),
        Layout(
            *("ultrafeedback", _preference, ("instruction", "completions"), _ULTRA_LEFT, ()),
            judged=judgments.completion,
            parts=judgments.completions,
            part="answer",
        ),
    )
}


def layout_of(value: Mapping[str, Any]) -> Layout | None:
    """The layout of a file, by the columns of its first row; None where they are no preference data."""
    if "response_0" in value and "response_1" in value:
        name = "pku"
    elif "vote" in value and "answer_a" in value:
        name = "votes"
    elif "rating" in value and "answer" in value:
        name = "ratings"
    elif "fields" in value and "responses" in value:
        name = "argilla"
    elif "conversations" in value:
        turns = value["conversations"]
        texts = isinstance(turns, list) and bool(turns) and isinstance(turns[0], str)
        pairs = "chosen" in value or "rejected" in value
        name = "lima" if texts else "sharegpt_pairs" if pairs else "sharegpt"
    elif "chosen" in value or "rejected" in value:
        name = "preference"
    elif "judgment" in value and ("completion" in value or "output" in value):
        name = "judgment" if "completion" in value else "cut"
    elif "question" in value and "answer" in value and "feedback" in value:
        name = "shepherd"
    elif isinstance(value.get("data"), Mapping) and "questions" in value["data"]:
        name = "critiques"
    elif "instruction" in value and isinstance(value.get("completions"), list):
        name = "ultrafeedback"
    elif "completion" in value or "messages" in value:
        named = "completion" if "completion" in value else "messages"
        name = "unpaired" if "label" in value else named
    else:
        return None
    return LAYOUTS[name]
