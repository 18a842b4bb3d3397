"""Reading prompts: formats, every kind of problem with a broken file, and what a run does about it."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prefloop.config import PromptsSection
from prefloop.errors import UsageError
from prefloop.inputs import Problem, TokenLimit, read_prompts
from prefloop.inputs.encoding import guess_encoding
from prefloop.inputs.prompts import PromptReader
from prefloop.records import prompt_id


def lines(path: Path, *rows: Any) -> Path:
    path.write_bytes(b"".join(r if isinstance(r, bytes) else json.dumps(r).encode() + b"\n" for r in rows))
    return path


def section(path: Path | str, **settings: Any) -> PromptsSection:
    return PromptsSection.model_validate({"path": str(path), **settings})


def texts(path: Path | str, **settings: Any) -> list[str]:
    rows, rejects = read_prompts(section(path, **settings))
    assert rejects == []
    return [row["prompt"][-1]["content"] for row in rows]


def problems(path: Path, limit: TokenLimit | None = None, **settings: Any) -> list[Problem]:
    reader = PromptReader(section(path, **settings), limit)
    found = [item for item in reader if isinstance(item, Problem)]
    return found + reader.unknown_columns()


def only(path: Path, **settings: Any) -> Problem:
    (problem,) = problems(path, **settings)
    assert problem.fix
    assert problem.file == str(path)
    return problem


# ------------------------------------------------------------------------------------------------------------ formats


def test_jsonl(tmp_path: Path) -> None:
    chat = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    path = lines(tmp_path / "p.jsonl", {"prompt": "hello", "id": 7}, b"\n", {"prompt": chat, "id": "x"})
    rows, rejects = read_prompts(section(path))
    assert rejects == []
    assert [r["source_id"] for r in rows] == ["7", "x"]
    assert rows[0]["prompt"] == [{"role": "user", "content": "hello"}]
    assert rows[1]["prompt"] == chat
    assert [r["id"] for r in rows] == [prompt_id(r["prompt"]) for r in rows]


def test_json_array(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps([{"prompt": "a"}, {"prompt": "b"}]))
    assert texts(path) == ["a", "b"]


def test_csv_with_newlines_quotes_and_long_cells(tmp_path: Path) -> None:
    prompts = ["a, b", 'say "hi"', "two\nlines\r\nthree", "x" * 300_000]
    path = tmp_path / "p.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as f:
        writer = csv.writer(f)
        writer.writerow(["id", "prompt"])
        writer.writerows(enumerate(prompts))
    limit = csv.field_size_limit()
    assert texts(path) == prompts
    assert csv.field_size_limit() == limit


def test_parquet_with_texts_and_with_messages(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"prompt": ["a", "b"], "id": [1, 2]}), tmp_path / "t.parquet")
    assert texts(tmp_path / "t.parquet") == ["a", "b"]
    chats = [[{"role": "user", "content": "a", "name": None}], [{"role": "user", "content": "b"}]]
    pq.write_table(pa.table({"prompt": chats}), tmp_path / "m.parquet")
    assert texts(tmp_path / "m.parquet") == ["a", "b"]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    bom = b"\xef\xbb\xbf"
    assert texts(lines(tmp_path / "p.jsonl", bom + b'{"prompt": "a"}\n')) == ["a"]
    assert texts(lines(tmp_path / "p.json", bom + b'[{"prompt": "a"}]')) == ["a"]
    assert texts(lines(tmp_path / "p.csv", bom + b"prompt\na\n")) == ["a"]


def test_line_separators_inside_texts_end_no_line(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"prompt": "a\u2028b\u0085c"}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert texts(path) == ["a\u2028b\u0085c"]


def test_lima(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "train.jsonl",
        {"conversations": ["q1", "a1"], "source": "wikihow"},
        {"conversations": ["q2", "a2", "q3", "a3"], "source": "multi_turn"},
        {"conversations": ["q4"], "source": "test"},
    )
    rows, rejects = read_prompts(section(path))
    assert rejects == []
    assert [[(m["role"], m["content"]) for m in r["prompt"]] for r in rows] == [
        [("user", "q1")],
        [("user", "q2"), ("assistant", "a2"), ("user", "q3")],
        [("user", "q4")],
    ]
    assert texts(path, format="lima") == ["q1", "q3", "q4"]
    reader = PromptReader(section(path))
    list(reader)
    assert reader.columns.left == {"source": 3}


def test_lima_rows_that_are_none(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "p.jsonl",
        {"conversations": ["q", "a"]},
        {"conversations": []},
        {"conversations": "q"},
        {"conversations": [{"from": "human", "value": "q"}, "a"]},
        {"conversations": None},
    )
    found = problems(path)
    assert [(p.row, p.kind) for p in found] == [
        (2, "empty_field"),
        (3, "wrong_type"),
        (4, "wrong_type"),
        (5, "missing_field"),
    ]
    assert found[2].field == "conversations[0]"


def test_hub_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load(name: str, config: str | None, *, split: str) -> Any:
        asked.append((name, config, split))
        return datasets.Dataset.from_dict({"prompt": ["a", "b"], "score": [1, 2]})

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert texts("hub:org/set", ignore_columns=["score"], split="test") == ["a", "b"]
    assert texts("hub:org/set/config", ignore_columns="all") == ["a", "b"]
    assert asked == [("org/set", None, "test"), ("org/set", "config", "train")]
    with pytest.raises(UsageError, match="unknown column in 2 rows"):
        read_prompts(section("hub:org/set"))


def test_one_file_of_a_hub_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LIMA's set comes with a script, which the data set library refuses; its files are read as they are."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    file = lines(tmp_path / "train.jsonl", {"conversations": ["q1", "a1"], "source": "s"})
    asked = []

    def download(name: str, part: str, *, repo_type: str) -> str:
        asked.append((name, part, repo_type))
        return str(file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert texts("hub:org/set/train.jsonl", format="lima") == ["q1"]
    assert asked == [("org/set", "train.jsonl", "dataset")]

    def refuse(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("not there")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(UsageError, match=r"cannot fetch train\.jsonl: not there"):
        texts("hub:org/set/train.jsonl", format="lima")


def test_hub_set_in_a_folder_and_a_split_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "a" / "set"
    folder.mkdir(parents=True)
    lines(folder / "train.jsonl", {"prompt": "a"}, {"prompt": "b"})
    assert texts(f"hub:{folder}") == ["a", "b"]
    with pytest.raises(UsageError, match="Unknown split") as error:
        read_prompts(section(f"hub:{folder}", split="nowhere"))
    assert error.value.fix == "set `split` to one that the data set has"


def test_hub_set_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load(*args: Any, **kwargs: Any) -> Any:
        raise ConnectionError("Couldn't reach 'org/set' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(UsageError, match="Couldn't reach"):
        read_prompts(section("hub:org/set"))


def test_sandbox_prompts() -> None:
    rows, rejects = read_prompts(section("sandbox:questions/train", limit=5, system="be kind"))
    assert rejects == []
    assert len(rows) == len({r["id"] for r in rows}) == 5
    assert all([m["role"] for m in r["prompt"]] == ["system", "user"] for r in rows)
    assert all(r["id"] == prompt_id(r["prompt"]) for r in rows)
    with pytest.raises(UsageError, match="questions/heldout"):
        read_prompts(section("sandbox:questions/nowhere"))


# ----------------------------------------------------------------------------------------------------------- settings


def test_column_system_and_limit(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "p.jsonl",
        {"text": "a"},
        {"text": [{"role": "system", "content": "own"}, {"role": "user", "content": "b"}]},
        {"text": "c"},
        b"never read\n",
    )
    rows, _ = read_prompts(section(path, column="text", system="be kind", limit=3))
    assert [r["prompt"][0]["content"] for r in rows] == ["be kind", "own", "be kind"]
    with pytest.raises(UsageError, match="broken JSON"):
        read_prompts(section(path, column="text", limit=4))


def test_format_by_name_or_by_setting(tmp_path: Path) -> None:
    path = lines(tmp_path / "prompts.txt", {"prompt": "a"})
    with pytest.raises(UsageError, match="does not say the format"):
        read_prompts(section(path))
    assert texts(path, format="jsonl") == ["a"]


# ----------------------------------------------------------------------------------------------------------- problems


@pytest.mark.parametrize(
    ("row", "kind", "field", "reason"),
    [
        (b'{"prompt": "x"\n', "broken_json", None, "broken JSON at column 15"),
        (b'{"prompt": "x"\r\n', "broken_json", None, "broken JSON at column 15"),
        (b'{"prompt": "x", "prompt": "y"}\n', "broken_json", None, "'prompt' stands twice"),
        (b"[" * 100_000 + b"\n", "broken_json", None, "nested too deeply"),
        (b'{"prompt": ' + b"9" * 5000 + b"}\n", "broken_json", None, "broken JSON"),
        (b'{"prompt": "caf\xe9 noir"}\n', "encoding", None, "not UTF-8 at byte 31 (0xe9); it looks like WINDOWS-1252"),
        (b'{"prompt": "\\ud83d"}\n', "bad_text", "prompt", "half of a surrogate pair (U+D83D) at character 0"),
        (["x"], "not_an_object", None, "is a list, not an object"),
        ("x", "not_an_object", None, "is a text, not an object"),
        ({"id": "1"}, "missing_field", "prompt", "is missing"),
        ({"prompt": None}, "missing_field", "prompt", "is null"),
        ({"prompt": "  \n"}, "empty_field", "prompt", "is empty"),
        ({"prompt": []}, "empty_field", "prompt", "empty list"),
        ({"prompt": 3}, "wrong_type", "prompt", "is a number"),
        ({"prompt": True}, "wrong_type", "prompt", "is a boolean"),
        ({"prompt": ["x"]}, "wrong_type", "prompt[0]", "is a text, not a message"),
        ({"prompt": [{"role": "user"}]}, "missing_field", "prompt[0].content", "is missing"),
        ({"prompt": [{"content": "x"}]}, "missing_field", "prompt[0].role", "is missing"),
        ({"prompt": [{"role": "user", "content": ""}]}, "empty_field", "prompt[0].content", "is empty"),
        ({"prompt": [{"role": "user", "content": 1}]}, "wrong_type", "prompt[0].content", "is a number"),
        ({"prompt": [{"role": "human", "content": "x"}]}, "unknown_role", "prompt[0].role", "'human'"),
        ({"prompt": [{"role": ["user"], "content": "x"}]}, "unknown_role", "prompt[0].role", "['user']"),
        (
            {"prompt": [{"role": "user", "content": "x", "name": "Al"}]},
            *("unknown_column", "prompt[0].name", "nothing else"),
        ),
        ({"prompt": [{"role": "assistant", "content": "x"}]}, "role_order", "prompt[0].role", "user's is due"),
        ({"prompt": [{"role": "system", "content": "x"}]}, "role_order", "prompt", "ends with a turn of system"),
        (
            {"prompt": [{"role": r, "content": "x"} for r in ("user", "assistant")]},
            *("role_order", "prompt", "ends with a turn of assistant"),
        ),
        (
            {"prompt": [{"role": r, "content": "x"} for r in ("user", "user")]},
            *("role_order", "prompt[1].role", "a turn of user where assistant's is due"),
        ),
        (
            {"prompt": [{"role": r, "content": "x"} for r in ("user", "system", "user")]},
            *("role_order", "prompt[1].role", "a turn of system"),
        ),
        ({"prompt": "x", "id": 1.5}, "wrong_type", "id", "is a number"),
        ({"prompt": "x", "id": "a\u0000"}, "bad_text", "id", "cannot be printed"),
        ({"prompt": "first"}, "duplicate_prompt", "prompt", "the same prompt as in line 1"),
        ({"prompt": "other", "id": "one"}, "duplicate_id", "id", "is that of line 1 too"),
    ],
)
def test_a_bad_row(tmp_path: Path, row: Any, kind: str, field: str | None, reason: str) -> None:
    path = tmp_path / "p.jsonl"
    first, bad, last = {"prompt": "first", "id": "one"}, row, {"prompt": "last"}
    if kind == "encoding":
        first = {"prompt": "1"}
        lines(path, first, bad, last)
        assert path.read_bytes()[31] == 0xE9  # 16 bytes in the line before
    else:
        lines(path, first, bad, last)
    problem = only(path)
    assert (problem.kind, problem.row, problem.field) == (kind, 2, field)
    assert reason in problem.reason

    rows, rejects = read_prompts(section(path, on_bad_row="reject"))
    assert len(rows) == 2
    (reject,) = rejects
    assert reject["reason"] == kind.replace("_", " ")
    assert reject["stage"] == "prompts"
    dropped = json.loads(reject["row"])
    assert dropped["line"] == 2
    assert dropped["problems"][0]["reason"] == problem.reason
    reject["row"].encode("utf-8")
    if kind == "duplicate_prompt":
        assert len(read_prompts(section(path))[0]) == 2
    else:
        with pytest.raises(UsageError) as error:
            read_prompts(section(path))
        assert "line 2" in str(error.value)
        assert problem.reason in str(error.value)
        str(error.value).encode("utf-8")


def test_a_prompt_that_is_too_long(tmp_path: Path) -> None:
    path = lines(tmp_path / "p.jsonl", {"prompt": "one two"}, {"prompt": "one two three"})
    limit = TokenLimit(lambda messages: sum(len(m["content"].split()) for m in messages), 2)
    (problem,) = problems(path, limit)
    assert (problem.kind, problem.row, problem.field) == ("too_long", 2, "prompt")
    assert "3 tokens, 1 more than" in problem.reason
    (row,), (reject,) = read_prompts(section(path, on_bad_row="reject"), max_prompt_tokens=limit)
    assert row["prompt"][0]["content"] == "one two"
    assert reject["reason"] == "too long"


def test_unknown_columns_are_named_once_with_the_nearest(tmp_path: Path) -> None:
    path = lines(tmp_path / "p.jsonl", {"prompt": "a"}, {"prompt": "b", "idd": 1}, {"prompt": "c", "idd": 2, "zzz": 0})
    first, second = problems(path)
    assert (first.kind, first.row, first.field, first.level) == ("unknown_column", 2, "idd", "fatal")
    assert "in 2 rows" in first.reason
    assert first.fix.startswith("did you mean 'id'?")
    assert second.fix == "set ignore_columns: [zzz]"
    for on_bad_row in ("stop", "reject"):  # it is the recipe that is wrong, not the row
        with pytest.raises(UsageError, match="unknown column"):
            read_prompts(section(path, on_bad_row=on_bad_row))
    assert texts(path, ignore_columns=["idd", "zzz"]) == ["a", "b", "c"]
    assert texts(path, ignore_columns="all") == ["a", "b", "c"]


def test_a_mistyped_column_is_found(tmp_path: Path) -> None:
    missing, unknown = problems(lines(tmp_path / "p.jsonl", {"Promt": "a"}))
    assert missing.fix == "rename 'Promt', or set column: Promt"
    assert unknown.fix.startswith("did you mean 'prompt'?")


def test_all_problems_are_counted_and_the_first_listed(tmp_path: Path) -> None:
    path = lines(tmp_path / "p.jsonl", {"prompt": "ok"}, *[{"prompt": ""}] * 2000)
    with pytest.raises(UsageError) as error:
        read_prompts(section(path))
    text = str(error.value)
    assert "2,000 problems" in text
    assert text.count("is empty") == 10
    assert "… and 1990 more" in text
    assert f"prefloop validate {path}" in text
    assert "on_bad_row=reject" in text


def test_one_row_with_two_problems_is_one_reject(tmp_path: Path) -> None:
    path = lines(tmp_path / "p.jsonl", {"prompt": "a"}, {"prompt": "", "id": []})
    _, (reject,) = read_prompts(section(path, on_bad_row="reject"))
    dropped = json.loads(reject["row"])
    assert [p["field"] for p in dropped["problems"]] == ["prompt", "id"]
    assert dropped["content"] == {"prompt": "", "id": []}


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    path = lines(tmp_path / "p.jsonl", {"prompt": ""})
    with pytest.raises(UsageError, match="none of the 1 rows"):
        read_prompts(section(path, on_bad_row="reject"))


@pytest.mark.parametrize(
    ("name", "content", "kind", "reason"),
    [
        ("p.jsonl", b"", "empty_file", "the file is empty"),
        ("p.jsonl", b"\n  \n", "empty_file", "nothing but blank lines"),
        ("p.jsonl", '{"prompt": "a"}\n'.encode("utf-16"), "encoding", "UTF-16"),
        ("p.json", b"[]", "empty_file", "the array is empty"),
        ("p.json", b'{"prompt": "a"}', "not_an_object", "one object, not an array"),
        ("p.json", b'{"prompt": "a"}\n{"prompt": "b"}\n', "broken_json", "Extra data"),
        ("p.json", b'[{"prompt": "caf\xe9 noir"}]', "encoding", "byte 16"),
        ("p.json", b'[{"prompt": "a"', "broken_json", "broken JSON"),
        ("p.csv", b"prompt\n", "empty_file", "no rows below the header"),
        ("p.csv", b"\n\n", "empty_file", "nothing but blank lines"),
        ("p.csv", b"prompt,prompt\na,b\n", "csv_header", "'prompt' stands twice"),
        ("p.csv", b"prompt,\na,b\n", "csv_header", "column 2 has no name"),
        ("p.csv", b"Where does Ada live these days?,1\nWhere is Bo?,2\n", "csv_header", "no header"),
        ("p.csv", b'prompt\n"a\n', "unreadable", "not CSV"),
        ("p.csv", b"prompt\ncaf\xe9 noir\n", "encoding", "byte 10 (0xe9)"),
        ("p.parquet", b"PAR?", "unreadable", "not a readable Parquet file"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, kind: str, reason: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    problem = only(path)
    assert (problem.kind, problem.level) == (kind, "fatal")
    assert reason in problem.reason
    for on_bad_row in ("stop", "reject"):
        with pytest.raises(UsageError):
            read_prompts(section(path, on_bad_row=on_bad_row))


def test_no_such_file_and_a_folder(tmp_path: Path) -> None:
    assert only(tmp_path / "none.jsonl").kind == "no_such_file"
    (tmp_path / "folder.jsonl").mkdir()
    assert "is a folder" in only(tmp_path / "folder.jsonl").reason


def test_csv_rows_with_other_cells_have_their_line(tmp_path: Path) -> None:
    path = lines(tmp_path / "p.csv", b'prompt,id\n"two\nlines",1\n\na,b,c\nd,2\n')
    problem = only(path)
    assert (problem.kind, problem.row) == ("csv_cells", 5)
    assert problem.reason == "3 cells under 2 columns"


def test_the_wrong_kind_of_json_is_explained(tmp_path: Path) -> None:
    as_array = lines(tmp_path / "a.jsonl", b'[\n{"prompt": "a"}\n]\n')
    assert "`format: json`" in problems(as_array)[0].fix
    as_lines = lines(tmp_path / "b.json", {"prompt": "a"}, {"prompt": "b"})
    assert "`format: jsonl`" in only(as_lines).fix


def test_guess_encoding() -> None:
    for text, encoding, expected in [
        ("naïve café, déjà vu", "cp1252", "WINDOWS-1252"),
        ("你好世界，今天天气很好", "gb18030", "GB18030"),
        ("hello world", "utf-16", "UTF-16"),
        ("hello world", "utf-16-le", "UTF-16LE"),
        ("hello world", "utf-16-be", "UTF-16BE"),
    ]:
        assert guess_encoding(text.encode(encoding)) == expected


def test_reading_jsonl_loads_no_heavy_library(tmp_path: Path) -> None:
    path = lines(tmp_path / "p.jsonl", {"prompt": "a"})
    code = (
        "import sys; from prefloop.inputs import read_prompts; from prefloop.config import PromptsSection\n"
        f"read_prompts(PromptsSection(path={str(path)!r}))\n"
        "heavy = ('torch', 'transformers', 'datasets', 'pyarrow', 'jinja2', 'matplotlib')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
