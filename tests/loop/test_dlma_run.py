"""DLMA through the whole loop on a tiny model: no label, no judge, and each answer carries what it was asked for."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tests.loop.conftest import make_project
from tests.tiny_models import tiny_model_folder

from prefloop.config import load_recipe, parse_recipe, shipped_recipes
from prefloop.errors import UsageError
from prefloop.loop.plan import evaluation_sample, evaluation_signals, plan
from prefloop.report.margins import write_margins

ATTRIBUTE = "name: glad\npositive: [Be glad., Be merry.]\nnegative: [Be sad.]\n"
DLMA = {
    "sample": {"n": 2, "max_new_tokens": 8, "contrast": "glad.yaml"},
    "rate": {"type": "self_reward"},
    "pair": {"strategy": "contrast", "margin": "gap", "drop_echo": True},
    "train": {
        "objective": {"type": "dpo", "margin_weight": 0.2, "margin_clip": [-40, 40]},
        "batch_size": 4,
        "epochs": 1,
        "learning_rate": 1e-3,
    },
    "rounds": 2,
    "stop": None,
}


def project_at(root: Path, **changes):
    root.mkdir(parents=True)
    (root / "glad.yaml").write_text(ATTRIBUTE)
    return make_project(root, **(DLMA | changes))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    project = project_at(tmp_path_factory.mktemp("dlma") / "p")
    return project, project.run_here()


def rows(project, stage):
    from prefloop.store.rundir import RunDir

    folders = {folder.name: folder for folder in RunDir.peek(project.run_dir).stages()}
    return list(folders[stage].rows())


def test_half_of_the_answers_are_asked_for_the_opposite(run):
    project, summary = run
    sampled = rows(project, "sample")
    for row in sampled:
        assert [c["contrast"]["side"] for c in row["completions"]] == ["positive"] * 2 + ["negative"] * 2
        assert [c["sample_index"] for c in row["completions"]] == [0, 1, 2, 3]
        (notes,) = {(c["contrast"]["positive"], c["contrast"]["negative"]) for c in row["completions"]}
        assert notes[0] in ("Be glad.", "Be merry.")
        # What is trained on is the prompt as it came.
        assert [m["role"] for m in row["prompt"]] == ["user"]
        assert all(len(c["token_ids"]) <= 8 for c in row["completions"])
    assert len({row["completions"][0]["contrast"]["positive"] for row in sampled}) == 2
    assert summary["stages"]["sample"]["counts"]["answers"] == 4 * len(sampled)


def test_pairs_carry_the_difference_of_rewards(run):
    project, _ = run
    scored = {row["id"]: row for row in rows(project, "rate")}
    pairs = rows(project, "pair")
    assert pairs
    for pair in pairs:
        row = scored[pair["prompt_id"]]
        rewards = {c["id"]: s for c, s in zip(row["completions"], row["scores"], strict=True)}
        side = {c["id"]: c["contrast"]["side"] for c in row["completions"]}
        assert pair["margin"] == rewards[pair["chosen_id"]] - rewards[pair["rejected_id"]]
        assert (side[pair["chosen_id"]], side[pair["rejected_id"]]) == ("positive", "negative")
        assert pair["source"] == "self_reward"
        parts = {part["name"]: part["scores"] for part in row["parts"]}
        place = [c["id"] for c in row["completions"]].index(pair["chosen_id"])
        assert parts["glad/positive"][place] - parts["glad/negative"][place] == pytest.approx(
            rewards[pair["chosen_id"]]
        )


def test_every_round_scores_by_its_own_policy_and_the_evaluation_by_the_first(run):
    project, summary = run
    events = [json.loads(line) for line in (project.run_dir / "events.jsonl").read_text().splitlines()]
    asked = {e["stage"]: e["model"] for e in events if e["kind"] == "usage"}
    first = str(tiny_model_folder("llama"))
    assert asked["rate"] == first
    assert asked["r2-rate"].endswith("merge/model")
    assert len(summary["rounds"]) == 2
    assert "win_rate" in summary["evaluate"]


def test_a_finished_run_computes_nothing_and_an_edited_note_everything_behind_it(run):
    project, _ = run
    assert project.run_here()["computed"] == []
    recipe = load_recipe(str(project.root / "recipe.yaml"))
    before = Path.cwd()
    os.chdir(project.root)
    try:
        old = {s.name: s.settings for s in plan(recipe, None)}
        (project.root / "glad.yaml").write_text(ATTRIBUTE.replace("Be sad.", "Be gloomy."))
        new = {s.name: s.settings for s in plan(recipe, None)}
    finally:
        (project.root / "glad.yaml").write_text(ATTRIBUTE)
        os.chdir(before)
    assert old["sample"] != new["sample"]
    assert old["prompts"] == new["prompts"]


def test_margins_are_shown_token_by_token(run, tmp_path):
    project, _ = run
    done = project.prefloop("inspect", "out", "--margins", str(tmp_path), "-n", "2", "--json")
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == json.loads((tmp_path / "margins.json").read_text(encoding="utf-8"))
    pairs = {pair["id"]: pair for pair in rows(project, "pair")}
    assert [p["place"] for p in found["pairs"]] == ["top"] * 2 + ["middle"] * 2 + ["bottom"] * 2
    assert found["of"] == len(pairs)
    margins = [p["margin"] for p in found["pairs"]]
    assert margins == sorted(margins, reverse=True)
    assert (margins[0], margins[-1]) == (
        max(p["margin"] for p in pairs.values()),
        min(p["margin"] for p in pairs.values()),
    )
    for shown in found["pairs"]:
        for side in ("chosen", "rejected"):
            answer = shown[side]
            assert sum(token["gain"] for token in answer["tokens"]) == pytest.approx(answer["reward"], abs=1e-9)
            assert answer["reward"] == pairs[shown["id"]][f"score_{side}"]
    assert (tmp_path / "margins.html").read_text(encoding="utf-8").count("margin +") >= 1


@pytest.mark.parametrize(
    "rate", [{"attributes": ["glad.yaml"]}, {"attributes": ["glad.yaml", "kind"]}, {"average": "tokens"}]
)
def test_a_tokens_part_is_of_the_reward_however_that_is_made(tmp_path, rate):
    """Attributes that are named have notes of their own, which the answers were not sampled with."""
    project = project_at(tmp_path / "p", rate={"type": "self_reward", **rate})
    project.run_here(until="pair")
    found = write_margins(project.run_dir, None, 2, tmp_path / "look")
    assert found["pairs"]
    for answer in (pair[side] for pair in found["pairs"] for side in ("chosen", "rejected")):
        assert sum(token["gain"] for token in answer["tokens"]) == pytest.approx(answer["reward"], abs=1e-9)
        assert (answer["notes"] is None) == ("attributes" in rate)
    with pytest.raises(UsageError, match="--stage with pair"):
        write_margins(project.run_dir, "sample", 2, tmp_path / "look")


def recipe(**changes):
    return parse_recipe({"name": "r", "model": "m", "prompts": "p.jsonl", **DLMA, **changes}, where="here")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sample": {"n": 2}, "pair": {"margin": "gap"}}, "self_reward goes by notes"),
        ({"sample": {"n": 2}, "rate": {"type": "judge"}}, "answers are sampled without notes"),
        ({"pair": {"strategy": "contrast"}}, "the pairs have no margins"),
        ({"pair": {"margin": "gap", "swap_negative": True}}, "swap_negative with strategy best_worst"),
        ({"evaluate": {"judge": {"type": "self_reward"}}}, "self_reward needs attributes there"),
        ({"evaluate": {"sample": {"contrast": "kind"}}}, "evaluate.sample.contrast"),
        ({"rate": {"type": "self_reward", "against": "neutral"}}, "against needs attributes"),
        ({"rate": {"type": "self_reward", "model": {"path": "m", "endpoint": {"url": "http://x"}}}}, "scored here"),
    ],
)
def test_settings_that_need_each_other(changes, said):
    with pytest.raises(UsageError, match=said):
        recipe(**changes)


def test_one_answer_a_side_is_enough_and_the_measurement_has_no_notes():
    found = recipe(sample={"n": 1, "temperature": 0.0, "contrast": {"attributes": ["kind", "concise"]}})
    assert found.sample is not None
    assert found.sample.answers == 4
    measured = evaluation_sample(found)
    assert (measured.n, measured.contrast, measured.answers) == (1, None, 1)
    (signal,) = evaluation_signals(found)
    assert signal.attributes == ("kind", "concise")


@pytest.mark.parametrize("name", [name for name in shipped_recipes() if name.endswith("dlma")])
def test_shipped_recipes_plan(name):
    found = load_recipe(
        name, [] if name.startswith("sandbox") else ["model=sandbox", "prompts=sandbox:questions/train"]
    )
    verbs = {stage.verb for stage in plan(found, None)}
    assert {"sample", "rate", "pair", "train", "merge", "evaluate"} <= verbs


def test_labels_are_compared_on_the_command_line(tmp_path):
    project = project_at(tmp_path / "p")
    lines = [{"prompt": f"question {i}", "chosen": "yes of course", "rejected": "no"} for i in range(4)]
    lines.append({"prompt": "question 4", "chosen": "yes", "rejected": None})
    (project.root / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    model = str(tiny_model_folder("llama"))
    done = project.prefloop(
        "evaluate", "labels", "pairs.jsonl", "--model", model, "--attribute", "glad.yaml", "--json"
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["pairs"], found["left_out"]) == (4, 1)
    assert "1 rows have one answer and do not count" in done.stderr
    assert list(found["signals"]) == ["self_reward", "longest", "random"]
    assert found["signals"]["longest"]["accuracy"]["value"] == 1
