"""Preference rows -> token ids, in the form that an objective takes.

A reader of rows goes through once, one row after the other: a million rows need the memory of one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Literal, cast

from prefloop.engine.tokens import PromptError, encode_call, encode_completion, encode_prompt
from prefloop.errors import UsageError
from prefloop.records import JudgmentRow, Message, PreferenceRow, RejectRow, canonical_json, content_id
from prefloop.train.judged import JudgedPrompt

STAGE = "train"
LARGEST = 1e30
"""Of a weight, margin or score: float32 computes with it, and nobody means more."""

Takes = Literal["pairs", "answers", "unpaired", "lists", "judgments"]
"""What an objective reads from preference rows, or from judgment rows.

pairs: the chosen and the rejected answer (K = 2). answers: the chosen ones alone, each once (K = 1). unpaired: each
answer on its own, with label 1 or 0, and behind it an answer to another prompt (K = 2), from which the objective
estimates how far the policy has moved. lists: all answers to a prompt in the order of their scores (K >= 2).
judgments: an answer (K = 1); where a judgment criticises it, behind the prompt with the judgment in it as well.
"""
UNREAD: dict[Takes, dict[Literal["margin", "label"], float]] = {
    "pairs": {},
    "answers": {"margin": 0.0, "label": 1.0},
    "unpaired": {"label": 1.0},
    "lists": {"margin": 0.0, "label": 1.0},
    "judgments": {},
}
"""Columns of preference rows that mean nothing to such an objective, and the value that says nothing anyway."""


@dataclass(frozen=True)
class Example:
    """One prompt with its responses.

    Attributes:
        id: the preference row's id, or one made of several.
        prompt_ids, responses: a response ends with the model's end of turn unless it was cut off.
        weight, margin: what the loss uses; 1 and 0 where the row has none.
        label: the probability that the first response is the better one (pairs), or whether it is a good one
            (unpaired); 1 where the row has none.
        reference: summed log-probabilities of the responses in nats under the frozen start, once computed.
        judged_ids: the prompt with a judgment of the response in it; empty where there is none.
        flags: which of the response's tokens a frozen model found the judgment to speak of, once computed.
    """

    id: str
    prompt_ids: tuple[int, ...]
    responses: tuple[tuple[int, ...], ...]
    weight: float = 1.0
    margin: float = 0.0
    label: float = 1.0
    reference: tuple[float, ...] | None = None
    judged_ids: tuple[int, ...] = ()
    flags: tuple[bool, ...] | None = None

    @property
    def contexts(self) -> tuple[tuple[int, ...], ...]:
        """The prompts behind which the responses are scored."""
        return (self.prompt_ids, self.judged_ids) if self.judged_ids else (self.prompt_ids,)

    @property
    def tokens(self) -> int:
        """Tokens of the responses, each with its own copy of each prompt."""
        return sum(len(prompt) + len(r) for prompt in self.contexts for r in self.responses)


class Encoder:
    """Preference rows -> examples and rejects. What cannot be trained on as it is becomes a reject with its reason,
    never a shorter answer.

    Args:
        end_of_turn: the id that ends every answer.
        max_length: of the prompt with any one response, in tokens.
        judged: how a judgment is put into a prompt, where judgments are taken.
    """

    def __init__(
        self, tokenizer: Any, end_of_turn: int, max_length: int, takes: Takes, judged: JudgedPrompt | None = None
    ) -> None:
        self.tokenizer, self.end_of_turn, self.max_length, self.takes = tokenizer, end_of_turn, max_length, takes
        self.judged = judged

    @property
    def identity(self) -> list[Any]:
        """All that determines the ids of a row."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        vocabulary = sorted(self.tokenizer.get_vocab().items()) if backend is None else backend.to_str()
        own = [vocabulary, self.tokenizer.chat_template, self.end_of_turn, self.max_length, self.takes]
        return own if self.judged is None else [*own, self.judged.sha]

    def __call__(self, rows: Iterable[PreferenceRow]) -> Iterator[tuple[str, list[Example] | RejectRow]]:
        """Yields (prompt id, examples or reject) for each row, or for each prompt's rows where they make one list.

        Raises:
            UsageError: a weight, margin or label is not finite; rows of one prompt that do not stand together, or
                without scores, where lists are asked for.
        """
        if self.takes != "judgments":
            rows = map(_as_preference, rows)
        if self.takes == "lists":
            yield from self._lists(rows)
            return
        if self.takes == "unpaired":
            yield from self._unpaired(rows)
            return
        if self.takes == "judgments":
            for row in rows:
                found = self._judgment(cast(JudgmentRow, row))
                yield row["prompt_id"], _reject(row, found) if isinstance(found, str) else [found]
            return
        seen: set[str] = set()
        for row in rows:
            found = self._pair(row)
            if isinstance(found, str):
                yield row["prompt_id"], _reject(row, found)
            elif self.takes == "pairs":
                yield row["prompt_id"], [found]
            else:
                key = content_id(found.prompt_ids, found.responses[0])
                again = _reject(row, "the same answer to the same prompt as in an earlier row")
                yield row["prompt_id"], again if key in seen else [replace(found, responses=found.responses[:1])]
                seen.add(key)

    def _unpaired(self, rows: Iterable[PreferenceRow]) -> Iterator[tuple[str, list[Example] | RejectRow]]:
        """The strangers of a row are the answers of the last row of the prompt before; the first prompt waits."""
        waiting: list[tuple[PreferenceRow, Example]] = []
        prompt = ""
        last: tuple[tuple[int, ...], ...] = ()
        strangers: tuple[tuple[int, ...], ...] = ()
        for row in rows:
            found = self._pair(row)
            if isinstance(found, str):
                yield row["prompt_id"], _reject(row, found)
                continue
            if row["prompt_id"] != prompt:
                prompt, strangers = row["prompt_id"], last
                if strangers:
                    for early, pair in waiting:
                        yield early["prompt_id"], self._singles(early, pair, found.responses)
                    waiting = []
            last = found.responses
            if strangers:
                yield prompt, self._singles(row, found, strangers)
            else:
                waiting.append((row, found))
        for row, _ in waiting:
            yield row["prompt_id"], _reject(row, "all rows have the same prompt, and a drift needs answers to another")

    def _singles(self, row: PreferenceRow, found: Example, strangers: tuple[tuple[int, ...], ...]) -> list[Example]:
        """Each answer with a stranger of its own kind, so that the strangers are as good and as bad as the answers.

        Each has half of the margin by which the chosen answer is to lead, as in the losses of two fixed points.
        """
        room = self.max_length - len(found.prompt_ids)  # a stranger is cut where it would not fit: it is not learned
        sides = [side for side, answer in _answers(row) if answer is not None]
        return [
            replace(
                found,
                id=f"{found.id}/{side}",
                responses=(response, strangers[min(place, len(strangers) - 1)][:room]),
                margin=found.margin / 2,
                label=float(side == "chosen"),
            )
            for place, (side, response) in enumerate(zip(sides, found.responses, strict=True))
        ]

    def _lists(self, rows: Iterable[PreferenceRow]) -> Iterator[tuple[str, list[Example] | RejectRow]]:
        done: set[str] = set()
        for prompt, group in groupby(rows, key=lambda row: row["prompt_id"]):
            members = list(group)
            if prompt in done:
                raise UsageError(
                    "the rows of one prompt do not stand together, so no list of its answers can be made",
                    where=f"row {members[0]['id']}",
                    fix="sort the rows by prompt",
                )
            done.add(prompt)
            scores: dict[tuple[int, ...], float] = {}
            reason = ""
            prompt_ids: tuple[int, ...] = ()
            for row in members:
                found = self._pair(row)
                if isinstance(found, str):
                    reason = found
                    break
                prompt_ids = found.prompt_ids
                for response, score in zip(found.responses, _scores(row), strict=True):
                    if scores.setdefault(response, score) != score:
                        reason = "one answer of the prompt has two scores"
            if not reason and len({row["weight"] for row in members}) > 1:
                reason = "the rows of the prompt have several weights, and make one list"
            if not reason and len(set(scores.values())) < len(scores):
                reason = "two answers of the prompt have the same score, so they have no order"
            if reason:
                for row in members:
                    yield prompt, _reject(row, reason)
            else:
                order = sorted(scores, key=lambda response: -scores[response])
                weight = _number(members[0]["weight"], 1.0, members[0]["id"], "weight")
                yield prompt, [Example(members[0]["id"], prompt_ids, tuple(order), weight=weight)]

    def _pair(self, row: PreferenceRow) -> Example | str:
        """The row's prompt and answers, or why they cannot be trained on. Two answers, or one where that will do."""
        sides = [(side, answer) for side, answer in _answers(row) if answer is not None]
        missing = {"chosen", "rejected"} - {side for side, _ in sides}
        needed = {"answers": {"chosen"}, "unpaired": set[str]()}.get(self.takes, {"chosen", "rejected"})
        if missing & needed or not sides:
            return f"no {min(missing)} answer"
        if self.takes == "answers":
            sides = sides[:1]
        for side, answer in sides:
            roles = [m["role"] for m in answer]
            if roles != ["assistant"]:
                return f"{side} is to be one assistant turn, not {roles}; earlier turns belong to the prompt"
        finish = {"chosen": row["chosen_finish"], "rejected": row["rejected_finish"]}
        try:
            prompt_ids = encode_prompt(self.tokenizer, row["prompt"])
            responses = tuple(self._response(row["prompt"], answer[0], finish[side]) for side, answer in sides)
        except PromptError as error:
            return error.what
        for (side, _), response in zip(sides, responses, strict=True):
            if not response:
                # Cut off before its first character; an empty answer that ended on its own has its end of turn.
                return f"the {side} answer is empty and was cut off"
        if len(set(responses)) < len(responses):
            return "the chosen and the rejected answer are the same tokens"
        if len(prompt_ids) + max(map(len, responses)) > self.max_length:
            return f"more tokens than max_length {self.max_length}"
        return Example(
            id=row["id"],
            prompt_ids=tuple(prompt_ids),
            responses=responses,
            weight=_number(row["weight"], 1.0, row["id"], "weight"),
            margin=_number(row["margin"], 0.0, row["id"], "margin"),
            label=_probability(row["label"], row["id"]),
        )

    def _judgment(self, row: JudgmentRow) -> Example | str:
        """The row's answer behind its prompt and behind the judged one, or why they cannot be trained on."""
        assert self.judged is not None
        if "completion" not in row:
            raise UsageError(
                "the objective learns from written judgments, and these rows are preferences",
                where=f"row {row['id']}",
                fix="give judgments (docs/cut.md), or set train.objective to dpo, sft or kto",
            )
        roles = [m["role"] for m in row["completion"]]
        if roles != ["assistant"]:
            return f"the answer is to be one assistant turn, not {roles}; earlier turns belong to the prompt"
        try:
            prompt_ids = encode_prompt(self.tokenizer, row["prompt"])
            response = self._response(row["prompt"], row["completion"][0], row["finish"])
            judged_ids: list[int] = []
            if row["judgment"] is not None:
                judged_ids = encode_prompt(self.tokenizer, self.judged(row["prompt"], row["judgment"]))
        except UsageError as error:
            return error.what
        if not response:
            return "the answer is empty and was cut off"
        if max(len(prompt_ids), len(judged_ids)) + len(response) > self.max_length:
            return f"more tokens than max_length {self.max_length}"
        return Example(
            id=row["id"],
            prompt_ids=tuple(prompt_ids),
            responses=(response,),
            weight=_number(row["weight"], 1.0, row["id"], "weight"),
            judged_ids=tuple(judged_ids),
        )

    def _response(self, prompt: Sequence[Message], answer: Message, finish: str | None) -> tuple[int, ...]:
        # An end of turn behind an answer that was cut off would teach to stop in mid-sentence.
        end = None if finish == "length" else self.end_of_turn
        if answer.get("tool_calls"):
            called = encode_call(self.tokenizer, prompt, answer, self.end_of_turn)
            return tuple(called[:-1] if end is None else called)
        return tuple(encode_completion(self.tokenizer, answer["content"], end))


