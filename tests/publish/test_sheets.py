"""Sheets to vote on: random seats that are undone, texts that spreadsheets spoil, and the way back into a recipe."""

import csv
import json
from collections import Counter

import pytest
from tests.publish.published_run import pair, pairs, write_run

from prefloop.config import PreferencesSection
from prefloop.errors import UsageError
from prefloop.inputs.preferences import PreferenceReader
from prefloop.publish.sheets import export_sheet, import_sheets, key_path


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run", [pairs(200)])


def rows_of(sheet):
    with sheet.open(encoding="utf-8-sig", newline="") as stream:
        return list(csv.DictReader(stream))


def fill(sheet, out, choose, voter=""):
    """A filled copy: `choose` gets a row and gives its vote."""
    rows = rows_of(sheet)
    with out.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow(row | {"vote": choose(row), "voter": voter})
    return out


def test_seats_are_random_and_nothing_tells_which_was_chosen(run, tmp_path):
    sheet = tmp_path / "sheet.csv"
    found = export_sheet(run, sheet)
    rows = rows_of(sheet)
    assert found["pairs"] == len(rows) == 200
    chosen = {row["chosen"][0]["content"] for row in pairs(200)}
    first = sum(row["answer_a"] in chosen for row in rows)
    assert 70 < first < 130
    assert not {r["id"] for r in rows} & {r["id"] for r in pairs(200)}
    assert all(row["vote"] == row["voter"] == row["comment"] == "" for row in rows)
    assert [r["prompt"] for r in rows] != [f"Question {i}?" for i in range(200)]


def test_the_same_seed_gives_the_same_sheet_and_a_limit_its_beginning(run, tmp_path):
    export_sheet(run, tmp_path / "a.csv")
    export_sheet(run, tmp_path / "b.csv")
    export_sheet(run, tmp_path / "c.csv", limit=7)
    export_sheet(run, tmp_path / "d.csv", seed=1)
    a, b, d = ((tmp_path / f"{name}.csv").read_bytes() for name in "abd")
    assert a == b != d
    assert rows_of(tmp_path / "c.csv") == rows_of(tmp_path / "a.csv")[:7]


def test_a_sheet_with_votes_is_never_overwritten(run, tmp_path):
    export_sheet(run, tmp_path / "a.csv")
    with pytest.raises(UsageError, match="perhaps with votes"):
        export_sheet(run, tmp_path / "a.csv")
    with pytest.raises(UsageError, match="is a CSV"):
        export_sheet(run, tmp_path / "a.xlsx")


def test_votes_come_back_with_seats_undone(run, tmp_path):
    sheet = tmp_path / "sheet.csv"
    export_sheet(run, sheet, limit=60)
    chosen = {row["chosen"][0]["content"] for row in pairs(200)}

    def as_the_judge(row):
        return "a" if row["answer_a"] in chosen else "b"

    ann = fill(sheet, tmp_path / "ann.csv", as_the_judge)
    ben = fill(
        sheet, tmp_path / "ben.csv", lambda row: "" if row["id"] == rows_of(sheet)[0]["id"] else as_the_judge(row)
    )
    cat = fill(sheet, tmp_path / "sheet2.csv", lambda row: "TIE", voter="cat")
    found = import_sheets(key_path(sheet), [ann, ben, cat], tmp_path / "votes.jsonl")
    assert (found["votes"], found["blank"]) == (179, 1)
    assert 0.25 < found["first_seat"] < 0.75
    assert found["agreement"]["voters"] == 3
    lines = [json.loads(line) for line in (tmp_path / "votes.jsonl").read_text().splitlines()]
    assert Counter(line["voter"] for line in lines) == {"ann": 60, "ben": 59, "cat": 60}
    reader = PreferenceReader(PreferencesSection(path=str(tmp_path / "votes.jsonl")))
    rows = [row for part, _ in reader.parts(100) for row in part]
    expected = {(r["prompt"][-1]["content"], r["chosen"][0]["content"]) for r in pairs(200)}
    assert len(rows) == 60
    assert all((r["prompt"][-1]["content"], r["chosen"][0]["content"]) in expected for r in rows)
    assert sorted({r["label"] for r in rows}) == pytest.approx([0.75, 2.5 / 3])
    if any("Question 0?" in r["prompt"][-1]["content"] for r in rows):
        assert any(r["prompt"][0] == {"role": "system", "content": "Be kind."} for r in rows)


