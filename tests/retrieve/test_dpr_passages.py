"""DPR's file of Wikipedia passages: id, text and title between tabs."""

from __future__ import annotations

import gzip

import pytest

from prefloop.errors import UsageError
from prefloop.retrieve.corpus import read_collection

LINES = 'id\ttext\ttitle\n1\t"Aaron, he said, ""spoke"" well."\tAaron\n2\tPlain text, no quotes.\t"The ""A"""\n'


@pytest.mark.parametrize("packed", [False, True])
def test_passages_with_their_titles(tmp_path, packed):
    path = tmp_path / ("psgs_w100.tsv.gz" if packed else "psgs_w100.tsv")
    path.write_bytes(gzip.compress(LINES.encode()) if packed else LINES.encode())
    found = read_collection(path)
    passages = found.passages["human"]
    assert [(p.id, p.title, p.text) for p in passages] == [
        ("1", "Aaron", 'Aaron, he said, "spoke" well.'),
        ("2", 'The "A"', "Plain text, no quotes."),
    ]
    assert not found.queries


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1\ta\tb\n", "names no columns"),
        ("id\ttext\ttitle\n1\ttext\n", "2 cells under 3 columns"),
        ("id\ttext\ttitle\n1\ta\tb\n1\tc\td\n", "there twice"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(tmp_path, text, says):
    path = tmp_path / "p.tsv"
    path.write_text(text)
    with pytest.raises(UsageError, match=says):
        read_collection(path)
