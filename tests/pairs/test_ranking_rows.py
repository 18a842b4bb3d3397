"""From labelled documents to what a reranker and a reader learn from."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from prefloop.config.rag import PrealignSection, RankingSection
from prefloop.pairs.prealign import NoiseSource, prealign_rows, qa_rows
from prefloop.pairs.ranking import ranking_rows
from prefloop.signals import reader_prompt
from prefloop.store.rows import to_table

LABELS = ["aligned", "unaligned", "both_correct", "both_incorrect", "abstained", None]
ROW = {
    "id": "q1",
    "query": "Where does she live?",
    "answers": ["Oslo", "the city of Oslo"],
    "document_ids": [f"d{i}" for i in range(6)],
    "documents": [f"text {i}" for i in range(6)],
    "ranks": [1, 2, 3, 4, 5, 6],
    "retrieval_scores": [60.0, 50.0, 40.0, 30.0, 20.0, 10.0],
    "labels": LABELS,
    "scores": [1.0, -1.0, 0.0, 0.0, 0.0, None],
    "signal": "reader",
    "evidence": [],
}
NOTHING = {**ROW, "id": "q2", "labels": ["both_correct"] * 6}


def rewriting(text):
    return {
        "id": text,
        "question_id": "q1",
        "strategy": "rephrase",
        "text": text,
        "inference": None,
        "inference_back": None,
        "evidence": [],
    }


def retrieved(number, ids):
    return {
        "id": f"q{number}",
        "query": f"question {number}?",
        "answers": ["a"],
        "document_ids": ids,
        "documents": [f"text of {i}" for i in ids],
        "ranks": list(range(1, len(ids) + 1)),
        "scores": [0.0] * len(ids),
    }


def test_flips_and_outcomes():
    made = ranking_rows([ROW, NOTHING], RankingSection())
    assert [row["labels"] for row in made.rows] == [[1, 0, None, None, None, None]]
    assert [r["id"] for r in made.rejects] == ["q2"]
    made = ranking_rows([ROW, NOTHING], RankingSection(labels="outcomes"))
    assert [row["labels"] for row in made.rows] == [[1, 0, 1, 0, 0, None], [1] * 6]
    assert made.counts == {"questions": 2, "positive": 8, "negative": 3}
    to_table("ranking", made.rows, where="")


def test_the_order_is_the_readers_and_the_retrievers():
    (row,) = ranking_rows([ROW], RankingSection(retriever_share=0.3)).rows
    # Within the five that have both: reader 1, 0, .5, .5, .5 and retriever 1, .75, .5, .25, 0.
    assert row["scores"] == pytest.approx([1.0, 0.225, 0.5, 0.425, 0.35, None])
    (row,) = ranking_rows([ROW], RankingSection(retriever_share=1)).rows
    assert row["scores"][:5] == pytest.approx([1, 0.75, 0.5, 0.25, 0])


def test_rewritings_inherit_everything_but_the_text():
    rows = ranking_rows([ROW], RankingSection(), {"q1": [rewriting("Her home?")]}).rows
    assert [row["query"] for row in rows] == [ROW["query"], "Her home?"]
    assert rows[0]["id"] != rows[1]["id"]
    assert all(rows[0][k] == rows[1][k] for k in ("query_id", "labels", "scores", "document_ids"))


NOISE = NoiseSource(
    [retrieved(1, [f"d{i}" for i in range(6)]), retrieved(2, ["d0", "e1"]), retrieved(3, ["e2", "e3"])]
)
PROMPT = reader_prompt.load("sandbox")


def test_stage_one_names_the_position_of_the_labelled_document():
    made = prealign_rows(
        [ROW, NOTHING], NOISE, PrealignSection(), PROMPT, seed=1, rewritings={"q1": [rewriting("Home?")]}
    )
    assert made.counts == {"aligned": 2, "unaligned": 2}
    assert len(made.rows) == len(made.contexts) == 4
    for row, context in zip(made.rows, made.contexts, strict=True):
        text, position = row["prompt"][0]["content"], context["position"]
        labelled = context["document_ids"][position - 1]
        assert labelled == ("d0" if context["label"] == "aligned" else "d1")
        number = labelled[1:]
        assert f"Document {position}: text {number}\n" in text
        # The others were retrieved for other questions, and not for this one.
        assert set(context["document_ids"]) - {labelled} <= {"e1", "e2", "e3"}
        assert len(set(context["document_ids"])) == 3
        verb = "helps" if context["label"] == "aligned" else "misleads"
        assert row["chosen"][0]["content"] == f"Document {position} {verb}."
        assert row["rejected"] is None
        assert row["prompt_id"] == "q1"
        assert row["evidence"] == context["document_ids"]
    to_table("preference", made.rows, where="")
    to_table("contexts", made.contexts, where="")


def test_positions_are_uniform_and_do_not_depend_on_neighbours():
    rows = [{**ROW, "id": f"x{i}", "query": f"{i}?"} for i in range(300)]
    made = prealign_rows(rows, NOISE, PrealignSection(), PROMPT, seed=1)
    places = Counter(c["position"] for c in made.contexts)
    assert set(places) == {1, 2, 3}
    assert all(150 < n < 250 for n in places.values())
    alone = prealign_rows(rows[7:8], NOISE, PrealignSection(), PROMPT, seed=1)
    assert alone.rows == [row for row in made.rows if row["prompt_id"] == "x7"]
    assert prealign_rows(rows[:9], NOISE, PrealignSection(), PROMPT, seed=2).contexts != made.contexts[:18]


def test_without_noise_a_document_is_rejected():
    made = prealign_rows([ROW], NOISE, PrealignSection(documents=5), PROMPT, seed=1)
    assert not made.rows
    assert len(made.rejects) == 2
    one = prealign_rows([ROW], NOISE, PrealignSection(documents=1), PROMPT, seed=1)
    assert {c["position"] for c in one.contexts} == {1}


def test_a_copy_of_the_labelled_document_is_no_noise():
    copies = NoiseSource([retrieved(1, ["d0"]), {**retrieved(2, ["e1", "e2"]), "documents": ["text 0", "other"]}])
    row = {**ROW, "document_ids": ["d0"], "documents": ["text 0"], "labels": ["aligned"]}
    made = prealign_rows([row], copies, PrealignSection(documents=2), PROMPT, seed=0)
    assert set(made.contexts[0]["document_ids"]) == {"d0", "e2"}


def test_stage_two_answers_from_the_best_documents():
    rows = [retrieved(1, ["a", "b", "c", "d"]), {**retrieved(2, ["e"]), "answers": ["Oslo", "oslo city"]}]
    made = qa_rows(rows, {"q1": "q1", "q2": "q1"}, 3, PROMPT)
    assert made[0]["prompt"][0]["content"] == (
        "Document 1: text of a\nDocument 2: text of b\nDocument 3: text of c\nquestion 1?"
    )
    assert made[1]["chosen"] == [{"role": "assistant", "content": "Oslo"}]
    assert [row["prompt_id"] for row in made] == ["q1", "q1"]


def test_sentences_that_do_not_name_the_position():
    for settings in (
        {"aligned": "It helps."},
        {"aligned": "{position} {x}"},
        {"unaligned": "Document {position} helps."},
    ):
        with pytest.raises(ValidationError):
            PrealignSection.model_validate(settings)


@given(labels=st.lists(st.sampled_from(LABELS), min_size=6, max_size=6), share=st.floats(0, 1))
def test_every_question_gives_rows_or_a_reject(labels, share):
    scores = [None if label is None else 0.5 for label in labels]
    made = ranking_rows([{**ROW, "labels": labels, "scores": scores}], RankingSection(retriever_share=share))
    assert len(made.rows) + len(made.rejects) == 1
    for row in made.rows:
        assert all((s is None) == (label is None) for s, label in zip(row["scores"], labels, strict=True))
        assert all(s is None or 0 <= s <= 1 for s in row["scores"])
