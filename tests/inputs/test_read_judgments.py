"""Written judgments from every layout, and what is dirty in them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.config import PreferencesSection
from prefloop.errors import UsageError
from prefloop.inputs.judgments import is_failed, is_praise
from prefloop.inputs.preferences import PreferenceReader
from prefloop.inputs.validate import validate_file

REAL = Path(__file__).parents[3] / "shared" / "data" / "cut" / "iter1.json"


def read(path: Path, **settings: Any) -> tuple[list[Any], list[Any], PreferenceReader]:
    reader = PreferenceReader(PreferencesSection(path=str(path), **settings))
    parts = list(reader.parts(1000))
    return [r for rows, _ in parts for r in rows], [r for _, rejects in parts for r in rejects], reader


def written(path: Path, rows: list[Any]) -> Path:
    text = json.dumps(rows) if path.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def cut(judgment: Any, n: int = 0, **more: Any) -> dict[str, Any]:
    return {"id": 7, "instruction": f"Name {n} cities.", "input": "", "output": "Oslo", "judgment": judgment, **more}


def test_cuts_own_rows(tmp_path: Path) -> None:
    rows = [
        cut("Two are missing.", 1, score=10**400),
        cut(None, 2, input="In Europe."),
        cut("$ERROR$", 3),
        cut("  ", 4),
        cut("The response is perfect. It names a city.", 5),
        cut("The response is perfect, but it names no river.", 6),
        cut("It is fine by me and wrong by others", 7, score=8, i_ans="Bergen", ref=None, reason=None),
        cut("Two are missing.", 1),
    ]
    kept, rejects, reader = read(written(tmp_path / "c.json", rows))
    assert reader.layout is not None
    assert reader.layout.name == "cut"
    assert [r["judgment"] for r in kept] == [
        *("Two are missing.", None, None, "The response is perfect, but it names no river.", None),
    ]
    assert kept[1]["prompt"] == [{"role": "user", "content": "Name 2 cities.\nIn Europe."}]
    assert kept[1]["completion"] == [{"role": "assistant", "content": "Oslo"}]
    assert kept[4]["score"] == 8
    assert dict(reader.verdicts) == {"criticised": 2, "satisfactory": 1, "praised": 1, "scored": 1}
    assert [r["reason"] for r in rejects] == ["failed judgment", "empty judgment", "duplicate row"]
    assert reader.records == len(kept) + len(rejects) == 8
    assert len({r["id"] for r in kept}) == 5


def test_what_becomes_of_praise_and_scores_is_a_setting(tmp_path: Path) -> None:
    path = written(tmp_path / "c.jsonl", [cut("Perfect!", 1), cut("It is wrong.", 2, score=7), cut(None, 3)])
    for praise, judgments in {
        "keep": ["Perfect!", None, None],
        "satisfactory": [None] * 3,
        "reject": [None] * 2,
    }.items():
        kept, rejects, _ = read(path, praise=praise)
        assert [r["judgment"] for r in kept] == judgments
        assert [r["reason"] for r in rejects] == (["only praise"] if praise == "reject" else [])
    said_nothing = validate_file(written(tmp_path / "none.json", [cut("$ERROR$"), cut(" ", 1)]))
    assert (said_nothing.problems, said_nothing.ok) == (0, False)  # a run of it would stop
    assert [r["judgment"] for r in read(path, satisfactory_score=None)[0]] == [None, "It is wrong.", None]


@pytest.mark.parametrize(
    ("text", "praise"),
    [
        ("Perfect.", True),
        ("PERFECT!!", True),
        ("The response is perfect. The poem rhymes.", True),
        ("This answer is absolutely correct.", True),
        ("There is nothing wrong with the response; it is perfect.", True),
        ("No mistakes found, the answer is accurate.", True),
        ("The response is almost perfect, it lacks a title.", False),
        ("The response is mostly correct.", False),
        ("The response is not perfect.", False),
        ("The response isn't correct.", False),
        ("The response is perfect, but too long.", False),
        ("The response is perfect. However, it is long.", False),
        ("It's correct.", True),
        ("The answer is correct. Its second line isn't good.", False),
        ("The response is incorrect.", False),
        ("The perfect tense is wrong here.", False),
        ("It should name three.", False),
    ],
)
def test_praise(text: str, praise: bool) -> None:
    assert is_praise(text) is praise


def test_praise_is_found_at_once() -> None:
    """A model that repeats itself: what can be read in 2^n ways would take hours."""
    assert not is_praise("it" + " 's" * 500)
    assert is_praise("it" + " 's" * 500 + " perfect")


@pytest.mark.parametrize(("text", "failed"), [("$ERROR$", True), ("error", True), ("N/A", True), ("An error.", False)])
def test_marks_of_failed_calls(text: str, failed: bool) -> None:
    assert is_failed(text) is failed


@given(st.text())
def test_any_text_can_be_asked(text: str) -> None:
    assert is_praise(text) in (True, False)
    assert not (is_failed(text) and is_praise(text))


def test_shepherd(tmp_path: Path) -> None:
    rows = [
        {"dataset": "ECQA", "question": "Why?", "answer": "So.", "feedback": "It gives no reason."},
        {"question": "Who?", "answer": "He.", "feedback": None},
    ]
    with pytest.raises(UsageError, match=r"feedback.*missing"):
        read(written(tmp_path / "s.jsonl", rows))
    kept, rejects, reader = read(tmp_path / "s.jsonl", on_bad_row="reject")
    assert [(r["prompt"][0]["content"], r["completion"][0]["content"], r["judgment"]) for r in kept] == [
        ("Why?", "So.", "It gives no reason.")
    ]
    assert (len(rejects), reader.layout.name if reader.layout else "") == (1, "shepherd")


def answer(text: str, critiques: Any, rating: int = 3, skip: bool = False) -> dict[str, Any]:
    return {"answer": text, "feedback": {"critiques": critiques, "rating": rating, "skip": skip}}


def test_critiques_packed_with_gzip(tmp_path: Path) -> None:
    """The best-ranked answer of each question; several rows and rejects of one record, and a broken one is one."""
    said = [{"text": "Too long.", "refinement": "x"}, {"text": "No names.", "refinement": "Short."}]
    data = {
        "passage": {"text": "A passage."},
        "questions": [
            {
                "question": "Q1",
                "rankings": [1, 3, 2],
                "answers": [answer("a", []), answer("b", said), answer("c", [])],
            },
            {"question": "Q2", "rankings": [2, 1], "answers": [answer("good", None, 7), answer("d", said)]},
            {"question": "Q3", "rankings": [1], "answers": [answer("e", [], 5)]},
            {"question": "Q4", "rankings": [1], "answers": [answer("f", said, skip=True)]},
            {"question": "Q5", "rankings": [1], "answers": [answer("g", [{"text": "Bad.", "refinement": ""}])]},
        ],
    }
    strange = {
        "passage": {"text": "P"},
        "questions": [{"question": "Q", "rankings": [1], "answers": [answer("a", 5)]}],
    }
    path = written(
        tmp_path / "critiques.train.jsonl.gz", [{"data": data}, {"data": {"questions": 3}}, {"data": strange}]
    )
    kept, rejects, reader = read(path, on_bad_row="reject")
    assert [(r["prompt"][0]["content"], r["completion"][0]["content"], r["judgment"]) for r in kept] == [
        ("A passage.\nQ1", "b", "Too long. No names."),
        ("A passage.\nQ2", "good", None),
    ]
    assert sorted(r["reason"] for r in rejects) == [
        "not judged",
        "not judged",
        "not judged",
        "wrong type",
        "wrong type",
    ]
    assert reader.records == 7
    assert len({r["id"] for r in rejects}) == 5
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UsageError, match="no whole gzip file"):
        read(path, on_bad_row="reject")


def test_ultrafeedback(tmp_path: Path) -> None:
    said = [
        {"response": "A", "critique": "It leaves the date out.", "overall_score": 4, "model": "m"},
        {"response": "B", "critique": "Well done, fully right.", "overall_score": 9.0},
        {"response": "C", "critique": "It is wrong.", "overall_score": "N/A"},
    ]
    path = written(tmp_path / "u.jsonl", [{"source": "s", "instruction": "When?", "models": [], "completions": said}])
    kept, rejects, reader = read(path)
    assert [(r["completion"][0]["content"], r["judgment"], r["score"]) for r in kept] == [
        ("A", "It leaves the date out.", 4.0),
        ("B", None, 9.0),
        ("C", "It is wrong.", None),
    ]
    assert len({r["prompt_id"] for r in kept}) == 1
    assert not rejects
    assert reader.columns.left == {"source": 1, "models": 1}
    # An answer that nobody judged is not one that nothing is wrong with.
    written(path, [{"instruction": "When?", "models": [], "completions": [{"response": "D", "critique": None}]}])
    with pytest.raises(UsageError, match=r"critique.*missing"):
        read(path)


def test_our_own_rows_come_back(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "prompt": "Hi", "completion": "Ho", "judgment": "Unkind.", "weight": 2, "finish": "length"},
        {"prompt": [{"role": "user", "content": "Hi"}], "completion": "Hello", "judgment": None},
    ]
    kept, _, reader = read(written(tmp_path / "j.jsonl", rows))
    assert reader.layout is not None
    assert reader.layout.name == "judgment"
    assert (kept[0]["id"], kept[0]["weight"], kept[0]["finish"]) == ("a", 2.0, "length")
    again, _, _ = read(written(tmp_path / "k.jsonl", kept))
    assert again == kept
    with pytest.raises(UsageError, match="did you mean 'judgment'"):
        read(written(tmp_path / "l.jsonl", [{**rows[0], "jugdment": None}]))


def test_the_first_online_round_as_published() -> None:
    if not REAL.is_file():
        pytest.skip("the data are not here")
    kept, rejects, reader = read(REAL)
    assert reader.records == 1000
    assert dict(reader.verdicts) == {"satisfactory": 713, "criticised": 224, "praised": 16}
    assert [r["reason"] for r in rejects] == ["failed judgment"] * 47
    assert [len(part) for part in (kept, rejects)] == [953, 47]
    assert sum(r["judgment"] is None for r in read(REAL, praise="keep")[0]) == 713
    found = validate_file(REAL)
    assert (found.ok, found.layout, found.rows, found.valid) == (True, "cut", 1000, 953)
    assert found.as_dict()["verdicts"]["praised"] == 16
