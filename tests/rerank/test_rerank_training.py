"""Trainings of a tiny encoder: what is learned, the same again, going on after a kill, best epoch, test split."""

from __future__ import annotations

import json
import math
import random
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import CrossEncoder
from tiny_rerankers import WORDS, tiny_reranker

from prefloop.config import RerankSection
from prefloop.errors import PrefloopError, UsageError
from prefloop.records import RankingRow
from prefloop.rerank.groups import Group, group_of, prepare
from prefloop.rerank.run import rerank, train_reranker
from prefloop.store.rows import read_rows

HERE = Path(__file__).parent


def ranking_rows(count: int, seed: int = 0) -> list[RankingRow]:
    """Queries with six documents; those with the word w59 in them are aligned, and the score counts it."""
    rng = random.Random(seed)
    rows: list[RankingRow] = []
    for q in range(count):
        times = rng.sample([0, 0, 0, 1, 2, 3], 6)
        documents = [" ".join([*rng.choices(WORDS[:50], k=5), *["w59"] * n]) for n in times]
        rows.append(
            {
                "id": f"r{seed}-{q}",
                "query_id": f"q{seed}-{q}",
                "query": " ".join(rng.choices(WORDS[:50], k=2)),
                "document_ids": [f"d{i}" for i in range(6)],
                "documents": documents,
                "labels": [int(n > 0) for n in times],
                "scores": [float(n) for n in times],
                "source": "test",
            }
        )
    return rows


def section(arch="bert", labels=None, **settings) -> RerankSection:
    defaults = {"epochs": 2, "learning_rate": 1e-3, "logging_steps": 1, "max_length": 64, "batch_size": 4}
    return RerankSection(model=str(tiny_reranker(arch, labels)), device="cpu", **(defaults | settings))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


@pytest.mark.parametrize("weighting", ["fixed", "mgda", "mgda_ub"])
def test_a_tiny_encoder_overfits_eight_queries_with_all_three_losses(weighting, tmp_path):
    rows = ranking_rows(8)
    normalize = "none" if weighting == "fixed" else "l2"
    records: list[dict] = []
    train_reranker(
        rows,
        section(epochs=40, batch_size=8, weighting=weighting, normalize=normalize, learning_rate=3e-3),
        tmp_path,
        validation=[],
        test=[],
        on_log=records.append,
    )
    first, last = records[0], records[-1]
    for name in ("pointwise", "pairwise", "contrastive"):
        assert last[name] < first[name]
    assert last["pointwise"] < 0.1
    for row, scores in zip(rows, rerank(str(tmp_path / "model"), [(r["query"], r["documents"]) for r in rows])):
        right = [s for s, label in zip(scores, row["labels"]) if label]
        wrong = [s for s, label in zip(scores, row["labels"]) if not label]
        assert min(right) > max(wrong)


