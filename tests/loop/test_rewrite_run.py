"""LLM-SBM through the whole loop on a tiny model and a tiny encoder: passages, rewrites, retriever, weighted pairs."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tests.loop.conftest import make_project
from tests.tiny_encoders import make_tiny_encoder
from tests.tiny_models import tiny_model_folder

from prefloop.backends.base import GenerateRequest, Generation, Sampling
from prefloop.backends.hf import HfBackend
from prefloop.config import ModelSection, RetrieverSection, load_recipe
from prefloop.errors import UsageError
from prefloop.loop.measuring import named
from prefloop.loop.plan import plan
from prefloop.ui.summary import headline

BANK = {
    "name": "tiny",
    "form": "{instruction}\n{passage}",
    "variants": [{"id": f"v{i}", "instruction": f"Write it anew {i}."} for i in range(4)],
}


@functools.cache
def babble(count: int) -> list[str]:
    """Texts of the tiny model itself, so that a random encoder puts its rewrites of them on either side."""
    backend = HfBackend.load(ModelSection(path=str(tiny_model_folder("llama")), batch_size=64))
    sampling = Sampling(max_new_tokens=80, seed=5)
    found: list[str] = []
    for start in range(0, 10 * count, count):
        asked = [GenerateRequest((("user", f"Say {start + i}."),), sampling) for i in range(count)]
        answers = [a for a in backend.answer(asked) if isinstance(a, Generation)]
        found += [a.text for a in answers if a.finish_reason == "stop" and len(a.text.split()) > 3]
    return list(dict.fromkeys(found))[:count]


def write_collection(folder: Path, documents: int = 24) -> None:
    (folder / "corpus").mkdir(parents=True)
    (folder / "qrels").mkdir()
    texts = babble(2 * documents)
    passages = [{"_id": f"d{i}", "title": "", "text": texts[i]} for i in range(documents)]
    queries = [{"_id": f"q{i}", "text": texts[documents + i][:60]} for i in range(documents)]
    lines = lambda rows: "".join(json.dumps(row) + "\n" for row in rows)  # noqa: E731
    (folder / "corpus" / "human.jsonl").write_text(lines(passages))
    (folder / "queries.jsonl").write_text(lines(queries))
    judged = [f"q{i}\td{i}\t1" for i in range(documents)] + ["q0\td1\t1", "q2\td1\t0"]
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "\n".join(judged) + "\n")


def project_at(root: Path, **changes):
    root.mkdir(parents=True)
    write_collection(root / "passages")
    (root / "bank.yaml").write_text(yaml.safe_dump(BANK))
    encoder = str(make_tiny_encoder(root / "tiny-encoder"))
    settings = {
        "prompts": {"path": "passages", "format": "passages", "judged": "test"},
        "sample": {
            "n": 2,
            # A random model ends its turn by chance, and what it does not end is no whole rewrite.
            "max_new_tokens": 120,
            "rewrite": {"bank": "bank.yaml", "answer": "text", "length_ratio": None},
        },
        "rate": {"type": "retriever", "retrievers": [encoder], "judgments": "passages", "similarity": encoder},
        "pair": {"strategy": "straddle", "weight": "gap", "min_similarity": -1},
        "train": {
            "objective": {"type": "dpo", "weight_alpha": 2},
            "batch_size": 4, "epochs": 1, "learning_rate": 1e-3, "validation_share": 0.2,
        },
        "evaluate": {"holdout": 0.2, "bootstrap": 200, "source_bias": {}},
    } | changes  # fmt: skip
    return make_project(root, **settings)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    project = project_at(tmp_path_factory.mktemp("sbm") / "p")
    return project, project.run_here()


def rows(project, stage, table="part"):
    from prefloop.store.rundir import RunDir

    folders = {folder.name: folder for folder in RunDir.peek(project.run_dir).stages()}
    return list(folders[stage].rows(table))


def test_every_wording_is_asked_and_what_is_no_rewrite_is_counted(run):
    project, summary = run
    sampled, dropped = rows(project, "sample"), rows(project, "sample", "dropped")
    documents = {row["source_id"] for row in rows(project, "prompts")}
    counts = summary["stages"]["sample"]["counts"]
    kept = [c for row in sampled for c in row["completions"]]
    assert {c["rewrite"]["variant"] for c in kept} == {"v0", "v1", "v2", "v3"}
    assert {c["rewrite"]["document"] for c in kept} <= documents
    assert counts["answers"] == 8 * len(documents) == len(kept) + len(dropped)
    assert counts["rewrites"] == len(kept)
    assert {row["reason"] for row in dropped} == {name.split("/")[1] for name in counts if name.startswith("dropped/")}
    assert all(c["finish_reason"] == "stop" for c in kept)
    # The row's prompt is the passage; what was asked is the passage's wording.
    assert all(
        row["prompt"][-1]["content"] not in c["rewrite"]["request"] for row in sampled for c in row["completions"]
    )


def test_a_score_is_the_mean_difference_to_the_human_text_over_the_passages_queries(run):
    project, _ = run
    scored = rows(project, "rate")
    calls = {call["id"]: call for call in rows(project, "rate", "calls")}
    queries = {line["_id"]: line["text"] for line in map(json.loads, (project.root / "passages/queries.jsonl").open())}
    for row in scored:
        said = {}
        for name in row["evidence"]:
            call = json.loads(calls[name]["request"])
            said[(call["backend"], *call["texts"])] = json.loads(calls[name]["result"])["values"][0]
        parts = {part["name"]: part["scores"] for part in row["parts"]}
        asked = [name for name in parts if name.startswith("query/")]
        human = row["prompt"][-1]["content"]
        for place, completion in enumerate(row["completions"]):
            gaps = []
            for name in asked:
                query = queries[name.removeprefix("query/")]
                gaps.append(said["retriever1", query, completion["text"]] - said["retriever1", query, human])
                assert parts[name][place] == gaps[-1]
            assert row["scores"][place] == pytest.approx(sum(gaps) / len(gaps), abs=1e-12)
            assert parts["similarity"][place] == said["similarity", human, completion["text"]]


def test_no_query_of_the_measurement_is_asked(run):
    """q0 and q1 are both relevant to d1; a query of a held-out passage is asked of none that is trained on."""
    project, _ = run
    held = {row["source_id"] for row in rows(project, "heldout")}
    assert held
    asked = {
        part["name"].removeprefix("query/")
        for row in rows(project, "rate")
        for part in row["parts"]
        if part["name"].startswith("query/")
    }
    relevant = {("q0", "d1"), *((f"q{i}", f"d{i}") for i in range(24))}
    assert asked
    assert not {query for query, document in relevant if document in held} & asked


def test_pairs_straddle_the_human_text_and_their_weights_are_shares_of_the_largest_gap(run):
    project, summary = run
    pairs = rows(project, "pair")
    gaps = [pair["score_chosen"] - pair["score_rejected"] for pair in pairs]
    assert all(pair["score_rejected"] < 0 < pair["score_chosen"] for pair in pairs)
    assert [pair["weight"] for pair in pairs] == pytest.approx([gap / max(gaps) for gap in gaps])
    sampled = {c["id"]: (row, c) for row in rows(project, "sample") for c in row["completions"]}
    for pair in pairs:
        row, chosen = sampled[pair["chosen_id"]]
        request = chosen["rewrite"]["request"].replace("{passage}", row["prompt"][-1]["content"])
        assert pair["prompt"] == [{"role": "user", "content": request}]
        assert pair["prompt_id"] == row["id"]
    weighting = summary["stages"]["train"]["train"]["weighting"]
    assert weighting["power"] == 2
    assert 0 < weighting["effective_sample_size"] <= weighting["n"]


def test_the_measurement_asks_for_rewrites_and_not_the_bare_passage(run):
    project, _ = run
    human = {row["prompt"][-1]["content"]: row["source_id"] for row in rows(project, "heldout")}
    measured = rows(project, "evaluate")
    assert len(measured) == len(human)
    for row in measured:
        instruction, passage = row["prompt"][-1]["content"].split("\n", 1)
        assert instruction.startswith("Write it anew")
        assert {c["rewrite"]["document"] for c in row["completions"]} == {human[passage]}


def test_source_bias_before_and_after(run):
    project, summary = run
    evaluate = summary["evaluate"]
    (name,) = evaluate["source_bias"]
    assert name == "encoder", "of a folder its last part"
    found = evaluate["source_bias"][name]
    assert found["relative_delta@10"].keys() == found["ndcg@10"].keys() == {"base", "aligned"}
    for source in ("base", "aligned"):
        human, own = found["ndcg@10"][source]["human"], found["ndcg@10"][source][source]
        assert found["relative_delta@10"][source]["value"] == pytest.approx(200 * (human - own) / (human + own))
    before, after = (found["relative_delta@10"][source]["value"] for source in ("base", "aligned"))
    change = found["change"]["aligned"]
    assert change["value"] == pytest.approx(after - before)
    assert change["ci_low"] <= change["value"] <= change["ci_high"]
    assert {"p_value", "p_holm", "verdict", "n"} <= change.keys()
    assert found["gap_closed"]["aligned"]["value"] == pytest.approx(1 - after / before)
    texts = evaluate["source_texts"]
    held = len(rows(project, "heldout"))
    for said in texts.values():
        assert said["passages"] == held
        assert {"length_ratio", "copied", "similarity", "overlap"} <= said.keys()
        # What is cut off is measured as it is, and counted.
        assert 0 <= said["faults"].get("cut_off", 0) <= held
        assert (said["unread"], said["unread_policy"]) == (0, "raw")
    assert any("source bias by encoder: Relative" in line for line in headline(summary))
    page = (project.run_dir / "report.html").read_text()
    assert "Source bias" in page
    assert "score gaps of encoder" in page
    (file,) = project.run_dir.glob("stages/*-evaluate/score_gaps.json")
    gaps = json.loads(file.read_text())["encoder"]
    for source in ("base", "aligned"):
        wins = found["win_rate"][source]
        assert len(gaps[source]) == wins["pairs"]
        assert sum(0.5 if gap == 0 else gap > 0 for gap in gaps[source]) / wins["pairs"] == pytest.approx(
            wins["value"]
        )
    assert "score_gaps" not in found, "numbers of every pair are no part of the summary"


def test_judgments_to_measure_by_are_read_before_anything_is_sampled(run):
    project, _ = run
    with pytest.raises(UsageError, match=r"has no qrels/dev\.tsv; there are judgements of test"):
        project.run_here("evaluate.source_bias.split=dev", out="split")
    assert not list((project.root / "split").glob("stages/*-sample"))


def test_retrievers_of_one_name_are_all_measured(tmp_path):
    folders = [tmp_path / "a" / "encoder", tmp_path / "b" / "encoder"]
    for folder in folders:
        folder.mkdir(parents=True)
    found = named([RetrieverSection(path=str(f)) for f in folders] + [RetrieverSection(path="bm25")])
    assert {name: section.path for name, section in found.items()} == {
        "encoder": str(folders[0]),
        "encoder (2)": str(folders[1]),
        "bm25": "bm25",
    }


def test_nothing_is_computed_twice_and_an_edited_wording_samples_anew(run):
    project, _ = run
    assert project.run_here()["computed"] == []
    before = Path.cwd()
    os.chdir(project.root)
    recipe = load_recipe("recipe.yaml")
    try:
        old = {s.name: s.settings for s in plan(recipe, None)}
        changed = {**BANK, "variants": [*BANK["variants"], {"id": "v4", "instruction": "Again."}]}
        Path("bank.yaml").write_text(yaml.safe_dump(changed))
        new = {s.name: s.settings for s in plan(recipe, None)}
    finally:
        Path("bank.yaml").write_text(yaml.safe_dump(BANK))
        os.chdir(before)
    assert old["sample"] != new["sample"]
    assert old["prompts"] == new["prompts"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sample": {"n": 2}}, "set sample.rewrite"),
        ({"prompts": "prompts.jsonl"}, "set prompts.format=passages"),
        ({"rate": {"type": "function", "callable": "scorers:vowels"}}, "set rate.type=retriever"),
        ({"pair": {"strategy": "straddle"}}, "set pair.weight=gap"),
        ({"pair": {"strategy": "best_worst", "weight": "gap"}}, "strategy straddle alone"),
    ],
)
def test_what_does_not_fit_together_is_told_before_any_work(changes, said, tmp_path):
    project = project_at(tmp_path / "p", **changes)
    with pytest.raises(UsageError, match=said):
        load_recipe(str(project.root / "recipe.yaml"))


def test_ranks_in_a_run_of_two_retrievers(run, tmp_path):
    """The published mode, and the mean of several retrievers: everything before the rating is taken from the run."""
    project, _ = run
    encoder = str(project.root / "tiny-encoder" / "encoder")
    both = f"rate.retrievers=[{encoder}, bm25]"
    assert project.run_here(both, until="rate", out="both")["computed"][-1] == "rate"
    from prefloop.store.rundir import RunDir

    folders = {f.name: f for f in RunDir.peek(project.root / "both").stages()}
    for row in folders["rate"].rows():
        assert {p["name"] for p in row["parts"] if p["name"].startswith("retriever/")} == {
            "retriever/retriever1",
            "retriever/retriever2",
        }
    project.run_here("rate.by=rank", "rate.top_k=12", until="rate", out="ranks")
    folders = {f.name: f for f in RunDir.peek(project.root / "ranks").stages()}
    ranks = [
        s
        for row in folders["rate"].rows()
        for p in row["parts"]
        if p["name"].startswith("query/")
        for s in p["scores"]
    ]
    assert all(rank == int(rank) and abs(rank) < 12 for rank in ranks)
    assert any(ranks)
    assert 0.0 in ranks, "a text that is not among the best 12 makes no difference"


def test_the_shipped_recipe_has_the_published_settings_and_plans_without_torch(tmp_path):
    found = load_recipe("llm-sbm", ["model=org/name"])
    train = found.ways["weighted"].train
    assert (train.lora.r, train.lora.alpha, train.lora.target_modules, train.lora.dropout) == (8, 16, "all-linear", 0)
    assert (train.learning_rate, train.schedule, train.warmup_ratio, train.epochs) == (5e-6, "cosine", 0.1, 3)
    assert (train.batch_size, train.max_length, train.objective.beta, train.objective.weight_alpha) == (
        32,
        2048,
        0.1,
        2,
    )
    assert {name: way.train.objective.type for name, way in found.ways.items()} == {
        "weighted": "dpo",
        "dpo": "dpo",
        "sft": "sft",
    }
    assert found.ways["dpo"].train.objective.weight_alpha == 0
    assert found.ways["sft"].pair.weight is None
    write_collection(tmp_path / "cocktail" / "msmarco")
    (tmp_path / "cocktail/msmarco/qrels/test.tsv").rename(tmp_path / "cocktail/msmarco/qrels/dev.tsv")
    script = (
        "import sys; sys.argv = ['prefloop', 'run', 'llm-sbm', 'model=sandbox', 'rate.retrievers=[bm25]', "
        "'rate.similarity=null', 'pair.min_similarity=null', '--dry-run']\n"
        "from prefloop.cli.commands import main\n"
        "try: main()\nexcept SystemExit as end: code = end.code or 0\n"
        "print(code, sorted({'torch', 'transformers', 'sentence_transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "0 []", done.stdout + done.stderr
