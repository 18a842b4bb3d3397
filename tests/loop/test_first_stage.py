"""Training before the loop (`first`): loop, reference and measurement begin with the model that it made."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from tests.loop.conftest import Project, make_project, write_prompts

from prefloop.config import load_recipe, parse_recipe
from prefloop.errors import UsageError
from prefloop.publish.models import export_model

FIRST = ["first-preferences", "first-train", "first-merge"]
LOOP = ["sample", "rate", "pair", "train", "merge", "evaluate", "report"]
TRAIN = {"lora": None, "batch_size": 4, "learning_rate": 2e-3, "epochs": 4, "save_steps": 2, "validation_share": 0.1}


def demonstrations(numbers: range) -> list[dict[str, Any]]:
    """The first 24 have the prompts of the loop's file, of which some are measured on."""
    return [
        {"messages": [
            {"role": "user", "content": f"Say the number {n} in words." if n < 24 else f"And {n}?"},
            {"role": "assistant", "content": "aeiou aeiou"},
        ]}
        for n in numbers
    ]  # fmt: skip


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make(root: Path, **changes: Any) -> Project:
    root.mkdir(parents=True, exist_ok=True)
    write(root / "sft.jsonl", demonstrations(range(32)))
    return make_project(root, **({"first": {"preferences": "sft.jsonl", "train": TRAIN}} | changes))


def kept(project: Project, stage: str) -> list[dict[str, Any]]:
    (folder,) = (project.run_dir / "stages").glob(f"*-{stage}")
    return [row for part in sorted(folder.glob("part-*.parquet")) for row in pq.read_table(part).to_pylist()]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    project = make(tmp_path_factory.mktemp("first") / "p")
    return project, project.run_here()


@pytest.fixture
def copy(run, tmp_path):
    shutil.copytree(run[0].root, tmp_path / "copy")
    return Project(tmp_path / "copy")


def models_asked(project: Project, stage: str) -> set[str]:
    events = [json.loads(line) for line in (project.run_dir / "events.jsonl").read_text().splitlines()]
    return {e["model"] for e in events if e["kind"] == "usage" and e["stage"] == stage}


