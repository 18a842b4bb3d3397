"""The validator of rankings: every kind of finding, and the faults that published rows were found to have."""

from __future__ import annotations

import copy
import json

import pytest
from typer.testing import CliRunner

from prefloop.cli.commands import app
from prefloop.errors import UsageError
from prefloop.inputs.validate import validate_file
from prefloop.rerank.files import read

DOCUMENTS = [f" Title: Ada Content: passage {i} about Ada" for i in range(6)]
TRAIN = {
    "query": "where does ada live",
    "classification": {"text": DOCUMENTS[0], "label": 1},
    "rank_list": DOCUMENTS[:4],
    "positive": [DOCUMENTS[0], DOCUMENTS[1]],
    "negative": [DOCUMENTS[2], DOCUMENTS[3]],
}
MEASURE = {
    "question": "where does ada live",
    "reference": ["Oslo"],
    "ctx": DOCUMENTS[0],
    "before": {"answer": "Lima", "em": 0, "f1": 0.0},
    "after": {"answer": "in Oslo", "em": 1, "f1": 2 / 3},
    "category": 1,
}
OURS = {
    "id": "r1",
    "query_id": "q1",
    "query": "where does ada live",
    "document_ids": ["d0", "d1", "d2"],
    "documents": DOCUMENTS[:3],
    "labels": [1, 0, None],
    "scores": [0.9, -0.2, None],
    "source": "reader",
}
CANDIDATES = {
    "id": "q1",
    "query": "where does ada live",
    "document_ids": [f"d{i}" for i in range(6)],
    "documents": DOCUMENTS,
}
FOREIGN = [f" Title: Super Bowl Content: passage {i} about a game" for i in range(4)]


def changed(row, **changes):
    row = copy.deepcopy(row)
    for name, value in changes.items():
        target, parts = row, name.split("__")
        for part in parts[:-1]:
            target = target[part]
        target[parts[-1]] = value
    return row


def report(tmp_path, rows, candidates=None, **settings):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if candidates is not None:
        (tmp_path / "candidates.jsonl").write_text("".join(json.dumps(row) + "\n" for row in candidates))
        settings["candidates"] = str(tmp_path / "candidates.jsonl")
    return validate_file(path, **settings)


@pytest.mark.parametrize("row", [TRAIN, MEASURE, OURS], ids=["train", "measure", "ours"])
def test_good_rows_of_each_layout(tmp_path, row):
    found = report(tmp_path, [row], [CANDIDATES])
    assert found.ok
    assert (found.kind, found.rows, found.valid) == ("ranking", 1, 1)


@pytest.mark.parametrize(
    ("row", "kind", "field"),
    [
        (changed(TRAIN, rank_list=FOREIGN), "foreign_document", "rank_list[0]"),
        (changed(TRAIN, negative=[DOCUMENTS[2], FOREIGN[0]]), "foreign_document", "negative[1]"),
        (changed(TRAIN, negative=[DOCUMENTS[1], DOCUMENTS[2]]), "both_sides", "positive"),
        (changed(TRAIN, rank_list=[*DOCUMENTS[:3], DOCUMENTS[0]]), "duplicate_document", "rank_list[3]"),
        (changed(TRAIN, positive=DOCUMENTS[:3], negative=DOCUMENTS[3:]), "group_size", "positive"),
        (changed(TRAIN, classification__label=3), "wrong_value", "classification.label"),
        (changed(TRAIN, classification__label=2), "label_mismatch", "classification.text"),
        (changed(TRAIN, classification=DOCUMENTS[0]), "wrong_type", "classification"),
        (changed(TRAIN, rank_list=[]), "empty_field", "rank_list"),
        (changed(TRAIN, query="who is that"), "no_such_id", "query"),
        (changed(TRAIN, positives=[]), "unknown_column", "positives"),
        (changed(MEASURE, ctx=FOREIGN[0]), "foreign_document", "ctx"),
        (changed(MEASURE, category=2), "label_mismatch", "category"),
        (changed(MEASURE, after__f1=0.5), "label_mismatch", "after.f1"),
        (changed(MEASURE, before__em=1), "label_mismatch", "before.em"),
        (changed(MEASURE, category=None), "wrong_value", "category"),
        (changed(OURS, document_ids=["d0", "d1", "x9"]), "foreign_document", "documents[2]"),
        (changed(OURS, document_ids=["d0", "d2", "d1"]), "no_such_id", "documents[1]"),
        (changed(OURS, labels=[1, 0]), "group_size", "labels"),
        (changed(OURS, labels=[1, 0, 2]), "wrong_value", "labels[2]"),
        (changed(OURS, documents=[DOCUMENTS[0], DOCUMENTS[0], DOCUMENTS[2]]), "both_sides", "labels"),
        (changed(OURS, document_ids=["d0", "d0", "d2"]), "duplicate_document", "document_ids[1]"),
    ],
)
def test_every_finding_has_its_row_and_field(tmp_path, row, kind, field):
    found = report(tmp_path, [row], [CANDIDATES], kind="rankings")
    assert (kind, field, 1) in [(p.kind, p.field, p.row) for p in found.log.kept]
    assert not found.ok
    assert found.valid == 0
    assert all(p.reason and p.fix for p in found.log.kept)


