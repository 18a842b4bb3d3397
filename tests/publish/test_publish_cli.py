"""The commands, and an upload to a hub that is not there."""

import json

import pytest
from tests.publish.published_run import pairs, write_run
from typer.testing import CliRunner

from prefloop.cli.commands import app
from prefloop.errors import PrefloopError, UsageError
from prefloop.publish.hub import push


class Hub:
    """Stands for `huggingface_hub.HfApi`."""

    def __init__(self, error=None):
        self.asked, self.error = [], error

    def create_repo(self, name, **how):
        self.asked.append(("create", name, how))
        if self.error:
            raise self.error
        return f"https://hub.example/{name}"

    def upload_folder(self, **how):
        self.asked.append(("upload", how))


def test_a_repository_is_private_unless_asked_for(tmp_path):
    hub = Hub()
    assert push(tmp_path, "ORG/set", "dataset", api=hub) == "https://hub.example/ORG/set"
    assert hub.asked[0] == ("create", "ORG/set", {"repo_type": "dataset", "private": True, "exist_ok": True})
    assert hub.asked[1][1]["folder_path"] == str(tmp_path)
    push(tmp_path, "ORG/set", "model", private=False, api=hub)
    assert hub.asked[2][2] == {"repo_type": "model", "private": False, "exist_ok": True}


def test_a_hub_that_refuses_leaves_the_export(tmp_path):
    with pytest.raises(PrefloopError, match=r"did not take it: no route(?s:.*)lies in"):
        push(tmp_path, "ORG/set", "dataset", api=Hub(OSError("no route\nto host")))
    with pytest.raises(UsageError, match="ORG/NAME"):
        push(tmp_path, "set", "dataset", api=Hub())


def test_the_commands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run", [pairs(6)])
    runner = CliRunner()

    def call(*arguments):
        result = runner.invoke(app, [*arguments, "--json"], catch_exceptions=False)
        assert result.exit_code == 0
        return json.loads(result.stdout.splitlines()[-1])

    assert call("export", "run", "--out", "set", "--license", "mit")["pairs"] == 6
    assert "license: mit" in (tmp_path / "set" / "README.md").read_text()
    assert call("export", "run", "--out", "adapter", "--what", "adapter")["what"] == "adapter"
    assert call("votes", "export", "run", "s.csv", "--limit", "2")["pairs"] == 2
    sheet = (tmp_path / "s.csv").read_text(encoding="utf-8-sig")
    (tmp_path / "ann.csv").write_text(sheet.replace(",,,", ",a,,"))
    found = call("votes", "import", "s.key.jsonl", "ann.csv", "--out", "v.jsonl")
    assert found["votes"] == 2
    assert found["first_seat"] == 1
