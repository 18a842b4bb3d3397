"""The filter of rewritings, by hand-written classes and by real classifiers of several class orders."""

from __future__ import annotations

import pytest
import torch
from tests.tiny_rewards import make_tiny_reward

from prefloop.augment.filter import keep_consistent
from prefloop.backends.base import Backend, Logits, PairScoreRequest
from prefloop.backends.nli import CLASSES, NliBackend, class_places
from prefloop.config import ModelSection
from prefloop.config.rag import NliSection
from prefloop.errors import UsageError

QUESTIONS = {"q1": "Where does she live?", "q2": "Who sings?"}


def row(question, number, text):
    return {
        "id": f"{question}-{number}",
        "question_id": question,
        "strategy": f"s{number}",
        "text": text,
        "inference": None,
        "inference_back": None,
        "evidence": [],
    }


ROWS = [
    *(row("q1", i, text) for i, text in enumerate(["same", "odd", "CONTRA", "same", "CONTRA late"])),
    *(row("q2", i, text) for i, text in enumerate(["same", "odd", "BACK", "CONTRA late", "same"])),
]


class Classes(Backend):
    """CONTRA contradicts, BACK does as a premise."""

    def __init__(self):
        self.identity, self.batches = {}, []

    def plan(self, requests):
        return [list(range(len(requests)))]

    def run(self, requests):
        self.batches.append(len(requests))
        return [Logits(self._one(*r.texts)) for r in requests]

    def _one(self, premise, hypothesis):
        if "CONTRA" in premise + hypothesis or "BACK" in premise:
            return [0.2, 0.2, 0.6]
        return [0.1, 0.8, 0.1] if "odd" in premise + hypothesis else [0.9, 0.1, 0.0]


def kept(section):
    backend = Classes()
    made = keep_consistent(section, ROWS, QUESTIONS, backend)
    assert len(made.rows) + len(made.rejects) == len(ROWS)
    assert len(backend.batches) == 1
    return made, backend.batches[0]


def test_each_rewriting_by_itself():
    made, asked = kept(NliSection())
    assert [r["id"] for r in made.rows] == ["q1-0", "q1-1", "q1-3", "q2-0", "q2-1", "q2-2", "q2-4"]
    assert asked == 10
    assert made.rows[1]["inference"] == "neutral"
    assert made.counts == {"entailment": 5, "neutral": 2, "contradiction": 3}
    assert made.rejects[0]["reason"] == "s2: contradicts its question"


def test_both_directions():
    made, asked = kept(NliSection(bidirectional=True))
    assert "q2-2" not in [r["id"] for r in made.rows]
    assert asked == 20


def test_the_published_rule_looks_at_three_and_drops_all():
    made, asked = kept(NliSection(whole_row=True))
    # q1 falls by its third rewriting; the fourth one of q2 is never looked at.
    assert [r["id"] for r in made.rows] == [f"q2-{i}" for i in range(5)]
    assert asked == 6
    assert [r["inference"] for r in made.rows] == ["entailment", "neutral", "entailment", None, None]
    assert len(made.rejects) == 5


ORDERS = [
    ("entailment", "neutral", "contradiction"),
    ("contradiction", "entailment", "neutral"),
    ("CONTRADICTION", "ENTAILMENT"),
]


@pytest.mark.parametrize("arch", ["bert", "deberta-v2", "roberta"])
@pytest.mark.parametrize("labels", ORDERS, ids=lambda labels: labels[0] + str(len(labels)))
def test_classes_are_known_by_name(tmp_path, arch, labels):
    folder = tmp_path / arch
    make_tiny_reward(folder, arch, labels)
    backend = NliBackend.load(ModelSection(path=str(folder), batch_size=2))
    pairs = [("She lives in Oslo.", "Oslo is home."), ("Who?", "What is it, and why?"), ("a", "b")]
    found = backend.answer([PairScoreRequest(pair) for pair in pairs])
    for (premise, hypothesis), result in zip(pairs, found, strict=True):
        encoded = backend.tokenizer(premise, hypothesis, return_tensors="pt")
        with torch.no_grad():
            wanted = backend.model(**encoded).logits[0].double().softmax(-1)
        places = {name.lower(): i for i, name in enumerate(labels)}
        expected = [float(wanted[places[name]]) if name in places else 0.0 for name in CLASSES]
        assert result.values == pytest.approx(expected, abs=1e-6)
        assert sum(result.values) == pytest.approx(1, abs=1e-6)


def test_long_texts_are_cut_to_what_the_classifier_takes(tmp_path):
    make_tiny_reward(tmp_path / "m", "bert", ORDERS[0])
    backend = NliBackend.load(ModelSection(path=str(tmp_path / "m")))
    (result,) = backend.answer([PairScoreRequest(("word " * 5000, "word"))])
    assert sum(result.values) == pytest.approx(1)


def test_a_classifier_without_such_classes_is_refused():
    with pytest.raises(UsageError, match="none of its classes is called entailment"):
        class_places({0: "LABEL_0", 1: "LABEL_1"}, "m")
    with pytest.raises(UsageError, match="two of its classes"):
        class_places({0: "entailment", 1: "entails", 2: "contradiction"}, "m")
    assert class_places({0: "not_entailment", 1: "entailment", 2: "contradiction"}, "m") == {
        "entailment": 1,
        "contradiction": 2,
    }
