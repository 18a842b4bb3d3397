"""Models by hub id: a run keeps the commit that it began with. The hub here is a folder laid out as its cache."""

from __future__ import annotations

import json
import shutil

import pytest
from tests.loop.conftest import make_project
from tests.tiny_models import tiny_model_folder

from prefloop.errors import UsageError
from prefloop.loop import run as loop

OLD, NEW = "a" * 40, "b" * 40


def publish(cache, commit, *, branch=None):
    """Put the tiny model into a hub cache under a commit, as a download would."""
    model = cache / "models--org--tiny"
    shutil.copytree(tiny_model_folder("llama"), model / "snapshots" / commit)
    if branch is not None:
        (model / "refs").mkdir(exist_ok=True)
        (model / "refs" / branch).write_text(commit)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    return cache


def test_a_run_that_downloads_its_model_is_done_afterwards(hub, tmp_path, monkeypatch):
    project = make_project(tmp_path / "project", model={"path": "org/tiny"})

    def first_use(path, revision):
        # What the hub says before anything was downloaded; the download then fills the cache under the commit.
        assert (path, revision) == ("org/tiny", None)
        publish(hub, OLD)
        return OLD

    monkeypatch.setattr(loop, "resolve_commit", first_use)
    project.run_here()
    manifest = json.loads((project.run_dir / "manifest.json").read_text())
    assert manifest["commits"] == {"org/tiny@main": OLD}
    monkeypatch.setattr(loop, "resolve_commit", lambda *_: pytest.fail("the run knows its commit"))
    assert project.run_here()["computed"] == []
    # The branch moves on; the run does not.
    publish(hub, NEW, branch="main")
    assert project.run_here()["computed"] == []


def test_a_model_in_the_local_cache_needs_no_network(hub, tmp_path):
    publish(hub, OLD, branch="main")
    project = make_project(tmp_path / "project", model={"path": "org/tiny"})
    project.run_here()
    assert project.run_here()["computed"] == []


def test_a_model_that_is_not_there_offline_is_one_message(hub, tmp_path):
    project = make_project(tmp_path / "project", model={"path": "org/nosuch"})
    with pytest.raises(UsageError, match="folder of a downloaded model"):
        project.run_here()
