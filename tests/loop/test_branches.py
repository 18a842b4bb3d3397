"""Several ways from the same answers, rounds that go on from the better one, and rounds that end early."""

from __future__ import annotations

import csv
import json
import math

import pyarrow.parquet as pq
import pytest
from tests.loop.conftest import make_project, write_prompts

from prefloop.config import StopSection
from prefloop.loop.rounds import broken, chosen

BRANCHES = {
    "letters": {"rate": {"type": "function", "callable": "scorers:letters"}, "train": {"epochs": 1, "lora": None}},
    "vowels": {},
}
NEVER = {"win_rate_falls": False, "length_growth": None}


@pytest.fixture(scope="module")
def branched(tmp_path_factory):
    project = make_project(
        tmp_path_factory.mktemp("branches"),
        branches=BRANCHES,
        evaluate={
            "holdout": 0.2,
            "bootstrap": 200,
            "judge": {"type": "function", "callable": "scorers:vowels"},
            "also": [{"type": "function", "callable": "scorers:letters"}],
            "unmerged": True,
            "perplexity": True,
            "checkers": {"own": {"letters": "scorers:letters"}},
        },
    )
    return project, project.run_here()


def test_branches_learn_from_the_same_answers_and_are_measured_together(branched):
    project, summary = branched
    names = [path.name.partition("-")[2] for path in sorted((project.run_dir / "stages").iterdir())]
    assert names == [
        "prompts", "heldout", "sample",
        "letters-rate", "letters-pair", "letters-train", "letters-merge",
        "vowels-rate", "vowels-pair", "vowels-train", "vowels-merge",
        "evaluate", "select", "report",
    ]  # fmt: skip
    found = summary["evaluate"]
    assert set(found["branches"]) == {"vowels", "letters"}
    best = max(found["branches"], key=lambda name: found["branches"][name]["win_rate"]["value"])
    assert found["winner"] == best == summary["chosen"]["branch"]
    assert found["win_rate"] == found["branches"][best]["win_rate"]
    # A branch says only what is different.
    trained = {name: summary["stages"][f"{name}-train"]["train"] for name in BRANCHES}
    made = {path.parent.name.partition("-")[2] for path in (project.run_dir / "stages").glob("*/adapter")}
    assert made == {"vowels-train"}
    assert trained["vowels"]["steps"] > trained["letters"]["steps"]


def test_one_branch_is_a_run_with_a_name(tmp_path):
    """Nothing is better than the others, and the next round goes on from it all the same."""
    project = make_project(tmp_path, branches={"letters": BRANCHES["letters"]}, rounds=2, stop=NEVER)
    summary = project.run_here()
    assert [found["winner"] for found in summary["rounds"]] == ["letters"] * 2
    assert "branches" not in summary["evaluate"]
    assert summary["chosen"] == {"round": 2, "branch": "letters", "reason": "the last round"}
    assert (project.run_dir / "model" / "model.safetensors").is_file()
    before = project.contents()
    project.run_here()
    assert project.contents() == before


def test_perplexity_of_every_branch_under_the_base(branched):
    project, summary = branched
    found = {name: said["perplexity"] for name, said in summary["evaluate"]["branches"].items()}
    assert found["letters"]["base"] == found["vowels"]["base"]
    for figure in found.values():
        assert figure["base"]["value"] > 1
        change = figure["aligned"]["nll"]["value"] - figure["base"]["nll"]["value"]
        assert figure["difference"]["value"] == pytest.approx(change)
    assert summary["evaluate"]["perplexity"] == found[summary["evaluate"]["winner"]]
    page = (project.run_dir / "report.html").read_text()
    assert "perplexity under the base" in page
    card = (project.run_dir / "model" / "README.md").read_text()
    assert "perplexity of the answers under the base" in card


def test_models_are_compared_in_pairs_and_signals_with_each_other(branched):
    _, summary = branched
    found = summary["evaluate"]
    (first, second) = found["differences"]
    values = {name: found["branches"][name]["win_rate"]["value"] for name in BRANCHES}
    assert (first["a"], first["b"]) == ("letters", "vowels")
    assert first["value"] == pytest.approx(values["vowels"] - values["letters"])
    assert first["ci_low"] <= first["value"] <= first["ci_high"]
    assert first["signal"] != second["signal"]
    also = found["branches"]["vowels"]["also"]
    assert list(also) == [second["signal"]]
    agreed = also[second["signal"]]["agreement"]
    assert agreed["n"] == found["win_rate"]["n"]
    assert 0 <= agreed["accuracy"]["value"] <= 1
    assert also[second["signal"]]["win_rate"]["n"] == found["win_rate"]["n"]