def test_the_same_seed_gives_the_same_weights(tmp_path):
    rows = ranking_rows(12)
    results = [train_reranker(rows, section(), tmp_path / name, seed=seed) for name, seed in zip("abc", (1, 1, 2))]
    first, again, other = (weights(tmp_path / name) for name in "abc")
    assert results[0] == results[1]
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("weighting", ["fixed", "mgda"])
def test_a_training_that_was_stopped_goes_on_to_the_same_weights(weighting, tmp_path):
    """Stopped in the middle of an epoch, with dropout on: order of queries and random state go on where they were."""
    rows = ranking_rows(16)
    settings = section(weighting=weighting, save_steps=2, epochs=3)
    whole = train_reranker(rows, settings, tmp_path / "whole")
    script = f"""
    import os, signal, sys
    sys.path.insert(0, {str(HERE)!r})
    from pathlib import Path
    from prefloop.config import RerankSection
    from prefloop.rerank.run import train_reranker
    from test_rerank_training import ranking_rows

    def kill(done, total):
        if done == 6:
            os.kill(os.getpid(), signal.SIGKILL)

    section = RerankSection.model_validate_json({settings.model_dump_json()!r})
    train_reranker(ranking_rows(16), section, Path({str(tmp_path / "killed")!r}), on_step=kill)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    assert sorted(p.name for p in (tmp_path / "killed").glob("checkpoint-*"))
    steps = []
    resumed = train_reranker(rows, settings, tmp_path / "killed", on_step=lambda n, total: steps.append(n))
    assert steps[0] == 4, "from the last sealed checkpoint"
    assert resumed == whole
    first, other = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(first[name], other[name]) for name in first)
    assert not list((tmp_path / "killed").glob("checkpoint-*"))


def test_a_finished_training_is_not_repeated_and_another_one_replaces_it(tmp_path):
    rows = ranking_rows(8)
    done = train_reranker(rows, section(), tmp_path)
    assert train_reranker(rows, section(logging_steps=7), tmp_path, on_step=lambda n, t: pytest.fail("runs")) == done
    assert train_reranker(rows, section(losses=("pointwise",)), tmp_path)["fingerprint"] != done["fingerprint"]


def test_the_best_epoch_is_taken(tmp_path):
    records: list[dict] = []
    result = train_reranker(
        ranking_rows(8),
        section(epochs=6, learning_rate=5e-3, metric="ndcg@10"),
        tmp_path,
        validation=ranking_rows(6, seed=5),
        test=ranking_rows(6, seed=6),
        on_log=records.append,
    )
    measured = {r["step"]: r["ndcg@10"] for r in records if r["kind"] == "validation"}
    assert len(measured) == 7, "before the first step and after each epoch"
    best = max(value for step, value in measured.items() if step)
    assert result["best"]["value"] == best == measured[result["best"]["step"]]
    assert result["start"]["ndcg@10"] == measured[0]
    # The weights that are served are those of that epoch: measured again they give its figure.
    rows = ranking_rows(6, seed=5)
    from prefloop.rerank.metrics import ranking

    scores = list(rerank(str(tmp_path / "model"), [(r["query"], r["documents"]) for r in rows]))
    assert ranking(rows, scores)["ndcg@10"] == pytest.approx(best)
    assert result["test"]["ranked_queries"] == 6


def test_what_is_logged(tmp_path):
    records: list[dict] = []
    train_reranker(ranking_rows(8), section(weighting="mgda"), tmp_path, on_log=records.append)
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == records
    record = next(r for r in records if r["kind"] == "train")
    assert sum(record[f"weight_{n}"] for n in ("pointwise", "pairwise", "contrastive")) == pytest.approx(1)
    assert record["gram_pairwise_pairwise"] > 0
    assert record["loss"] == pytest.approx(
        sum(record[f"weight_{n}"] * record[n] for n in ("pointwise", "pairwise", "contrastive")), rel=1e-5
    )


def test_trackers_are_told(tmp_path):
    pytest.importorskip("tensorboard")
    train_reranker(ranking_rows(8), section(report_to=["tensorboard"]), tmp_path)
    assert list(tmp_path.rglob("events.out.tfevents*"))


@pytest.mark.parametrize(
    ("arch", "labels", "settings"),
    [
        ("xlm-roberta", 1, {"weighting": "mgda_ub"}),
        ("modernbert", None, {"losses": ("pairwise",), "rank_by": "logit1", "metric": "mrr"}),
        ("bert", None, {"head": "linear", "dtype": "bfloat16"}),
        ("electra", None, {"contrastive": "query", "schedule": "linear", "warmup_ratio": 0.2}),
    ],
)
def test_other_starts_and_settings(arch, labels, settings, tmp_path):
    result = train_reranker(ranking_rows(10), section(arch, labels, epochs=1, **settings), tmp_path)
    assert math.isfinite(result["test"]["f1"])
    served = CrossEncoder(str(tmp_path / "model"), device="cpu")
    assert served.num_labels == 1
    assert len(served.predict([("w1", "w2")])) == 1


def test_published_groups_train(tmp_path):
    from four_calls import published_groups

    assert train_reranker(published_groups() * 1, section(), tmp_path, validation=[], test=[])["groups"] == 4


def test_rows_that_teach_nothing_are_counted_and_kept(tmp_path):
    rows = ranking_rows(6)
    rows.append({**rows[0], "id": "silent", "query_id": "s", "labels": [None] * 6, "scores": [1.0] * 6})
    result = train_reranker(rows, section(), tmp_path, validation=[], test=[])
    assert (result["groups"], result["rejected"]) == (6, 1)
    (reject,) = read_rows([tmp_path / "rejects.parquet"])
    assert reject["id"] == "silent"
    with pytest.raises(UsageError, match="none of 1 rows"):
        train_reranker(rows[-1:], section(), tmp_path / "none", validation=[], test=[])


def test_a_query_and_its_rewritings_are_on_one_side(tmp_path):
    rows = ranking_rows(10)
    rewritten = [{**row, "id": row["id"] + "x", "query": row["query"] + " w51"} for row in rows]
    from prefloop.rerank.run import _split

    training, kept = _split([*rows, *rewritten], section(validation_share=0.3, test_share=0.2), None, None)
    sides = [{row["query_id"] for row in side} for side in (training, kept["validation"], kept["test"])]
    assert [len(side) for side in sides] == [5, 3, 2]
    assert not sides[0] & sides[1] | sides[0] & sides[2] | sides[1] & sides[2]
    assert len(training) + sum(map(len, kept.values())) == 20


def test_measured_rows_that_are_trained_on_are_refused(tmp_path):
    rows = ranking_rows(4)
    with pytest.raises(UsageError, match="trained on too"):
        train_reranker(rows, section(), tmp_path, validation=rows[:1], test=[])


def test_a_metric_that_validation_cannot_give(tmp_path):
    rows = ranking_rows(4)
    lists = ("documents", "document_ids", "labels", "scores")
    single = [{**row, **{name: row[name][:1] for name in lists}} for row in ranking_rows(2, seed=9)]
    with pytest.raises(PrefloopError, match=r"no ndcg@10"):
        train_reranker(rows, section(metric="ndcg@10"), tmp_path, validation=single, test=[])


def test_a_learning_rate_that_blows_up_stops_with_a_message(tmp_path):
    with pytest.raises(PrefloopError, match="not finite"):
        train_reranker(ranking_rows(8), section(learning_rate=1e30, epochs=4), tmp_path, validation=[], test=[])


def test_reranking_is_independent_of_batches(tmp_path):
    rows = ranking_rows(5)
    asked = [(r["query"], r["documents"]) for r in rows]
    folder = str(tiny_reranker("bert", labels=1))
    seen = []
    first = list(rerank(folder, asked, batch_size=3, on_pairs=seen.append))
    other = list(rerank(folder, asked, batch_size=64))
    assert sum(seen) == 30
    for a, b in zip(first, other):
        assert a == pytest.approx(b, abs=1e-5)
    assert list(rerank(folder, [])) == []


def test_groups_of_a_row():
    row = ranking_rows(1)[0]
    group = group_of(row, section())
    assert {group.documents[i] for i in group.positives} == {d for d, n in zip(row["documents"], row["labels"]) if n}
    assert [target for _, target in group.ranked] == sorted(row["scores"], reverse=True)
    capped = group_of(row, section(classify="one", list_length=4, positives=2, negatives=1))
    assert (len(capped.classified), len(capped.ranked), len(capped.positives), len(capped.negatives)) == (1, 4, 2, 1)
    (place, label) = capped.classified[0]
    assert place == (capped.positives if label else capped.negatives)[0]
    assert capped.ranked[0] == group.ranked[0]
    assert capped.ranked[-1] == group.ranked[-1]
    assert group_of(row, section(classify="one", positives=2)) == group_of(row, section(classify="one", positives=2))


def test_one_text_twice_with_two_labels_has_none():
    row = ranking_rows(1)[0]
    row["documents"][1], row["labels"][:2], row["scores"][:2] = row["documents"][0], [1, 0], [2.0, 2.0]
    group = group_of(row, section())
    assert len(group.documents) == 5
    assert 0 not in [place for place, _ in group.classified]
    assert (0, 2.0) in group.ranked


def test_prepare_counts():
    groups, rejects = prepare([Group("a", "a", "w1", ("w2",), positives=(0,))], section(losses=("contrastive",)))
    assert (len(groups), len(rejects)) == (0, 1)


def unlabelled(count: int, seed: int = 0) -> list[RankingRow]:
    return [{**row, "labels": [None] * 6} for row in ranking_rows(count, seed)]


def test_rows_with_scores_alone_have_no_best_epoch(tmp_path):
    with pytest.raises(UsageError, match=r"have no f1: no document"):
        train_reranker(unlabelled(8), section(), tmp_path)
    result = train_reranker(unlabelled(8), section(validation_share=0, test_share=0, epochs=1), tmp_path)
    assert (result["best"], result["groups"]) == (None, 8)


def test_a_query_both_to_choose_and_to_test_by_is_refused(tmp_path):
    held = ranking_rows(2, seed=5)
    with pytest.raises(UsageError, match="validation rows and the test rows"):
        train_reranker(ranking_rows(4), section(), tmp_path, validation=held, test=held[1:])


def test_a_finished_training_without_its_model_is_done_again(tmp_path):
    settings = section(epochs=1)
    done = train_reranker(ranking_rows(6), settings, tmp_path)
    before = weights(tmp_path)
    shutil.rmtree(tmp_path / "model")
    assert train_reranker(ranking_rows(6), settings, tmp_path) == done
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(tmp_path).items())


def test_a_file_is_no_folder_of_a_training(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        train_reranker(ranking_rows(4), section(), tmp_path / "out")


def test_rows_that_fill_a_chunk_leave_no_empty_one(monkeypatch):
    monkeypatch.setattr("prefloop.rerank.run.CHUNK", 2)
    assert len(list(rerank(str(tiny_reranker("bert", labels=1)), [("w1", ["w2", "w3"])]))) == 1


def test_a_loss_that_holds_all_the_weight_at_its_end_is_told_once(tmp_path, monkeypatch, caplog):
    """A standstill of MGDA by its definition: the others are no longer learned."""

    def collapsed(embeddings, positive, mask=None, *, temperature=0.07):
        return 1e-9 * embeddings.sum() + 1.0

    monkeypatch.setattr("prefloop.rerank.losses.grouped", collapsed)
    train_reranker(ranking_rows(8), section(epochs=2), tmp_path / "a", validation=[], test=[])
    told = [r.getMessage() for r in caplog.records if "nearly vanished" in r.getMessage()]
    assert len(told) == 1
    assert "contrastive a weight of 1.000" in told[0]
    caplog.clear()
    train_reranker(ranking_rows(8), section(epochs=1, normalize="l2"), tmp_path / "b", validation=[], test=[])
    assert not any("nearly vanished" in r.getMessage() for r in caplog.records)
