"""CSV for spreadsheets: what it says comes back, and nothing of it runs."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.evaluate.sheet import csv_text


def read(text):
    return list(csv.reader(io.StringIO(text, newline="")))


@pytest.mark.parametrize(
    "text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1+1", "＋1", "－1", "＠A1"]
)
def test_no_text_begins_a_formula(text):
    (header, row) = read(csv_text([text], [[text]]))
    assert header == row == [f"'{text}"]


def test_numbers_are_numbers_and_nothing_is_empty():
    assert csv_text(["a", "b", "c"], [[-0.5, 3, None]]) == "a,b,c\r\n-0.5,3,\r\n"


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=4))
def test_texts_come_back(texts):
    # An empty line has no cells; a second column keeps it one.
    (_, row) = read(csv_text(["x"] * (len(texts) + 1), [[*texts, 1]]))
    assert [cell.removeprefix("'") for cell in row[:-1]] == [text.removeprefix("'") for text in texts]
