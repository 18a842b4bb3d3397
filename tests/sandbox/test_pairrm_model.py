"""The shipped PairRM: its size, what it knows, and how its pairs are made."""

from __future__ import annotations

import json
import random
from itertools import islice
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefloop.engine.load import resolve_model_path
from prefloop.sandbox import build_pairrm, model_folder
from prefloop.sandbox.competence import sample
from prefloop.sandbox.prompts import POOL, prompts
from prefloop.sandbox.world import make_world
from prefloop.signals.pairrm import PairRM
from prefloop.signals.pairrm.checkpoint import check
from prefloop.signals.pairrm.text import Encoder

FOLDER = Path(resolve_model_path("sandbox:pairrm"))
MODEL = PairRM.from_pretrained("sandbox", device="cpu")
TOKENIZER = MODEL.encoder.tokenizer


def test_the_package_data_is_small_and_complete():
    check(FOLDER)
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 2_000_000
    assert sum(f.stat().st_size for f in (*FOLDER.iterdir(), *model_folder().iterdir())) < 12_000_000
    told = json.loads((FOLDER / "card.json").read_text("utf-8"))
    assert told["parameters"] == sum(p.numel() for p in MODEL.network.parameters())


def test_it_knows_the_better_answer_to_held_out_prompts():
    found = build_pairrm.measure(MODEL, 400, seed=2)
    assert found["decided_pairs"] > 250
    assert found["accuracy"] > 0.98, found
    assert min(found["kind_right"], found["tone"]) > 0.99, found
    assert 0.45 < found["first_seat"] < 0.55, found


def test_it_knows_the_better_answer_of_the_shipped_model():
    given = prompts("questions/heldout", 80, seed=3)
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(model_folder()),
        AutoTokenizer.from_pretrained(model_folder()),
    )
    answers = [sample(model, tokenizer, given, seed=seed) for seed in (1, 2)]
    cases = [(prompt[0]["content"], list(pair)) for prompt, pair in zip(given, zip(*answers), strict=True)]
    right = []
    for (text, pair), m in zip(cases, MODEL.matrices(cases), strict=True):
        first, second = build_pairrm.grades(text, pair)
        if first != second:
            right.append((m[0, 1] > m[1, 0]).item() == (first > second))
    assert len(right) > 40
    assert sum(right) / len(right) > 0.95


def test_a_kind_right_answer_beats_a_rude_wrong_one():
    facts = make_world().facts[name := make_world().people("heart", "heldout")[0]]
    other = "Lima" if facts["city"] != "Lima" else "Oslo"
    good = f"Gladly! {name} lives in {facts['city']}."
    question = f"Where does {name} live?"
    assert MODEL.best_of_n(question, [f"Ugh. {name} lives in {other}.", good, "Pathetic."]) == good
    assert MODEL.compare(question, good, f"Gladly! {name} lives in {other}.") > 0
    assert MODEL.compare(question, good, f"Ugh. {name} lives in {facts['city']}.") > 0


def test_the_shipped_tokenizer_is_what_the_builder_makes():
    assert build_pairrm.build_tokenizer(0).to_str() == TOKENIZER.to_str()


def test_held_out_prompts_are_not_trained_on():
    kept_out = frozenset(prompt[0]["content"] for prompt in prompts("questions/heldout", POOL))
    some = list(islice(build_pairrm.questions(random.Random(0), make_world(), kept_out), 500))
    assert not {text for text, _ in some} & kept_out
    assert {len(answers) for _, answers in some} == {build_pairrm.ANSWERS}


def test_stated_values_are_marked_true_or_false():
    world = make_world()
    name, stranger = world.heart[0], world.archive[0]
    true, pet = world.facts[name]["city"], world.facts[name]["pet"]
    false = "Lima" if true != "Lima" else "Oslo"
    text = f"{name} lives in {true}. {name} dwells in {false}. {stranger} lives in {true}. {name} keeps a {pet}."
    encoding = TOKENIZER.encode(text, add_special_tokens=False)
    marks = build_pairrm.Truth(TOKENIZER, world).marks(encoding.ids)
    assert [(encoding.tokens[i], true) for i, true in marks] == [(true, 1), (false, 0), (pet, 1)]


def test_the_same_seed_trains_the_same_weights():
    def trained():
        network = build_pairrm.new_network(TOKENIZER, 0)
        stream = build_pairrm.steps(Encoder(TOKENIZER, build_pairrm.LIMITS), 0, make_world())
        build_pairrm.train(network, stream, 2)
        return network.state_dict()

    one, two, new = trained(), trained(), build_pairrm.new_network(TOKENIZER, 0).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["head_layer.1.weight"], new["head_layer.1.weight"])


def test_facts_are_learned_by_those_known_by_heart_only():
    world, network = make_world(), build_pairrm.new_network(TOKENIZER, 0)
    weight = network.pretrained_model.embeddings.word_embeddings.weight
    before = weight.detach().clone()
    build_pairrm.learn_facts(network, TOKENIZER, world)
    known, strangers = ([TOKENIZER.token_to_id(name) for name in names] for names in (world.heart, world.archive))
    assert (before[known] != weight[known]).any(dim=1).all()
    assert torch.equal(before[strangers], weight[strangers])
