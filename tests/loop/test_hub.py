"""Models by hub id: a run keeps the commit that it began with. The hub here is a folder laid out as its cache."""

from __future__ import annotations

import json
import shutil

import pytest
from tests.loop.conftest import make_project
from tests.tiny_models import tiny_model_folder

from prefloop.config import RagRecipe, Recipe
from prefloop.errors import UsageError
from prefloop.loop import pins
from prefloop.loop import run as loop
from prefloop.retrieve.retriever import retriever_identity

OLD, NEW = "a" * 40, "b" * 40


def publish(cache, commit, *, branch=None, name="tiny"):
    """Put the tiny model into a hub cache under a commit, as a download would."""
    model = cache / f"models--org--{name}"
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


def test_retrievers_and_rerankers_stay_at_their_commits(hub):
    """Of both kinds of recipe; BM25 and the embedded encoder are on no hub."""
    sides = {"path": "org/q", "passages": "org/p", "passages_revision": "v2"}
    recipe = Recipe.model_validate(
        {
            "name": "x",
            "model": "sandbox",
            "prompts": {"path": "sandbox:passages/train", "format": "passages"},
            "sample": {"rewrite": {}},
            "rate": {
                "type": "retriever",
                "retrievers": [sides, "bm25", "sandbox"],
                "judgments": "sandbox:passages/train",
                "similarity": "org/near",
            },
            "pair": {"strategy": "straddle"},
            "evaluate": {"source_bias": {"retrievers": ["org/other"]}},
        }
    )
    asked = [(m.path, m.revision) for m in pins.models_of(recipe)]
    assert asked == [
        *[("sandbox", None), ("org/q", None), ("org/p", "v2"), ("sandbox", None), ("org/near", None)],
        *[("org/other", None), ("org/near", None)],
    ]
    commits = {"org/q@main": "1" * 40, "org/p@v2": "2" * 40, "org/near@main": "3" * 40, "org/other@main": "4" * 40}
    pinned = pins.pinned(recipe, commits)
    first = pinned.rate.retrievers[0]
    assert (first.revision, first.passages_revision) == ("1" * 40, "2" * 40)
    assert pinned.rate.retrievers[1:] == recipe.rate.retrievers[1:]
    assert pinned.rate.similarity.revision == pinned.source_bias.similarity.revision == "3" * 40
    assert pinned.evaluate.source_bias.retrievers[0].revision == "4" * 40
    publish(hub, "1" * 40, branch="main", name="q")
    publish(hub, "2" * 40, branch="v2", name="p")
    # A commit that is known says what the branch said: no stage runs again for it.
    assert retriever_identity(first) == retriever_identity(recipe.rate.retrievers[0])

    rag = RagRecipe.model_validate(
        {
            **{"name": "x", "model": "sandbox", "questions": "sandbox:facts", "corpus": "sandbox:library"},
            **{"retrieve": {"retriever": sides}, "rerank": {"model": "org/rank", "revision": "v1"}},
        }
    )
    assert {("org/q", None), ("org/p", "v2"), ("org/rank", "v1")} <= {
        (m.path, m.revision) for m in pins.rag_models_of(rag)
    }
    found = pins.rag_pinned(rag, {**commits, "org/rank@v1": "5" * 40})
    assert found.rerank.revision == "5" * 40
    assert found.retrieve.retriever.passages_revision == "2" * 40
