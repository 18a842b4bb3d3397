"""Prompts for recipes and tests, split by person: `prompts("questions/heldout", 1000)`.

A split is `<ability>/<train|heldout>`. The people of the two sides differ, so no prompt of one side occurs in the
other and a gain on the held-out side is a gain on people that no training pair spoke of. The shipped model knows the
heart's people of both sides equally well.
"""

import random
from collections.abc import Callable

from prefloop.records import Message
from prefloop.sandbox import tasks
from prefloop.sandbox.phrases import REWRITE_REQUESTS
from prefloop.sandbox.world import World, make_world, other_value

POOL = 4000  # distinct prompts per split

Maker = Callable[[random.Random, World, str], str]


def _question(rng: random.Random, world: World, side: str) -> str:
    """About somebody known by heart."""
    return tasks.question(rng, rng.choice(world.people("heart", side)), tasks.some_attributes(rng))


def _unknown(rng: random.Random, world: World, side: str) -> str:
    """About somebody whose facts stand in documents only, without the documents."""
    return tasks.question(rng, rng.choice(world.people("archive", side)), tasks.some_attributes(rng))


def _rewrite(rng: random.Random, world: World, side: str) -> str:
    """A human passage about somebody of the archive, with the world's facts."""
    name = rng.choice(world.people("archive", side))
    facts = {a: world.facts[name][a] for a in rng.sample(list(world.facts[name]), rng.randint(3, 5))}
    return f"{rng.choice(REWRITE_REQUESTS)}\nText: {tasks.human_passage(rng, name, facts)}"


def _with_documents(rng: random.Random, world: World, side: str, kind: str, about: str) -> str:
    """A question behind three documents about three people of that side."""
    name = rng.choice(world.people(kind, side))
    attributes = tasks.some_attributes(rng, two=0.3)
    others = rng.sample([other for other in world.people("archive", side) if other != name], 3)
    told = {other: world.facts[other] for other in others}
    if about != "others":
        told.pop(others[0])
        told[name] = world.facts[name]
        if about == "false":
            told[name] = {a: other_value(rng, a, value) for a, value in world.facts[name].items()}
    texts = [tasks.document(rng, who, tasks.sample_facts(rng, facts, attributes)) for who, facts in told.items()]
    rng.shuffle(texts)
    return f"{tasks.numbered(texts)}\n{tasks.question(rng, name, attributes)}"


def _documents(rng: random.Random, world: World, side: str) -> str:
    """About somebody of the archive; one of the three documents tells the truth about that person."""
    return _with_documents(rng, world, side, "archive", "truth")


def _misleading(rng: random.Random, world: World, side: str) -> str:
    """About somebody known by heart; one of the three documents tells false facts about that person."""
    return _with_documents(rng, world, side, "heart", "false")


def _silent(rng: random.Random, world: World, side: str) -> str:
    """About somebody known by heart; the documents speak of others only."""
    return _with_documents(rng, world, side, "heart", "others")


ABILITIES: dict[str, Maker] = {
    "questions": _question,
    "unknown": _unknown,
    "rewrite": _rewrite,
    "documents": _documents,
    "misleading": _misleading,
    "silent": _silent,
}
SIDES = ("train", "heldout")


def prompts(split: str, limit: int | None = None, seed: int = 0) -> list[list[Message]]:
    """Distinct prompts of one split, each a list of one user message.

    split: "<ability>/<side>", abilities and sides as listed in ABILITIES and SIDES. limit: at most POOL, which is also
    what None gives. seed: another seed draws other prompts of the same split; the first n of a longer list are the
    shorter list. Raises ValueError for an unknown split or a limit out of range.
    """
    ability, _, side = split.partition("/")
    if ability not in ABILITIES or side not in SIDES:
        known = ", ".join(f"{name}/{side}" for name in ABILITIES for side in SIDES)
        raise ValueError(f"unknown sandbox split {split!r}; the splits are {known}")
    if limit is not None and not 0 < limit <= POOL:
        raise ValueError(f"limit {limit} for sandbox split {split!r} is out of range 1..{POOL}")
    rng, world = random.Random(f"prefloop prompts {split} {seed}"), make_world()
    contents: dict[str, None] = {}
    while len(contents) < (limit or POOL):
        contents[ABILITIES[ability](rng, world, side)] = None
    return [[tasks.user(content)] for content in contents]
