"""How people's verdicts are written: votes on pairs, ratings of single answers, Argilla's ranking records.

One function each, from a row to the ballots in it, or to what is wrong with it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from prefloop.inputs.messages import Fault, messages_of, order_faults, text_fault
from prefloop.inputs.problems import nearest
from prefloop.inputs.readers import json_type
from prefloop.inputs.votes import Ballot
from prefloop.records import Message


def _voter(value: Mapping[str, Any]) -> tuple[str | None, list[Fault]]:
    voter = value.get("voter")
    if voter is None or (isinstance(voter, str) and not voter.strip()):
        return None, []
    if isinstance(voter, bool) or not isinstance(voter, str | int):
        return None, [Fault("wrong_type", "voter", f"is a {json_type(voter)}", "write a name or a number")]
    return str(voter).strip(), []


def _prompt(value: Mapping[str, Any], at: str = "prompt") -> tuple[list[Message], list[Fault]]:
    prompt, faults = messages_of(value.get(at), at)
    return prompt, faults or order_faults(prompt, at, last="user")


_VOTES = {"a": (1.0, 0.0), "b": (0.0, 1.0), "tie": (0.0, 0.0)}


def vote(value: Mapping[str, Any]) -> tuple[list[Ballot], list[Fault]]:
    """`prompt`, `answer_a`, `answer_b` and `vote`: a, b or tie; `voter` where several vote."""
    prompt, faults = _prompt(value)
    voter, found = _voter(value)
    faults = faults + found
    for name in ("answer_a", "answer_b"):
        fault = text_fault(value.get(name), name)
        faults += [] if fault is None else [fault]
    given = value.get("vote")
    grades = _VOTES.get(given.strip().lower()) if isinstance(given, str) else None
    if grades is None:
        missing = given is None or given == ""
        reason = "is missing" if missing else f"is {given!r}"
        fix = "write a, b or tie; take rows out that nobody voted on"
        faults.append(Fault("missing_field" if missing else "wrong_value", "vote", reason, fix))
    if not faults and value["answer_a"].strip() == value["answer_b"].strip():
        faults.append(Fault("same_answers", "answer_b", "the same as answer_a", "take the row out"))
    if faults or grades is None:
        return [], faults
    return [Ballot(prompt, voter, {value["answer_a"]: grades[0], value["answer_b"]: grades[1]})], []


def rating(value: Mapping[str, Any]) -> tuple[list[Ballot], list[Fault]]:
    """`prompt`, `answer` and `rating`, a number, higher is better; `voter` where several rate."""
    prompt, faults = _prompt(value)
    voter, found = _voter(value)
    fault = text_fault(value.get("answer"), "answer")
    faults = faults + found + ([] if fault is None else [fault])
    given = value.get("rating")
    try:
        number = None if given is None or isinstance(given, bool) else float(given)
    except (TypeError, ValueError):
        number = None
    if number is None or number != number or number in (float("inf"), float("-inf")):
        missing = given is None or given == ""
        reason = "is missing" if missing else f"is {given!r}"
        faults.append(
            Fault("missing_field" if missing else "wrong_value", "rating", reason, "write a number, higher is better")
        )
    if faults or number is None:
        return [], faults
    return [Ballot(prompt, voter, {value["answer"]: number}, merges=True)], []


_PROMPT_FIELDS = ("prompt", "instruction", "question", "input", "query", "conversation", "chat")


def argilla(value: Mapping[str, Any]) -> tuple[list[Ballot], list[Fault]]:
    """A record of Argilla 2 with one RankingQuestion: `fields` and `responses`.

    An option of the question is a field with the answer: the field of its name, or the one whose name ends with it
    ("1" is `response-1`). A response holds the options from the best down, or each with its `rank`; equal ranks tie.
    """
    fields, responses = value.get("fields"), value.get("responses")
    for name, part in (("fields", fields), ("responses", responses)):
        if not isinstance(part, dict):
            kind: Any = "missing_field" if part is None else "wrong_type"
            reason = "is missing" if part is None else f"is a {json_type(part)}, not an object"
            return [], [Fault(kind, name, reason, "export the records with dataset.records.to_json(path)")]
    assert isinstance(fields, dict)
    assert isinstance(responses, dict)
    rankings = {name: given for name, given in responses.items() if _is_ranking(given)}
    if len(rankings) != 1:
        names = ", ".join(rankings) or "none"
        reason = f"holds responses to {len(rankings)} ranking questions ({names})"
        return [], [Fault("missing_field", "responses", reason, "keep one ranking question that was answered")]
    ((question, given),) = rankings.items()
    at = f"responses.{question}"
    ballots: list[Ballot] = []
    for index, response in enumerate(given):
        ranks, fault = _ranks(response.get("value"), f"{at}[{index}].value")
        if fault is None:
            places = {option: _field(option, fields) for option in ranks}
            fault = _place_fault(places, fields, f"{at}[{index}].value")
        if fault is not None:
            return [], [fault]
        asked, fault = _asked(fields, {place for place in places.values() if place})
        prompt, faults = _prompt(fields, asked) if fault is None else ([], [fault])
        if faults:
            return [], faults
        grades = {str(fields[place]): -ranks[option] for option, place in places.items() if place}
        voter = response.get("user_id")
        ballots.append(Ballot(prompt, None if voter is None else str(voter), grades))
    named = [ballot.voter for ballot in ballots if ballot.voter is not None]
    if len(set(named)) < len(named):
        return [], [Fault("duplicate_id", at, "holds two responses of one user_id", "keep one of them")]
    return ballots, []


def _is_ranking(given: Any) -> bool:
    """Responses whose values are lists of options; label and text questions have texts, ratings numbers.

    A multi-label question has lists of texts too, but names labels and not fields: such a record is refused later.
    """
    values = [r.get("value") for r in given if isinstance(r, dict)] if isinstance(given, list) else []
    return bool(values) and len(values) == len(given) and all(isinstance(value, list) for value in values)


def _ranks(options: list[Any], at: str) -> tuple[dict[str, float], Fault | None]:
    ranks: dict[str, float] = {}
    for place, item in enumerate(options, start=1):
        name = item.get("value") if isinstance(item, dict) else item
        rank = item.get("rank", place) if isinstance(item, dict) else place
        if not isinstance(name, str) or isinstance(rank, bool) or not isinstance(rank, int | float):
            return {}, Fault("wrong_value", at, f"holds {item!r}", "write options as texts, or {value, rank}")
        ranks[name] = rank if rank is not None else place
    if len(ranks) != len(options) or len(ranks) < 2:
        return {}, Fault("wrong_value", at, f"ranks {len(ranks)} different options", "rank two or more, each once")
    return ranks, None


def _field(option: str, fields: Mapping[str, Any]) -> str | None:
    if option in fields:
        return option
    ending = re.compile(rf"[\W_]{re.escape(option)}$|(?<=\D){re.escape(option)}$" if option.isdigit() else r"(?!)")
    found = [name for name in fields if ending.search(name)]
    return found[0] if len(found) == 1 else None


def _place_fault(places: Mapping[str, str | None], fields: Mapping[str, Any], at: str) -> Fault | None:
    for option, place in places.items():
        if place is None:
            meant = nearest(option, list(fields))
            fix = f"did you mean {meant!r}? " if meant else ""
            fix += "name each option as the field with its answer"
            return Fault("wrong_value", at, f"option {option!r} names no field ({', '.join(fields)})", fix)
        if (fault := text_fault(fields[place], f"fields.{place}")) is not None:
            return fault
    texts = [str(fields[place]).strip() for place in places.values() if place]
    if any(a == b for a, b in pairwise(sorted(texts))):
        return Fault("same_answers", "fields", "two of the answers are the same", "take the record out")
    return None


def _asked(fields: Mapping[str, Any], answers: set[str]) -> tuple[str, Fault | None]:
    """The field with the prompt: one of the usual names, or the only one that is no answer."""
    others = [name for name in fields if name not in answers]
    named = [name for name in _PROMPT_FIELDS if name in others]
    if not named and len(others) != 1:
        reason = f"nothing says which field is the prompt ({', '.join(others) or 'all are answers'})"
        return "", Fault("missing_field", "fields", reason, "call it prompt")
    return (named or others)[0], None
