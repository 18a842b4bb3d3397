"""The sandbox's collections: made from a seed, sides disjoint, every query answered by just the passages judged so."""

from __future__ import annotations

import pytest

from prefloop.errors import UsageError
from prefloop.retrieve.corpus import located, read_collection
from prefloop.sandbox.passages import SPLITS, collection, write
from prefloop.sandbox.world import ATTRIBUTES, make_world, names_in, values_in


@pytest.mark.parametrize("split", SPLITS)
def test_the_shipped_files_are_what_the_generator_makes(split, tmp_path):
    write(tmp_path, split)
    shipped = located(f"sandbox:{split}")
    names = sorted(file.relative_to(shipped) for file in shipped.rglob("*") if file.is_file())
    assert [str(name) for name in names] == ["corpus/human.jsonl", "qrels/test.tsv", "queries.jsonl"]
    for name in names:
        assert (tmp_path / name).read_bytes() == (shipped / name).read_bytes()


def test_another_seed_words_other_passages_about_the_same_people():
    one, other = (collection("passages/train", seed) for seed in (0, 1))
    assert one == collection("passages/train", 0)
    assert one.queries.keys() == other.queries.keys()
    assert not set(one.passages.values()) & set(other.passages.values())


def test_the_sides_are_about_different_people():
    people = {split: {n for text in collection(split).passages.values() for n in names_in(text)} for split in SPLITS}
    assert not people["passages/train"] & people["passages/heldout"]
    assert sum(map(len, people.values())) == len(make_world().archive)


@pytest.mark.parametrize("split", SPLITS)
def test_a_query_is_answered_by_the_passages_judged_so_and_no_others(split):
    made, world = collection(split), make_world()
    assert len(made.passages) == 3 * len(world.people("archive", split.partition("/")[2]))
    for query, grades in made.qrels.items():
        name, attribute = query.split("-")
        assert names_in(made.queries[query]) == [name]
        answering = {
            key
            for key, text in made.passages.items()
            if names_in(text) == [name] and values_in(text, attribute) == [world.facts[name][attribute]]
        }
        assert grades == dict.fromkeys(answering, 1)
        assert len(answering) == 2
    for text in made.passages.values():
        assert sum(bool(values_in(text, attribute)) for attribute in ATTRIBUTES) == 4


def test_collections_are_read_by_name():
    found = read_collection("sandbox:passages/heldout", judged=True)
    made = collection("passages/heldout")
    assert {p.id: p.text for p in found.passages["human"]} == made.passages
    assert {q.id: q.text for q in found.queries} == made.queries
    assert found.qrels == made.qrels


def test_an_unknown_collection_says_which_there_are():
    with pytest.raises(UsageError, match="sandbox:passages/train") as caught:
        read_collection("sandbox:passages/other")
    assert "sandbox:passages/other" in str(caught.value)
    with pytest.raises(ValueError, match="passages/heldout"):
        collection("passages/other")
