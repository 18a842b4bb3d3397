"""How a judge is asked: forms of the verdict in order of preference, shorter answers where they do not fit, and what
is done about replies without a verdict.

For every question, in waves over all questions of a row:

1. the forms are gone through; one that the backend can serve none of (`Refusal.unsupported`) makes way for the next;
2. within a form, what does not fit the judge's context is asked again with its answers cut, all at one length, and by
   the brief form of the built-in prompt at last;
3. a written reply without a verdict is asked for once more, greedily, then once with the verdict alone;
4. what is left has no verdict: null, which is neither a tie nor a loss.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

from prefloop.backends.base import Choice, ChooseRequest, GenerateRequest, Generation, Refusal, Result, Sampling
from prefloop.signals.base import Call
from prefloop.signals.judge.verdicts import Form, Labelled, Verdict, json_schema, read, reply
from prefloop.signals.template import JudgeTemplate

# How short answers become for a judge whose context is too short: whole, then a half, a quarter, an eighth.
CUTS = (1, 2, 4, 8)

# Room for a bare verdict: a few tokens, and as many again for each text that it speaks of.
BARE_TOKENS, BARE_TOKENS_A_TEXT = 16, 6

# Begins the counts of nulls by their reason; behind it a kind and the reason in words.
NULL = "null:"
# Begins what a number of such a reason adds up to; behind it the number's place, from 0, and the name of the count.
SUM = "sum:"
_NUMBER = re.compile(r"\b[0-9]+\b")
UNSUPPORTED, TOO_LONG, REFUSED, UNREAD, MASS = "unsupported", "too_long", "refused", "unread", "mass"

Counts = defaultdict[str, float]
Numbers = list[float]
_Why = tuple[str, list[int]]
Asking = Generator[list[Call], list[Result], list[Numbers | None]]


@dataclass(frozen=True)
class Question:
    """Texts to be judged together, by their seats in the prompt, and what a verdict on them may be."""

    texts: tuple[str, ...]
    verdict: Verdict


@dataclass(frozen=True)
class Context:
    """What all questions on a row have in common.

    Attributes:
        instruction: the prompt as the judge reads it.
        rubric: see `Rubric.values`.
        reference: a right answer, if there is one.
    """

    instruction: str
    rubric: dict[str, Any]
    reference: str | None


@dataclass(frozen=True)
class _Rung:
    """One way to put a question: the prompt, and into how many parts answers are cut of which the first is shown."""

    template: JudgeTemplate
    cut: int


@dataclass(frozen=True)
class Manner:
    """How a judge is asked.

    Attributes:
        backend: its name among the signal's backends.
        template: its prompt.
        brief: the brief form of the built-in prompt; None where there is none.
        seats: the template's variables for the texts; one name for a list of all.
        forms: of the verdict, in the order of preference.
        samples: replies to one question, of which the mean counts; written forms only.
        temperature: of written replies.
        max_new_tokens: of written replies with reasons.
        min_label_mass: a chosen verdict is null when all labels together get less probability than this, 0..1.
        seed: of written replies at a temperature above 0.
    """

    backend: str
    template: JudgeTemplate
    brief: JudgeTemplate | None
    seats: tuple[str, ...]
    forms: tuple[Form, ...]
    samples: int
    temperature: float
    max_new_tokens: int
    min_label_mass: float
    seed: int = 0

    def by_seat(self, texts: Sequence[str]) -> dict[str, str | Sequence[str]]:
        """Texts by the template's variables for them."""
        return {"answers": texts} if self.seats == ("answers",) else dict(zip(self.seats, texts, strict=True))


