"""What a verdict says, and how it is written: labels with a worth, ratings of a list, an order.

A verdict is one number for each text that was shown, whatever the mode. It is given in one of three forms: `choose`
(the probabilities of the labels, nothing is written), `json` (held to a schema) and `text` (free, the verdict last,
between double square brackets). Each mode says here which words are verdicts; `read` finds them in a reply. Capitals
do not matter, and ratings may be written as `4.0` and `4/5`. What is not exactly a verdict is none: a rating outside
the scale or out of another scale, a list of another length, a mark before the last one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from prefloop.records import canonical_json

Form = Literal["choose", "json", "text"]

# In the order of preference: nothing to parse; a parse that cannot fail but for length; a parse.
FORMS: tuple[Form, ...] = ("choose", "json", "text")

SEATS = ("A", "B")
TIE = "tie"

_RATING = re.compile(r"([0-9])(?:\.0{1,3})?(?:/([0-9])(?:\.0{1,3})?)?")
_MARK = re.compile(r"\[\[([^\[\]]*)\]\]")
_SAID_BEFORE = re.compile(r"^(answer|verdict|rating|ratings|order|score)\W+", re.IGNORECASE)


class Verdict(Protocol):
    """The verdicts of one mode over n texts.

    Only one label (`Labelled`) can be chosen by its log-probability.

    Attributes:
        only: the bare verdict in words, behind "Reply with ".
        marked: how it stands between double square brackets, in words.
        field: what the field `verdict` of a JSON reply holds, in words.
        schema: JSON Schema of that field.
    """

    @property
    def only(self) -> str: ...

    @property
    def marked(self) -> str: ...

    @property
    def field(self) -> str: ...

    @property
    def schema(self) -> dict[str, Any]: ...

    def read(self, words: Sequence[str]) -> list[float] | None:
        """The numbers [n] that these words mean; None when they are no verdict."""
        ...


@dataclass(frozen=True)
class Labelled:
    """One label, worth so much for each of the texts.

    Attributes:
        labels: what is chosen among.
        worth: label -> numbers [n].
        spoken: further labels that are taken when they are written, but not chosen among.
        only: see `Verdict`.
    """

    worth: Mapping[str, tuple[float, ...]]
    only: str
    spoken: Mapping[str, tuple[float, ...]]

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.worth)

    @property
    def marked(self) -> str:
        words = [f"[[{label}]]" for label in (*self.worth, *self.spoken)]
        return f"{', '.join(words[:-1])} or {words[-1]}"

    @property
    def field(self) -> str:
        words = [json.dumps(label) for label in (*self.worth, *self.spoken)]
        return f"{', '.join(words[:-1])} or {words[-1]}"

    @property
    def schema(self) -> dict[str, Any]:
        return {"type": "string", "enum": [*self.worth, *self.spoken]}

    def expected(self, chances: Sequence[float]) -> list[float]:
        """The numbers [n] that these probabilities of the labels mean."""
        columns = zip(*self.worth.values(), strict=True)
        return [sum(value * p for value, p in zip(column, chances, strict=True)) for column in columns]

    def read(self, words: Sequence[str]) -> list[float] | None:
        known = {label.casefold(): worth for label, worth in (*self.worth.items(), *self.spoken.items())}
        found = known.get(words[0].casefold()) if len(words) == 1 else None
        return None if found is None else list(found)


@dataclass(frozen=True)
class Rated(Labelled):
    """One rating of one text; its labels are the ratings."""

    def read(self, words: Sequence[str]) -> list[float] | None:
        found = _rating(words[0], [int(label) for label in self.worth]) if len(words) == 1 else None
        return None if found is None else [found]


def _rating(word: str, ratings: Sequence[int]) -> float | None:
    """A rating of a scale as judges write it: `4`, `4.0`, or, out of the highest one, `4/5`; None where it is none."""
    match = _RATING.fullmatch(word)
    if match is None or int(match[1]) not in ratings or int(match[2] or max(ratings)) != max(ratings):
        return None
    return float(match[1])


def rating(ratings: Sequence[int]) -> Labelled:
    """One rating of one text."""
    return Rated({str(r): (float(r),) for r in ratings}, "one digit", {})


def seats() -> Labelled:
    """Which of two texts is better: for each the probability that it is."""
    return Labelled({SEATS[0]: (1.0, 0.0), SEATS[1]: (0.0, 1.0)}, "one letter, A or B,", {TIE: (0.5, 0.5)})


@dataclass(frozen=True)
class Ratings:
    """A rating for each of n texts, in the order in which they are shown."""

    ratings: tuple[int, ...]
    n: int

    @property
    def only(self) -> str:
        return f"the {self.n} ratings, in the order of the answers and parted by commas,"

    @property
    def marked(self) -> str:
        inside = ", ".join(f"rating of answer {i + 1}" for i in range(self.n))
        return f"[[{inside}]]"

    @property
    def field(self) -> str:
        return f"a list of the {self.n} ratings in the order of the answers"

    @property
    def schema(self) -> dict[str, Any]:
        item = {"type": "integer", "enum": list(self.ratings)}
        return {"type": "array", "items": item, "minItems": self.n, "maxItems": self.n}

    def read(self, words: Sequence[str]) -> list[float] | None:
        found = [number for word in words if (number := _rating(word, self.ratings)) is not None]
        return found if len(found) == len(words) == self.n else None


@dataclass(frozen=True)
class Ranks:
    """The numbers of n texts, best first; each text's number in the result is its rank from below, 0 the worst."""

    n: int

    @property
    def only(self) -> str:
        return "the numbers of the answers, the best first and parted by commas,"

    @property
    def marked(self) -> str:
        inside = ", ".join(["number of the best answer", *["number of the next"] * (self.n - 1)])
        return f"[[{inside}]]"

    @property
    def field(self) -> str:
        return f"a list of the numbers 1 to {self.n} of the answers, the best first"

    @property
    def schema(self) -> dict[str, Any]:
        item = {"type": "integer", "minimum": 1, "maximum": self.n}
        return {"type": "array", "items": item, "minItems": self.n, "maxItems": self.n}

    def read(self, words: Sequence[str]) -> list[float] | None:
        numbers = [str(i + 1) for i in range(self.n)]
        if sorted(words) != sorted(numbers):
            return None
        return [float(self.n - 1 - list(words).index(number)) for number in numbers]


