"""Retrieval-augmented answering as a run: every stage, skipping, editing, and what is refused before any work."""

from __future__ import annotations

import json
import signal
import subprocess
import time

import pytest
import yaml
from tests.loop.conftest import Project
from tests.tiny_rewards import make_tiny_reward

from prefloop.config import RagRecipe, load_recipe
from prefloop.errors import UsageError
from prefloop.loop.run import survey
from prefloop.sandbox import library
from prefloop.store.rundir import RunDir

RECIPE = {
    "name": "rag",
    "model": {"path": "sandbox", "batch_size": 32},
    "questions": {"path": "questions.jsonl"},
    "corpus": "passages.jsonl",
    "retrieve": {"retriever": "bm25", "k": 8},
    "rate": {"template": "sandbox", "ranks": [1, 3, 5, 8], "max_new_tokens": 24},
    "rank": {"labels": "outcomes"},
    "rerank": {
        "model": "cross",
        "epochs": 1,
        "batch_size": 8,
        "max_length": 96,
        "learning_rate": 1e-3,
        "metric": "f1",
        "device": "cpu",
    },
    "top_k": 2,
    "prealign": {"documents": 2},
    "train": {"lora": {"r": 4}, "epochs": 1, "batch_size": 8, "max_length": 512},
    "evaluate": {"holdout": 0.2, "max_new_tokens": 24, "bootstrap": 200},
}
STAGES = [
    *("questions", "heldout", "retrieve", "heldout-retrieve", "rate", "rows", "rerank", "prealign", "qa"),
    *("prealign-train", "prealign-merge", "train", "merge", "without-prealign-train", "without-prealign-merge"),
    *("evaluate", "report"),
]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return make_project(tmp_path_factory.mktemp("rag"))


