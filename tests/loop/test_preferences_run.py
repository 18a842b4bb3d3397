"""Runs on preference data that is there already: train, merge, evaluate and report, without sampling and rating."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.loop.conftest import SCORERS, Project
from tests.tiny_models import tiny_model_folder

from prefloop.config import load_recipe
from prefloop.errors import UsageError
from prefloop.loop import reading
from prefloop.loop.run import survey
from prefloop.store import atomic

STAGES = ["preferences", "heldout", "train", "merge", "evaluate", "report"]
PROMPTS = 20


def pairs(numbers: range = range(PROMPTS)) -> list[dict[str, Any]]:
    """Two pairs to each prompt; the prompts share no run of words."""
    return [
        {"prompt": f"Say {n} in words.", "chosen": f"number {n} {kind} aeiou", "rejected": f"{kind} brr {n}"}
        for n in numbers
        for kind in ("one", "two")
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make(root: Path, rows: list[dict[str, Any]], **changes: Any) -> Project:
    root.mkdir(parents=True)
    (root / "scorers.py").write_text(SCORERS)
    write(root / "data.jsonl", rows)
    recipe = {
        "name": "given",
        "model": {"path": str(tiny_model_folder("llama")), "batch_size": 16},
        "preferences": "data.jsonl",
        "train": {"batch_size": 4, "learning_rate": 1e-3, "validation_share": 0.1},
        "evaluate": {"holdout": 0.2, "bootstrap": 200, "sample": {"n": 1, "max_new_tokens": 6}},
    }
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe | changes))
    return Project(root)


def kept(project: Project, stage: str) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    (folder,) = (project.run_dir / "stages").glob(f"*-{stage}")
    return [row for part in sorted(folder.glob("part-*.parquet")) for row in pq.read_table(part).to_pylist()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One finished DPO run, to read only; nobody compares its answers."""
    project = make(tmp_path_factory.mktemp("given") / "project", pairs())
    project.run_here()
    return project


@pytest.fixture
def copy(finished, tmp_path):
    shutil.copytree(finished.root, tmp_path / "copy")
    return Project(tmp_path / "copy")


def test_pairs_to_a_trained_model(finished):
    names = [p.name.partition("-")[2] for p in sorted((finished.run_dir / "stages").iterdir())]
    assert names == STAGES
    assert finished.success("preferences")["rows"] == {"in": 40, "kept": 40, "rejected": 0}
    assert finished.success("preferences")["counts"] == {"pairs": 40}
    assert finished.success("preferences")["extra"] == {"format": "preference", "left_columns": {}}
    assert finished.success("heldout")["rows"]["kept"] == PROMPTS // 5
    trained = finished.success("train")["extra"]
    assert trained["held_out_rows"] == 2 * PROMPTS // 5
    assert trained["pairs"] + trained["validation_pairs"] + trained["held_out_rows"] == 40
    assert trained["first_loss"] == pytest.approx(0.6931, abs=1e-3)
    assert (finished.run_dir / "model" / "model.safetensors").is_file()


def test_prompts_that_are_measured_on_are_not_trained_on(finished):
    import pyarrow as pa

    (folder,) = (finished.run_dir / "stages").glob("*-train")
    (examples,) = folder.glob("examples-*.arrow")
    trained = set(pa.ipc.open_file(pa.memory_map(str(examples))).read_all()["id"].to_pylist())
    held_out = {row["id"] for row in kept(finished, "heldout")}
    of = {row["id"]: row["prompt_id"] for row in kept(finished, "preferences")}
    assert len(held_out) == PROMPTS // 5
    assert trained == {name for name, prompt in of.items() if prompt not in held_out}


def test_without_a_judge_nothing_pretends_to_be_a_win_rate(finished):
    from prefloop.ui.summary import headline

    summary = json.loads((finished.run_dir / "summary.json").read_text())
    assert "win_rate" not in summary["evaluate"]
    assert "evaluate.judge" in summary["evaluate"]["not_measured"]["win_rate"]
    assert summary["evaluate"]["lengths"]["base"]["chars"] > 0
    lines = headline(summary)
    assert lines[0].startswith("no win rate: no signal compares the answers")
    assert lines[1].startswith("rows kept from training: loss 0.693")
    assert "reward accuracy" in lines[1]
    page = (finished.run_dir / "report.html").read_text()
    assert "No win rate: nobody compared the answers" in page
    assert "On the rows kept from training: loss 0.693" in page
    assert "40</span>" in page
    assert "(40 pairs)" in page
    assert "data.jsonl" in page
    assert "made the pairs also measured" not in page


