"""Perplexity of answers under the base: against plain forward passes of transformers, and by hand."""

from __future__ import annotations

import math

import pytest
import torch
from tests.tiny_models import tiny_model_folder
from transformers import AutoModelForCausalLM

from prefloop.backends.base import Refusal, Score
from prefloop.backends.hf import HfBackend
from prefloop.config import EvaluateSection, ModelSection
from prefloop.engine.tokens import encode_completion, encode_prompt
from prefloop.evaluate.perplexity import in_words, of_pair, perplexity, sentences
from prefloop.evaluate.several import measure
from prefloop.records import prompt_id


def row(question, *texts, ids=None):
    prompt = [{"role": "user", "content": question}]
    completions = [
        {"id": f"{question} {i}", "text": text, "token_ids": ids, "finish_reason": "stop", "sample_index": i}
        for i, text in enumerate(texts)
    ]
    return {"id": prompt_id(prompt), "prompt": prompt, "completions": completions}


class Scripted:
    """A backend that gives each answer the log-probabilities of a table."""

    def __init__(self, **table):
        self.table, self.asked = table, []

    def answer(self, requests):
        self.asked += requests
        return [self.table[r.text] for r in requests]


QUESTIONS = ["What is the capital of France?", "Say the number 7 in words.", "Who?"]
BASE = [row(q, f"It is {n} I think.", "No.") for n, q in enumerate(QUESTIONS)]
ALIGNED = [row(q, "Gladly, with all my heart!", "") for q in QUESTIONS]


def directly(model, tokenizer, rows):
    """(mean negative log-likelihood a token, tokens), each answer by a forward pass of its own in float64."""
    total, count = 0.0, 0
    for r in rows:
        prompt = encode_prompt(tokenizer, r["prompt"])
        for completion in r["completions"]:
            answer = encode_completion(tokenizer, completion["text"], None)
            if not answer:
                continue
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
            logps = logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None])
            total -= float(logps.sum())
            count += len(answer)
    return total / count, count


def test_as_transformers_computes_it():
    folder = tiny_model_folder("llama")
    backend = HfBackend.load(ModelSection(path=str(folder), device="cpu", dtype="float32"))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    found = perplexity({"base": BASE, "kind": ALIGNED}, backend, resamples=200)
    for name, rows in (("base", BASE), ("kind", ALIGNED)):
        nll, tokens = directly(model, backend.tokenizer, rows)
        figure = found["models"][name]
        assert figure["nll"]["value"] == pytest.approx(nll, abs=1e-5)
        assert figure["value"] == pytest.approx(math.exp(nll), rel=1e-5)
        assert figure["tokens"] == tokens
        assert figure["ci_low"] == pytest.approx(math.exp(figure["nll"]["ci_low"]))
        assert figure["nll"]["ci_low"] <= nll + 1e-5
        assert figure["nll"]["ci_high"] >= nll - 1e-5
    change = found["differences"]["kind"]
    values = [found["models"][name]["nll"]["value"] for name in ("base", "kind")]
    assert change["value"] == pytest.approx(values[1] - values[0], abs=1e-9)
    assert (found["n"], found["excluded"]) == (3, 0)


def test_by_hand():
    backend = Scripted(a=Score([-1.0, -2.0, -3.0]), b=Score([-2.0]), c=Score([-4.0]), d=Score([-1.0, -1.0]))
    rows = {"base": [row("p", "a"), row("q", "b")], "m": [row("p", "c"), row("q", "d")]}
    found = perplexity(rows, backend, resamples=100)
    # Tokens count alike, whichever answer they stand in.
    assert found["models"]["base"]["nll"]["value"] == pytest.approx(8 / 4)
    assert found["models"]["m"]["nll"]["value"] == pytest.approx(6 / 3)
    assert found["models"]["base"]["value"] == pytest.approx(math.e**2)
    assert found["differences"]["m"]["value"] == pytest.approx(0)
    # Of two prompts a resample holds one, the other, or both: -1 / +2 / 0.
    assert found["differences"]["m"]["ci_low"] == pytest.approx(-1)
    assert found["differences"]["m"]["ci_high"] == pytest.approx(2)


def test_what_cannot_be_scored_counts_for_no_model():
    backend = Scripted(a=Score([-1.0]), b=Score([-2.0]), c=Refusal("too long"), d=Score([-9.0]))
    rows = {"base": [row("p", "a"), row("q", "d")], "m": [row("p", "b"), row("q", "c")]}
    found = perplexity(rows, backend, resamples=100)
    assert (found["n"], found["excluded"]) == (1, 1)
    assert found["models"]["base"]["nll"]["value"] == 1.0
    assert found["models"]["m"]["nll"]["value"] == 2.0


def test_answers_without_a_token():
    backend = Scripted(a=Score([-1.0]))
    found = perplexity({"base": [row("p", "a")], "m": [row("p", "")]}, backend, resamples=100)
    assert [r.text for r in backend.asked] == ["a"]
    assert found["models"]["m"] is None
    assert found["differences"]["m"] is None
    assert found["models"]["base"]["value"] == pytest.approx(math.e)
    assert "no token could be scored" in in_words(of_pair(found, "m"))


def test_the_samplers_own_tokens_are_scored():
    backend = Scripted(a=Score([-1.0, -1.0]))
    perplexity({"base": [row("p", "a", ids=[4, 5])]}, backend, resamples=100)
    assert backend.asked[0].token_ids == (4, 5)


def test_in_the_measurement_of_one_and_of_several():
    backend = Scripted(a=Score([-1.0]), b=Score([-2.0]), c=Score([-3.0]))
    base, one, two = ([row("p", text)] for text in "abc")
    section = EvaluateSection(bootstrap=100)
    assert "perplexity" not in measure(base, {"aligned": one}, section, []).summary
    found = measure(base, {"aligned": one}, section, [], language=backend).summary["perplexity"]
    assert found["difference"]["value"] == pytest.approx(1)
    assert found["aligned"]["value"] == pytest.approx(math.e**2)
    assert "2.72 → 7.39" in in_words(found)
    several = measure(base, {"x": one, "y": two}, section, [], language=backend).summary
    assert several["perplexity"] == several["branches"][several["winner"]]["perplexity"]
    changes = [several["branches"][name]["perplexity"]["difference"]["value"] for name in "xy"]
    assert changes == pytest.approx([1, 2])


def test_in_words_of_several():
    backend = Scripted(a=Score([-1.0]), b=Score([-2.0]), c=Score([-3.0]))
    rows = {name: [row("p", text)] for name, text in (("sft", "a"), ("dpo", "b"), ("kto", "c"))}
    said = sentences(perplexity(rows, backend, first="sft", resamples=100) | {"under": "sft"})
    assert len(said) == 2
    assert said[1].startswith("perplexity of kto's answers against sft's own under sft: 2.72 → 20.09")
