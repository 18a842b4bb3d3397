"""`prefloop compare` and the measurements of `prefloop evaluate` on sandbox models: what they write and refuse."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from prefloop.cli import app
from prefloop.config import Recipe
from prefloop.errors import UsageError
from prefloop.records import completion_id, prompt_id
from prefloop.referees import signal, signals
from prefloop.sandbox import model_folder
from prefloop.sandbox.prompts import prompts as sandbox_prompts
from prefloop.store.rundir import RunDir
from prefloop.subjects import decoding, held_out_pairs, prompts, subjects

CHECKER = "prefloop.sandbox.checkers"
JUDGE = "{type: judge, mode: pairwise, model: sandbox, template: sandbox}"
SHORT = ["--max-new-tokens", "40", "--resamples", "200", "--plain"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache") / "cache.db"


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch, cache):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFLOOP_CACHE", str(cache))


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """The sandbox model with sharper choices: another model of the same tokenizer."""
    import torch

    from prefloop.config import ModelSection
    from prefloop.engine.load import load_model

    folder = tmp_path_factory.mktemp("models") / "sharp"
    model = load_model(ModelSection(path="sandbox"))
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(1.3)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        shutil.copy2(model_folder() / name, folder)
    return folder


def rows_of(split, count, start=0):
    return [
        {"id": prompt_id(p), "prompt": p, "source_id": None} for p in sandbox_prompts(split, start + count)[start:]
    ]


def pair_of(row, chosen, rejected):
    sides = {"chosen": chosen, "rejected": rejected}
    return {
        "id": f"pair-{row['id']}",
        "prompt_id": row["id"],
        "prompt": row["prompt"],
        **{k: [{"role": "assistant", "content": v}] for k, v in sides.items()},
        **dict.fromkeys(("score_chosen", "score_rejected", "weight", "margin", "label"), None),
        "source": "file",
        "strategy": "given",
        **{f"{k}_id": completion_id(row["id"], v, 0) for k, v in sides.items()},
        "chosen_finish": None,
        "rejected_finish": None,
        "evidence": [],
    }


def make_run(folder, model, held_out, trained, *, kind="prompts"):
    """A finished run: its held-out prompts, what it was trained on, its model."""
    source = {"prompts": "sandbox:questions/train", "rate": {"type": "function", "callable": f"{CHECKER}:kindness"}}
    if kind == "preferences":
        source = {"preferences": "pairs.jsonl"}
    checkers = {"sandbox": {"correctness": f"{CHECKER}:correctness"}}
    data = {"name": "made", "model": "sandbox", **source, "evaluate": {"checkers": checkers}}
    recipe = Recipe.model_validate(data)
    stages = [{"number": 1, "name": kind}, {"number": 2, "name": "heldout"}]
    with RunDir.open(folder) as run:
        run.write_manifest({"name": "made", "recipe": recipe.model_dump(mode="json"), "stages": stages})
        for stage, rows in zip(stages, (trained, held_out), strict=True):
            part = run.stage(stage["number"], stage["name"])
            part.begin("f")
            part.write_part(0, rows, "prompts" if stage["name"] != "preferences" else "preference")
            part.finish("f", rows_in=len(rows))
    shutil.copytree(model, folder / "model")
    return folder


def call(*words):
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=True)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return json.loads(result.stdout.splitlines()[-1])


def test_compare_two_models_with_a_judge_and_checkers(other, tmp_path):
    words = ("compare", "sandbox", f"sharp={other}", "--prompts", "sandbox:questions/heldout", "--limit", 6)
    signals = ("--signal", JUDGE, "--signal", f"kind={CHECKER}:kindness")
    found = call(*words, *signals, *SHORT, "--out", "out", "--json")
    assert found["models"] == ["sandbox", "sharp"]
    assert (found["prompts"], found["samples"]) == (6, 1)
    assert found["signals"]["judge"]["kind"] == "win_probability"
    assert found["signals"]["kind"]["kind"] == "score"
    assert json.loads((tmp_path / "out" / "compare.json").read_text()) == found
    rows = list(csv.DictReader((tmp_path / "out" / "answers.csv").open()))
    assert len(rows) == 6
    assert {"answer: sandbox", "answer: sharp", "judge: sharp", "kind: sandbox"} <= set(rows[0])
    page = (tmp_path / "out" / "compare.html").read_text()
    assert "sharp − sandbox" in page
    assert page.count("<svg") == 6  # two models and a pair, by two signals
    assert "<script" not in page


def test_runs_bring_prompts_signals_and_decoding(other, tmp_path):
    held_out = rows_of("questions/heldout", 5)
    first = make_run(tmp_path / "first", other, held_out, rows_of("questions/train", 4))
    second = make_run(tmp_path / "second", model_folder(), held_out[:4], rows_of("questions/train", 4))
    found = call("compare", "sandbox", first, second, *SHORT, "--json")
    assert found["models"] == ["sandbox", "first", "second"]
    assert found["prompts"] == 4  # those that both held out
    assert set(found["signals"]) == {"function", "correctness"}
    assert len(found["signals"]["function"]["pairs"]) == 3
    # The second run's model is the sandbox model: the same random streams give the same answers.
    same = found["signals"]["correctness"]["pairs"][1]
    assert (same["a"], same["b"], same["difference"]["value"]) == ("sandbox", "second", 0)


def test_prompts_that_a_run_was_trained_on_are_left_out(other, tmp_path):
    known = rows_of("questions/train", 3)
    run = make_run(tmp_path / "run", other, rows_of("questions/heldout", 2), known)
    (given,) = subjects([str(run)])
    file = tmp_path / "prompts.jsonl"
    texts = [row["prompt"][0]["content"] for row in (*known[:2], *rows_of("questions/heldout", 3))]
    file.write_text("\n".join(json.dumps({"prompt": text}) for text in texts))
    from prefloop.config import PromptsSection

    asked = prompts([given], PromptsSection(path=str(file)))
    assert len(asked.rows) == 3
    assert asked.trained == {"run": 2}
    file.write_text(json.dumps({"prompt": texts[0]}))
    with pytest.raises(UsageError, match="no prompt is left to measure on"):
        prompts([given], PromptsSection(path=str(file)))


def test_prompts_too_long_for_a_model_are_compared_for_none(other, tmp_path):
    file = tmp_path / "prompts.jsonl"
    long, short = "Where does Ada live? " * 200, "Where does Ada live?"
    file.write_text("\n".join(json.dumps({"prompt": text}) for text in (long, short)))
    words = ("compare", "sandbox", f"sharp={other}", "--signal", f"{CHECKER}:kindness", *SHORT, "--json")
    found = call(*words, "--prompts", file)
    assert found["prompts"] == 1
    assert [len(reasons) for reasons in found["left_out"]["refused"].values()] == [1, 1]
    file.write_text(json.dumps({"prompt": long}))
    with pytest.raises(UsageError, match="no prompt is left that every model can take"):
        call(*words, "--prompts", file)


def test_held_out_pairs_of_a_run_of_preferences(other, tmp_path):
    held_out, learned = rows_of("questions/heldout", 2), rows_of("questions/train", 2)
    pairs = [pair_of(row, "Gladly!", "No.") for row in (*learned, *held_out)]
    run = make_run(tmp_path / "run", other, held_out, pairs, kind="preferences")
    assert [row["prompt_id"] for row in held_out_pairs(run)] == [row["id"] for row in held_out]
    found = call("evaluate", "preference", "--run", run, "--n", 2, *SHORT, "--json", "--out", "out")
    assert found["pairs"]["n"] == 2
    assert found["pairs"]["beta"] == 0.1
    assert found["divergence"]["n"] == 4
    assert found["divergence"]["k3"]["value"] > 0
    assert found["answers"]["run"]["diversity"]["n"] == 2
    assert found["not_measured"] == {}
    page = (tmp_path / "out" / "preference.html").read_text()
    assert "Reliability" in page
    assert "Divergence" in page


def test_preference_without_pairs_says_so(other):
    words = ("evaluate", "preference", "sandbox", other, "--prompts", "sandbox:questions/heldout", "--limit", 2)
    found = call(*words, *SHORT, "--json")
    assert "pairs" not in found
    assert "give --pairs FILE" in found["not_measured"]["reward accuracy and calibration"]
    with pytest.raises(UsageError, match="nothing to measure on"):
        call("evaluate", "preference", "sandbox", other)


def test_safety(other, tmp_path):
    words = ("evaluate", "safety", "sandbox", f"sharp={other}")
    files = ("--harmful", "sandbox:unknown/heldout", "--benign", "sandbox:questions/heldout", "--limit", 3)
    found = call(*words, *files, "--score", f"kind={CHECKER}:kindness", *SHORT, "--json", "--out", "out")
    assert set(found["harmful"]["signals"]) == {"refusal", "kind"}
    assert found["refusals_by"] == "rules"
    assert set(found["not_measured"]) == {"harmlessness", "helpfulness"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "safety.json",
        "safety.html",
        "answers-harmful.csv",
        "answers-benign.csv",
        "calls.parquet",
    }
    with pytest.raises(UsageError, match="is no pairwise judge"):
        call(*words, *files, "--judge", f"{CHECKER}:kindness")


def test_safety_with_a_judge_has_both_rubrics(other):
    words = (
        "evaluate",
        "safety",
        "sandbox",
        f"sharp={other}",
        "--judge",
        "{type: judge, mode: pairwise, model: sandbox}",
    )
    files = ("--harmful", "sandbox:unknown/heldout", "--benign", "sandbox:questions/heldout", "--limit", 2)
    found = call(*words, *files, *SHORT, "--json")
    assert set(found["harmful"]["signals"]) == {"refusal", "harmlessness"}
    assert set(found["benign"]["signals"]) == {"refusal", "helpfulness"}
    assert found["refusals_by"] == "rules and judge"
    assert found["not_measured"] == {}


def test_harness_on_a_task_folder(other, tmp_path):
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [{"question": "Where?", "choices": ["Oslo", "Lima"], "gold": i % 2} for i in range(4)]
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (folder / "where.yaml").write_text(
        f"""task: where
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/rows.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{gold}}}}"
doc_to_choice: "{{{{choices}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
    )
    words = ("evaluate", "harness", "sandbox", other, "--task", "where", "--folder", folder, "--resamples", 200)
    found = call(*words, "--out", "out/harness.json", "--json")
    row = found["harness"]["where acc"]
    assert (row["n"], row["base"], row["verdict"]) == (4, 0.5, "no detectable change")
    assert json.loads((tmp_path / "out" / "harness.json").read_text()) == found