def test_running_again_computes_nothing(copy):
    before = {p: p.stat().st_mtime_ns for p in copy.run_dir.rglob("*") if p.is_file() and p.name != ".lock"}
    assert copy.run_here()["computed"] == []
    after = {p: p.stat().st_mtime_ns for p in copy.run_dir.rglob("*") if p.is_file() and p.name != ".lock"}
    assert after == before
    # The file goes by its content, not by its name.
    (copy.root / "data.jsonl").rename(copy.root / "other.jsonl")
    assert copy.run_here("preferences=other.jsonl")["computed"] == ["report"]


def test_changes_compute_what_they_change(copy):
    later = ["train", "merge", "evaluate", "report"]
    assert copy.run_here("evaluate.bootstrap=300")["computed"] == ["evaluate", "report"]
    # Other prompts are measured on, so others are trained on.
    assert copy.run_here("evaluate.holdout=0.3")["computed"] == ["heldout", *later]
    with (copy.root / "data.jsonl").open("a") as stream:
        stream.write(json.dumps({"prompt": "One more.", "chosen": "yes", "rejected": "no"}) + "\n")
    assert copy.run_here("evaluate.holdout=0.3")["computed"][0] == "preferences"


def test_the_manifest_alone_repeats_the_run(finished, tmp_path):
    manifest = json.loads((finished.run_dir / "manifest.json").read_text())
    assert manifest["recipe"]["prompts"] is None
    assert manifest["recipe"]["sample"] is None
    again = make(tmp_path / "again", pairs())
    (again.root / "recipe.yaml").write_text(yaml.safe_dump(manifest["recipe"]))
    again.run_here()
    assert again.contents() == finished.contents()


def test_the_commands_know_this_shape(copy):
    states = json.loads(copy.prefloop("status", "out", "--json").stdout)["stages"]
    assert [(s["name"], s["state"]) for s in states] == [(name, "done") for name in STAGES]
    (row,) = json.loads(copy.prefloop("inspect", "out", "-n", "1", "--json").stdout)
    assert row["chosen"][0]["content"] == "number 0 one aeiou"
    dry = json.loads(copy.prefloop("run", "recipe.yaml", "--out", "out", "--dry-run", "--json").stdout)["stages"]
    assert {s["state"] for s in dry} == {"done"}
    with pytest.raises(UsageError, match="this recipe has no stage rate"):
        copy.run_here(until="rate")
    assert copy.run_here(until="pair", out="new")["computed"] == STAGES[:1]
    assert copy.run_here(until="heldout", out="new")["computed"] == STAGES[1:2]


def test_demonstrations_and_a_judge_of_their_own(tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": p["prompt"]}, {"role": "assistant", "content": p["chosen"]}]} | extra
        for p in pairs()
        for extra in [{"topic": "numbers"}]
    ]
    evaluate = {
        **{"holdout": 0.2, "bootstrap": 200, "sample": {"n": 1, "max_new_tokens": 6}},
        "judge": {"type": "function", "callable": "scorers:vowels"},
        "checkers": {"own": {"letters": "scorers:letters"}},
    }
    project = make(tmp_path / "sft", rows, evaluate=evaluate)
    project.run_here("train.objective=sft")
    assert project.success("preferences")["extra"] == {"format": "messages", "left_columns": {"topic": 40}}
    trained = project.success("train")["extra"]
    assert trained["pairs"] + trained["validation_pairs"] == 40 - 2 * PROMPTS // 5
    assert trained["final"]["loss"] < trained["first_loss"]
    summary = json.loads((project.run_dir / "summary.json").read_text())
    assert summary["evaluate"]["win_rate"]["n"] == PROMPTS // 5
    assert summary["evaluate"]["own"]["letters"]["n"] == PROMPTS // 5
    page = (project.run_dir / "report.html").read_text()
    assert "(40 good answers)" in page
    assert f"on {trained['pairs']} answers" in page
    # Of pairs the chosen answers are taken, so the same is learnt.
    write(project.root / "data.jsonl", pairs())
    assert "train" in project.run_here("train.objective=sft")["computed"]
    assert project.success("train")["extra"]["final"] == trained["final"]
    write(project.root / "data.jsonl", rows)
    with pytest.raises(UsageError, match=r"(?s)takes pairs, and there are 40 good answers and 0 bad ones.*to sft"):
        project.run_here()


