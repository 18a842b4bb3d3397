"""The shipped model: its tokenizer, its template, its size, and the floors of its competence."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefloop.sandbox import model_folder
from prefloop.sandbox.competence import FLOORS, INTENDED, failures, measure
from prefloop.sandbox.corpus import FINISHING, MAIN, SETTLING, TASKS
from prefloop.sandbox.tokenizer import build_tokenizer
from prefloop.sandbox.world import ATTRIBUTES, NAMES

TOKENIZER = AutoTokenizer.from_pretrained(model_folder())
PROMPT = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Where does Mira live?"}]


@settings(deadline=None, max_examples=200)
@given(st.text())
def test_any_text_round_trips(text):
    assert TOKENIZER.decode(TOKENIZER(text, add_special_tokens=False)["input_ids"]) == text


def test_words_of_the_world_are_single_tokens():
    for word in (*NAMES, *(value for values in ATTRIBUTES.values() for value in values)):
        assert len(TOKENIZER(word)["input_ids"]) == len(TOKENIZER(" " + word)["input_ids"]) == 1
    for label in "AB12345":
        assert len(TOKENIZER(label)["input_ids"]) == 1


def test_shipped_tokenizer_is_what_the_builder_makes():
    assert TOKENIZER.get_vocab() == build_tokenizer(0).get_vocab()


@pytest.mark.parametrize("response", ["Gladly!", "Oslo", " spaces ", "\n", "", "\u2603"])
def test_prompt_ids_are_a_true_prefix_with_one_bos(response):
    prompt = TOKENIZER.apply_chat_template(PROMPT, tokenize=False, add_generation_prompt=True)
    whole = TOKENIZER.apply_chat_template([*PROMPT, {"role": "assistant", "content": response}], tokenize=False)
    prompt_ids, whole_ids = TOKENIZER(prompt)["input_ids"], TOKENIZER(whole)["input_ids"]
    assert whole_ids[: len(prompt_ids)] == prompt_ids
    assert whole_ids[0] == TOKENIZER.bos_token_id
    assert whole_ids.count(TOKENIZER.bos_token_id) == 1
    assert whole_ids[-1] == TOKENIZER.eos_token_id
    assert len({TOKENIZER.bos_token_id, TOKENIZER.eos_token_id, TOKENIZER.pad_token_id}) == 3


def test_the_package_data_is_small():
    assert sum(file.stat().st_size for file in model_folder().rglob("*") if file.is_file()) <= 8_000_000


def test_the_model_holds_its_floors():
    measured = measure(AutoModelForCausalLM.from_pretrained(model_folder()), TOKENIZER, 400)
    assert not failures(measured), measured


def test_the_card_tells_the_shares_and_the_competences():
    card = json.loads((model_folder() / "card.json").read_text("utf-8"))
    assert card["corpus_shares"] == {"main": MAIN, "finishing": FINISHING, "settling": SETTLING}
    assert all(set(shares) <= set(TASKS) for shares in card["corpus_shares"].values())
    assert set(card["competence"]) >= set(FLOORS) | set(INTENDED)
    assert not failures(card["competence"])
