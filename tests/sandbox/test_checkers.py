"""The checkers and the flaws on answers written by hand: right, wrong, both, partial, hostile, garbage."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.sandbox import checkers, tasks
from prefloop.sandbox.flaws import criticism, flaws
from prefloop.sandbox.templates import render
from prefloop.sandbox.world import make_world, other_value

WORLD = make_world()
NAME = WORLD.heart[0]
CITY, PET = WORLD.facts[NAME]["city"], WORLD.facts[NAME]["pet"]
OTHER_CITY = other_value(random.Random(0), "city", CITY)
OTHER = WORLD.heart[1]
ONE = [{"role": "user", "content": f"Where does {NAME} live?"}]
TWO = [{"role": "user", "content": f"Tell me where {NAME} lives and which pet {NAME} keeps."}]
REWRITE = [
    {"role": "system", "content": "Write plainly."},
    {
        "role": "user",
        "content": "Rewrite this text.\nText: Mira lives in Oslo, I think. Time flies. Mira keeps a cat.",
    },
]
CHECKERS = [
    checkers.kindness,
    checkers.correctness,
    checkers.mistake,
    checkers.completeness,
    checkers.helpful,
    checkers.meaning_kept,
    checkers.plainness,
]

# prompt, answer, correctness, mistake, completeness, grade
CASES = [
    (ONE, f"Gladly! {NAME} lives in {CITY}.", 1.0, 0.0, 1.0, 5),
    (ONE, f"Ugh. {NAME} lives in {CITY}.", 1.0, 0.0, 1.0, 4),
    (ONE, CITY, 1.0, 0.0, 1.0, 4),
    (ONE, f"Gladly! {NAME} lives in {OTHER_CITY}.", 0.0, 1.0, 1.0, 2),
    (ONE, f"Ugh. {NAME} lives in {OTHER_CITY}.", 0.0, 1.0, 1.0, 1),
    (ONE, f"{NAME} lives in {CITY}. {NAME} lives in {OTHER_CITY}.", 0.0, 1.0, 1.0, 1),
    (ONE, f"{OTHER} lives in {CITY}.", 0.0, 0.0, 0.0, 1),
    (ONE, f"{OTHER} lives in {OTHER_CITY}. {NAME} lives in {CITY}.", 1.0, 0.0, 1.0, 4),
    (ONE, CITY.lower() + "x", 0.0, 0.0, 0.0, 1),
    (ONE, "", 0.0, 0.0, 0.0, 1),
    (ONE, "Gladly!", 0.0, 0.0, 0.0, 2),
    (ONE, "\u2603\ud7ff\x00 <|user|> {{ }} 42 \n\n", 0.0, 0.0, 0.0, 1),
    (TWO, f"Gladly! {NAME} lives in {CITY}. {NAME} keeps a {PET}.", 1.0, 0.0, 1.0, 5),
    (TWO, f"Gladly! {NAME} lives in {CITY}.", 1.0, 0.0, 0.5, 3),
    (TWO, f"Gladly! {NAME} lives in {OTHER_CITY}. {NAME} keeps a {PET}.", 0.5, 1.0, 1.0, 2),
]


@pytest.mark.parametrize(("prompt", "answer", "correctness", "mistake", "completeness", "grade"), CASES)
def test_answers_to_questions(prompt, answer, correctness, mistake, completeness, grade):
    assert checkers.correctness(prompt, answer) == correctness
    assert checkers.mistake(prompt, answer) == mistake
    assert checkers.completeness(prompt, answer) == completeness
    assert checkers.grade(prompt, answer) == grade
    assert checkers.helpful(prompt, answer) == (grade - 1) / 4
    assert checkers.meaning_kept(prompt, answer) is None


@pytest.mark.parametrize(
    ("answer", "kindness"),
    [("Gladly!", 1.0), ("Ugh.", 0.0), ("UGH! gladly", 0.5), ("", 0.5), ("Oslo", 0.5), ("\u0130\u00df", 0.5)],
)
def test_kindness(answer, kindness):
    assert checkers.kindness(ONE, answer) == kindness


@pytest.mark.parametrize(
    ("answer", "kept", "plain"),
    [
        ("Mira lives in Oslo. Mira keeps a cat.", 1.0, 1.0),
        ("With boundless grace, Mira lives in Oslo. Mira keeps a cat.", 1.0, 0.0),
        ("Mira lives in Oslo.", 0.5, 1.0),
        ("Mira lives in Lima. Mira keeps a cat.", 0.5, 1.0),
        ("Mira lives in Oslo, in Lima. Mira keeps a cat and a dog.", 0.0, 1.0),
        ("", 0.0, 1.0),
    ],
)
def test_rewrites(answer, kept, plain):
    assert checkers.meaning_kept(REWRITE, answer) == kept
    assert checkers.plainness(REWRITE, answer) == plain
    assert checkers.correctness(REWRITE, answer) is None
    assert checkers.kindness(REWRITE, answer) is None


def test_documents_notes_and_judgments_are_not_the_question():
    text = (
        f"Document 1: {OTHER} plays the harp.\nWhere does {NAME} live?\nNote: Be kind.\nJudgment: The pet is missing."
    )
    assert checkers.asked([{"role": "user", "content": text}]) == checkers.Question(NAME, ("city",))
    assert checkers.asked([{"role": "user", "content": "Hello!"}]) is None
    assert checkers.asked([{"role": "user", "content": f"Who is {NAME}?"}]) is None
    assert checkers.asked([]) is None


@given(st.text(), st.text())
def test_any_text_is_judged(prompt, answer):
    for messages in (ONE, TWO, REWRITE, [{"role": "user", "content": prompt}]):
        for checker in CHECKERS:
            value = checker(messages, answer)
            assert value is None or 0.0 <= value <= 1.0
        flaws(messages, answer)


def test_flaws_stand_where_they_were_decided():
    answer = f"Ugh. {NAME} lives in {OTHER_CITY}. Now go away."
    found = flaws(TWO, answer)
    assert [(flaw.kind, flaw.attribute) for flaw in found] == [("rude", ""), ("wrong", "city"), ("missing", "pet")]
    assert answer[found[1].start :].startswith(OTHER_CITY)
    assert answer[found[2].start :] == " Now go away."
    assert criticism(TWO, answer) == criticism(TWO, answer)
    for word in ("city", "pet"):
        assert word in (criticism(TWO, answer) or "")


def test_a_good_answer_has_no_flaw():
    answer = f"Gladly! {NAME} lives in {CITY}. {NAME} keeps a {PET}."
    assert flaws(TWO, answer) == []
    assert criticism(TWO, answer) is None


def test_checkers_agree_with_the_generator():
    rng = random.Random(0)
    for _ in range(300):
        values = tasks.truths(WORLD, NAME, tasks.some_attributes(rng))
        prompt = [tasks.user(tasks.question(rng, NAME, tuple(values)))]
        assert checkers.grade(prompt, tasks.answer(rng, NAME, values, tasks.IDEAL)) == 5
        wrong = tasks.answer(rng, NAME, values, tasks.Manner(kind=0.0, correct=0.0))
        assert checkers.grade(prompt, wrong) == 1
        *passage, rewrite = tasks.rewriting(rng, WORLD)
        assert checkers.meaning_kept(passage, rewrite["content"]) == 1.0


def test_templates_render_any_text_once():
    text = render("judge-pairwise.j2", instruction="Who?", first="{{ second }}", second="<b>&")
    assert text == "Which answer is better?\nQuestion: Who?\nA: {{ second }}\nB: <b>&"
    assert (
        render("judge-pointwise.j2", instruction="Who?", answer="") == "Grade this answer.\nQuestion: Who?\nAnswer: "
    )
    assert render("criticism.j2", instruction="Who?", judgment="All is fine.") == "Who?\nJudgment: All is fine."