def test_single_answers_and_prompts_of_their_own(tmp_path):
    rows = [
        {"prompt": p["prompt"], "completion": p[side], "label": side == "chosen"}
        for p in pairs()
        for side in ("chosen", "rejected")
    ]
    project = make(tmp_path / "kto", rows)
    fresh = [{"prompt": f"What is {n}?"} for n in range(3)]
    write(project.root / "fresh.jsonl", [*fresh, {"prompt": "say 3, in words"}])
    overrides = ["train.objective=kto", "evaluate.prompts=fresh.jsonl"]
    with pytest.raises(UsageError, match="1 of 4 evaluation prompts share their text"):
        project.run_here(*overrides)
    project.run_here(*overrides, "evaluate.prompts.on_bad_row=reject")
    assert project.success("preferences")["counts"] == {"bad": 40, "good": 40}
    assert project.success("heldout")["rows"] == {"in": 4, "kept": 3, "rejected": 1}
    trained = project.success("train")["extra"]
    # With prompts of its own the evaluation keeps none of the file's out.
    assert (trained["pairs"] + trained["validation_pairs"], trained["held_out_rows"]) == (80, 0)
    with pytest.raises(UsageError, match=r"(?s)takes pairs.*to kto"):
        project.run_here("evaluate.prompts=fresh.jsonl", "evaluate.prompts.on_bad_row=reject")


def test_bad_rows_stop_the_run_or_are_rejected(tmp_path):
    rows = [*pairs(), {"prompt": "q", "chosen": "", "rejected": "b"}, pairs()[0]]
    project = make(tmp_path / "bad", rows)
    with pytest.raises(UsageError, match="line 41, field chosen: is empty"):
        project.run_here()
    project.run_here("preferences.on_bad_row=reject")
    assert project.success("preferences")["rows"] == {"in": 42, "kept": 40, "rejected": 2}
    assert project.success("preferences")["reject_reasons"] == {"duplicate row": 1, "empty field": 1}


class Crash(BaseException):
    """Stands for the process's death; no handler for errors may catch it."""


def test_a_failure_at_every_write_point_of_the_reading_changes_nothing(finished, tmp_path, monkeypatch):
    project = make(tmp_path / "project", pairs())
    # Where parts end is no matter of the content.
    monkeypatch.setattr(reading, "READ_ROWS", 16)
    hit: list[str] = []

    def crash_point(name: str) -> None:
        if not list(project.run_dir.glob("stages/*-preferences/_SUCCESS.json")) and name not in hit:
            hit.append(name)
            raise Crash(name)

    monkeypatch.setattr(atomic, "crash_point", crash_point)
    for _ in range(100):
        try:
            project.run_here()
            break
        except Crash:
            continue
    parts = [f"part-{index:05d}.parquet:{when}" for index in range(3) for when in ("before", "after")]
    assert set(parts) <= set(hit)
    assert project.contents() == finished.contents()


def test_the_shipped_recipes_can_be_planned_without_torch_or_results(tmp_path):
    write(tmp_path / "data.jsonl", pairs())
    for name, objective in (("dpo-file", "dpo"), ("sft", "sft")):
        path = tmp_path / "data.jsonl"
        recipe = load_recipe(name, [f"model={tiny_model_folder('llama')}", f"preferences={path}"])
        assert recipe.train.objective.type == objective
        planned = survey(recipe, tmp_path / "none", tmp_path / "cache.db")
        assert [p.stage.name for p in planned] == STAGES
        assert planned[0].state == "todo"
    assert not (tmp_path / "none").exists()