def test_adapters_are_measured_unmerged_too(branched):
    _, summary = branched
    # Of the branch that trains all weights there is no adapter.
    assert set(summary["evaluate"]["unmerged"]) == {"vowels"}
    measured = summary["evaluate"]["unmerged"]["vowels"]
    assert measured["identical"] == 1.0
    assert measured["win_rate"]["value"] == summary["evaluate"]["branches"]["vowels"]["win_rate"]["value"]


def test_all_answers_stand_side_by_side_in_a_table(branched):
    project, summary = branched
    (folder,) = (project.run_dir / "stages").glob("*-evaluate")
    rows = list(csv.DictReader((folder / "answers.csv").open(encoding="utf-8", newline="")))
    assert len(rows) == summary["evaluate"]["win_rate"]["n"]
    signals = [d["signal"] for d in summary["evaluate"]["differences"]]
    models = ["letters", "vowels"]
    columns = [f"{model}: better than base by {signal}" for model in models for signal in signals]
    columns.append(f"vowels+adapter: better than base by {signals[0]}")
    assert list(rows[0]) == ["id", "prompt", "base", *models, "vowels+adapter", *columns]
    mean = sum(float(row[columns[0]]) for row in rows) / len(rows)
    assert mean == pytest.approx(summary["evaluate"]["branches"]["letters"]["win_rate"]["value"])


def test_a_finished_run_computes_nothing_and_a_changed_branch_only_itself(branched):
    project, _ = branched
    assert project.run_here()["computed"] == []
    changed = project.run_here("branches.letters.train.learning_rate=5e-4")
    assert changed["computed"] == ["letters-train", "letters-merge", "evaluate", "select", "report"]


def test_the_better_model_goes_on(tmp_path):
    project = make_project(tmp_path / "p", branches=BRANCHES, rounds=2, stop=NEVER)
    summary = project.run_here()
    better = summary["rounds"][0]["winner"]
    assert {"r2-vowels-train", "r2-letters-train"} <= set(summary["stages"])
    events = [json.loads(line) for line in (project.run_dir / "events.jsonl").read_text().splitlines()]
    models = {e["model"] for e in events if e["kind"] == "usage" and e["stage"] == "r2-sample"}
    (path,) = models
    assert path.endswith(f"-{better}-merge/model")
    assert summary["chosen"]["round"] == 2
    one = (project.run_dir / "model" / "model.safetensors").read_bytes()
    (other,) = (project.run_dir / "stages").glob(f"*-r2-{summary['chosen']['branch']}-merge/model/model.safetensors")
    assert one == other.read_bytes()


def test_the_next_round_takes_the_better_model_and_nothing_else_of_the_measurement(tmp_path):
    prompts = {"path": "heldout.jsonl", "limit": 8}
    project = make_project(
        tmp_path / "p", branches=BRANCHES, rounds=2, stop=None, evaluate={"prompts": prompts, "bootstrap": 200}
    )
    write_prompts(project.root / "heldout.jsonl", range(100, 110))
    before = project.run_here()
    after = project.run_here("evaluate.prompts.limit=7")
    assert after["rounds"][0]["win_rate"]["n"] == 7
    if after["rounds"][0]["winner"] == before["rounds"][0]["winner"]:
        assert after["computed"] == ["heldout", "evaluate", "r2-evaluate", "select", "report"]
    else:
        assert "r2-sample" in after["computed"]


def test_names_of_branches_that_mean_something_else(tmp_path):
    project = make_project(tmp_path / "p", branches={"base": {}, "other": {}})
    assert "that name is taken" in project.prefloop("run", "recipe.yaml", "--dry-run", expect=2).stderr
    project = make_project(tmp_path / "q", branches={"one": {"train": {"learnig_rate": 1e-3}}, "other": {}})
    assert "did you mean learning_rate?" in project.prefloop("run", "recipe.yaml", "--dry-run", expect=2).stderr


def test_inspect_shows_the_branch_of_the_runs_model(branched):
    project, summary = branched
    shown = json.loads(project.prefloop("inspect", "out", "-n", "1", "--json").stdout)
    chosen = summary["chosen"]["branch"]
    (folder,) = (project.run_dir / "stages").glob(f"*-{chosen}-pair")
    assert shown[0]["id"] in {row["id"] for row in pq.read_table(folder / "part-00000.parquet").to_pylist()}