class Asked:
    """The questions on one row, and what became of them.

    Args:
        manner: how the judge is asked.
        context: what the questions have in common.
        questions: what is asked.
        counts: verdicts, nulls, shortened (verdicts on answers that were cut), brief (verdicts by the brief prompt),
            by_choose, by_json and by_text (verdicts by their form), label_mass (its sum over by_choose),
            unequal_labels (chosen verdicts whose labels have different numbers of tokens), unparsed (written
            replies without a verdict), asked_again (further calls for that reason) and, under `NULL`, for each kind of
            reason and reason the nulls that it left ("null:unsupported:the server gives …"); under `SUM` what the
            numbers in a reason of `TOO_LONG` add up to.
    """

    def __init__(self, manner: Manner, context: Context, questions: Sequence[Question], counts: Counts) -> None:
        self.manner, self.context, self.questions, self.counts = manner, context, questions, counts
        self.found: list[Numbers | None] = [None] * len(questions)
        # What last stood in the way of each verdict.
        self.why: list[_Why] = [_why(UNREAD, "no form of the verdict was asked for")] * len(questions)

    def run(self) -> Asking:
        """The verdicts, one for each question; None where there is none."""
        waiting = list(range(len(self.questions)))
        for form in self.manner.forms:
            if waiting:
                waiting = yield from self._in_form(form, waiting)
        self.counts["verdicts"] += len(self.found)
        self.counts["nulls"] += self.found.count(None)
        for numbers, (why, said) in zip(self.found, self.why, strict=True):
            if numbers is None:
                self.counts[why] += 1
                for place, number in enumerate(said):
                    self.counts[f"{SUM}{place}:{why}"] += number
        self.counts["shortened"] += 0
        return self.found

    def _in_form(self, form: Form, waiting: list[int]) -> Generator[list[Call], list[Result], list[int]]:
        """Ask for verdicts in one form; returns the questions that the backend can serve none of in this form."""
        unsupported: list[int] = []
        unread: list[tuple[int, _Rung]] = []
        for rung in self._ladder():
            if not waiting:
                break
            samples = 1 if form == "choose" else self.manner.samples
            calls = [self._call(form, i, rung, sample=k) for i in waiting for k in range(samples)]
            results = yield calls
            too_long: list[int] = []
            for place, i in enumerate(waiting):
                replies = results[place * samples : (place + 1) * samples]
                refusals = [r for r in replies if isinstance(r, Refusal)]
                if refusals:
                    self.why[i] = _why(_kind(refusals[0]), refusals[0].reason)
                if any(refusal.unsupported for refusal in refusals):
                    unsupported.append(i)
                elif any(refusal.too_long for refusal in refusals):
                    too_long.append(i)
                elif not self._take(form, i, rung, replies) and len(refusals) < samples:
                    unread.append((i, rung))
            waiting = too_long
        if form != "choose":
            yield from self._again(form, unread)
        return unsupported

    def _again(self, form: Form, unread: list[tuple[int, _Rung]]) -> Generator[list[Call], list[Result], None]:
        """Replies without a verdict: once more greedily, where they were not greedy, then the verdict alone."""
        for bare in (False, True):
            # Asked in the same way, greedily and for the bare verdict already, the reply would be the same.
            asked = [(i, rung) for i, rung in unread if (not _is_bare(rung) if bare else self.manner.temperature > 0)]
            if not asked:
                continue
            self.counts["asked_again"] += len(asked)
            results = yield [self._call(form, i, rung, greedy=True, bare=bare) for i, rung in asked]
            for (i, rung), result in zip(asked, results, strict=True):
                if self._take(form, i, rung, [result], bare=bare):
                    unread.remove((i, rung))

    def _take(self, form: Form, i: int, rung: _Rung, replies: Sequence[Result], *, bare: bool = False) -> bool:
        """Read the replies to a question and keep the mean of their verdicts; False when there is none in them."""
        verdict = self.questions[i].verdict
        given: list[Numbers] = []
        for result in replies:
            numbers = None
            if isinstance(result, Choice) and isinstance(verdict, Labelled):
                self._count_choice(result, rung, i)
                numbers = self._chosen(verdict, result)
                if numbers is None:
                    self.why[i] = _why(MASS, "its labels got no probability, or less than min_label_mass")
            elif isinstance(result, Generation):
                cut = result.finish_reason == "length"
                numbers = read(form, verdict, result.text, bare=bare or _is_bare(rung), cut=cut)
                if numbers is None:
                    self.counts["unparsed"] += 1
                    said = "its reply was cut off before a verdict" if cut else "its reply held no verdict"
                    self.why[i] = _why(UNREAD, said)
            elif isinstance(result, Refusal):
                self.why[i] = _why(_kind(result), result.reason)
            if numbers is not None:
                given.append(numbers)
        if not given:
            return False
        self.found[i] = [math.fsum(column) / len(given) for column in zip(*given, strict=True)]
        if form != "choose":
            self._count_shown(form, rung, i)
        return True

    def _count_choice(self, choice: Choice, rung: _Rung, i: int) -> None:
        self._count_shown("choose", rung, i)
        self.counts["label_mass"] += choice.label_mass
        self.counts["unequal_labels"] += len(set(choice.label_tokens)) > 1

    def _count_shown(self, form: Form, rung: _Rung, i: int) -> None:
        self.counts[f"by_{form}"] += 1
        self.counts["shortened"] += self._shown(i, rung) != self.questions[i].texts
        self.counts["brief"] += rung.template is self.manner.brief

    def _chosen(self, verdict: Labelled, choice: Choice) -> Numbers | None:
        mass = choice.label_mass
        # `not >` also catches NaN; without any mass the labels' probabilities are not defined.
        if not mass > 0 or mass < self.manner.min_label_mass:
            return None
        return verdict.expected(choice.probabilities)

    def _ladder(self) -> list[_Rung]:
        prompts = [self.manner.template] + ([] if self.manner.brief is None else [self.manner.brief])
        return [_Rung(prompt, cut) for prompt in prompts for cut in CUTS]

    def _shown(self, i: int, rung: _Rung) -> tuple[str, ...]:
        """The answers as this rung shows them, cut at one length: a cut in proportion would favour the longer one."""
        texts = self.questions[i].texts
        limit = max(map(len, texts)) // rung.cut
        return tuple(text if len(text) <= limit else f"{text[:limit]} […]" for text in texts)

    def _call(
        self, form: Form, i: int, rung: _Rung, *, sample: int = 0, greedy: bool = False, bare: bool = False
    ) -> Call:
        """One call. `bare` asks for the verdict alone, as a template that says itself how to reply always does."""
        verdict, shown = self.questions[i].verdict, self._shown(i, rung)
        bare = bare or _is_bare(rung)
        prompt = rung.template.render(
            {"instruction": self.context.instruction, **self.manner.by_seat(shown)},
            rubric=self.context.rubric,
            reference=self.context.reference,
            reply=reply(form, verdict, bare=bare),
        )
        messages = (("user", prompt),)
        if form == "choose":
            assert isinstance(verdict, Labelled), "a list is written: a judge of lists has no such form"
            return Call(self.manner.backend, ChooseRequest(messages, verdict.labels))
        room = BARE_TOKENS + BARE_TOKENS_A_TEXT * len(shown) if bare else self.manner.max_new_tokens
        heat = 0.0 if greedy else self.manner.temperature
        # The seed of a greedy reply changes nothing and would only keep it from the cache.
        sampling = Sampling(max_new_tokens=room, temperature=heat, seed=self.manner.seed if heat else 0)
        schema = json_schema(verdict, bare=bare) if form == "json" else None
        return Call(self.manner.backend, GenerateRequest(messages, sampling, sample, schema))


def _is_bare(rung: _Rung) -> bool:
    """Whether a prompt asks for the verdict alone: it does where it says itself how to reply."""
    return "reply" not in rung.template.used


def _kind(refusal: Refusal) -> str:
    return UNSUPPORTED if refusal.unsupported else TOO_LONG if refusal.too_long else REFUSED


def _why(kind: str, reason: str) -> _Why:
    """The count of nulls for a reason, and its numbers. They stand as N in the count's name, so that like reasons are
    counted together."""
    said = " ".join(reason.split())
    numbers = [int(number) for number in _NUMBER.findall(said)] if kind == TOO_LONG else []
    return f"{NULL}{kind}:{re.sub(r'[0-9]+', '#', _NUMBER.sub('N', said))[:200]}", numbers
