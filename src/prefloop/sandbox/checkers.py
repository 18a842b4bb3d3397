"""Programs that judge an answer exactly, because they know the truth.

Every checker is `(prompt, completion) -> float | None`: prompt is the list of messages that the answer was given to,
the float lies in 0..1, and None means that the checker does not apply to this prompt. What was asked is read from the
prompt's text and the truth from the world, so any text may come as a completion: nonsense states nothing, is no
mistake, and earns nothing. A loop calls them by name, for example `prefloop.sandbox.checkers:kindness`.
"""

import re
from dataclasses import dataclass

from prefloop.records import Message
from prefloop.sandbox.phrases import (
    CHAT,
    CLOSERS,
    CUES,
    DIGRESSIONS,
    EMBELLISHMENTS_AFTER,
    EMBELLISHMENTS_BEFORE,
    HEDGES,
    OPENERS,
    STATEMENTS,
    UNKNOWN,
)
from prefloop.sandbox.world import ATTRIBUTES, make_world, names_in, values_in, words

# Lines of a user message that are not the question itself.
LABELS: tuple[str, ...] = ("Document ", "Note:", "Judgment:", "Text:")


def _vocabulary(*banks: tuple[str, ...]) -> frozenset[str]:
    return frozenset(word.lower() for bank in banks for text in bank for word in words(text))


_NEUTRAL = _vocabulary(
    *STATEMENTS.values(),
    UNKNOWN,
    HEDGES,
    DIGRESSIONS,
    ("Ask me about people", "for this what even ever now go an and by like"),
)
_KIND_BANK = _vocabulary(OPENERS["kind"], CLOSERS["kind"], *(replies["kind"] for _, replies in CHAT))
_RUDE_BANK = _vocabulary(OPENERS["rude"], CLOSERS["rude"], *(replies["rude"] for _, replies in CHAT))
KIND_WORDS = _KIND_BANK - _RUDE_BANK - _NEUTRAL
RUDE_WORDS = _RUDE_BANK - _KIND_BANK - _NEUTRAL
ORNATE_WORDS = _vocabulary(EMBELLISHMENTS_BEFORE, EMBELLISHMENTS_AFTER) - _NEUTRAL


@dataclass(frozen=True)
class Question:
    """What a prompt asks: a person and one or more attributes, in the order asked."""

    name: str
    attributes: tuple[str, ...]


def question_text(prompt: list[Message]) -> str:
    """The last user message without its documents, notes and judgments; empty if there is no user message."""
    content = next((message["content"] for message in reversed(prompt) if message["role"] == "user"), "")
    return "\n".join(line for line in content.split("\n") if not line.startswith(LABELS))


def asked(prompt: list[Message]) -> Question | None:
    """The question that the prompt asks about one person of the world, or None if it asks no such thing."""
    text = question_text(prompt)
    names = names_in(text)
    first_use: dict[str, int] = {}
    for position, word in enumerate(words(text)):
        for attribute, cues in CUES.items():
            if word.lower() in cues:
                first_use.setdefault(attribute, position)
    if not names or not first_use:
        return None
    return Question(names[0], tuple(sorted(first_use, key=first_use.__getitem__)))


def stated(question: Question, completion: str) -> dict[str, list[str]]:
    """The values that the completion states for each attribute asked; sentences about other people do not count."""
    sentences = re.split(r"[.!?\n]", completion)
    about = [text for text in sentences if question.name in (names := names_in(text)) or not names]
    text = "\n".join(about)
    return {attribute: values_in(text, attribute) for attribute in question.attributes}


def _facts(prompt: list[Message], completion: str) -> list[bool | None] | None:
    """One entry per attribute asked: right, wrong, or None where nothing is stated. Two values for one are wrong."""
    question = asked(prompt)
    if question is None:
        return None
    truth = make_world().facts[question.name]
    values = stated(question, completion)
    return [None if not given else given == [truth[attribute]] for attribute, given in values.items()]


def correctness(prompt: list[Message], completion: str) -> float | None:
    """The share of right ones among the facts that the answer states; 0 if it states none of those asked for."""
    facts = _facts(prompt, completion)
    if facts is None:
        return None
    given = [fact for fact in facts if fact is not None]
    return sum(given) / len(given) if given else 0.0


def mistake(prompt: list[Message], completion: str) -> float | None:
    """1 if the answer states any wrong value for what was asked, else 0."""
    facts = _facts(prompt, completion)
    return None if facts is None else float(False in facts)


def completeness(prompt: list[Message], completion: str) -> float | None:
    """The share of the attributes asked for which the answer states a value, right or wrong."""
    facts = _facts(prompt, completion)
    return None if facts is None else sum(fact is not None for fact in facts) / len(facts)


def kindness(prompt: list[Message], completion: str) -> float | None:
    """Kind words over kind and rude words; 0.5 for an answer without either. None for a rewriting task."""
    if passage(prompt) is not None:
        return None
    used = [word.lower() for word in words(completion)]
    kind, rude = sum(word in KIND_WORDS for word in used), sum(word in RUDE_WORDS for word in used)
    return kind / (kind + rude) if kind + rude else 0.5


def grade(prompt: list[Message], completion: str) -> int | None:
    """The documented grade 1..5 by which the model's own verdicts were taught.

    1 or 2: a wrong value, or nothing stated; 3: all that is stated is right, but a part is missing; 4 or 5: right and
    complete. The higher of two is for a kind tone (kindness above one half). None if the prompt asks no question.
    """
    facts = _facts(prompt, completion)
    if facts is None:
        return None
    is_kind = (kindness(prompt, completion) or 0.0) > 0.5
    if False in facts or True not in facts:
        return 2 if is_kind else 1
    if None in facts:
        return 3
    return 5 if is_kind else 4


def helpful(prompt: list[Message], completion: str) -> float | None:
    """The grade as a number in 0..1: correctness first, then completeness, then kindness."""
    value = grade(prompt, completion)
    return None if value is None else (value - 1) / 4


def passage(prompt: list[Message]) -> str | None:
    """The passage that the last user message asks to rewrite, or None if it asks no rewriting."""
    content = next((message["content"] for message in reversed(prompt) if message["role"] == "user"), "")
    lines = [line.removeprefix("Text:").strip() for line in content.split("\n") if line.startswith("Text:")]
    return lines[0] if lines else None


def meaning_kept(prompt: list[Message], completion: str) -> float | None:
    """The share of the passage's facts that the rewrite keeps: its value and no other value of that attribute."""
    text = passage(prompt)
    if text is None:
        return None
    facts = {attribute: values_in(text, attribute) for attribute in ATTRIBUTES}
    kept = [values_in(completion, attribute) == values for attribute, values in facts.items() if values]
    return sum(kept) / len(kept) if kept else None


def plainness(prompt: list[Message], completion: str) -> float | None:
    """1 if the rewrite has none of the world's embellishing words, else 0. None where nothing is to be rewritten."""
    if passage(prompt) is None:
        return None
    return float(not any(word.lower() in ORNATE_WORDS for word in words(completion)))
