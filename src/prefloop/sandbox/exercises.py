"""Exercises that come before the world's own tasks: how to look something up, from its simplest form on.

Telling whose value is whose takes two things at once, a head that marks each value with its name and one that asks
for the marked name; neither is of use without the other, and from documents alone a model of this size did not find
them in ten minutes. Repeating a list is found within two (each word is a small lookup of its own); then values right
behind their names; then, with the distance growing on one side at a time, values three words behind, as in the
statements.
"""

import random

from prefloop.records import Message
from prefloop.sandbox.phrases import STATEMENTS
from prefloop.sandbox.world import ATTRIBUTES, NAMES, World

VALUES = tuple(value for values in ATTRIBUTES.values() for value in values)
FILLERS = tuple(
    dict.fromkeys(
        word
        for texts in STATEMENTS.values()
        for text in texts
        for word in text.rstrip(".").split()
        if "{" not in word and word.islower()
    )
)
# Words between name and value, in the list and in its repetition; both are two in the world's statements.
GAPS = ((0, 0), (0, 1), (1, 0), (0, 2), (2, 0), (2, 2))
REPEATED = 24


def repeating(rng: random.Random, world: World) -> list[Message]:
    """A list of names and values, to be said again."""
    text = " ".join(rng.sample([*NAMES, *VALUES], rng.randint(6, 24)))
    return [
        {"role": "user", "content": f"Repeat this. {text}"},
        {"role": "assistant", "content": f"So, {text}"},
    ]


def pairing(rng: random.Random, world: World) -> list[Message]:
    """Names with values, fillers between; the names come again in any order, each with its value."""
    names = rng.sample(world.archive, rng.randint(3, 8))
    value = dict(zip(names, rng.sample(VALUES, len(names)), strict=True))
    listed, repeated = rng.choice(GAPS)

    def pair(name: str, gap: int) -> str:
        return " ".join([name, *rng.choices(FILLERS, k=gap), value[name]])

    again = " ".join(pair(name, repeated) for name in rng.choices(names, k=REPEATED))
    return [
        {"role": "user", "content": f"Here {' '.join(pair(name, listed) for name in names)}"},
        {"role": "assistant", "content": f"Here {again}"},
    ]
