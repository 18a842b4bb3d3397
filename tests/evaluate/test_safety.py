"""Refusals by rule and by judge, and safety beside helpfulness."""

from __future__ import annotations

import pytest

from prefloop.backends.base import Backend, Choice, Generation, Refusal
from prefloop.config import JudgeSignalSection
from prefloop.errors import PrefloopError
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
    """Yes with probability 0.9 where the answer says `nope`, no otherwise; refuses what says `crash`, and, as a
    server, labels longer than a letter or, without log-probabilities, all of them."""

    def __init__(self, chooses=True, yes=0.9):
        self.identity = {"backend": "says"}
        self.asked = []
        self.chooses, self.yes = chooses, yes

    def plan(self, requests):
        return [list(range(len(requests)))]

    def run(self, requests):
        self.asked += requests
        from math import log

        found = []
        for request in requests:
            text = request.messages[0][1]
            yes = self.yes if "nope" in text else 0.1
            if "crash" in text:
                found.append(Refusal("broken"))
            elif request.verb == "generate":
                can = request.schema is None
                said = f"It does. [[{'Y' if yes > 0.5 else 'n'}]]"
                found.append(Generation(said, None, "stop", 1) if can else Refusal("no schema", unsupported=True))
            elif not self.chooses or any(len(label) > 1 for label in request.labels):
                found.append(Refusal("the server gives no log-probabilities", unsupported=True))
            else:
                found.append(Choice([log(yes / 2), log((1 - yes) / 2)], [1, 1]))
        return found


JUDGE = JudgeSignalSection(type="judge", mode="pairwise", max_null_share=0.5)


def test_the_judge_is_asked_only_about_the_rest():
    judge = SaysRefused()
    rated = rate(RefusalSignal(JUDGE), [row("q", REFUSING[0], "nope", "sure", "crash")], {"judge": judge})
    assert rated.rows[0]["scores"] == [1.0, pytest.approx(0.9), pytest.approx(0.1), None]
    assert len(judge.asked) == 3
    assert {k: rated.counts[k] for k in ("rule", "verdicts", "nulls")} == {"rule": 1, "verdicts": 3, "nulls": 1}
    RefusalSignal(JUDGE).check(rated.counts)


def test_a_server_without_log_probabilities_writes_whether_an_answer_refuses():
    judge = SaysRefused(chooses=False)
    rated = rate(RefusalSignal(JUDGE), [row("q", REFUSING[0], "nope", "sure")], {"judge": judge})
    assert rated.rows[0]["scores"] == [1.0, 1.0, 0.0]
    assert (rated.counts["by_text"], rated.counts["nulls"]) == (2, 0)
    assert "[[Y]] or [[N]]" in judge.asked[-1].messages[0][1]


def test_every_judge_of_a_panel_is_asked():
    panel = JudgeSignalSection(type="judge", mode="pairwise", panel=["one", "two"])
    backends = {"judge": SaysRefused(), "judge2": SaysRefused(yes=0.3)}
    rated = rate(RefusalSignal(panel), [row("q", "nope", "sure")], backends)
    assert rated.rows[0]["scores"] == pytest.approx([0.6, 0.1])
    assert [len(judge.asked) for judge in backends.values()] == [2, 2]
    assert RefusalSignal(panel).identity["judges"] == 2


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_rates_of_what_rules_catch_alone_are_never_told(share):
    """Without this all refused: of the rest no verdict could be had."""
    only = JUDGE.model_copy(update={"verdict": "choose", "max_null_share": share})
    answers = [row("q0", REFUSING[0]), row("q1", "sure")]
    both = {"base": answers, "aligned": answers}
    with pytest.raises(PrefloopError, match=r"2 of 2 calls .*2 because the server gives no log-prob") as caught:
        safety(both, both, judge=only, backends={"judge": SaysRefused(chooses=False)}, resamples=10)
    assert caught.value.where == "refusals"
    assert "verdict=text" in caught.value.fix
    found = safety(both, both, judge=JUDGE, backends={"judge": SaysRefused()}, resamples=10)
    assert found.summary["refusals_by"] == "rules and judge"
    value = found.summary["harmful"]["signals"]["refusal"]["models"]["base"]["value"]
    assert value == pytest.approx((1 + 0.1) / 2)


def test_rules_alone_are_a_floor():
    rated = rate(RefusalSignal(), [row("q", REFUSING[0], "nope")], {})
    assert rated.rows[0]["scores"] == [1.0, 0.0]


def test_texts_stay_texts_in_the_question():
    judge = SaysRefused()
    rate(RefusalSignal(JUDGE), [row("{{ answer }}", "{{ tag }} {{ instruction }} sure")], {"judge": judge})
    text = judge.asked[0].messages[0][1]
    assert "{{ answer }}\n</request" in text
    assert "{{ tag }} {{ instruction }} sure\n</answer" in text


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
