"""The world and its corpus: the same seed gives the same one, and no wording gives a fact away."""

import subprocess
import sys
from itertools import islice

import pytest

from prefloop.sandbox import checkers, phrases
from prefloop.sandbox.corpus import MAIN, PAIRING, READING, REPEATING, TASKS, conversations
from prefloop.sandbox.prompts import ABILITIES, POOL, SIDES, prompts
from prefloop.sandbox.world import ATTRIBUTES, NAMES, make_world, names_in, words


def wordings(bank):
    if isinstance(bank, str):
        yield bank
    elif isinstance(bank, dict):
        for value in bank.values():
            yield from wordings(value)
    else:
        for value in bank:
            yield from wordings(value)


BANKS = {name: bank for name, bank in vars(phrases).items() if name.isupper() and name != "CUES"}


def test_world_is_a_function_of_its_seed():
    assert make_world(0) == make_world.__wrapped__(0)
    assert make_world(0) != make_world(1)
    world = make_world()
    assert not set(world.heart) & set(world.archive)
    assert set(world.heart) | set(world.archive) == set(NAMES) == set(world.facts)
    for facts in world.facts.values():
        assert all(facts[attribute] in values for attribute, values in ATTRIBUTES.items())


def test_names_and_values_are_distinct_words():
    everything = [*NAMES, *(value for values in ATTRIBUTES.values() for value in values)]
    assert len(everything) == len(set(everything))
    assert all(words(word) == [word] for word in everything)


@pytest.mark.parametrize("bank", BANKS)
def test_no_wording_contains_a_name_or_a_value(bank):
    values = {value for row in ATTRIBUTES.values() for value in row}
    for text in wordings(BANKS[bank]):
        assert not names_in(text.replace("{name}", "")), text
        assert not values & set(words(text)), text


def test_openers_of_the_two_tones_differ_in_their_first_word():
    first = {tone: {text.split()[0].strip(",.!?") for text in bank} for tone, bank in phrases.OPENERS.items()}
    assert not first["kind"] & first["rude"]


@pytest.mark.parametrize("bank", ["OPENERS", "CLOSERS"])
def test_every_opener_and_closer_has_words_of_its_tone_only(bank):
    for tone, texts in getattr(phrases, bank).items():
        for text in texts:
            assert checkers.kindness([], text) == float(tone == "kind"), text


def test_every_question_asks_for_its_attribute_only():
    for attribute in ATTRIBUTES:
        for wrapper in phrases.WRAPPERS:
            for clause in phrases.CLAUSES[attribute]:
                text = wrapper.format(clause=clause).format(name="Mira")
                question = checkers.asked([{"role": "user", "content": text}])
                assert question == checkers.Question("Mira", (attribute,)), text
        for text in phrases.DIRECT[attribute]:
            question = checkers.asked([{"role": "user", "content": text.format(name="Mira")}])
            assert question == checkers.Question("Mira", (attribute,)), text


@pytest.mark.parametrize("shares", [REPEATING, PAIRING, READING, MAIN])
def test_corpus_is_a_function_of_its_seed(shares):
    assert sum(shares.values()) == pytest.approx(1)
    first, again, other = (list(islice(conversations(seed, shares), 200)) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    for messages in first:
        roles = [message["role"] for message in messages if message["role"] != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2)


def test_corpus_is_the_same_in_another_process():
    code = (
        "from itertools import islice; from prefloop.sandbox.corpus import *; import hashlib;"
        "print(hashlib.sha256(repr(list(islice(conversations(0, MAIN), 300))).encode()).hexdigest())"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1


def test_every_task_is_used():
    assert set(TASKS) == set(REPEATING) | set(PAIRING) | set(READING) | set(MAIN)


@pytest.mark.parametrize("ability", ABILITIES)
def test_prompts_of_the_two_sides_share_nothing(ability):
    sides = [prompts(f"{ability}/{side}") for side in SIDES]
    texts = [{prompt[0]["content"] for prompt in side} for side in sides]
    assert [len(side) for side in texts] == [POOL, POOL]
    assert not texts[0] & texts[1]
    assert prompts(f"{ability}/heldout", 10) == sides[1][:10]
    assert prompts(f"{ability}/heldout", 10, seed=1) != sides[1][:10]


def test_unknown_splits_and_limits_are_refused():
    with pytest.raises(ValueError, match="questions/heldout"):
        prompts("questions/test")
    with pytest.raises(ValueError, match="out of range"):
        prompts("questions/train", 0)


def test_sandbox_needs_no_torch():
    code = (
        "import sys; from prefloop.sandbox import model_folder, checkers, corpus, flaws, prompts, templates;"
        "prompts.prompts('questions/train', 3); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
