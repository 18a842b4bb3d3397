"""What is wrong with an answer and where: written judgments for CUT, and the words that its flags should hit.

A flaw's place is where it was decided: the wrong value; the first word of a rude answer; and, for a missing part, the
word (or the end) that follows the last statement. What comes after follows from these and carries no blame.
"""

import random
import re
from dataclasses import dataclass

from prefloop.records import Message
from prefloop.sandbox.checkers import RUDE_WORDS, asked, stated
from prefloop.sandbox.phrases import CRITICISMS
from prefloop.sandbox.world import make_world, words


@dataclass(frozen=True)
class Flaw:
    """kind: "wrong", "missing" or "rude"; attribute: "" for rude; start: the character where the flaw was decided."""

    kind: str
    attribute: str
    start: int


def flaws(prompt: list[Message], completion: str) -> list[Flaw]:
    """All flaws of an answer to a question about one person, in the order of their places; empty if there are none.

    A prompt that asks no such question has no flaws. An answer that states nothing lacks every part from its start.
    """
    question = asked(prompt)
    if question is None:
        return []
    truth = make_world().facts[question.name]
    found, end = [], 0
    values = stated(question, completion)
    for attribute, given in values.items():
        for value in given:
            place = next(m for m in re.finditer(rf"\b{value}\b", completion))
            end = max(end, place.end() + (completion[place.end() : place.end() + 1] in (".", "!", "?")))
            if value != truth[attribute]:
                found.append(Flaw("wrong", attribute, place.start()))
    found += [Flaw("missing", attribute, end) for attribute, given in values.items() if not given]
    if words(completion) and words(completion)[0].lower() in RUDE_WORDS:
        found.append(Flaw("rude", "", completion.index(words(completion)[0])))
    return sorted(found, key=lambda flaw: flaw.start)


def places(prompt: list[Message], completion: str) -> list[int]:
    """The characters at which an answer's flaws were decided: what a judgment's flags should hit."""
    return [flaw.start for flaw in flaws(prompt, completion)]


def criticism(prompt: list[Message], completion: str) -> str | None:
    """A written judgment that names every flaw of the answer, or None if it has none; the same text every time."""
    rng = random.Random(f"{prompt} {completion}")
    named = dict.fromkeys((flaw.kind, flaw.attribute) for flaw in flaws(prompt, completion))
    texts = [rng.choice(CRITICISMS[kind]).format(attribute=attribute) for kind, attribute in named]
    return " ".join(texts) or None