def reply(form: Form, verdict: Verdict, *, bare: bool) -> str:
    """How the judge is told to reply.

    Args:
        form: how the verdict will be read.
        verdict: what it may be.
        bare: the verdict alone, without reasons before it.
    """
    if form == "json":
        if bare:
            return f'Reply in JSON with one field: "verdict", {verdict.field}.'
        return f'Reply in JSON with two fields: first "reasoning", a few sentences, then "verdict", {verdict.field}.'
    if form == "text" and not bare:
        return (
            "Give your reasons first, in a few sentences. Then end with your verdict between double square brackets: "
            f"{verdict.marked}."
        )
    return f"Reply with {verdict.only} and nothing else."


def json_schema(verdict: Verdict, *, bare: bool) -> str:
    """The schema of a JSON reply, as JSON text; the reasons stand before the verdict, so that they can bear on it."""
    fields = {} if bare else {"reasoning": {"type": "string"}}
    properties = {**fields, "verdict": verdict.schema}
    # Not canonical JSON: servers write the fields in the order of the schema, and sorting happens to keep it.
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return canonical_json(schema)


def read(form: Form, verdict: Verdict, text: str, *, bare: bool, cut: bool) -> list[float] | None:
    """The verdict in a reply; None when there is none.

    Args:
        form: json or text.
        verdict: what it may be.
        text: the reply.
        bare: whether the verdict alone was asked for; it may then stand there bare.
        cut: the reply was cut off: in free text nobody knows whether a mark in it was the last.
    """
    if form == "json":
        return _of_json(verdict, text)
    marks = _MARK.findall(text)
    if bare and not marks:
        line = next((line for line in text.splitlines() if line.strip()), "").strip(" \t*_`\"'.:()[]")
        return verdict.read(_words(_SAID_BEFORE.sub("", line).strip(" \t*_`\"'.:()[]")))
    if not marks or (cut and not bare):
        return None
    return verdict.read(_words(marks[-1]))


def _of_json(verdict: Verdict, text: str) -> list[float] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    found = value.get("verdict") if isinstance(value, dict) else None
    words = found if isinstance(found, list) else [found]
    if any(isinstance(word, bool) or not isinstance(word, str | int | float) for word in words):
        return None
    return verdict.read([str(word) for word in words])


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"[\s,>]+", re.sub(r"\s*/\s*", "/", text)) if word]
