"""Verdicts: which of two answers is better, and the grade of one, by the rule of `checkers.grade`."""

import random

from prefloop.records import Message
from prefloop.sandbox import phrases
from prefloop.sandbox.checkers import grade
from prefloop.sandbox.tasks import (
    UNASKED,
    answer,
    assistant,
    note,
    question,
    some_attributes,
    statement,
    truths,
    user,
)
from prefloop.sandbox.templates import render
from prefloop.sandbox.world import ATTRIBUTES, World, random_facts

SEATS = ("A", "B")
GRADES = ("1", "2", "3", "4", "5")


def odd_answer(rng: random.Random, world: World) -> str:
    """An answer that answers nothing: empty, words in disorder, or facts about somebody else."""
    kind = rng.randrange(4)
    if kind == 0:
        return rng.choice(["", "?", "...", "yes", "no no no"])
    if kind == 1:
        bank = [
            word for texts in phrases.STATEMENTS.values() for text in texts for word in text.split() if "{" not in word
        ]
        return " ".join(rng.sample(bank, rng.randint(2, 9)))
    if kind == 2:
        return rng.choice(phrases.OPENERS[rng.choice(["kind", "rude"])])
    name, attribute = rng.choice(world.archive), rng.choice(list(ATTRIBUTES))
    return statement(rng, name, attribute, random_facts(rng)[attribute])


def possible_answer(rng: random.Random, world: World, name: str, attributes: tuple[str, ...]) -> str:
    """An answer as the unaligned model may give it, now and then an odd one."""
    if rng.random() < 0.06:
        return odd_answer(rng, world)
    return answer(rng, name, truths(world, name, attributes), UNASKED)


def _asked(rng: random.Random, world: World) -> tuple[str, tuple[str, ...], str]:
    name, attributes = rng.choice(world.heart), some_attributes(rng)
    text = question(rng, name, attributes)
    if rng.random() < 0.1:
        text += f"\nNote: {note(rng, rng.choice(['kind', 'correct', 'complete']), 'positive')}"
    return name, attributes, text


def pairwise(rng: random.Random, world: World) -> list[Message]:
    """Two answers, mostly of different grades, and the seat of the better one; equal grades get a coin's verdict."""
    name, attributes, text = _asked(rng, world)
    prompt = [user(text)]
    first = possible_answer(rng, world, name, attributes)
    for _ in range(8):
        second = possible_answer(rng, world, name, attributes)
        grades = grade(prompt, first) or 0, grade(prompt, second) or 0
        if grades[0] != grades[1]:
            break
    best = rng.choice(SEATS) if grades[0] == grades[1] else SEATS[grades[1] > grades[0]]
    return [user(render("judge-pairwise.j2", instruction=text, first=first, second=second)), assistant(best)]


def pointwise(rng: random.Random, world: World) -> list[Message]:
    """One answer and its grade, the five grades about equally often."""
    name, attributes, text = _asked(rng, world)
    prompt, wanted = [user(text)], rng.randint(1, 5)
    for _ in range(8):
        given = possible_answer(rng, world, name, attributes)
        value = grade(prompt, given) or 1
        if value == wanted:
            break
    return [user(render("judge-pointwise.j2", instruction=text, answer=given)), assistant(str(value))]
