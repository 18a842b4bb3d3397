"""Functions as signals: finding them, calling them, and what they may return."""

from __future__ import annotations

import sys
from importlib.util import spec_from_file_location

import pytest

from prefloop.config import FunctionSignalSection
from prefloop.errors import UsageError
from prefloop.signals.build import preflight
from prefloop.signals.driver import rate
from prefloop.signals.function import FunctionSignal, identity, load, module_file
from prefloop.store.fingerprint import code_digest

MODULE = """
import json
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
def inside(prompt, completion):
    return json.loads("{")
def meddling(prompt, completion):
    prompt[0]["content"] += "!"
    prompt.append(None)
    return len(prompt) - 1
def lonely(completion):
    return 1.0
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
    (tmp_path / "my_exit.py").write_text("raise SystemExit(3)\n")
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
    line = MODULE.splitlines().index('    raise ZeroDivisionError("oops")') + 1
    place = rf"row row-7, {here}/my_rules.py, line {line}: my_rules:broken failed: ZeroDivisionError: oops"
    with pytest.raises(UsageError, match=place):
        scores("my_rules:broken", "x")


def test_an_exception_in_a_library_names_the_users_line(here):
    line = MODULE.splitlines().index('    return json.loads("{")') + 1
    with pytest.raises(UsageError, match=rf"my_rules.py, line {line}: my_rules:inside failed: JSONDecodeError"):
        scores("my_rules:inside", "x")


def test_a_function_cannot_change_the_row(here):
    given = row("x", "y")
    assert rate(FunctionSignal("my_rules:meddling"), [given], {}).rows[0]["scores"] == [1.0, 1.0]
    assert given["prompt"] == [{"role": "user", "content": "q"}]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("my_absent:f", "no module 'my_absent'"),
        ("my_absent.inner:f", "no module 'my_absent'"),
        ("my_broken:f", "needs 'not_installed_anywhere'"),
        ("my_exit:f", "importing the module fails: SystemExit: 3"),
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


IMPORTED = "raise RuntimeError('imported while planning')\n"


@pytest.mark.parametrize(
    ("file", "module"),
    [
        ("my_pkg/__init__.py", "my_pkg"),
        ("my_pkg/rules.py", "my_pkg.rules"),
        ("my_pkg/inner/rules.py", "my_pkg.inner.rules"),  # a namespace inside a package
        ("my_ns/inner/rules.py", "my_ns.inner.rules"),  # a namespace inside a namespace
    ],
)
def test_a_module_of_a_package_is_found_without_importing_the_package(here, file, module):
    (here / "my_pkg").mkdir()
    (here / "my_pkg" / "__init__.py").write_text(IMPORTED)
    (here / file).parent.mkdir(parents=True, exist_ok=True)
    (here / file).write_text(IMPORTED)
    assert module_file(module) == here / file
    assert not {m for m in sys.modules if m.startswith(("my_pkg", "my_ns"))}


def test_a_module_that_only_its_package_knows_is_known_by_the_package(here):
    (here / "my_pkg").mkdir()
    (here / "my_pkg" / "__init__.py").write_text(IMPORTED)
    assert module_file("my_pkg.made.at.runtime") == here / "my_pkg" / "__init__.py"


def test_finders_that_map_names_are_asked_and_may_fail(here, monkeypatch):
    """As an editable install does it: the finder knows the package, the path finder what is in it."""
    (here / "elsewhere").mkdir()
    for name in ("__init__", "rules"):
        (here / "elsewhere" / f"{name}.py").write_text(IMPORTED)

    class Editable:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name == "my_broken_finder":
                raise RuntimeError("a finder of somebody else's")
            if name != "my_editable":
                return None
            folder = here / "elsewhere"
            return spec_from_file_location(name, folder / "__init__.py", submodule_search_locations=[str(folder)])

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Editable])
    assert module_file("my_editable.rules") == here / "elsewhere" / "rules.py"
    assert module_file("my_broken_finder.rules") is None


def test_a_function_of_ours_is_known_by_its_whole_box():
    digest = code_digest("sandbox")
    assert identity("prefloop.sandbox.verdicts:kindness")["source_sha"] == digest
    assert identity("prefloop.records:prompt_id")["source_sha"] == code_digest("records.py")


def test_preflight_finds_what_is_missing(here):
    preflight(FunctionSignalSection(type="function", callable="my_rules:length"))
    for path in ("my_absent:f", "my_rules:absent"):
        with pytest.raises(UsageError, match="absent"):
            preflight(FunctionSignalSection(type="function", callable=path))


def test_the_identity_follows_the_file_without_importing_it(here):
    before = identity("my_rules:length")
    assert FunctionSignal("my_rules:length").identity == before
    sys.modules.pop("my_rules")
    (here / "my_rules.py").write_text(MODULE + "# changed\n")
    assert identity("my_rules:length") != before
    assert "my_rules" not in sys.modules
    assert identity("my_absent:f")["source_sha"] is None


def test_a_function_of_other_arguments_is_found_before_anything_is_sampled(here):
    with pytest.raises(UsageError, match="cannot be called with a prompt and a completion") as error:
        preflight(FunctionSignalSection(type="function", callable="my_rules:lonely"))
    assert "lonely" in str(error.value)
