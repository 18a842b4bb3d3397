"""Questions with reference answers, in the forms in which the sets are published."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.config.rag import QuestionsSection
from prefloop.errors import UsageError
from prefloop.inputs.questions import question_id, read_questions

NQ = [{"question": "who sings it", "answer": ["Ada", "Ada Lo"]}]
TRIVIA_HUB = [
    {
        "question": "Who sang it?",
        "question_id": "tc_1",
        "question_source": "http://example.org",
        "entity_pages": {"title": []},
        "search_results": {"rank": []},
        "answer": {
            "aliases": ["Ada L.", "Ada"],
            "normalized_aliases": ["ada"],
            "type": "WikipediaEntity",
            "value": "Ada",
        },
    }
]
TRIVIA_FILE = {
    "Data": [
        {
            "Question": "Who sang it?",
            "QuestionId": "tc_1",
            "QuestionSource": "x",
            "EntityPages": [],
            "SearchResults": [],
            "Answer": {"Value": "Ada", "Aliases": ["Ada L."], "NormalizedAliases": ["ada l"], "Type": "Person"},
        }
    ],
    "Domain": "Web",
    "Version": 1.0,
}
HOTPOT = [
    {
        "_id": "5a8b",
        "question": "Were both alike?",
        "answer": "yes",
        "supporting_facts": [["Ada", 0]],
        "context": [["Ada", ["She sings."]]],
        "type": "comparison",
        "level": "hard",
    }
]
WEBQSP_FILE = {
    "Version": "1.0",
    "FreebaseVersion": "x",
    "Questions": [
        {
            "QuestionId": "WebQTest-0",
            "RawQuestion": "what does she play?",
            "ProcessedQuestion": "what does she play",
            "Parses": [
                {"Answers": [{"AnswerType": "Entity", "AnswerArgument": "m.01", "EntityName": "Flute"}]},
                {"Answers": [{"AnswerType": "Value", "AnswerArgument": "1815", "EntityName": None}]},
            ],
        }
    ],
}
WEBQSP_HUB = [
    {"id": "WebQTest-0", "question": "what?", "answer": ["Flute"], "q_entity": ["Ada"], "a_entity": [], "graph": []}
]


def write(tmp_path, value, name="q.json"):
    path = tmp_path / name
    if name.endswith(".jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in value))
    elif name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(value), path)
    else:
        path.write_text(json.dumps(value))
    return str(path)


@pytest.mark.parametrize("named", [True, False], ids=["named", "auto"])
@pytest.mark.parametrize(
    ("name", "value", "answers", "given_id"),
    [
        ("natural_questions", NQ, ["Ada", "Ada Lo"], None),
        ("triviaqa", TRIVIA_HUB, ["Ada", "Ada L."], "tc_1"),
        ("triviaqa", TRIVIA_FILE, ["Ada", "Ada L."], "tc_1"),
        ("hotpotqa", HOTPOT, ["yes"], "5a8b"),
        ("webqsp", WEBQSP_FILE, ["Flute", "1815"], "WebQTest-0"),
        ("webqsp", WEBQSP_HUB, ["Flute"], "WebQTest-0"),
        ("flashrag", [{"id": "t0", "question": "q?", "golden_answers": ["a"], "metadata": {}}], ["a"], "t0"),
        ("questions", [{"id": "1", "question": "q?", "answers": ["a", "a "]}], ["a"], "1"),
    ],
)
def test_published_forms(tmp_path, name, value, answers, given_id, named):
    section = QuestionsSection(path=write(tmp_path, value), format=name if named else "auto")
    (row,), rejects = read_questions(section)
    assert row["answers"] == answers
    assert row["source_id"] == given_id
    assert row["id"] == question_id(row["question"])
    assert not rejects


@pytest.mark.parametrize("name", ["q.jsonl", "q.parquet"])
def test_the_same_rows_from_lines_and_parquet(tmp_path, name):
    (row,), _ = read_questions(QuestionsSection(path=write(tmp_path, TRIVIA_HUB, name)))
    assert row["question"] == "Who sang it?"
    assert row["answers"] == ["Ada", "Ada L."]


def test_a_data_set_folder_through_the_hub_reader(tmp_path):
    folder = tmp_path / "nq_open"
    folder.mkdir()
    write(folder, NQ, "validation.jsonl")
    (row,), _ = read_questions(QuestionsSection(path=f"hub:{folder}", split="validation"))
    assert row["answers"] == ["Ada", "Ada Lo"]


BAD = [
    {"question": "fine?", "answers": ["a"]},
    {"question": "", "answers": ["a"]},
    {"question": "nothing?", "answers": []},
    {"question": "no list?", "answers": "a"},
    {"question": "blank?", "answers": ["a", " "]},
    {"question": "fine?", "answers": ["b"]},
]


def test_bad_rows_are_told_one_by_one(tmp_path):
    path = write(tmp_path, BAD, "q.jsonl")
    with pytest.raises(UsageError) as error:
        read_questions(QuestionsSection(path=path))
    for said in ("line 2, field question: is empty", "line 3, field answers", "field answers[1]: is empty"):
        assert said in str(error.value)
    assert "no_list" not in str(error.value), "one text is a list of one"


def test_kept_and_rejected_are_all_that_came_in(tmp_path):
    path = write(tmp_path, BAD, "q.jsonl")
    rows, rejects = read_questions(QuestionsSection(path=path, on_bad_row="reject"))
    assert [row["question"] for row in rows] == ["fine?", "no list?"]
    assert len(rows) + len(rejects) == len(BAD)
    assert {r["reason"] for r in rejects} == {"empty field", "duplicate prompt"}


def test_unknown_columns_and_unknown_forms_stop(tmp_path):
    with pytest.raises(UsageError, match="unknown column"):
        read_questions(QuestionsSection(path=write(tmp_path, [{"question": "q", "answers": ["a"], "hint": "h"}])))
    with pytest.raises(UsageError, match="name the columns `question` and `answers`"):
        read_questions(QuestionsSection(path=write(tmp_path, [{"q": "q", "a": "a"}])))
    with pytest.raises(UsageError, match="has not the columns of webqsp"):
        read_questions(QuestionsSection(path=write(tmp_path, NQ), format="webqsp"))


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@given(rows=st.lists(st.fixed_dictionaries({"question": TEXTS, "answers": st.lists(TEXTS, max_size=3)}), max_size=12))
def test_every_row_is_kept_or_rejected(tmp_path_factory, rows):
    path = write(tmp_path_factory.mktemp("q"), [{"question": "one?", "answers": ["1"]}, *rows], "q.jsonl")
    kept, rejects = read_questions(QuestionsSection(path=path, on_bad_row="reject"))
    assert len(kept) + len(rejects) == 1 + len(rows)
    assert len({row["id"] for row in kept}) == len(kept)
    assert all(answer.strip() for row in kept for answer in row["answers"])


@pytest.mark.parametrize("parses", [1, True, [{"Answers": 1}], ["x"]])
def test_parses_of_another_form_are_a_bad_row(tmp_path, parses):
    path = write(tmp_path, {"RawQuestion": "q?", "Parses": parses, "QuestionId": "1"})
    with pytest.raises(UsageError, match="no reference answer"):
        read_questions(QuestionsSection(path=path))
