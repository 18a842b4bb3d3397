"""Documents and questions for retrieval-augmented reading: who needs a document, and whom it misleads.

Every person of the world is written about several times. A record states facts; a rumour states false ones, and sounds
like it: it hedges, as people do who do not know. Now and then a record hedges too, and a rumour sounds sure, so the
wording is a good sign and no proof. What retrieval sees, the name and the attribute's words, is the same in both: a
retriever cannot tell them apart, and the embedded reader believes whatever stands before it.

Questions are split by person (`train`, `heldout`); the documents are about everybody, as a corpus is.
"""

import random
from typing import NamedTuple

from prefloop.records import content_id
from prefloop.sandbox import phrases, tasks
from prefloop.sandbox.world import ATTRIBUTES, World, make_world, other_value

RECORDS, RUMOURS = 1, 2
"""Documents of each kind for every person and attribute."""
HEDGED_RECORDS, HEDGED_RUMOURS = 0.1, 0.9
"""Shares of documents that hedge."""
POOL = 3000
"""Distinct questions of a side."""


class Document(NamedTuple):
    """`name` and `facts` are what it says, true or not."""

    id: str
    text: str
    name: str
    facts: dict[str, str]
    true: bool


class Question(NamedTuple):
    """A question about one fact of one person; the right answer as a sentence, and as the bare value."""

    id: str
    text: str
    sentence: str
    answer: str


def documents(world: World | None = None, seed: int = 0) -> list[Document]:
    """The whole corpus, some 4,000 documents in an order of chance."""
    world = world or make_world()
    rng = random.Random(f"prefloop library {seed}")
    found: dict[str, Document] = {}
    for name in (*world.heart, *world.archive):
        for attribute in ATTRIBUTES:
            for true in (True,) * RECORDS + (False,) * RUMOURS:
                made = _document(rng, world, name, attribute, true)
                found[made.id] = made
    shuffled = list(found.values())
    rng.shuffle(shuffled)
    return shuffled


def _document(rng: random.Random, world: World, name: str, attribute: str, true: bool) -> Document:
    facts = world.facts[name]
    if not true:
        facts = {a: other_value(rng, a, value) for a, value in facts.items()}
    facts = tasks.sample_facts(rng, facts, (attribute,))
    hedges = rng.random() < (HEDGED_RECORDS if true else HEDGED_RUMOURS)
    order = list(facts)
    rng.shuffle(order)
    sentences = [tasks.statement(rng, name, a, facts[a]) for a in order]
    if hedges:
        sentences = [f"{text[:-1]}, {rng.choice(phrases.HEDGES)}." for text in sentences]
    text = " ".join(sentences)
    return Document(content_id("library", text), text, name, facts, true)


def questions(side: str, limit: int | None = None, seed: int = 0) -> list[Question]:
    """Distinct questions about the people of one side, half of them known by heart to the embedded model.

    Args:
        side: train or heldout.
        limit: at most POOL, which is also what None gives; the first n of a longer list are the shorter list.
        seed: another one draws other questions.

    Raises:
        ValueError: there is no such side, or the limit is out of range.
    """
    if side not in ("train", "heldout"):
        raise ValueError(f"unknown side {side!r}; there are train and heldout")
    if limit is not None and not 0 < limit <= POOL:
        raise ValueError(f"limit {limit} is out of range 1..{POOL}")
    rng, world = random.Random(f"prefloop library questions {side} {seed}"), make_world()
    found: dict[str, Question] = {}
    while len(found) < (limit or POOL):
        kind = rng.choice(["heart", "archive"])
        name, attribute = rng.choice(world.people(kind, side)), rng.choice(list(ATTRIBUTES))
        text = tasks.question(rng, name, (attribute,))
        answer = world.facts[name][attribute]
        sentence = tasks.statement(rng, name, attribute, answer)
        found.setdefault(text, Question(content_id("library question", text), text, sentence, answer))
    return list(found.values())
