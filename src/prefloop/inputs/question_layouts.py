"""How published question-answering sets write a question and its reference answers.

Each layout lists the columns that tell it, those that it reads and those that it leaves, and takes a row apart. Field
names are those of the data sets as published: the hub's form and, where there is one, the authors' own files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

Row = Mapping[str, Any]


class Found(NamedTuple):
    """What a row holds, unchecked: the question, its reference answers, and the set's own id if it has one."""

    question: Any
    answers: Any
    given_id: Any


@dataclass(frozen=True)
class QuestionLayout:
    """One way to write questions.

    Attributes:
        name: as in `questions.format`.
        marks: columns of which all are there in such a row.
        fields: the columns of question and answers, for messages.
        reads, leaves: columns that are read, and those that are there and mean nothing here.
        take: takes a row apart.
        list_key: of the authors' file, a JSON object: where in it the list of rows is.
    """

    name: str
    marks: tuple[str, ...]
    fields: tuple[str, str]
    reads: tuple[str, ...]
    leaves: tuple[str, ...]
    take: Callable[[Row], Found]
    list_key: str | None = None


def _as_list(answer: Any) -> Any:
    return [answer] if isinstance(answer, str) else answer


def _trivia(row: Row) -> Found:
    """The value first, then its aliases: any of them is a right answer."""
    answer = row.get("answer") if "answer" in row else row.get("Answer")
    if not isinstance(answer, Mapping):
        return Found(row.get("question", row.get("Question")), None, row.get("question_id", row.get("QuestionId")))
    low = "answer" in row
    value, aliases = answer.get("value" if low else "Value"), answer.get("aliases" if low else "Aliases")
    every = [*([] if value is None else [value]), *(aliases if isinstance(aliases, list) else [])]
    names = ("question", "question_id") if low else ("Question", "QuestionId")
    return Found(row.get(names[0]), every, row.get(names[1]))


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _web_qsp(row: Row) -> Found:
    """The names of the answers of every parse; an answer that is no entity, such as a date, has only its value."""
    found: list[Any] = []
    for parse in _items(row.get("Parses")):
        for answer in _items(parse.get("Answers") if isinstance(parse, Mapping) else None):
            if isinstance(answer, Mapping):
                found.append(answer.get("EntityName") or answer.get("AnswerArgument"))
    return Found(row.get("RawQuestion") or row.get("ProcessedQuestion"), found, row.get("QuestionId"))


def _plain(question: str, answers: str, given: str = "id") -> Callable[[Row], Found]:
    return lambda row: Found(row.get(question), _as_list(row.get(answers)), row.get(given))


# In the order in which they are tried: the first of which all marks are there.
LAYOUTS: tuple[QuestionLayout, ...] = (
    QuestionLayout(
        "questions", ("question", "answers"), ("question", "answers"), ("id", "question", "answers"), (),
        _plain("question", "answers"),
    ),
    QuestionLayout(
        "flashrag", ("question", "golden_answers"), ("question", "golden_answers"),
        ("id", "question", "golden_answers"), ("metadata",), _plain("question", "golden_answers"),
    ),
    QuestionLayout(
        "hotpotqa", ("question", "answer", "supporting_facts"), ("question", "answer"),
        ("id", "_id", "question", "answer"), ("type", "level", "supporting_facts", "context"),
        lambda row: Found(row.get("question"), _as_list(row.get("answer")), row.get("id", row.get("_id"))),
    ),
    QuestionLayout(
        "webqsp", ("question", "answer", "q_entity"), ("question", "answer"), ("id", "question", "answer"),
        ("q_entity", "a_entity", "graph", "choices"), _plain("question", "answer"),
    ),
    QuestionLayout(
        "webqsp", ("RawQuestion", "Parses"), ("RawQuestion", "Parses"),
        ("QuestionId", "RawQuestion", "ProcessedQuestion", "Parses"), (), _web_qsp, "Questions",
    ),
    QuestionLayout(
        "triviaqa", ("question", "answer", "question_id"), ("question", "answer"),
        ("question", "question_id", "answer"),
        ("question_source", "entity_pages", "search_results"), _trivia,
    ),
    QuestionLayout(
        "triviaqa", ("Question", "Answer", "QuestionId"), ("Question", "Answer"), ("Question", "QuestionId", "Answer"),
        (
            *("QuestionSource", "EntityPages", "SearchResults", "QuestionPartOfVerifiedEval"),
            "QuestionVerifiedEvalAttempt",
        ),
        _trivia, "Data",
    ),
    QuestionLayout(
        "natural_questions", ("question", "answer"), ("question", "answer"), ("id", "question", "answer"), (),
        _plain("question", "answer"),
    ),
)  # fmt: skip


def layout_of(row: Row, wanted: str = "auto") -> QuestionLayout | None:
    """The layout of a file by its first row; None where no layout, or none of the wanted name, has such columns."""
    named = [layout for layout in LAYOUTS if wanted in ("auto", layout.name)]
    return next((layout for layout in named if all(mark in row for mark in layout.marks)), None)


def list_keys(wanted: str) -> list[str]:
    """Where the authors' files of such a layout hold their rows."""
    return [y.list_key for y in LAYOUTS if y.list_key is not None and wanted in ("auto", y.name)]
