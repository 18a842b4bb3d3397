"""Rewritings as a stage of a run: written by one model, filtered by another, every one kept or rejected."""

from __future__ import annotations

import json

import yaml
from tests.loop.conftest import Project
from tests.tiny_models import make_tiny_model
from tests.tiny_rewards import make_tiny_reward

from prefloop.store.rundir import RunDir

RECIPE = {
    "name": "rewritten",
    "model": "writer",
    "questions": "questions.jsonl",
    "corpus": "passages.jsonl",
    "retrieve": {"k": 2},
    "rate": {"ranks": [1, 2]},
    "top_k": 2,
    "augment": {
        "strategies": ["rephrase", "constrain", "sparql"],
        "temperature": 1.0,
        "max_new_tokens": 8,
        "nli": {"model": "nli", "bidirectional": True},
    },
    "rerank": "nli",
    "evaluate": {"holdout": 0.25},
}


def test_every_rewriting_is_kept_or_rejected(tmp_path):
    make_tiny_model(tmp_path / "writer", "qwen3", max_position_embeddings=2048)
    make_tiny_reward(tmp_path / "nli", "bert", ("contradiction", "neutral", "entailment"))
    questions = [{"question": f"What is the capital number {n}?", "answers": [f"Paris {n}"]} for n in range(8)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    (tmp_path / "passages.jsonl").write_text('{"_id": "a", "text": "The capital is Paris."}\n')
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    project = Project(tmp_path)
    done = project.run_here(until="augment")
    assert done["computed"] == ["questions", "heldout", "retrieve", "heldout-retrieve", "augment"]
    counted = done["stages"]["augment"]
    assert counted["rows"]["in"] == 6 * 3
    assert counted["reject_reasons"]
    stage = RunDir.peek(project.run_dir).stage(5, "augment")
    kept, rejected = list(stage.rows()), list(stage.rows("rejects"))
    assert len(kept) + len(rejected) == 18
    assert all(row["inference"] in ("entailment", "neutral") for row in kept)
    assert all(row["inference_back"] in ("entailment", "neutral") for row in kept)
    assert all(row["reason"].partition(":")[0] in RECIPE["augment"]["strategies"] for row in rejected)
    assert project.run_here(until="augment")["computed"] == []
    # The filter's settings ask no model to write again, and the rewritings are found in the cache.
    again = project.run_here("augment.nli.bidirectional=false", until="augment")
    assert again["computed"] == ["augment"]