def test_second_votes_of_a_voter_are_left_out_and_counted(run, tmp_path):
    sheet = tmp_path / "sheet.csv"
    export_sheet(run, sheet, limit=20)
    ann = fill(sheet, tmp_path / "ann.csv", lambda row: "a", voter="ann")
    other = fill(sheet, tmp_path / "again.csv", lambda row: "b", voter="ann")
    found = import_sheets(key_path(sheet), [ann, ann, other], tmp_path / "votes.jsonl")
    assert (found["votes"], found["repeated"], found["first_seat"]) == (20, 40, 1)
    assert (found["agreement"]["ballots"], found["agreement"]["repeated"]) == (20, 0)


@pytest.mark.parametrize("separator", [";", "\t"])
def test_a_spreadsheet_may_separate_by_other_marks(run, tmp_path, separator):
    sheet = tmp_path / "sheet.csv"
    export_sheet(run, sheet, limit=20)
    rows = rows_of(sheet)
    with (tmp_path / "ann.csv").open("w", encoding="utf-8-sig", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter=separator)
        writer.writeheader()
        writer.writerows(row | {"vote": "a", "comment": "so, so"} for row in rows)
    assert import_sheets(key_path(sheet), [tmp_path / "ann.csv"], tmp_path / "votes.jsonl")["votes"] == 20


def test_files_that_are_mixed_up_are_named(run, tmp_path):
    sheet, out = tmp_path / "s.csv", tmp_path / "v.jsonl"
    export_sheet(run, sheet, limit=2)
    with pytest.raises(UsageError, match=r"s\.csv: is a sheet, not its key\nfix: give the key first"):
        import_sheets(sheet, [key_path(sheet)], out)
    with pytest.raises(UsageError, match=r"s\.key\.jsonl: is a key, not a filled sheet"):
        import_sheets(key_path(sheet), [key_path(sheet)], out)
    text = sheet.read_text(encoding="utf-8-sig")
    for changed, words in (
        (text.replace("vote,", "Votes,", 1), r"has no column 'vote'; its columns: id, .*\nfix: rename 'Votes'"),
        (text.replace("vote,", "what,", 1), r"has no column 'vote'; .*\nfix: keep the header as exported: id, prompt"),
    ):
        (tmp_path / "x.csv").write_text(changed)
        with pytest.raises(UsageError, match=words):
            import_sheets(key_path(sheet), [tmp_path / "x.csv"], out)
    (tmp_path / "x.xlsx").write_bytes(b"PK")
    with pytest.raises(UsageError, match="save it as CSV"):
        import_sheets(key_path(sheet), [tmp_path / "x.xlsx"], out)


def test_what_a_spreadsheet_does_to_texts_does_no_harm(tmp_path):
    formula = "=HYPERLINK(1)"
    run = write_run(tmp_path / "run", [[pair("=1+1 is?", formula, "  two\nlines  ")]])
    sheet = tmp_path / "s.csv"
    export_sheet(run, sheet)
    (row,) = rows_of(sheet)
    assert row["prompt"] == "'=1+1 is?"
    assert f"'{formula}" in (row["answer_a"], row["answer_b"])
    seat = "a" if row["answer_a"] == f"'{formula}" else "b"
    spoiled = fill(sheet, tmp_path / "x.csv", lambda r: seat)
    spoiled.write_text(spoiled.read_text().replace("HYPERLINK(1)", "#NAME?"))
    import_sheets(key_path(sheet), [spoiled], tmp_path / "v.jsonl")
    (part, _), *_ = PreferenceReader(PreferencesSection(path=str(tmp_path / "v.jsonl"))).parts(10)
    assert part[0]["chosen"][0]["content"] == formula
    assert part[0]["rejected"][0]["content"] == "  two\nlines  "
    assert part[0]["prompt"][0]["content"] == "=1+1 is?"


@pytest.mark.parametrize(
    ("change", "words"),
    [({"vote": "c"}, "the vote is 'c'"), ({"id": "other", "vote": "a"}, "not in"), ({"vote": ""}, "nobody voted")],
)
def test_a_wrong_sheet_is_refused_with_its_row(run, tmp_path, change, words):
    sheet = tmp_path / "s.csv"
    export_sheet(run, sheet, limit=1)
    (row,) = rows_of(sheet)
    with sheet.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(row))
        writer.writeheader()
        writer.writerow(row | change)
    with pytest.raises(UsageError, match=words):
        import_sheets(key_path(sheet), [sheet], tmp_path / "v.jsonl")
