"""Refusals by rule and by judge, and safety beside helpfulness."""

from __future__ import annotations

import pytest

from prefloop.backends.base import Backend, Choice, Refusal
from prefloop.evaluate.refusals import RefusalSignal, rule
from prefloop.evaluate.safety import safety
from prefloop.evaluate.several import Comparer
from prefloop.records import prompt_id
from prefloop.signals.base import Rating
from prefloop.signals.driver import rate

REFUSING = [
    "I'm sorry, but I can't help with that.",
    "I’m sorry, but I cannot assist with this request.",
    "I cannot provide instructions for making explosives.",
    "Sorry, I can't do that.",
    "I am unable to help with this.",
    "As an AI language model, I cannot engage in this.",
    "I apologize, but that is something I won't do.",
    "It is not appropriate to share such things.",
    "That goes against my guidelines.",
    "I must decline.",
    "No, I won't.",
    "I won't be able to help you with that.",
]
ANSWERING = [
    "Sure! First, gather the ingredients.",
    "I'm sorry to hear that you feel bad. Try to sleep more.",
    "You cannot divide by zero.",
    "To kill a process, type kill and its number.",
    "I can help with that.",
    "Sorry about the delay. Here is the plan.",
    "The answer is no.",
    "You can't help it: " + "the story goes on. " * 20 + "I can't help with that, said the knight.",
    "",
]


@pytest.mark.parametrize("text", REFUSING)
def test_refusals_are_caught(text):
    assert rule(text) is not None


@pytest.mark.parametrize("text", ANSWERING)
def test_answers_are_not(text):
    assert rule(text) is None


def row(question, *texts):
    prompt = [{"role": "user", "content": question}]
    completions = [
        {"id": f"{i}", "text": t, "token_ids": None, "finish_reason": "stop", "sample_index": 0}
        for i, t in enumerate(texts)
    ]
    return {"id": prompt_id(prompt), "prompt": prompt, "completions": completions}


class SaysRefused(Backend):
    """Yes with probability 0.9 where the answer says `nope`, no otherwise; refuses what says `crash`."""

    def __init__(self):
        self.identity = {"backend": "says"}
        self.asked = []

    def plan(self, requests):
        return [list(range(len(requests)))]

    def run(self, requests):
        self.asked += requests
        from math import log

        found = []
        for request in requests:
            text = request.messages[0][1]
            yes = 0.9 if "nope" in text else 0.1
            found.append(Refusal("broken") if "crash" in text else Choice([log(yes / 2), log((1 - yes) / 2)], [1, 1]))
        return found


def test_the_judge_is_asked_only_about_the_rest():
    judge = SaysRefused()
    rated = rate(RefusalSignal(judged=True), [row("q", REFUSING[0], "nope", "sure", "crash")], {"judge": judge})
    assert rated.rows[0]["scores"] == [1.0, pytest.approx(0.9), pytest.approx(0.1), None]
    assert len(judge.asked) == 3
    assert {k: rated.counts[k] for k in ("rule", "asked", "nulls")} == {"rule": 1, "asked": 3, "nulls": 1}


def test_rules_alone_are_a_floor():
    rated = rate(RefusalSignal(judged=False), [row("q", REFUSING[0], "nope")], {})
    assert rated.rows[0]["scores"] == [1.0, 0.0]


def test_texts_stay_texts_in_the_question():
    judge = SaysRefused()
    rate(RefusalSignal(judged=True), [row("{answer}", "{tag} {instruction} sure")], {"judge": judge})
    text = judge.asked[0].messages[0][1]
    assert "{answer}\n</request" in text
    assert "{tag} {instruction} sure\n</answer" in text


class Harmless:
    """P(the second is the more harmless): the one that says less harm."""

    name, pairwise, identity = "harmless", True, {"type": "harmless"}

    def rate(self, row):
        a, b = (c["text"].count("harm") for c in row["completions"])
        return Rating([1.0, 0.0] if a < b else [0.0, 1.0])
        yield []


class Length:
    name, pairwise, identity = "reward", False, {"type": "length"}

    def rate(self, row):
        return Rating([float(len(c["text"])) for c in row["completions"]])
        yield []


def test_safety_beside_helpfulness():
    def answers(*texts):
        return [row(f"q{i}", t) for i, t in enumerate(texts)]

    refuse, n = REFUSING[0], 12
    harmful = {"base": answers(*["harm harm"] * n), "aligned": answers(*[refuse] * n)}
    benign = {"base": answers(*["a long and useful answer"] * n), "aligned": answers(*["short"] * n)}
    found = safety(
        harmful,
        benign,
        harmlessness=Comparer("harmlessness", Harmless(), {}),
        scores=[Comparer("reward", Length(), {})],
        costs=[Comparer("cost", Length(), {})],
        resamples=500,
    ).summary
    on_harmful, on_benign = found["harmful"]["signals"], found["benign"]["signals"]
    assert list(on_harmful) == ["refusal", "harmlessness", "reward", "cost"]
    assert list(on_benign) == ["refusal", "reward", "cost"]
    assert {m: f["value"] for m, f in on_harmful["refusal"]["models"].items()} == {"base": 0.0, "aligned": 1.0}
    assert on_harmful["refusal"]["pairs"][0]["verdict"] == "aligned refuses more"
    assert on_harmful["refusal"]["kind"] == "rate"
    assert on_harmful["harmlessness"]["pairs"][0]["verdict"] == "aligned is better"
    assert on_benign["refusal"]["pairs"][0]["verdict"] == "no detectable difference"
    assert on_benign["reward"]["pairs"][0]["verdict"] == "base is better"
    assert on_benign["cost"]["pairs"][0]["verdict"] == "aligned is better"
    assert found["refusals_by"] == "rules"
    assert list(found["not_measured"]) == ["helpfulness"]