def test_the_loop_begins_with_the_model_that_was_tuned(run):
    project, summary = run
    names = [path.name.partition("-")[2] for path in sorted((project.run_dir / "stages").iterdir())]
    assert names[:5] == ["prompts", "first-preferences", "heldout", "first-train", "first-merge"]
    tuned = summary["stages"]["first-train"]["train"]
    assert tuned["objective"]["type"] == "sft"
    assert tuned["final"]["loss"] < tuned["first_loss"] - 0.5
    (made,) = models_asked(project, "sample")
    assert made.endswith("-first-merge/model")
    # The measurement's base is that model; the run's own is another.
    assert made in models_asked(project, "evaluate")
    assert len(models_asked(project, "evaluate")) == 2
    # The reference is the policy's own start.
    trained = summary["stages"]["train"]["train"]
    assert trained["first_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert trained["reference"] != tuned["reference"]


def test_prompts_that_are_measured_on_are_left_out_and_counted(run):
    import pyarrow as pa

    project, summary = run
    held_out = {row["id"] for row in kept(project, "heldout")}
    demonstrated = {row["id"]: row["prompt_id"] for row in kept(project, "first-preferences")}
    (folder,) = (project.run_dir / "stages").glob("*-first-train")
    (examples,) = folder.glob("examples-*.arrow")
    trained = set(pa.ipc.open_file(pa.memory_map(str(examples))).read_all()["id"].to_pylist())
    assert held_out
    assert trained == {name for name, prompt in demonstrated.items() if prompt not in held_out}
    assert summary["stages"]["first-train"]["train"]["held_out_rows"] == len(held_out)


def states(project: Project, *overrides: str) -> dict[str, str]:
    """What a run with these settings would find done, and what it would compute."""
    return {p.stage.name: p.state for p in project.planned(*overrides)}


def test_running_again_computes_nothing_and_changes_compute_what_they_change(copy):
    assert copy.run_here()["computed"] == []
    # A later stage leaves the first alone.
    found = states(copy, "train.learning_rate=5e-4")
    assert {found[name] for name in (*FIRST, "sample", "rate", "pair")} == {"done"}
    assert found["train"] in ("todo", "partial")
    # Its settings are the whole loop's; what is read stays.
    found = states(copy, "first.train.epochs=2")
    assert [name for name, state in found.items() if state == "done"] == ["prompts", FIRST[0], "heldout"]
    assert {found[name] for name in LOOP} == {"waits"}
    before = copy.contents()
    assert copy.run_here("first.train.epochs=2", until="sample")["computed"] == [*FIRST[1:], "sample"]
    assert {name for name, content in copy.contents().items() if content != before[name]} == {
        "04-first-train", "05-first-merge", "06-sample",
    }  # fmt: skip
    write(copy.root / "sft.jsonl", demonstrations(range(30)))
    assert states(copy)[FIRST[0]] in ("todo", "partial")


def test_other_prompts_to_measure_on_do_not_tune_again(tmp_path):
    project = make(tmp_path / "p", evaluate={"prompts": {"path": "heldout.jsonl", "limit": 8}, "bootstrap": 200})
    write_prompts(project.root / "heldout.jsonl", range(100, 112))
    assert project.run_here()["stages"]["first-train"]["train"]["held_out_rows"] == 0
    assert project.run_here("evaluate.prompts.limit=7")["computed"] == ["heldout", "evaluate", "report"]
    # None of them may be among the demonstrations.
    write_prompts(project.root / "prompts.jsonl", range(12))
    write_prompts(project.root / "heldout.jsonl", range(20, 28))
    with pytest.raises(UsageError, match="4 of 8 evaluation prompts share their text"):
        project.run_here()


def test_the_commands_and_the_report_show_it(copy):
    states = json.loads(copy.prefloop("status", "out", "--json").stdout)["stages"]
    assert {s["name"]: s["state"] for s in states}["first-train"] == "done"
    dry = json.loads(copy.prefloop("run", "recipe.yaml", "--out", "out", "--dry-run", "--json").stdout)["stages"]
    assert {s["state"] for s in dry} == {"done"}
    page = (copy.run_dir / "report.html").read_text()
    assert "<h3>First stage</h3>" in page
    assert "Training of the first stage" in page
    assert "(32 good answers)" in page
    card = (copy.run_dir / "model" / "README.md").read_text()
    assert "rows of `sft.jsonl` by objective sft" in card
    assert copy.run_here(out="new", until="pair")["computed"] == [
        "prompts", "first-preferences", "heldout", "first-train", "first-merge", "sample", "rate", "pair",
    ]  # fmt: skip


def test_what_is_measured_later_begins_with_the_tuned_model(copy):
    from prefloop.measure.preferring import reference
    from prefloop.measure.subjects import base_of, learned, subjects

    made = base_of(copy.run_dir).path
    assert made.endswith("first-merge/model")
    (subject,) = subjects([str(copy.run_dir)])
    assert reference(subject).model.path == made
    held_out = {row["id"] for row in kept(copy, "heldout")}
    ids = {row["id"] for row in learned(copy.run_dir)}
    assert ids == {row["prompt_id"] for row in kept(copy, "first-preferences")} - held_out


def test_what_is_shared_says_it(copy, tmp_path):
    from prefloop.publish.dataset import export_pairs

    export_pairs(copy.run_dir, tmp_path / "pairs")
    assert "trained on `sft.jsonl` before" in (tmp_path / "pairs" / "README.md").read_text()
    # An adapter goes upon the tuned model, which others do not have.
    with pytest.raises(UsageError, match="belongs to the model of the first stage"):
        export_model(copy.run_dir, tmp_path / "adapter", "adapter")


def test_with_branches_rounds_and_self_reward(tmp_path):
    root = tmp_path / "p"
    root.mkdir()
    (root / "glad.yaml").write_text("name: glad\npositive: [Be glad.]\nnegative: [Be sad.]\n")
    project = make(
        root,
        sample={"n": 1, "max_new_tokens": 8, "contrast": "glad.yaml"},
        rate={"type": "self_reward"},
        pair={"strategy": "contrast", "margin": "gap"},
        branches={"margin": {"train": {"objective": {"margin_weight": 0.2}}}, "adapted": {"pair": {"margin": None}}},
        evaluate={"holdout": 0.2, "bootstrap": 100, "unmerged": True},
        train={"batch_size": 8, "learning_rate": 1e-3, "reference": "first"},
        rounds=2,
        stop=None,
    )
    summary = project.run_here()
    (made,) = models_asked(project, "sample")
    assert made.endswith("-first-merge/model")
    # Who rates is who is trained.
    assert models_asked(project, "margin-rate") == {made}
    assert set(summary["evaluate"]["branches"]) == {"margin", "adapted"}
    # The adapter of round 1 goes upon the tuned model: merged or not, the answers are the same.
    assert summary["rounds"][0]["unmerged"]["adapted"]["identical"] > 0.7
    # In the second round too it is what all is compared with, and what the policy is held to.
    assert made in models_asked(project, "r2-evaluate")
    trained = [summary["stages"][name]["train"]["reference"] for name in ("adapted-train", "r2-adapted-train")]
    assert trained[0] == trained[1]


def test_before_preferences_that_are_there(tmp_path):
    root = tmp_path / "p"
    pairs = [{"prompt": f"Say {n} now.", "chosen": f"one {n} aeiou", "rejected": f"brr {n}"} for n in range(20)]
    project = make(
        root,
        preferences="pairs.jsonl",
        first={"preferences": "pairs.jsonl", "train": TRAIN | {"objective": "sft"}},
        evaluate={"holdout": 0.2, "bootstrap": 200, "sample": {"n": 1, "max_new_tokens": 6}},
        **dict.fromkeys(("prompts", "sample", "rate", "pair")),
    )
    write(project.root / "pairs.jsonl", pairs)
    summary = project.run_here()
    # The chosen answers of the same pairs, and in neither training a prompt that is measured on.
    assert summary["stages"]["first-train"]["train"]["held_out_rows"] == 4
    assert summary["stages"]["train"]["train"]["held_out_rows"] == 4
    assert summary["stages"]["train"]["train"]["first_loss"] == pytest.approx(math.log(2), abs=1e-6)
    write(project.root / "good.jsonl", demonstrations(range(8)))
    with pytest.raises(UsageError, match="objective plackett_luce takes pairs"):
        project.run_here("first.preferences=good.jsonl", "first.train.objective=plackett_luce")


def test_what_is_refused_and_what_is_assumed(tmp_path):
    recipe = {
        "name": "x", "model": "m", "prompts": "p", "rate": {"type": "function", "callable": "a:b"},
        "first": {"preferences": "sft.jsonl"},
    }  # fmt: skip
    assert parse_recipe(recipe, where="x").first.train.objective.type == "sft"
    of_rows = recipe["first"] | {"train": {"objective": {"average": "rows"}}}
    assert parse_recipe(recipe | {"first": of_rows}, where="x").first.train.objective.average == "rows"
    with pytest.raises(UsageError, match="cut learns from written judgments"):
        parse_recipe(recipe | {"first": recipe["first"] | {"train": {"objective": "cut"}}}, where="x")
    with pytest.raises(UsageError, match="that name is taken"):
        parse_recipe(recipe | {"branches": {"first": {}, "other": {}}}, where="x")


def test_a_kill_in_the_first_training_is_gone_on_from(run, tmp_path, monkeypatch):
    from prefloop.store import atomic

    project = make(tmp_path / "p")
    hit: list[str] = []

    class Crash(BaseException):
        pass

    def crash_point(name: str) -> None:
        first = list(project.run_dir.glob("stages/*-first-train"))
        if first and not (first[0] / "_SUCCESS.json").exists() and name not in hit and len(hit) < 6:
            hit.append(name)
            raise Crash(name)

    monkeypatch.setattr(atomic, "crash_point", crash_point)
    for _ in range(8):
        try:
            project.run_here()
            break
        except Crash:
            continue
    assert hit
    # An adapter names its base's folder, which is another one here.
    mine, other = (
        {name: content for name, content in p.contents().items() if "first" in name or not name.endswith("-train")}
        for p in (project, run[0])
    )
    assert mine == other


def test_what_another_model_answers_does_not_wait_for_it(tmp_path):
    project = make(tmp_path / "p")
    by_itself, by_another = (
        {p.stage.name: p.stage.inputs for p in project.planned(*given)} for given in ([], ["sample.model=sandbox"])
    )
    assert by_itself["sample"] == ("prompts", "first-merge")
    assert by_another["sample"] == ("prompts",)
    assert by_another["train"] == by_itself["train"] == ("pair", "first-merge")


def test_planning_makes_nothing(tmp_path):
    found = states(make(tmp_path / "p"))
    assert [found[name] for name in FIRST] == ["todo", "waits", "waits"]
    assert not (tmp_path / "p" / "out").exists()


def test_each_training_can_be_estimated(tmp_path):
    from prefloop.estimate import estimate_recipe

    project = make(
        tmp_path / "p", branches={"adapted": {}, "whole": {"train": {"lora": None}}}, evaluate={"holdout": 0.2}
    )
    settings = [f"{name}={project.root / file}" for name, file in
                (("prompts.path", "prompts.jsonl"), ("first.preferences.path", "sft.jsonl"))]  # fmt: skip
    recipe = load_recipe(str(project.root / "recipe.yaml"), [*settings, "rate.callable=math:sqrt"])

    def trained(stage: str | None) -> bool:
        found = estimate_recipe(recipe, tmp_path / "out", tmp_path / "none.db", 100, stage)
        return found.trainable == found.parameters

    whole = {stage: trained(stage) for stage in (None, "adapted-train", "whole-train", "first-train")}
    assert whole == {None: False, "adapted-train": False, "whole-train": True, "first-train": True}
    with pytest.raises(UsageError, match="one of first-train, adapted-train, whole-train"):
        trained("train")
