"""What identifies a source of prompts: its content, and what changes the reading."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from prefloop.config import PreferencesSection, PromptsSection
from prefloop.errors import UsageError
from prefloop.inputs.hub import _refuse
from prefloop.inputs.identity import identity


def section(path: Path | str, **settings: object) -> PromptsSection:
    return PromptsSection.model_validate({"path": str(path), **settings})


def test_a_file_is_known_by_its_content_not_by_its_name(tmp_path: Path) -> None:
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    for file in (one, two):
        file.write_text('{"prompt": "a"}\n')
    assert identity(section(one)) == identity(section(two)) == identity(section(one), seed=7)
    before = identity(section(one))
    assert identity(section(one, split="other")) == before  # a file has no splits
    for settings in ({"column": "text"}, {"limit": 3}, {"system": "x"}, {"format": "lima"}, {"format": "json"}):
        assert identity(section(one, **settings)) != before, settings
    one.write_text('{"prompt": "b"}\n')
    assert identity(section(one)) != before


def test_preferences_are_known_by_their_content_and_their_format(tmp_path: Path) -> None:
    def given(path: Path, **settings: object) -> PreferencesSection:
        return PreferencesSection.model_validate({"path": str(path), **settings})

    one, two = tmp_path / "one.json", tmp_path / "two.json"
    for file in (one, two):
        file.write_text('{"prompt": "a", "completion": "b"}\n')
    before = identity(given(one))
    assert identity(given(two, split="other")) == before
    assert before["container"] == "jsonl"
    for settings in ({"format": "completion"}, {"limit": 3}, {"on_bad_row": "reject"}, {"ignore_columns": "all"}):
        assert identity(given(one, **settings)) != before, settings
    one.write_text('[{"prompt": "a", "completion": "b"}]')
    assert identity(given(one)) != before
    with pytest.raises(UsageError, match="a file of preferences"):
        identity(given(tmp_path / "absent.jsonl"))


def test_what_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        identity(section(tmp_path / "absent.jsonl"))
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        identity(section(tmp_path / "folder.jsonl"))


def test_the_sandbox_goes_by_its_code_and_the_seed() -> None:
    prompts = section("sandbox:questions/train")
    assert len(identity(prompts)["code"]) == 64
    assert identity(prompts, seed=1) != identity(prompts, seed=2)
    assert identity(prompts) != identity(section("sandbox:questions/heldout"))


def test_a_hub_set_goes_by_the_commit_in_the_local_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    prompts = section("hub:org/name/config", split="test")
    before = identity(prompts)
    assert before["content"] == "hub:org/name@main?unresolved"
    assert (before["config"], before["split"]) == ("config", "test")
    refs = tmp_path / "datasets--org--name" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("a" * 40)
    assert identity(prompts)["content"] == "hub:org/name@" + "a" * 40
    assert identity(section("hub:org/name/config", split="train")) != identity(prompts)


def test_a_local_data_set_goes_by_its_files(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}")
    before = identity(section(f"hub:{tmp_path}"))
    (tmp_path / "rows.jsonl").write_text("{ }")
    assert identity(section(f"hub:{tmp_path}")) != before


def test_it_loads_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; from prefloop.config import PromptsSection as P; from prefloop.inputs.identity import identity; "
        "identity(P(path='hub:org/name')); print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "datasets", "httpx", "requests", "pandas"} & set(loaded)


@pytest.mark.parametrize(
    ("words", "fix"),
    [
        ("Dataset 'a/b' is a gated dataset on the Hub", "hf auth login"),
        ("Couldn't reach 'a/b' on the Hub", "hf download --repo-type dataset"),
        ("Unknown split \"x\". Should be one of ['train'].", "`split`"),
    ],
)
def test_a_hub_set_that_does_not_load_says_what_to_do(words: str, fix: str) -> None:
    with pytest.raises(UsageError, match=fix):
        _refuse("hub:a/b", "x", ValueError(words))
