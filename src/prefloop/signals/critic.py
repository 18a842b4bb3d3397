"""Signal `critic`: says in words what is wrong with an answer, or that nothing is.

A language model writes the judgment, or a Python function does. Judgments are what CUT learns from; as a score an
answer has 1 where nothing is wrong and 0 where it is criticised.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from prefloop.backends.base import Frozen, GenerateRequest, Generation, Refusal, Result, Sampling
from prefloop.errors import PrefloopError, UsageError
from prefloop.inputs.judgments import is_praise
from prefloop.records import CandidatesRow, Message
from prefloop.signals import function, template
from prefloop.signals.base import Call, Rating

REPLY = (
    "Begin with one line: `Verdict: fine` if you find nothing wrong with the answer, otherwise `Verdict: flawed`. "
    "Below `Verdict: flawed` say exactly what is wrong, naming the words that are, in a few sentences. Do not praise, "
    "and do not write a better answer."
)
AGAIN = (
    "That reply cannot be read. Write `Verdict: fine` and nothing else, or `Verdict: flawed` and below it, in three "
    "sentences at most, what is wrong."
)
# The verdict may stand in bold or quoted, and models like to say a word before it.
_VERDICT = re.compile(r"\bverdict\W{1,6}(fine|flawed)\b[`*_.!\"' ]*", re.IGNORECASE)
VERDICTS = ("Verdict: fine", "Verdict: flawed")
_BEFORE = 200  # characters in front of the verdict; behind more it is part of something else


class CriticSignal:
    """Asks a model for each answer by itself, greedily; a reply that cannot be read is answered and asked for again.

    Both are recorded, as are all calls. What is refused or stays unreadable has neither judgment nor score.

    Args:
        template_name: as a judge's, of mode `critic`: shows `instruction` and `answer`, and `reply` for how to reply.
        retries: further tries for a reply without a verdict.
        backend: the model's name among the backends.
    """

    pairwise = False

    def __init__(self, template_name: str | None, max_new_tokens: int, retries: int, backend: str = "critic") -> None:
        self.template = template.load(template_name, "critic")
        self.max_new_tokens, self.retries, self.backend = max_new_tokens, retries, backend
        self.name = f"critic@{self.template.sha[:8]}"
        self.identity: dict[str, Any] = {
            "type": "critic",
            "template_sha": self.template.sha,
            "replies": [REPLY, AGAIN],
            "max_new_tokens": max_new_tokens,
            "retries": retries,
        }

    def rate(self, row: CandidatesRow) -> Generator[list[Call], list[Result], Rating]:
        """A judgment of every completion."""
        instruction = template.conversation(row["prompt"])
        answers = [c["text"] for c in row["completions"]]
        asked: dict[int, Frozen] = {
            i: (("user", _question(self.template, instruction, text)),) for i, text in enumerate(answers)
        }
        verdicts: list[tuple[bool, str | None]] = [(False, None)] * len(answers)
        counts: defaultdict[str, float] = defaultdict(float)
        for attempt in range(1 + self.retries):
            if not asked:
                break
            counts["asked_again"] += len(asked) if attempt else 0
            sampling = Sampling(max_new_tokens=self.max_new_tokens, temperature=0.0)
            results = yield [Call(self.backend, GenerateRequest(messages, sampling)) for messages in asked.values()]
            again: dict[int, Frozen] = {}
            for (i, messages), result in zip(asked.items(), results, strict=True):
                if isinstance(result, Refusal) or not isinstance(result, Generation):
                    counts["refused"] += 1
                elif (found := read(result.text, cut=result.finish_reason == "length")) is not None:
                    verdicts[i] = (True, found[0])
                else:
                    counts["unparsed"] += 1
                    again[i] = (*messages, ("assistant", result.text), ("user", AGAIN))
            asked = again
        return _rating(verdicts, counts)

    def try_template(self) -> None:
        """Render the template once, so that what is wrong with it is found before any model is loaded."""
        _question(self.template, "a question", "an answer")


def demonstration(prompt: Sequence[Message], answer: str, judgment: str | None) -> tuple[list[Message], list[Message]]:
    """What `CriticSignal` asks about an answer by the built-in template, and the reply that says the judgment.

    A model that learned such replies is a critic: `rate: {type: critic, model: …}`.
    """
    asked = _question(template.load(None, "critic"), template.conversation(prompt), answer)
    fine, flawed = VERDICTS
    said = fine if judgment is None else f"{flawed}\n{judgment}"
    return [{"role": "user", "content": asked}], [{"role": "assistant", "content": said}]


def _question(form: template.JudgeTemplate, instruction: str, answer: str) -> str:
    return form.render({"instruction": instruction, "answer": answer}, reply=REPLY)


class FunctionCritic:
    """Judgments by a Python function of (prompt messages, completion text): a text, or None if nothing is wrong."""

    pairwise = False

    def __init__(self, path: str) -> None:
        self.path, self.function = path, function.load(path, "what is wrong as a text, or None")
        self.name = f"critic-{path}"
        self.identity: dict[str, Any] = function.identity(path) | {"type": "critic"}

    def rate(self, row: CandidatesRow) -> Generator[list[Call], list[Result], Rating]:
        """A judgment of every completion; asks no backend."""
        verdicts: list[tuple[bool, str | None]] = []
        for completion in row["completions"]:
            said = function.call(self.function, self.path, row["prompt"], completion["text"])
            if said is not None and not (isinstance(said, str) and said.strip()):
                fix = "return what is wrong with the answer as a text, or None if nothing is"
                raise UsageError(f"{self.path} returned {said!r}", fix=fix)
            verdicts.append((True, said))
        return _rating(verdicts, defaultdict(float))
        yield []  # makes this a generator, as every signal is


def read(text: str, *, cut: bool = False) -> tuple[str | None] | None:
    """The judgment in a reply, (None,) where it finds nothing wrong; None where it cannot be read.

    Args:
        text: the reply.
        cut: it was cut off, so a judgment in it would end in mid-sentence.
    """
    found = _VERDICT.search(text, 0, _BEFORE)
    if found is None:
        return None
    if found[1].lower() == "fine":
        return (None,)
    judgment = text[found.end() :].strip().strip("`").strip()
    return None if cut or not judgment or is_praise(judgment) else (judgment,)


def readable(prompt: Sequence[Message], completion: str) -> float:
    """A checker of a critic's replies: 1 where the verdict can be read, else 0."""
    return float(read(completion) is not None)


