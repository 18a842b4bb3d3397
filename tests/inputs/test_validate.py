"""`prefloop validate`: preference and candidates files, and the report."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.tiny_models import tiny_model_folder

from prefloop.errors import UsageError
from prefloop.inputs import TokenLimit, validate_file

GOOD: dict[str, Any] = {"prompt": "q", "chosen": "good", "rejected": "bad"}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def say(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


@pytest.mark.parametrize(
    ("change", "kind", "field", "reason"),
    [
        ({"chosen": ""}, "empty_field", "chosen", "is empty"),
        ({"chosen": None, "rejected": None}, "missing_field", "chosen", "is null, and so is rejected"),
        ({"rejected": "good"}, "same_answers", "rejected", "the same as chosen"),
        ({"prompt": ""}, "empty_field", "prompt", "is empty"),
        ({"prompt": say(("user", "q"), ("assistant", "a"))}, "role_order", "prompt", "ends with a turn of assistant"),
        ({"chosen": say(("bot", "a"))}, "unknown_role", "chosen[0].role", "unknown role 'bot'"),
        ({"chosen": say(("user", "other"))}, "role_order", "chosen", "begins with a turn of user"),
        ({"chosen": say(("assistant", "a"), ("user", "b"))}, "role_order", "chosen", "ends with a turn of user"),
        (
            {"chosen": say(("assistant", "a"), ("user", "b"), ("assistant", "c"))},
            *("role_order", "chosen", "holds 3 turns"),
        ),
        ({"weight": -0.5}, "wrong_value", "weight", "is negative"),
        ({"weight": float("nan")}, "wrong_value", "weight", "is nan"),
        ({"weight": "heavy"}, "wrong_type", "weight", "is a text"),
        ({"margin": float("inf")}, "wrong_value", "margin", "is inf"),
        ({"margin": True}, "wrong_type", "margin", "is a boolean"),
        ({"label": 1.5}, "wrong_value", "label", "is 1.5"),
        ({"chosen_finish": "eos"}, "wrong_value", "chosen_finish", "is 'eos'"),
        ({"evidence": "x"}, "wrong_type", "evidence", "is no list of ids"),
        ({"source": 3}, "wrong_type", "source", "is no plain text"),
        ({"score_chosen": [1]}, "wrong_type", "score_chosen", "is a list"),
        ({"id": "one", "chosen": "other"}, "duplicate_id", "id", "that of line 1 too"),
        ({"id": 1.5}, "wrong_type", "id", "is a number"),
    ],
)
def test_a_bad_preference(tmp_path: Path, change: dict[str, Any], kind: str, field: str, reason: str) -> None:
    last = GOOD | {"prompt": "another"}
    report = validate_file(write(tmp_path / "p.jsonl", GOOD | {"id": "one"}, GOOD | change, last))
    assert (report.kind, report.rows, report.valid, report.ok) == ("preference", 3, 2, False)
    (problem,) = report.log.kept
    assert (problem.row, problem.kind, problem.field) == (2, kind, field)
    assert reason in problem.reason
    assert problem.fix


def test_preferences_of_all_shapes_are_good(tmp_path: Path) -> None:
    conversation = say(("user", "q"), ("assistant", "a"))
    report = validate_file(
        write(
            tmp_path / "p.jsonl",
            GOOD | {"weight": 0, "margin": -1.5, "score_chosen": 4.5},
            {"prompt": say(("user", "q")), "chosen": say(("assistant", "a")), "rejected": say(("assistant", "b"))},
            {"chosen": conversation, "rejected": say(("user", "q"), ("assistant", "c"))},
            {"prompt": "q", "chosen": conversation, "rejected": "d"},
            {"prompt": "q", "chosen": "e", "rejected": None},
            {"prompt": "q", "chosen": None, "rejected": "f"},
        )
    )
    assert report.log.kept == []
    assert (report.ok, report.valid, report.layout) == (True, 6, "preference")


def test_preferences_without_their_parts(tmp_path: Path) -> None:
    report = validate_file(
        write(
            tmp_path / "p.jsonl",
            {"prompt": "q", "chosen": "a"},
            {"chosen": "a", "rejected": "b"},
            GOOD | {"rejectd": "b"},
        )
    )
    assert [(p.row, p.kind, p.field) for p in report.log.kept] == [
        (1, "missing_field", "rejected"),
        (2, "missing_field", "prompt"),
        (3, "unknown_column", "rejectd"),
    ]
    assert "did you mean 'rejected'?" in report.log.kept[2].fix
    assert validate_file(write(tmp_path / "q.jsonl", GOOD | {"x": 1}), ignore_columns=["x"]).left_columns == {"x": 1}


def test_numbers_in_csv_are_texts(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("prompt,chosen,rejected,weight\nq,a,b,0.5\nq,a,b,-1\n")
    (problem,) = validate_file(tmp_path / "p.csv").log.kept
    assert (problem.row, problem.kind) == (3, "wrong_value")


def test_candidates(tmp_path: Path) -> None:
    completion = {"id": "c", "text": "", "token_ids": None, "finish_reason": "stop", "sample_index": 0}
    report = validate_file(
        write(
            tmp_path / "c.jsonl",
            {"id": "1", "prompt": "q", "completions": ["a", "", completion]},
            {"prompt": "q", "completions": []},
            {"prompt": "q"},
            {"prompt": "q", "completions": "a"},
            {"completions": ["a"]},
            {"prompt": "q", "completions": [3, {"texts": "a"}, {"text": None}, {"text": "a", "foo": 1}]},
        )
    )
    assert (report.kind, report.rows, report.valid) == ("candidates", 6, 1)
    assert [(p.row, p.kind, p.field) for p in report.log.kept] == [
        (2, "empty_field", "completions"),
        (3, "missing_field", "completions"),
        (4, "wrong_type", "completions"),
        (5, "missing_field", "prompt"),
        (6, "wrong_type", "completions[0]"),
        (6, "missing_field", "completions[1].text"),
        (6, "missing_field", "completions[2].text"),
        (6, "unknown_column", "completions[3].foo"),
    ]


def test_the_report_counts_all_and_keeps_few(tmp_path: Path) -> None:
    path = write(
        tmp_path / "p.jsonl", {"prompt": "a"}, {"prompt": "a"}, *[{"prompt": ""}] * 50, {"prompt": "b", "x": 1}
    )
    report = validate_file(path, keep=10)
    found = report.as_dict()
    assert found["problems"] == {
        "total": 52,
        "by_kind": {"empty_field": 50, "duplicate_prompt": 1, "unknown_column": 1},
    }
    assert len(found["first"]) == 11  # what concerns the whole file is kept beyond the first
    assert found["rows"] == 53
    assert found["valid"] == 2
    assert found["ok"] is False
    assert report.problems == 51  # the repeated prompt stops nothing
    json.dumps(found)


def test_the_table_shows_texts_as_they_are(tmp_path: Path) -> None:
    path = write(tmp_path / "[bold]p.jsonl", {"prompt": [{"role": "[red]x[/]", "content": "a"}]}, {"[/b]": 1})
    console = Console(file=io.StringIO(), width=200)
    console.print(validate_file(path).table())
    text = console.file.getvalue()
    assert "[bold]p.jsonl: 2 prompts rows, 0 valid" in text
    assert "unknown role '[red]x[/]'" in text
    assert "[/b]" in text
    assert "not usable as it is" in text


def test_repeated_prompts_and_blank_lines_are_said(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a"}\n\n{"prompt": "a"}\n')
    report = validate_file(path)
    assert report.ok
    assert (report.rows, report.valid, report.blank_lines) == (2, 1, 1)
    console = Console(file=io.StringIO(), width=200)
    console.print(report.table())
    assert "a run leaves out 1 repeated rows" in console.file.getvalue()
    assert "1 blank lines skipped" in console.file.getvalue()


def test_long_prompts_are_counted_in_tokens(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", {"prompt": "one two three"})
    limit = TokenLimit(lambda messages: len(messages[0]["content"].split()), 2)
    assert [p.kind for p in validate_file(path, max_prompt_tokens=limit).log.kept] == ["too_long"]


def test_the_limit_of_a_model(tmp_path: Path) -> None:
    folder = tiny_model_folder("llama")
    context = json.loads((folder / "config.json").read_text())["max_position_embeddings"]
    path = write(tmp_path / "p.jsonl", {"prompt": "short"}, {"prompt": "x y " * context})
    (problem,) = validate_file(path, model=str(folder)).log.kept
    assert (problem.kind, problem.row) == ("too_long", 2)
    assert f"({context - 1:,})" in problem.reason
    with pytest.raises(UsageError, match="no tokenizer"):
        validate_file(path, model=str(tmp_path))


def test_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown format 'yaml'"):
        validate_file(tmp_path / "p.jsonl", file_format="yaml")
    with pytest.raises(UsageError, match="made, not read"):
        validate_file("sandbox:questions/train")
    assert validate_file(tmp_path / "none.jsonl").log.kept[0].kind == "no_such_file"


def test_json_lines_named_json_are_read_as_a_run_reads_them(tmp_path: Path) -> None:
    judged = [{"prompt": f"q{i}", "completion": "a", "judgment": "too short", "score": 3} for i in range(2)]
    for rows, layout in (([GOOD, GOOD | {"prompt": "p"}], "preference"), (judged, "judgment")):
        report = validate_file(write(tmp_path / "p.json", *rows))
        assert (report.kind, report.rows, report.valid) == ("preference", 2, 2)
        assert report.layout == layout
    assert not validate_file(write(tmp_path / "q.json", {"prompt": "a"}, {"prompt": "b"})).ok


def test_what_is_no_file_is_told_first(tmp_path: Path) -> None:
    for kind in ("auto", "preferences", "rankings"):
        with pytest.raises(UsageError, match="there is no such file"):
            validate_file(tmp_path / "nofile", kind=kind)
        with pytest.raises(UsageError, match="is a folder, not a file"):
            validate_file(tmp_path, kind=kind)
    (tmp_path / "rows").write_text("x")
    with pytest.raises(UsageError, match="does not say the format") as told:
        validate_file(tmp_path / "rows")
    assert "--format" in (told.value.fix or "")