def make_project(root):
    questions = [{"question": q.text, "answers": [q.answer]} for q in library.questions("train", 40)]
    (root / "questions.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    names = {name for q in questions for name in q["question"].replace("?", " ").replace(".", " ").split()}
    documents = [d for d in library.documents() if d.name in names]
    lines = [json.dumps({"_id": d.id, "title": "", "text": d.text}) + "\n" for d in documents]
    (root / "passages.jsonl").write_text("".join(lines))
    make_tiny_reward(root / "cross", "bert", ("LABEL_0",))
    (root / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    return Project(root)


@pytest.fixture(scope="module")
def done(project):
    return project.run_here()


def test_every_stage_ran_once_and_the_summary_holds_the_promised_figures(project, done):
    assert done["computed"] == STAGES
    found = done["evaluate"]["rag_qa"]
    accuracy = found["accuracy"]
    assert set(accuracy) == {"plain", "aligned", "n", "difference", "measure"}
    assert set(accuracy["difference"]) == {"value", "ci_low", "ci_high"}
    assert accuracy["n"] == 8
    assert accuracy["difference"]["value"] == pytest.approx(accuracy["aligned"] - accuracy["plain"])
    assert set(found["systems"]) == {
        *("plain", "aligned", "without_self_alignment", "without_reranker", "without_prealign")
    }
    for system in found["systems"].values():
        assert {"exact_match", "containment", "f1", "abstained"} <= set(system["answers"])
        assert {"hit@2", "hit@1", "mrr", "ndcg@10"} <= set(system["retrieval"])
    assert {c["a"] for c in found["ablations"]} == set(found["systems"]) - {"aligned"}
    assert all("p_holm" in c for c in found["ablations"])
    for share in ("aligned_share", "misleading_share"):
        assert found[share]["n"] == 8
    assert (project.run_dir / "model" / "config.json").is_file()
    assert (project.run_dir / "stages" / "07-rerank" / "model" / "config.json").is_file()
    page = (project.run_dir / "report.html").read_text()
    for words in (
        "what each part is worth",
        "retriever&#39;s order, aligned reader",
        "misleading share",
        "Corpus",
        "Side by side",
    ):
        assert words in page, words
    card = (project.run_dir / "model" / "README.md").read_text()
    assert "on questions and their documents (sft)" in card


def test_rows_join_by_id(project, done):
    run = RunDir.peek(project.run_dir)

    def rows(number, name, table="part"):
        return list(run.stage(number, name).rows(table))

    questions = {r["id"]: r for r in rows(1, "questions")}
    retrieved = {r["id"]: r for r in rows(3, "retrieve")}
    assert set(retrieved) <= set(questions)
    for row in rows(5, "rate"):
        assert set(row["document_ids"]) <= set(retrieved[row["id"]]["document_ids"])
        assert row["ranks"] == [1, 3, 5, 8][: len(row["ranks"])]
        assert row["evidence"]
    calls = {c["id"] for c in rows(5, "rate", "calls")}
    assert all(set(r["evidence"]) <= calls for r in rows(5, "rate"))
    heldout = {r["id"] for r in rows(2, "heldout")}
    assert not heldout & {r["query_id"] for r in rows(6, "rows")}
    assert not heldout & {r["prompt_id"] for r in rows(9, "qa")}
    contexts = {c["id"]: c for c in rows(8, "prealign", "contexts")}
    for row in rows(8, "prealign"):
        assert row["chosen"][0]["content"].startswith(f"Document {contexts[row['id']]['position']} ")


def test_a_second_run_computes_nothing_and_an_edit_what_is_behind_it(project, done):
    assert project.run_here()["computed"] == []
    again = project.run_here("evaluate.bootstrap=300")
    assert again["computed"] == ["evaluate", "report"]
    edited = project.run_here("rank.retriever_share=0.5")["computed"]
    assert edited[0] == "rows"
    assert "rate" not in edited
    project.run_here()


@pytest.mark.slow
def test_killed_in_four_stages_it_ends_as_if_undisturbed(project, done, tmp_path):
    project.run_here()
    other = make_project(tmp_path)
    marks = [
        "stages/05-rate/part-*.parquet",
        "stages/07-rerank/metrics.jsonl",
        "stages/09-qa/_STARTED.json",
        "stages/12-train/_STARTED.json",
    ]
    for mark in marks:
        process = subprocess.Popen(
            other.command("run", "recipe.yaml", "--out", "out"),
            cwd=other.root,
            env=other.environment(),
            stderr=subprocess.PIPE,
            text=True,
        )
        while not list(other.run_dir.glob(mark)):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    other.run_here()
    made = [p.contents() for p in (other, project)]
    for contents in made:
        contents.pop("12-train")  # an adapter's configuration names the folder of its base, here stage one's
    assert made[0] == made[1]
    for path in ("model/model.safetensors", "stages/12-train/adapter/adapter_model.safetensors"):
        assert (other.run_dir / path).read_bytes() == (project.run_dir / path).read_bytes()


def test_the_plan_is_told_without_running(project, tmp_path):
    told = project.prefloop("run", "recipe.yaml", "--dry-run", "--json", "--out", str(tmp_path / "none"))
    stages = json.loads(told.stdout.splitlines()[-1])["stages"]
    assert [s["name"] for s in stages] == STAGES
    assert {s["state"] for s in stages} == {"todo", "waits"}
    asked = {s["name"]: s["reader"] for s in stages if "reader" in s}
    # Without a document and with each of four; in the measurement two systems and three ablations, and the first
    # reader without a document and with the first two of both orders.
    assert asked["rate"] == {"calls_per_question": 5, "questions": None}
    assert asked["evaluate"] == {"calls_per_question": 5 + 1 + 4, "questions": None}
    limited = project.prefloop(
        "run", "recipe.yaml", "questions.limit=20", "--dry-run", "--out", str(tmp_path / "none")
    )
    assert "up to 100 calls" in limited.stdout
    assert "up to 40 calls" in limited.stdout


def test_verbs_that_measure_or_export_answers_say_what_they_take(project, done, tmp_path):
    for words in (("compare", "out"), ("export", "out", "--out", "pairs"), ("estimate", "recipe.yaml")):
        told = project.prefloop(*words, expect=2)
        assert "questions and documents" in told.stderr, words
        assert "fix:" in told.stderr


def test_another_labelling_reader_measures_again(project, tmp_path, monkeypatch):
    monkeypatch.chdir(project.root)
    settings = []
    for override in ((), ("rate.model={path: sandbox, dtype: bfloat16}",)):
        recipe = load_recipe(str(project.root / "recipe.yaml"), list(override))
        planned = survey(recipe, tmp_path / "none", tmp_path / "cache.db")
        settings.append(next(p.stage.settings for p in planned if p.stage.name == "evaluate"))
    assert settings[0] != settings[1]


def test_losses_left_out_are_trained_for_it(project, tmp_path, monkeypatch):
    recipe = load_recipe(str(project.root / "recipe.yaml"), ["evaluate.ablations=[pointwise, contrastive]"])
    assert isinstance(recipe, RagRecipe)
    monkeypatch.chdir(project.root)
    names = [p.stage.name for p in survey(recipe, tmp_path / "none", tmp_path / "cache.db")]
    assert names[6:9] == ["rerank", "without-pointwise-rerank", "without-contrastive-rerank"]
    assert "without-prealign-train" not in names


def test_mixed_training_has_one_stage(project, tmp_path, monkeypatch):
    recipe = load_recipe(str(project.root / "recipe.yaml"), ["prealign.mixed=true", "evaluate.ablations=[reranker]"])
    monkeypatch.chdir(project.root)
    stages = {p.stage.name: p.stage for p in survey(recipe, tmp_path / "none", tmp_path / "cache.db")}
    assert stages["train"].inputs == ("prealign", "qa")
    assert "prealign-train" not in stages


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.objective=dpo", "learned by sft"),
        ("rate.ranks=[1, 100]", "goes to 100 and retrieve.k is 8"),
        ("top_k=9", "top_k is 9"),
        ("prealign=null", "names prealign"),
        ("evaluate.ablations=[pointwise, pointwise]", "twice"),
        ("rerank.losses=[pairwise]", None),
        ("prompts=x.jsonl", "unknown setting"),
        ("questions.pth=x", "did you mean path?"),
    ],
)
def test_mistakes_are_told_before_any_work(project, override, says):
    if says is None:
        load_recipe(str(project.root / "recipe.yaml"), [override])
        return
    with pytest.raises(UsageError, match=says.replace("?", r"\?")):
        load_recipe(str(project.root / "recipe.yaml"), [override])
