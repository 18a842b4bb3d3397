"""Data sets that LLaMA-Factory's registry describes: columns, speakers, weights, and what is wrong with them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.publish.published_run import pairs, write_run

from prefloop.config import PreferencesSection
from prefloop.errors import UsageError
from prefloop.inputs.identity import identity
from prefloop.inputs.preferences import PreferenceReader
from prefloop.inputs.validate import validate_file
from prefloop.publish.dataset import export_pairs

PUBLISHED = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected", "weight": "weight"}


def row(number: int, weight: float = 0.5) -> dict:
    said = ['{"Rewritten Text": "One way."}', '{"Rewritten Text": "He said "so"."}']
    return {
        "conversations": [{"from": "system", "value": "Do it.\n"}, {"from": "human", "value": f"Passage {number}\n"}],
        "chosen": {"from": "gpt", "value": said[0]},
        "rejected": {"from": "gpt", "value": said[1]},
        "weight": weight,
    }


def write(folder: Path, entry: dict | None = None, rows: list | None = None, **others: dict) -> Path:
    (folder / "pairs.json").write_text(json.dumps(rows or [row(0), row(1, 0.25)], indent=4))
    standard = {"file_name": "pairs.json", "formatting": "sharegpt", "ranking": True, "columns": PUBLISHED}
    (folder / "dataset_info.json").write_text(json.dumps({"mine": entry or standard, **others}))
    return folder / "dataset_info.json"


def read(path: Path, **settings):
    reader = PreferenceReader(PreferencesSection(path=str(path), **settings))
    return [row for rows, _ in reader.parts(10) for row in rows], reader


def test_the_published_format_with_its_weights(tmp_path):
    rows, reader = read(write(tmp_path))
    assert reader.layout is not None
    assert reader.layout.name == "sharegpt_pairs"
    assert [r["weight"] for r in rows] == [0.5, 0.25]
    assert rows[0]["prompt"] == [{"role": "system", "content": "Do it.\n"}, {"role": "user", "content": "Passage 0\n"}]
    # As they were published: not every target is valid JSON.
    assert rows[0]["rejected"] == [{"role": "assistant", "content": '{"Rewritten Text": "He said "so"."}'}]


def test_other_names_of_columns_keys_and_speakers(tmp_path):
    entry = {
        "file_name": "pairs.json",
        "formatting": "sharegpt",
        "ranking": True,
        "columns": {"messages": "talk", "chosen": "good", "rejected": "bad", "weight": "w"},
        "tags": {"role_tag": "who", "content_tag": "what", "user_tag": "person", "assistant_tag": "bot"},
    }
    turn = lambda who, what: {"who": who, "what": what}  # noqa: E731
    rows = [{"talk": [turn("person", "Hi")], "good": turn("bot", "Yes"), "bad": turn("bot", "No"), "w": 1, "note": 3}]
    (found,), reader = read(write(tmp_path, entry, rows))
    assert found["prompt"] == [{"role": "user", "content": "Hi"}]
    assert (found["chosen"], found["rejected"]) == (
        [{"role": "assistant", "content": "Yes"}],
        [{"role": "assistant", "content": "No"}],
    )
    assert found["weight"] == 1.0
    assert reader.columns.left == {"note": 1}


def test_a_column_that_another_stands_for_is_not_read(tmp_path):
    entry = {"file_name": "pairs.json", "formatting": "sharegpt", "ranking": True, "columns": {"weight": "w"}}
    rows, reader = read(write(tmp_path, entry, [{**row(0, 0.9), "w": 0.5}, {"w": 0.25, **row(1, 0.9)}]))
    assert [r["weight"] for r in rows] == [0.5, 0.25]
    assert reader.columns.left == {"weight (not in columns)": 2}


def test_columns_that_are_no_names(tmp_path):
    entry = {"file_name": "pairs.json", "formatting": "sharegpt", "ranking": True, "columns": ["weight"]}
    with pytest.raises(UsageError, match="columns and tags map names to names"):
        read(write(tmp_path, entry))


def test_one_of_several_and_demonstrations(tmp_path):
    demonstration = {"file_name": "talks.json", "formatting": "sharegpt"}
    path = write(tmp_path, talks=demonstration)
    talk = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    (tmp_path / "talks.json").write_text(json.dumps([{"conversations": talk}]))
    with pytest.raises(UsageError, match=r"2 data sets \(mine, talks\)"):
        read(path)
    (found,), _ = read(path, name="talks")
    assert (found["chosen"], found["rejected"]) == ([{"role": "assistant", "content": "Hello"}], None)
    assert len(read(path, name="mine")[0]) == 2
    with pytest.raises(UsageError, match="did you mean 'talks'"):
        read(path, name="talk")


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"hf_hub_url": "a/b"}, "lies elsewhere"),
        ({"file_name": "pairs.json"}, "formatting alpaca"),
        ({"file_name": "nothing.json", "formatting": "sharegpt"}, "is not there"),
    ],
)
def test_what_cannot_be_read_is_told(entry, said, tmp_path):
    with pytest.raises(UsageError, match=said):
        read(write(tmp_path, entry))


def test_a_weight_below_0_is_a_bad_row(tmp_path):
    with pytest.raises(UsageError, match="weight"):
        read(write(tmp_path, rows=[row(0, -0.5)]))
    report = validate_file(write(tmp_path, rows=[row(0, -0.5), row(1)]))
    assert (report.kind, report.rows, report.valid) == ("preference", 2, 1)


def test_its_identity_is_that_of_the_rows(tmp_path):
    before = identity(PreferencesSection(path=str(write(tmp_path))))
    other = tmp_path / "other"
    other.mkdir()
    shutil.copytree(tmp_path, other, dirs_exist_ok=True, ignore=lambda *_: ["other"])
    assert identity(PreferencesSection(path=str(other / "dataset_info.json"))) == before
    (tmp_path / "pairs.json").write_text(json.dumps([row(7)]))
    assert identity(PreferencesSection(path=str(tmp_path / "dataset_info.json"))) != before


def test_an_export_is_read_again_with_its_weights(tmp_path):
    made = [{**row, "weight": 1 / (1 + i)} for i, row in enumerate(pairs(6))]
    run = write_run(tmp_path / "run", [made])
    export_pairs(run, tmp_path / "set")
    info = json.loads((tmp_path / "set" / "dataset_info.json").read_text())
    assert all(entry["columns"]["weight"] == "weight" for entry in info.values())
    rows, _ = read(tmp_path / "set" / "dataset_info.json")
    exported = [json.loads(line) for line in (tmp_path / "set" / "train.jsonl").read_text().splitlines()]
    assert [r["weight"] for r in rows] == [r["weight"] for r in exported]
    assert [(r["prompt"], r["chosen"], r["rejected"]) for r in rows] == [
        (r["prompt"], r["chosen"], r["rejected"]) for r in exported
    ]
