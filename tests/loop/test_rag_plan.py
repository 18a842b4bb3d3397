"""The shipped recipe of DPA-RAG: its published settings, and a plan that loads neither torch nor network code."""

from __future__ import annotations

import json

from tests.test_layers import modules_after

from prefloop.config import load_recipe


def test_the_published_settings():
    recipe = load_recipe("dpa-rag", ["model=org/reader"])
    reranker, reader = recipe.rerank, recipe.train
    assert (reranker.learning_rate, reranker.batch_size, reranker.epochs, reranker.schedule) == (
        1e-5,
        4,
        10,
        "constant",
    )
    assert reranker.losses == ("pointwise", "pairwise", "contrastive")
    assert (reader.learning_rate, reader.schedule, reader.warmup_steps) == (7e-6, "linear", 20)
    assert (reader.batch_size, reader.epochs, reader.max_length, reader.lora) == (128, 3, 8192, None)
    assert recipe.stage_one == reader
    assert (recipe.top_k, recipe.retrieve.k, recipe.rate.ranks) == (3, 100, (1, 25, 50, 100))
    assert recipe.rate.label_rule == "em_flip"
    assert len(recipe.augment.strategies) == 5


def test_planning_loads_neither_torch_nor_network_code(tmp_path):
    (tmp_path / "questions.jsonl").write_text(json.dumps({"question": "q?", "answers": ["a"]}) + "\n")
    (tmp_path / "corpus.jsonl").write_text(json.dumps({"_id": "1", "text": "a b"}) + "\n")
    arguments = ["run", "dpa-rag", "model=org/reader", "corpus=corpus.jsonl", "--dry-run"]
    loaded = modules_after(
        f"sys.argv = ['prefloop', *{arguments!r}]; from prefloop.cli.commands import main; main()", tmp_path
    )
    assert "prefloop.loop.rag_plan" in loaded
    heavy = {
        "torch",
        "transformers",
        "datasets",
        "peft",
        "httpx",
        "httpx2",
        "requests",
        "scipy",
        "sentence_transformers",
    }
    assert not loaded & (heavy | {"bm25s", "sklearn", "pandas"})
