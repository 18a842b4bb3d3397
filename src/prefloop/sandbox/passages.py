"""Passages about the world's people, queries about them and who answers which: a collection to retrieve from.

Three passages speak of each person of the archive, each of four of the six attributes, so that a query (one attribute
of one person) is answered by two of them, and the third is about the right person but of no use. The passages are
human ones: they hedge, and they digress twice. The two sides are about different people.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path

from prefloop.sandbox import tasks
from prefloop.sandbox.prompts import SIDES
from prefloop.sandbox.world import ATTRIBUTES, make_world, words

HEDGED = 0.7  # chance of a hedge in a sentence that states a fact
ASIDES = (2, 2)
SPLITS = tuple(f"passages/{side}" for side in SIDES)


@dataclass(frozen=True)
class Collection:
    """Passages and queries by id, and qrels: query id -> passage id -> 1 for each passage that holds the answer."""

    passages: dict[str, str]
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]


def collection(split: str, seed: int = 0) -> Collection:
    """The collection of one side.

    Args:
        split: "passages/train" or "passages/heldout".
        seed: another seed words other passages and queries about the same people, and spreads their facts otherwise.

    Raises:
        ValueError: there is no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown sandbox collection {split!r}; the collections are {', '.join(SPLITS)}")
    rng, world = random.Random(f"prefloop {split} {seed}"), make_world()
    made = Collection({}, {}, {})
    for name in world.people("archive", split.partition("/")[2]):
        for attribute in ATTRIBUTES:
            made.queries[f"{name}-{attribute}"] = tasks.question(rng, name, (attribute,))
            made.qrels[f"{name}-{attribute}"] = {}
        for number, attributes in enumerate(_spread(rng), start=1):
            made.passages[f"{name}-{number}"] = _passage(rng, name, tasks.truths(world, name, attributes))
            for attribute in attributes:
                made.qrels[f"{name}-{attribute}"][f"{name}-{number}"] = 1
    return made


def _passage(rng: random.Random, name: str, facts: dict[str, str]) -> str:
    """A human passage that names its person at least once in any thirteen words.

    So no passage shares thirteen words in a row with one about somebody else, which would count as leakage between
    the sides (`pairs.splits`).
    """
    while True:
        text = tasks.human_passage(rng, name, facts, HEDGED, ASIDES)
        unnamed = [len(part.split(" ")) for part in " ".join(words(text)).split(f" {name} ")]
        if max(unnamed) < 13:
            return text


def _spread(rng: random.Random) -> list[tuple[str, ...]]:
    """The attributes of a person's three passages: each leaves out another third, so each attribute stands in two."""
    order = rng.sample(list(ATTRIBUTES), len(ATTRIBUTES))
    kept = [[a for a in order if a not in order[i : i + 2]] for i in range(0, len(order), 2)]
    return [tuple(rng.sample(attributes, len(attributes))) for attributes in kept]


def write(folder: Path, split: str, seed: int = 0) -> None:
    """Write a collection in BEIR's layout: corpus/human.jsonl, queries.jsonl, qrels/test.tsv."""
    made = collection(split, seed)
    for part in ("corpus", "qrels"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    corpus = [{"_id": key, "title": "", "text": text} for key, text in made.passages.items()]
    queries = [{"_id": key, "text": text} for key, text in made.queries.items()]
    for name, rows in (("corpus/human.jsonl", corpus), ("queries.jsonl", queries)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    judged = [(query, key, grade) for query, grades in made.qrels.items() for key, grade in grades.items()]
    lines = ["query-id\tcorpus-id\tscore", *(f"{query}\t{key}\t{grade}" for query, key, grade in judged)]
    (folder / "qrels/test.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