def test_what_cannot_be_compared(other, tmp_path):
    with pytest.raises(UsageError, match="two models are called 'sandbox'"):
        subjects(["sandbox", "sandbox"])
    with pytest.raises(UsageError, match="two models are needed"):
        call("evaluate", "harness", "sandbox")
    with pytest.raises(UsageError, match="both models and a run"):
        call("evaluate", "harness", "sandbox", other, "--run", tmp_path)
    with pytest.raises(UsageError, match="on which prompts"):
        prompts(subjects(["sandbox"]), None)
    with pytest.raises(UsageError, match="which answers are better"):
        signals(subjects(["sandbox"]), None)
    with RunDir.open(tmp_path / "young") as run:
        data = {"name": "x", "model": "sandbox", "preferences": "pairs.jsonl"}
        run.write_manifest({"name": "x", "recipe": Recipe.model_validate(data).model_dump(mode="json"), "stages": []})
    with pytest.raises(UsageError, match="made no model yet"):
        subjects([str(tmp_path / "young")])


def test_signals_on_the_command_line(tmp_path):
    file = tmp_path / "my_judge.yaml"
    file.write_text("{type: judge, mode: pairwise, model: ORG/NAME}")
    name, section = signal(str(file))
    assert (name, section.type, section.model.path) == ("my_judge", "judge", "ORG/NAME")
    assert signal(f"nice={file}")[0] == "nice"
    assert signal("a.b:c")[0] == "c"
    assert signal("{type: function, callable: a.b:c}")[0] == "function"
    with pytest.raises(UsageError, match="mode"):
        signal("{type: judge, mode: sideways}")
    with pytest.raises(UsageError, match="neither a file"):
        signal("absent.yaml")
    with pytest.raises(UsageError, match="two signals are called 'c'"):
        signals([], ["a.b:c", "a.d:c"])


def test_decoding_is_the_runs_with_changes(other, tmp_path):
    run = make_run(tmp_path / "run", other, rows_of("questions/heldout", 1), rows_of("questions/train", 1))
    given = subjects([str(run)])
    assert decoding(given).n == 1
    assert decoding(given, n=3, temperature=None).n == 3
    assert decoding(given, temperature=0.0).temperature == 0.0


def test_help_loads_no_torch(tmp_path):
    code = (
        "import sys; sys.argv = ['prefloop', 'compare', '--help']\nfrom prefloop.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    assert 'torch' not in sys.modules and 'scipy' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=tmp_path)