def _rating(verdicts: Sequence[tuple[bool, str | None]], counts: defaultdict[str, float]) -> Rating:
    """Of each answer: (whether there is a verdict, what is wrong with it)."""
    scores = [None if not known else float(judgment is None) for known, judgment in verdicts]
    counts["satisfactory"] += scores.count(1.0)
    counts["criticised"] += scores.count(0.0)
    return Rating(scores, dict(counts), judgments=[judgment for _, judgment in verdicts])


def card(counts: Mapping[str, float]) -> str | None:
    """What a critic found, in one line."""
    answers = counts.get("answers", 0)
    if not answers:
        return None
    line = f"critic: {counts.get('criticised', 0):,.0f} of {answers:,.0f} answers criticised"
    again, unscored = counts.get("asked_again", 0), counts.get("unscored", 0)
    return line + (f", {again:,.0f} asked again" if again else "") + (f", {unscored:,.0f} without" if unscored else "")


LEAST = 20
"""Answers before a critic that says nothing readable is stopped."""


def check(counts: Mapping[str, float], allowed: float, *, final: bool) -> None:
    """Stop where more answers than the allowed share have no judgment.

    Raises:
        PrefloopError: so it is, at the end or after `LEAST` answers.
    """
    answers, unscored = counts.get("answers", 0), counts.get("unscored", 0)
    if unscored > allowed * answers and (final or (answers >= LEAST and unscored > 0.5 * answers)):
        raise PrefloopError(
            f"the critic gave no judgment on {unscored:,.0f} of {answers:,.0f} answers (allowed: {allowed:.0%})",
            fix="look at its replies (prefloop inspect RUN --stage rate, and the calls beside it); take a larger "
            "critic, raise rate.max_new_tokens, or allow more with rate.max_null_share",
        )
