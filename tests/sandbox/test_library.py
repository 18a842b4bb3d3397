"""The library: what it says is true or false as it claims, its wording is a sign and no proof, sides share nobody."""

from __future__ import annotations

import pytest

from prefloop.sandbox import library, phrases
from prefloop.sandbox.world import make_world, names_in, values_in

WORLD = make_world()
DOCUMENTS = library.documents()


def hedges(text: str) -> bool:
    return any(hedge in text for hedge in phrases.HEDGES)


def test_documents_say_what_they_claim():
    for document in DOCUMENTS:
        assert names_in(document.text) == [document.name]
        for attribute, value in document.facts.items():
            assert values_in(document.text, attribute) == [value]
            assert (value == WORLD.facts[document.name][attribute]) is document.true


def test_ids_are_distinct_and_the_corpus_is_the_same_each_time():
    assert len({document.id for document in DOCUMENTS}) == len(DOCUMENTS) > 3900
    assert library.documents() == DOCUMENTS
    assert library.documents(seed=1) != DOCUMENTS


def test_every_fact_is_told_truly_and_falsely():
    told = {(d.name, attribute, d.true) for d in DOCUMENTS for attribute in d.facts}
    assert len(told) == 2 * sum(len(facts) for facts in WORLD.facts.values())


def test_hedging_is_a_sign_and_no_proof():
    records = [hedges(d.text) for d in DOCUMENTS if d.true]
    rumours = [hedges(d.text) for d in DOCUMENTS if not d.true]
    assert 0.05 < sum(records) / len(records) < 0.15
    assert 0.85 < sum(rumours) / len(rumours) < 0.95


def test_questions_are_answered_by_the_world_and_sides_share_nobody():
    people = {}
    for side in ("train", "heldout"):
        asked = library.questions(side)
        assert len({q.id for q in asked}) == len(asked) == library.POOL
        for question in asked:
            (name,) = names_in(question.text)
            assert question.answer in WORLD.facts[name].values()
            people.setdefault(side, set()).add(name)
        assert library.questions(side, 10) == asked[:10]
    assert not people["train"] & people["heldout"]


@pytest.mark.parametrize(("side", "limit"), [("test", None), ("train", 0), ("train", library.POOL + 1)])
def test_unknown_sides_and_limits_are_refused(side, limit):
    with pytest.raises(ValueError, match=r"side|limit"):
        library.questions(side, limit)