def _answers(row: PreferenceRow) -> tuple[tuple[str, list[Message] | None], ...]:
    return ("chosen", row["chosen"]), ("rejected", row["rejected"])


def _as_preference(row: PreferenceRow) -> PreferenceRow:
    """A judgment row as a good or a bad answer that stands alone; a preference row as it is."""
    if "completion" not in row:
        return row
    judged = cast(JudgmentRow, row)
    fine = judged["judgment"] is None
    return {
        "id": judged["id"],
        "prompt_id": judged["prompt_id"],
        "prompt": judged["prompt"],
        "chosen": judged["completion"] if fine else None,
        "rejected": None if fine else judged["completion"],
        "score_chosen": None,
        "score_rejected": None,
        "weight": judged["weight"],
        "margin": None,
        "label": None,
        "source": judged["source"],
        "strategy": "judgment",
        "chosen_id": judged["completion_id"] if fine else "",
        "rejected_id": "" if fine else judged["completion_id"],
        "chosen_finish": judged["finish"] if fine else None,
        "rejected_finish": None if fine else judged["finish"],
        "evidence": judged["evidence"],
    }


def _reject(row: PreferenceRow | JudgmentRow, reason: str) -> RejectRow:
    return {"id": row["id"], "stage": STAGE, "reason": reason, "attempts": 1, "row": canonical_json(row)}


def _scores(row: PreferenceRow) -> tuple[float, float]:
    scores = (row["score_chosen"], row["score_rejected"])
    if None in scores:
        raise UsageError(
            "no score: a list of answers is ordered by their scores",
            where=f"row {row['id']}",
            fix="train on pairs (objective dpo), or give score_chosen and score_rejected",
        )
    chosen, rejected = (_number(value, 0.0, row["id"], "score") for value in scores)
    return chosen, rejected


def _number(value: float | None, missing: float, row: str, column: str) -> float:
    if value is None:
        return missing
    if not abs(value) <= LARGEST:  # NaN compares as false
        raise UsageError(f"{value} is no {column}", where=f"row {row}", fix="give a number, or null for none")
    if column == "weight" and value < 0:
        raise UsageError(
            f"a weight of {value} would train away from the chosen answer",
            where=f"row {row}",
            fix="swap the answers, or give a weight of at least 0",
        )
    return value


def _probability(value: float | None, row: str) -> float:
    number = _number(value, 1.0, row, "label")
    if not 0 <= number <= 1:
        raise UsageError(
            f"a label of {number}: it is the probability that the chosen answer is the better one",
            where=f"row {row}",
            fix="give a number from 0 to 1, or null for certainty",
        )
    return number
