"""Signal `reader`: which documents help, by hand-written answers and by a real model."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError
from tests.tiny_models import tiny_model_folder

from prefloop.backends.base import AnswerScoreRequest, Backend, Generation, Refusal, Score
from prefloop.backends.hf import HfBackend
from prefloop.config import ModelSection
from prefloop.config.rag import ReaderSection
from prefloop.errors import UsageError
from prefloop.signals import reader_prompt
from prefloop.signals.reader import ReaderSignal, card, likelihood_verdict, read
from prefloop.store.rows import to_table

ROW = {
    "id": "q1",
    "query": "Where does Mira live?",
    "answers": ["Oslo", "the city of Oslo"],
    "document_ids": ["d1", "d2", "d3", "d4", "d5"],
    "documents": ["helps", "misleads", "repeats", "says nothing", "is too long"],
    "ranks": [1, 2, 25, 50, 100],
    "scores": [9.0, 8.0, 7.0, 6.0, 5.0],
}
SAYS = {"helps": "Oslo", "misleads": "Lima", "repeats": "in Lima", "says nothing": "Unknown"}


class Scripted(Backend):
    """Answers by the document that stands in the prompt."""

    def __init__(self, alone="Rome", says=SAYS):
        self.alone, self.says, self.asked = alone, says, []
        self.identity = {"backend": "scripted"}

    def plan(self, requests):
        return [list(range(len(requests)))]

    def run(self, requests):
        self.asked.append(list(requests))
        return [self._one(r) for r in requests]

    def _one(self, request):
        text = request.messages[0][1]
        if "too long" in text:
            return Refusal("too long", too_long=True)
        said = next((says for document, says in self.says.items() if document in text), self.alone)
        if request.verb == "score_answer":
            return Score([said, 0.0])
        if isinstance(said, list):
            said = said[request.sample_index]
        return Generation(said, None, "stop", 5)


def label(section, backend):
    return read(ReaderSignal(section, seed=3), [ROW], {"reader": backend}, "rate")


@pytest.mark.parametrize(
    ("alone", "wanted"),
    [
        ("Rome", ["aligned", "both_incorrect", "both_incorrect", "abstained", None]),
        ("Oslo", ["both_correct", "unaligned", "unaligned", "abstained", None]),
    ],
)
def test_flips_of_the_answer(alone, wanted):
    found = label(ReaderSection(ranks="all"), Scripted(alone))
    (row,) = found.rows
    assert row["labels"] == wanted
    assert [score is None for score in row["scores"]] == [label is None for label in wanted]
    assert found.counts["unread"] == 1
    assert found.counts["documents"] == 5
    assert sum(found.counts[label] for label in set(wanted) - {None}) == 4
    assert len(found.calls) == 6 == len(row["evidence"])
    assert len(found.reads) == 5
    assert "1 do not fit" in card(found.counts)
    to_table("labelled", found.rows, where="")
    to_table("reads", found.reads, where="")


def test_only_the_wanted_ranks_are_read_and_all_at_once():
    backend = Scripted()
    (row,) = label(ReaderSection(ranks=(1, 25, 50, 60)), backend).rows
    assert row["document_ids"] == ["d1", "d3", "d4"]
    assert row["ranks"] == [1, 25, 50]
    assert row["retrieval_scores"] == [9.0, 7.0, 6.0]
    assert [len(wave) for wave in backend.asked] == [4]
    assert len({r.sampling for r in backend.asked[0]}) == 1
    assert backend.asked[0][0].sampling.temperature == 0


def test_all_prompts_of_a_question_begin_alike():
    prompt = reader_prompt.load(None)
    alone, one, other = (prompt.render("Where?", d) for d in ([], ["A long text."], ["Another text."]))
    head = "Question: Where?"
    assert alone[: alone.index(head) + len(head)] == one[: one.index(head) + len(head)]
    assert one.index("Where?") < one.index("A long text.")
    assert other.endswith("Answer:")


def test_the_sandboxs_prompt_is_the_one_that_its_model_knows():
    assert (
        reader_prompt.load("sandbox").render("Where?", ["One.", "Two."])
        == "Document 1: One.\nDocument 2: Two.\nWhere?"
    )
    assert reader_prompt.load("sandbox").render("Where?") == "Where?"


def test_f1_rules():
    verbose = Scripted("Oslo", {"helps": "in Oslo", "misleads": "Lima", "repeats": "Oslo", "says nothing": "Unknown"})
    sign = ReaderSection(label_rule="f1_sign", ranks=(1, 2, 25, 50))
    (row,) = label(sign, verbose).rows
    # Right before and after, but the longer answer has the lower F1: as in the published rows.
    assert row["labels"] == ["unaligned", "unaligned", "both_correct", "abstained"]
    margin = ReaderSection(label_rule="f1_margin", margin=0.4, ranks=(1, 2, 25, 50), abstention="wrong")
    (row,) = label(margin, verbose).rows
    assert row["labels"] == ["both_correct", "unaligned", "both_correct", "unaligned"]
    assert row["scores"] == pytest.approx([2 / 3 - 1, -1, 0, -1])


def test_votes_over_samples():
    backend = Scripted(
        ["Oslo", "Lima", "Lima"], {"helps": ["Oslo", "Oslo", "Rome"], "misleads": ["Unknown", "", "Oslo"]}
    )
    found = label(ReaderSection(samples=3, temperature=1.0, ranks=(1, 2)), backend)
    (row,) = found.rows
    assert row["labels"] == ["aligned", "abstained"]
    assert row["scores"] == pytest.approx([1 / 3, 0])
    assert len(found.reads) == 9


def test_likelihoods_without_an_answer():
    backend = Scripted(-2.0, {"helps": -0.5, "misleads": -6.0, "repeats": -2.05, "says nothing": -1.95})
    section = ReaderSection(label_rule="likelihood", margin=0.1, ranks=(1, 2, 25, 50))
    found = label(section, backend)
    (row,) = found.rows
    assert row["labels"] == ["aligned", "unaligned", "both_incorrect", "both_incorrect"]
    assert row["scores"] == pytest.approx([1.5, -4.0, -0.05, 0.05])
    assert not found.reads
    assert likelihood_verdict(0.1, math.log(0.6), math.log(0.61))[0] == "both_correct"
    assert len(backend.asked[0]) == 5
    best = Scripted(-2.0)
    best.says = {"helps": -1.0}
    label(section.model_copy(update={"references": "best"}), best)
    assert len(best.asked[0]) == 2 * 5


def test_a_question_that_does_not_fit_is_rejected():
    long = {**ROW, "query": "is too long?"}
    found = read(ReaderSignal(ReaderSection()), [long, ROW], {"reader": Scripted()}, "rate")
    assert [r["id"] for r in found.rows] == ["q1"]
    assert len(found.rejects) == 1
    assert "cannot take the question" in found.rejects[0]["reason"]


def test_likelihood_of_a_real_model_is_the_difference_of_its_scores():
    backend = HfBackend.load(ModelSection(path=str(tiny_model_folder("llama"))))
    signal = ReaderSignal(ReaderSection(label_rule="likelihood", ranks=(1,), template="sandbox"))
    (row,) = read(signal, [ROW], {"reader": backend}, "rate").rows
    prompts = [signal.prompt.messages(ROW["query"], d) for d in ([], ["helps"])]
    alone, with_it = (r.total for r in backend.answer([AnswerScoreRequest(p, "Oslo") for p in prompts]))
    assert row["scores"][0] == pytest.approx(with_it - alone, abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"samples": 3}, "all the same"),
        ({"temperature": 1.0}, "by chance"),
        ({"label_rule": "likelihood", "samples": 2, "temperature": 1.0}, "samples no answers"),
        ({"margin": 0.2}, "means nothing"),
        ({"references": "best"}, "references means nothing"),
        ({"label_rule": "f1_margin"}, "needs a margin"),
        ({"ranks": [3, 1]}, "must rise"),
        ({"ranks": []}, "is empty"),
    ],
)
def test_settings_that_make_no_sense(settings, says):
    with pytest.raises(ValidationError, match=says):
        ReaderSection.model_validate(settings)


def test_faulty_templates(tmp_path):
    for source, says in (
        ("{{ question }}", "never see 'documents'"),
        ("{{ q }}", "unknown variable"),
        ("{% if", "line 1"),
    ):
        file = tmp_path / "reader.j2"
        file.write_text(source)
        with pytest.raises(UsageError, match=says):
            reader_prompt.load(str(file))
    with pytest.raises(UsageError, match="shipped templates"):
        reader_prompt.load("nothing")
