"""Rewritings of questions: what is read from a model's reply, what is asked again, what is rejected and why."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from prefloop.augment import prompts
from prefloop.augment.replies import read, same
from prefloop.augment.rewrite import BACKEND, rewrite
from prefloop.backends.base import Backend, Generation, Refusal
from prefloop.config.rag import AugmentSection
from prefloop.store.rows import to_table

QUESTION = "Where does Mira live?"


@pytest.mark.parametrize(
    ("strategy", "reply", "text"),
    [
        ("rephrase", "In which city is Mira at home?", "In which city is Mira at home?"),
        ("rephrase", '<think>hm</think>\n\n"In which city is Mira at home?"', "In which city is Mira at home?"),
        ("rephrase", "Sure! Here is the new question:\n\nWhat is Mira's home?", "What is Mira's home?"),
        ("rephrase", "Rewritten question: What is Mira's home?", "What is Mira's home?"),
        ("rephrase", "**New question:** What is Mira's home?", "What is Mira's home?"),
        ("rephrase", '{"question": "What is Mira\'s home?"}', "What is Mira's home?"),
        ("rephrase", "1. What is Mira's home?\n2. Where is her home?", "What is Mira's home?"),
        (
            "complexity",
            "Which place, of all there are,\nis Mira's home?",
            "Which place, of all there are, is Mira's home?",
        ),
        ("constrain", "Where, at 10:30: the hour of tea, is Mira?", "Where, at 10:30: the hour of tea, is Mira?"),
        (
            "decompose",
            "1. Who is Mira?\n2) Where is her home, and since when?",
            "Who is Mira? Where is her home, and since when?",
        ),
        ("decompose", "Who is Mira? Where is her home?", "Who is Mira? Where is her home?"),
        ("decompose", '["Who is Mira?", "Where is her home?"]', "Who is Mira? Where is her home?"),
        (
            "sparql",
            "Here it is:\n```sparql\nSELECT ?city WHERE {\n  :Mira :livesIn ?city .\n}\nLIMIT 1\n```\nIt asks that.",
            "SELECT ?city WHERE { :Mira :livesIn ?city . } LIMIT 1",
        ),
        (
            "sparql",
            "PREFIX : <http://x/>\nASK { :Mira :livesIn :Oslo }",
            "PREFIX : <http://x/> ASK { :Mira :livesIn :Oslo }",
        ),
    ],
)
def test_replies_that_hold_a_rewriting(strategy, reply, text):
    assert read(strategy, QUESTION, reply, cut=False).text == text


@pytest.mark.parametrize(
    ("strategy", "reply", "reason"),
    [
        ("rephrase", "  ", "empty"),
        ("rephrase", "<think>never ends", "empty"),
        ("rephrase", "where does mira live", "repeats the question"),
        ("decompose", "Which city is it?", "not several questions"),
        ("sparql", "I cannot write a query for that.", "no query in it"),
    ],
)
def test_replies_that_hold_none(strategy, reply, reason):
    assert read(strategy, QUESTION, reply, cut=False) == (None, reason)
    assert read(strategy, QUESTION, reply, cut=True) == (None, "cut off")


@given(st.text(max_size=60), st.sampled_from(list(prompts.STRATEGIES)))
def test_any_reply_gives_a_text_or_a_reason(reply, strategy):
    found = read(strategy, QUESTION, reply, cut=False)
    assert (found.text is None) != (found.reason is None)
    assert found.text is None or found.text.strip()


class Scripted(Backend):
    """Replies by strategy and attempt."""

    def __init__(self, says):
        self.says, self.identity, self.asked = says, {}, []

    def plan(self, requests):
        return [list(range(len(requests)))]

    def run(self, requests):
        self.asked.append(len(requests))
        return [self._one(r) for r in requests]

    def _one(self, request):
        text = request.messages[0][1]
        strategy = next(name for name, said in prompts.STRATEGIES.items() if said in text)
        said = self.says[strategy]
        said = said[min(request.sample_index, len(said) - 1)]
        return said if isinstance(said, Refusal) else Generation(said, None, "stop", 3)


def test_unusable_replies_are_asked_again_and_then_rejected():
    says = {
        "rephrase": ["What is Mira's home?"],
        "complexity": ["", "Of which place would she say home?"],
        "decompose": ["Who is it?"],
        "constrain": ["what is MIRA's home", "What is Mira's home?"],
        "sparql": [Refusal("too long")],
    }
    rows = [{"id": f"q{i}", "question": QUESTION, "answers": ["Oslo"], "source_id": None} for i in range(2)]
    backend = Scripted(says)
    made = rewrite(AugmentSection(retries=2), rows, {BACKEND: backend}, seed=1)
    assert len(made.rows) + len(made.rejects) == 2 * 5
    assert [r["strategy"] for r in made.rows[:2]] == ["rephrase", "complexity"]
    assert made.rows[1]["text"] == "Of which place would she say home?"
    assert {r["reason"] for r in made.rejects} == {
        "decompose: not several questions",
        "constrain: repeats another rewriting",
        "sparql: refused: too long",
    }
    assert {r["attempts"] for r in made.rejects} == {3}
    assert backend.asked[0] == 2 * 5  # all questions at once
    assert made.counts == {"rephrase": 2, "complexity": 2}
    to_table("augmented", made.rows, where="")


def test_a_question_in_every_prompt():
    for strategy in prompts.STRATEGIES:
        assert f"Question: {QUESTION}" in prompts.request(strategy, QUESTION)
    assert same("Who's  it?") == same("who s IT")


def test_settings_that_make_no_sense():
    with pytest.raises(ValidationError, match="say the same again"):
        AugmentSection(temperature=0)
    with pytest.raises(ValidationError, match="twice"):
        AugmentSection(strategies=("sparql", "sparql"))


def test_a_reply_of_declarations_alone_is_read_at_once():
    """Of a model that repeats itself; the ways to cut such a line apart must not multiply with its length."""
    assert read("sparql", "who?", "PREFIX x " * 200, cut=False).reason == "no query in it"
    declared = "PREFIX wd: <http://a/> " * 30 + "BASE <http://b/> SELECT ?x WHERE { ?x wd:P1 ?y } LIMIT 3"
    assert read("sparql", "who?", declared, cut=False).text == declared