def test_rounds_end_where_a_rule_is_broken(tmp_path):
    project = make_project(tmp_path / "p", rounds=3, stop={"win_rate_falls": False, "length_growth": 1e-9})
    # The answers of a model that learns vowels become longer by some characters in this made-up case, or the first
    # round cannot end by this rule; either way what `broken` says of the measurement is what happened.
    summary = project.run_here()
    rules = StopSection(win_rate_falls=False, length_growth=1e-9)
    measured = summary["rounds"]
    ended = next((n for n in range(1, 4) if broken(rules, measured[:n])), 3)
    assert len(measured) == ended
    done = json.loads(project.prefloop("status", "out", "--json").stdout)
    states = {s["name"]: s["state"] for s in done["stages"]}
    for r in (2, 3):
        assert (states[f"r{r}-sample"] == "skipped") is (r > ended)
    assert states["report"] == "done"
    assert summary["chosen"]["round"] == max(1, ended - (ended < 3))
    assert project.run_here(f"stop.length_growth={1e-9}")["computed"] == []


def test_rounds_of_an_earlier_recipe_in_the_folder_count_for_nothing(tmp_path):
    project = make_project(tmp_path / "p", rounds=2, stop=None)
    assert len(project.run_here()["rounds"]) == 2
    # Now the first round breaks a rule: what the folder holds of the second is another recipe's.
    project_rules = "stop={win_rate_falls: false, length_growth: 1.0e-9}"
    again = project.run_here(project_rules)
    if broken(StopSection(win_rate_falls=False, length_growth=1e-9), again["rounds"][:1]) is None:
        pytest.skip("the answers of this tiny model did not become longer")
    assert len(again["rounds"]) == 1
    assert again["chosen"]["round"] == 1
    assert again["evaluate"]["win_rate"] == again["rounds"][0]["win_rate"]


def said(value, low, high, *, base=100.0, aligned=100.0, winner=None):
    figures = {"win_rate": {"value": value, "ci_low": low, "ci_high": high}}
    figures["lengths"] = {"base": {"chars": base}, "aligned": {"chars": aligned}}
    return figures | ({"winner": winner} if winner else {})


def test_rules_by_hand():
    rules = StopSection()
    good, better, worse = said(0.6, 0.55, 0.65), said(0.7, 0.66, 0.74), said(0.65, 0.6, 0.7)
    assert broken(rules, [good]) is None
    assert broken(rules, [good, better]) is None
    assert "below that of the round before" in (broken(rules, [good, better, worse]) or "")
    # Inside the interval of the round before: noise ends nothing.
    assert broken(rules, [good, said(0.56, 0.5, 0.6)]) is None
    assert broken(StopSection(win_rate_falls=False), [better, worse]) is None
    long = said(0.9, 0.8, 0.95, aligned=131.0)
    assert "31% longer" in (broken(rules, [good, long]) or "")
    assert broken(StopSection(length_growth=None), [good, long]) is None
    assert broken(None, [good, long]) is None


def test_the_model_is_of_the_round_before_the_one_that_broke_a_rule():
    rules = StopSection()
    good, better, worse = said(0.6, 0.55, 0.65, winner="a"), said(0.7, 0.66, 0.74, winner="b"), said(0.6, 0.5, 0.7)
    assert chosen(rules, [good, better])[:2] == (2, "b")
    assert chosen(rules, [good, better, worse])[:2] == (2, "b")
    assert chosen(rules, [said(0.9, 0.8, 1.0, aligned=200.0)])[:2] == (1, "")


def test_later_rounds_may_be_held_to_the_first_model(tmp_path):
    project = make_project(tmp_path / "p", rounds=2, stop=None)
    previous = project.run_here()["stages"]
    assert previous["r2-train"]["train"]["first_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert previous["r2-train"]["train"]["reference"] != previous["train"]["train"]["reference"]
    first = project.run_here("train.reference=first")
    found = first["stages"]["r2-train"]["train"]
    assert found["reference"] == first["stages"]["train"]["train"]["reference"]
    # The policy has moved away from what it is held to.
    assert abs(found["first_loss"] - math.log(2)) > 1e-4
    # In the first round the two mean the same, and the same rows went into the second.
    assert first["stages"]["train"]["train"]["final"] == previous["train"]["train"]["final"]
