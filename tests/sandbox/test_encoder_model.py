"""The shipped encoder: its size, what it finds, how its rows are made, and the source bias of the world."""

from __future__ import annotations

import json
from itertools import islice

import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from prefloop.config import RetrieverSection
from prefloop.evaluate.source_protocol import measure_sources
from prefloop.retrieve.corpus import read_collection
from prefloop.retrieve.retriever import open_retriever
from prefloop.sandbox import build_encoder, checkers, encoder_folder, model_folder, tasks
from prefloop.sandbox.competence import sample
from prefloop.sandbox.passages import collection
from prefloop.sandbox.phrases import REWRITE_REQUESTS
from prefloop.sandbox.world import NAMES, names_in, values_in

FOLDER = encoder_folder()


@pytest.fixture(scope="module")
def encoder():
    return SentenceTransformer(str(FOLDER), device="cpu")


def test_the_package_data_is_small_and_safe(encoder):
    files = [file for file in FOLDER.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 1_500_000
    sandbox = FOLDER.parents[1]
    assert sum(file.stat().st_size for file in sandbox.rglob("*.safetensors")) < 12_000_000
    assert {file.suffix for file in files} == {".json", ".safetensors"}
    card = json.loads((FOLDER / "card.json").read_text("utf-8"))
    assert card["parameters"] == sum(p.numel() for p in encoder.parameters())
    assert card["mix"] == build_encoder.MIX
    assert tuple(card["wordings"]) == build_encoder.WORDINGS


def test_it_finds_the_passages_that_answer(encoder):
    found = build_encoder.measure(encoder)
    assert found["hit@1"] > 0.97, found
    assert found["ndcg@10"] > 0.97, found


def test_it_averages_and_compares_by_cosine(encoder):
    assert encoder.similarity_fn_name == "cosine"
    assert encoder[1].pooling_mode == "mean"
    with torch.inference_mode():
        batch = encoder.preprocess(["Where does Mira live?", "Mira lives in Oslo."])
        states_BLD = encoder[0](dict(batch))["token_embeddings"]
        mask_BL1 = batch["attention_mask"].unsqueeze(-1)
        mean_BD = (states_BLD * mask_BL1).sum(1) / mask_BL1.sum(1)
    given = encoder.encode(["Where does Mira live?", "Mira lives in Oslo."], convert_to_tensor=True)
    torch.testing.assert_close(given, mean_BD)


def test_a_cross_encoder_starts_from_it():
    model = AutoModel.from_pretrained(FOLDER)
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    assert min(tokenizer.model_max_length, model.config.max_position_embeddings) >= 128
    pair = tokenizer("Where does Mira live?", "Mira lives in Oslo.", return_tensors="pt")
    text = tokenizer.decode(pair["input_ids"][0])
    assert text == "<s>Where does Mira live?</s>Mira lives in Oslo.</s>"
    assert pair["token_type_ids"].tolist()[0] == [0] * 7 + [1] * 6
    reranker = CrossEncoder(str(FOLDER), num_labels=1, device="cpu")
    long = " ".join(["Mira lives in Oslo."] * 200)
    scores = reranker.predict([("Where does Mira live?", "Mira lives in Oslo."), ("Where does Mira live?", long)])
    assert scores.shape == (2,)


def test_rows_answer_and_their_negatives_do_not():
    for batch in islice(build_encoder.batches(0), 5):
        people = [names_in(query)[0] for query, _, _ in batch]
        assert len(set(people)) == len(batch) == build_encoder.BATCH
        for name, (query, answering, silent) in zip(people, batch, strict=True):
            question = checkers.asked([tasks.user(query)])
            assert question is not None
            assert names_in(answering) == names_in(silent) == [name]
            assert values_in(answering, question.attributes[0])
            assert not values_in(silent, question.attributes[0])


def test_the_collections_are_not_trained_on():
    known = {text for split in ("train", "heldout") for text in collection(f"passages/{split}").passages.values()}
    some = {text for batch in islice(build_encoder.batches(0), 20) for row in batch for text in row[1:]}
    assert not some & known
    assert set(NAMES) >= {names_in(text)[0] for text in some}


def test_the_same_seed_trains_the_same_weights():
    def trained():
        model = build_encoder.new_encoder(0)
        build_encoder.train(model, build_encoder.batches(0), 1)
        return model.state_dict()

    one, two, new = trained(), trained(), build_encoder.new_encoder(0).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], new[name]) for name in one)


def test_it_is_the_retriever_called_sandbox():
    retriever = open_retriever(RetrieverSection(path="sandbox"), None)
    made = collection("passages/heldout")
    query, grades = next(iter(made.qrels.items()))
    ids = list(made.passages)
    hits = retriever.index(list(made.passages.values())).search([made.queries[query]], 2)[0]
    assert {ids[hit.position] for hit in hits} == set(grades)


@pytest.mark.slow
def test_rewrites_of_the_base_model_are_favoured_and_lie_on_both_sides():
    """What LLM-SBM needs of the world: the whole interval of Relative Δ@10 below -10, and pairs from most passages."""
    found, wordings = read_collection("sandbox:passages/heldout", judged=True), len(REWRITE_REQUESTS)
    human = found.passages["human"]
    given = [[tasks.user(f"{request}\nText: {passage.text}")] for passage in human for request in REWRITE_REQUESTS]
    model = AutoModelForCausalLM.from_pretrained(model_folder())
    answers = sample(model, AutoTokenizer.from_pretrained(model_folder()), given, seed=5)
    kept = [checkers.meaning_kept(prompt, answer) or 0.0 for prompt, answer in zip(given, answers, strict=True)]
    assert sum(kept) / len(kept) > 0.98
    by_wording = {
        f"rewrite{n}": [p._replace(source=f"rewrite{n}", text=answers[i * wordings + n]) for i, p in enumerate(human)]
        for n in range(wordings)
    }
    retriever = open_retriever(RetrieverSection(path="sandbox"), None)

    for source in ("rewrite0", "rewrite3", "rewrite6"):
        measured = measure_sources(
            {"human": human, source: by_wording[source]}, found.queries, found.qrels, {"sandbox": retriever}
        )
        assert measured.retrievers["sandbox"]["relative_delta@10"][source]["ci_high"] < -10, measured.retrievers

    texts = {query.id: query.text for query in found.queries}
    places = {passage.id: i for i, passage in enumerate(human)}
    judged = [(texts[query], places[key]) for query, grades in found.qrels.items() for key in grades]
    scores = [
        retriever.pair_scores([(text, version[place].text) for text, place in judged])
        for version in (human, *by_wording.values())
    ]
    both = [min(others) < own < max(others) for own, *others in zip(*scores, strict=True)]
    assert sum(both) / len(both) > 0.5
