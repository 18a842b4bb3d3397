"""Functions as signals: finding them, calling them, and what they may return."""

from __future__ import annotations

import sys

import pytest

from prefloop.errors import UsageError
from prefloop.signals.driver import rate
from prefloop.signals.function import FunctionSignal, identity, load, module_file

MODULE = """
import numpy as np
def length(prompt, completion):
    assert prompt[-1]["role"] == "user"
    return len(completion) or None
def verdict(prompt, completion):
    return completion == "yes"
def single(prompt, completion):
    return np.float32(0.5)
def nan(prompt, completion):
    return float("nan")
def text(prompt, completion):
    return "5"
def broken(prompt, completion):
    raise ZeroDivisionError("oops")
constant = 3
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A current directory with a module of the user's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_rules.py").write_text(MODULE)
    (tmp_path / "my_broken.py").write_text("import not_installed_anywhere\n")
    (tmp_path / "my_typo.py").write_text("def f(:\n")
    yield tmp_path
    for name in ("my_rules", "my_broken", "my_typo"):
        sys.modules.pop(name, None)


def row(*texts):
    return {
        "id": "row-7",
        "prompt": [{"role": "user", "content": "q"}],
        "completions": [
            {"id": str(i), "text": t, "token_ids": None, "finish_reason": "stop", "sample_index": i}
            for i, t in enumerate(texts)
        ],
    }


def scores(path, *texts):
    return rate(FunctionSignal(path), [row(*texts)], {}).rows[0]["scores"]


def test_scores_and_missing_verdicts(here):
    assert scores("my_rules:length", "abc", "", "a") == [3.0, None, 1.0]


def test_booleans_and_numpy_numbers_are_numbers(here):
    assert scores("my_rules:verdict", "yes", "no") == [1.0, 0.0]
    assert scores("my_rules:single", "x") == [0.5]


@pytest.mark.parametrize(("name", "shown"), [("nan", "nan"), ("text", "'5'")])
def test_what_is_no_number_names_the_row(here, name, shown):
    with pytest.raises(UsageError, match=f"row row-7: my_rules:{name} returned {shown}"):
        scores(f"my_rules:{name}", "x")


def test_an_exception_names_the_row(here):
    with pytest.raises(Exception, match=r"row row-7: ZeroDivisionError: oops"):
        scores("my_rules:broken", "x")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("my_absent:f", "no module 'my_absent'"),
        ("my_absent.inner:f", "no module 'my_absent'"),
        ("my_broken:f", "needs 'not_installed_anywhere'"),
        ("my_typo:f", "importing the module fails: SyntaxError"),
        ("my_rules:absent", "has no 'absent'"),
        ("my_rules:constant", "cannot be called"),
    ],
)
def test_what_cannot_be_loaded_says_why(here, path, message):
    with pytest.raises(UsageError, match=message):
        load(path)


def test_the_file_is_found_without_importing_it(here):
    assert module_file("my_rules") == here / "my_rules.py"
    assert "my_rules" not in sys.modules
    assert module_file("my_absent") is None
    assert module_file("my_absent.inner") is None
    assert module_file("sys") is None


def test_the_identity_follows_the_file_without_importing_it(here):
    before = identity("my_rules:length")
    assert FunctionSignal("my_rules:length").identity == before
    sys.modules.pop("my_rules")
    (here / "my_rules.py").write_text(MODULE + "# changed\n")
    assert identity("my_rules:length") != before
    assert "my_rules" not in sys.modules
    assert identity("my_absent:f")["source_sha"] is None