def test_foreign_lists_are_told_document_by_document(tmp_path):
    found = report(tmp_path, [TRAIN, changed(TRAIN, rank_list=FOREIGN)], [CANDIDATES])
    assert found.log.by_kind == {"foreign_document": 4}
    assert {p.row for p in found.log.kept} == {2}


def test_without_candidates_nothing_is_foreign(tmp_path):
    assert report(tmp_path, [changed(TRAIN, rank_list=FOREIGN)]).ok


def test_ids_that_repeat(tmp_path):
    found = report(tmp_path, [OURS, OURS])
    assert found.log.by_kind == {"duplicate_id": 1}


def test_the_command_ends_with_2_and_says_why(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(changed(TRAIN, negative=[DOCUMENTS[1], DOCUMENTS[2]])) + "\n")
    done = CliRunner().invoke(app, ["validate", str(path), "--json"])
    assert done.exit_code == 2
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["format"] == "published_train"
    assert said["first"][0]["kind"] == "both_sides"
    path.write_text(json.dumps(TRAIN) + "\n")
    assert CliRunner().invoke(app, ["validate", str(path)]).exit_code == 0


def test_questions_too(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text('{"question": "q?", "answers": ["a"]}\n{"question": "r?", "answers": []}\n')
    found = validate_file(path, kind="questions")
    assert (found.rows, found.valid, found.layout) == (2, 1, "questions")
    assert found.log.by_kind == {"empty_field": 1}
    assert validate_file(path, file_format="questions").problems == 1


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"document_ids": [["d0"], ["d1"], ["d2"]]}, "document_ids[0]"),
        ({"scores": ["high", 0.0, None]}, "scores[0]"),
        ({"scores": [True, 0.0, None]}, "scores[0]"),
        ({"id": 3}, "id"),
        ({"query_id": ["q"]}, "query_id"),
    ],
)
def test_what_training_refuses_is_found(tmp_path, changes, field):
    row = changed(OURS, **changes)
    found = report(tmp_path, [row], kind="rankings")
    assert field in [p.field for p in found.log.kept]
    with pytest.raises(UsageError):
        read(str(tmp_path / "rows.jsonl"))


def test_candidates_of_another_form(tmp_path):
    with pytest.raises(UsageError, match="candidates need"):
        report(tmp_path, [OURS], [changed(CANDIDATES, document_ids=[[i] for i in range(6)])])


def test_the_way_out_that_reading_names_is_there(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("{}\n{}\n")
    with pytest.raises(UsageError) as told:
        read(str(path))
    assert "--kind rankings" in told.value.fix
    assert "on_bad_row" not in told.value.fix
