"""`prefloop compare` and the measurements of `prefloop evaluate` on sandbox models: what they write and refuse."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import subprocess
import sys

import pytest
from tests.backends.fake_server import FakeServer, chat
from typer.testing import CliRunner

from prefloop.backends.base import Backend, Logits, PairScoreRequest
from prefloop.cli.commands import app
from prefloop.cli.compare import lines as lines_of
from prefloop.config import ModelSection, Recipe
from prefloop.errors import PrefloopError, UsageError
from prefloop.measure import preferring
from prefloop.measure.referees import signal, signals
from prefloop.measure.subjects import decoding, held_out_pairs, opened, prompts, stage_rows, subjects
from prefloop.records import completion_id, prompt_id
from prefloop.sandbox import model_folder
from prefloop.sandbox.prompts import prompts as sandbox_prompts
from prefloop.store.rundir import RunDir
from prefloop.ui.progress import Progress

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


def make_run(folder, model, held_out, trained, *, kind="prompts", **recipe):
    """A finished run: its held-out prompts, what it was trained on, its model; `recipe` has further sections."""
    source = {"prompts": "sandbox:questions/train", "rate": {"type": "function", "callable": f"{CHECKER}:kindness"}}
    if kind == "preferences":
        source = {"preferences": "pairs.jsonl"}
    checkers = {"sandbox": {"correctness": f"{CHECKER}:correctness"}}
    data = {"name": "made", "model": "sandbox", **source, "evaluate": {"checkers": checkers}, **recipe}
    made = Recipe.model_validate(data)
    stages = [planned(1, kind), planned(2, "heldout"), planned(3, "merge")]
    with RunDir.open(folder) as run:
        run.write_manifest({"name": "made", "recipe": made.model_dump(mode="json"), "stages": stages})
        for stage, rows in zip(stages, (trained, held_out), strict=False):
            part = run.stage(stage["number"], stage["name"])
            part.begin("f")
            part.write_part(0, rows, "prompts" if stage["name"] != "preferences" else "preference")
            part.finish("f", rows_in=len(rows))
        shutil.copytree(model, folder / "model")
        merge = run.stage(3, "merge")
        merge.begin("f")
        merge.finish_files("f", folder=folder / "model")
    return folder


def planned(number, name, verb=None, **more):
    """A stage of a manifest."""
    return {"number": number, "name": name, "verb": verb or name, "round": 1, "fingerprint": "f"} | more


def change(folder, **changed):
    """Change entries of a run's manifest."""
    with RunDir.open(folder) as run:
        run.write_manifest(run.read_manifest() | changed)


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
    # The judge is one of the two.
    own, figure = found["signals"]["judge"]["self_preference"], found["signals"]["judge"]["models"]["sandbox"]
    assert own["sandbox"] == pytest.approx({name: figure[name] for name in ("value", "ci_low", "ci_high", "n")})
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
    assert set(found["signals"]) == {"function", "sandbox.correctness"}
    assert len(found["signals"]["function"]["pairs"]) == 3
    # The second run's model is the sandbox model: the same random streams give the same answers.
    same = found["signals"]["sandbox.correctness"]["pairs"][1]
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
    score = ("--score", f"kind={CHECKER}:kindness", "--perplexity")
    found = call(*words, *files, *score, *SHORT, "--json", "--out", "out")
    assert set(found["harmful"]["signals"]) == {"refusal", "kind"}
    likely = found["benign"]["perplexity"]
    assert (likely["under"], likely["n"], list(likely["differences"])) == ("sandbox", 3, ["sharp"])
    assert likely["models"]["sandbox"]["value"] > 1
    page = (tmp_path / "out" / "safety.html").read_text()
    assert "perplexity of sharp&#39;s answers against sandbox&#39;s own under sandbox" in page
    assert found["refusals_by"] == "rules"
    assert set(found["not_measured"]) == {"harmlessness", "helpfulness"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "safety.json",
        "safety.html",
        "answers-harmful.csv",
        "answers-benign.csv",
        "calls.parquet",
    }
    with pytest.raises(UsageError, match="'refusal' is taken"):
        call(*words, *files, "--score", f"refusal={CHECKER}:kindness")
    with pytest.raises(UsageError, match="'kind' is taken"):
        call(*words, *files, "--score", f"kind={CHECKER}:kindness", "--cost", f"kind={CHECKER}:correctness")
    with pytest.raises(UsageError, match="is no pairwise judge"):
        call(*words, *files, "--judge", f"{CHECKER}:kindness")


def test_safety_with_a_judge_has_both_rubrics(other):
    words = (
        "evaluate",
        "safety",
        "sandbox",
        f"sharp={other}",
        "--judge",
        # Its texts are longer than this small model reads: all verdicts are null.
        "{type: judge, mode: pairwise, model: sandbox, max_null_share: 1}",
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
    with pytest.raises(UsageError, match="the name 'longest' is taken"):
        signals([], ["longest=a.b:c"])


def test_decoding_is_the_runs_with_changes(other, tmp_path):
    run = make_run(tmp_path / "run", other, rows_of("questions/heldout", 1), rows_of("questions/train", 1))
    given = subjects([str(run)])
    assert decoding(given).n == 1
    assert decoding(given, n=3, temperature=None).n == 3
    assert decoding(given, temperature=0.0).temperature == 0.0


def test_help_loads_no_torch(tmp_path):
    code = (
        "import sys; sys.argv = ['prefloop', 'compare', '--help']\nfrom prefloop.cli.commands import main\n"
        "try:\n    main()\nexcept SystemExit:\n    assert 'torch' not in sys.modules and 'scipy' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=tmp_path)


# ------------------------------------------------------------------------------------------- what of a run directory


def test_rows_of_another_recipe_or_half_written_are_no_rows(other, tmp_path):
    run = make_run(tmp_path / "run", other, rows_of("questions/heldout", 2), rows_of("questions/train", 2))
    stages = RunDir.peek(run).read_manifest()["stages"]
    assert len(stage_rows(run, "prompts")) == 2
    assert stage_rows(run, "preferences") == []
    change(run, stages=[stages[0] | {"fingerprint": "of now"}, *stages[1:]])
    with pytest.raises(UsageError, match="the stage prompts is not done"):
        stage_rows(run, "prompts")
    change(run, stages=[stages[0] | {"fingerprint": None, "skipped": True}, *stages[1:]])
    assert stage_rows(run, "prompts") == []
    change(run, stages=stages)
    (run / "stages" / "01-prompts" / "_SUCCESS.json").unlink()
    with pytest.raises(UsageError, match="the stage prompts is not done"):
        prompts(subjects([str(run)]), None)


def test_a_model_of_an_earlier_recipe_is_not_the_runs(other, tmp_path):
    run = make_run(tmp_path / "run", other, rows_of("questions/heldout", 2), rows_of("questions/train", 2))
    stages = RunDir.peek(run).read_manifest()["stages"]
    change(run, stages=[*stages[:2], stages[2] | {"fingerprint": "of now"}])
    with pytest.raises(UsageError, match="made no model yet"):
        subjects([str(run)])


def of_rounds(folder, other, train, *, chosen=2):
    """A run of two rounds with two branches; in the first `kind` won, and the run's model is of the second."""
    ways = {name: {"train": section} for name, section in train.items()}
    run = make_run(
        folder, other, rows_of("questions/heldout", 2), rows_of("questions/train", 2), rounds=2, branches=ways
    )
    stages = [
        *RunDir.peek(run).read_manifest()["stages"][:2],
        planned(4, "kind-merge", "merge", branch="kind"),
        planned(5, "evaluate"),
        planned(6, "select"),
    ]
    change(run, stages=stages)
    with RunDir.open(run) as opened:
        for number, name, extra in (
            (4, "kind-merge", {}),
            (5, "evaluate", {"evaluate": {"winner": "kind"}}),
            (6, "select", {"round": chosen, "branch": "kind", "reason": "x"}),
        ):
            stage = opened.stage(number, name)
            stage.begin("f")
            shutil.copytree(other, stage.path / "model")
            stage.finish_files("f", folder=stage.path / "model", extra=extra)
    return run


def test_way_and_reference_are_those_of_the_chosen_model(other, tmp_path):
    train = {
        "kind": {"objective": {"type": "dpo", "beta": 0.7}},
        "plain": {"objective": {"type": "simpo"}, "reference": "first"},
    }
    (given,) = subjects([str(of_rounds(tmp_path / "second", other, train))])
    assert (given.round, given.branch) == (2, "kind")
    assert preferring._beta(given) == 0.7
    held_to = preferring.reference(given)
    assert held_to.model.path.endswith("04-kind-merge/model")
    assert held_to.name == "round-1"
    (early,) = subjects([str(of_rounds(tmp_path / "first", other, train, chosen=1))])
    assert preferring.reference(early).model.path == "sandbox"
    train["kind"]["reference"] = "first"
    (first,) = subjects([str(of_rounds(tmp_path / "held", other, train))])
    assert preferring.reference(first).model.path == "sandbox"


def test_an_objective_without_a_reference_has_no_implicit_reward(other, tmp_path):
    held_out, learned = rows_of("questions/heldout", 2), rows_of("questions/train", 2)
    pairs = [pair_of(row, "Gladly!", "No.") for row in (*learned, *held_out)]
    train = {"objective": {"type": "simpo"}}
    run = make_run(tmp_path / "run", other, held_out, pairs, kind="preferences", train=train)
    words = ("evaluate", "preference", "--run", run, "--n", 1, *SHORT, "--json")
    found = call(*words)
    assert "pairs" not in found
    assert "simpo trains without a reference" in found["not_measured"]["reward accuracy and calibration"]
    assert found["divergence"]["n"] == 2
    assert call(*words, "--beta", "0.2")["pairs"]["beta"] == 0.2
    train = {"objective": {"type": "plackett_luce", "beta": 0.3}}
    (listed,) = subjects([str(make_run(tmp_path / "list", other, held_out, pairs, kind="preferences", train=train))])
    assert preferring._without_reference(listed) is None
    assert preferring._beta(listed) == 0.3


def test_given_pairs_that_the_run_was_trained_on_are_left_out(other, tmp_path):
    learned, fresh = rows_of("questions/train", 3), rows_of("questions/heldout", 4)
    run = make_run(tmp_path / "run", other, fresh[:2], learned)
    file = tmp_path / "pairs.jsonl"
    lines = [
        {"prompt": row["prompt"][0]["content"], "chosen": "Gladly!", "rejected": "No."}
        for row in (*learned[:2], *fresh[2:])
    ]
    file.write_text("\n".join(json.dumps(line) for line in lines))
    words = ("evaluate", "preference", "--pairs", file, *SHORT, "--json")
    found = call(*words, "--run", run, "--n", 1)
    assert found["left_out"]["pairs"] == {"trained": 2, "not_usable": 0}
    assert (found["pairs"]["n"], found["pairs"]["held_out"]) == (2, True)
    assert "2 pairs left out: the run was trained on their prompts" in lines_of(found)
    unknown = call(*words, "sandbox", other)
    assert (unknown["pairs"]["n"], unknown["pairs"]["held_out"]) == (4, False)
    assert any(line.startswith("whether these pairs were trained on is not known") for line in lines_of(unknown))
    assert not any("held-out" in line for line in lines_of(unknown) if "not measured" not in line)


def test_two_judges_and_equal_checkers_of_a_recipe_have_names_of_their_own(other, tmp_path):
    kindness = f"{CHECKER}:kindness"
    again = {"type": "function", "callable": f"{CHECKER}:correctness"}
    cost = {"function": f"{CHECKER}:mistake", "lower_is_better": True}
    checkers = {"a": {"good": kindness}, "b": {"good": kindness, "bad": cost}}
    evaluate = {"also": [again, again], "checkers": checkers}
    run = make_run(tmp_path / "run", other, rows_of("questions/heldout", 3), rows_of("questions/train", 2))
    recipe = RunDir.peek(run).read_manifest()["recipe"]
    change(run, recipe=Recipe.model_validate(recipe | {"evaluate": evaluate}).model_dump(mode="json"))
    found = call("compare", "sandbox", run, *SHORT, "--json")
    assert list(found["signals"]) == ["function", "function (2)", "function (3)", "a.good", "b.good", "b.bad"]
    assert [found["signals"][name]["kind"] for name in ("b.good", "b.bad")] == ["score", "cost"]


# ------------------------------------------------------------------------------------------------- judges and servers


def test_a_judge_of_many_nulls_stops_the_comparison(other):
    words = ("compare", "sandbox", f"sharp={other}", "--prompts", "sandbox:questions/heldout", "--limit", 4, *SHORT)
    strict = "{type: judge, mode: pairwise, model: sandbox, template: sandbox, min_label_mass: 1.0}"
    with pytest.raises(PrefloopError, match="gave no verdict"):
        call(*words, "--signal", strict)
    sides = ("--harmful", "sandbox:unknown/heldout", "--benign", "sandbox:questions/heldout", "--limit", 3, *SHORT)
    with pytest.raises(PrefloopError, match="gave no verdict"):
        call(
            "evaluate",
            "safety",
            "sandbox",
            f"sharp={other}",
            *sides,
            "--judge",
            "{type: judge, mode: pairwise, model: sandbox}",
        )


def test_a_judges_card_is_told_and_its_counts_are_kept(other):
    words = ("compare", "sandbox", f"sharp={other}", "--prompts", "sandbox:questions/heldout", "--limit", 4, *SHORT)
    done = CliRunner().invoke(app, [str(w) for w in (*words, "--signal", JUDGE)], catch_exceptions=False)
    assert done.exit_code == 0
    assert re.search(r"judge: \d+ verdicts", done.stderr)
    assert "sharp wins" in done.stdout
    found = call(*words, "--signal", JUDGE, "--json")
    assert found["signals"]["judge"]["counts"]["verdicts"] > 0
    assert found["spent"] == {}
    assert {e["second"] for e in found["agreement"]} == {"longest", "random"}


def server_judge(server, **more):
    endpoint = {"url": server.url, "price_input": 1000, "price_output": 1000, **more}
    return json.dumps({"type": "judge", "mode": "pairwise", "model": {"path": "m", "endpoint": endpoint}})


def prefers(seen):
    """The first answer, with little doubt."""
    reply = chat(seen, tokens=(300, 1))
    if seen.body.get("logprobs"):
        top = [{"token": t, "logprob": math.log(0.9 if t == "A" else 0.05)} for t in "AB"]
        reply.json["choices"][0]["logprobs"] = {"content": [{"token": "A", "logprob": -0.1, "top_logprobs": top}]}
    return reply


def test_what_a_server_was_paid_is_told_and_limited(other, tmp_path, monkeypatch):
    monkeypatch.setenv("PREFLOOP_CACHE", str(tmp_path / "cache.db"))
    words = ("compare", "sandbox", f"sharp={other}", "--prompts", "sandbox:questions/heldout", "--limit", 6, *SHORT)
    with FakeServer(prefers) as server:
        arguments = [str(w) for w in (*words, "--signal", server_judge(server), "--json")]
        done = CliRunner().invoke(app, arguments, catch_exceptions=False)
        found = json.loads(done.stdout.splitlines()[-1])
        cost = 0.301 * len(server.seen)
        assert found["spent"]["m"]["cost"] == pytest.approx(cost)
        assert found["spent"]["m"]["prompt_tokens"] == 300 * len(server.seen)
        assert f"paid {cost:.6g}" in done.stderr
    with FakeServer(prefers) as server:
        monkeypatch.setenv("PREFLOOP_CACHE", str(tmp_path / "fresh.db"))
        with pytest.raises(PrefloopError, match="max_cost"):
            call(*words, "--signal", server_judge(server, max_cost=0.5))


class Held(Backend):
    """A backend that notes when it is open."""

    def __init__(self, section, now):
        self.name, self.place, self.identity, self.now = section.path, "memory", {"path": section.path}, now
        now.append(self.name)

    def plan(self, requests):
        return [list(range(len(requests)))]

    def run(self, requests):
        return [Logits([1.0])] * len(requests)

    def spent(self):
        return {"prompt_tokens": 1.0, "generated_tokens": 0.0, "cost": 0.5}

    def close(self):
        self.now.remove(self.name)


@pytest.mark.parametrize(("device", "most"), [("cuda", 1), ("cpu", 2)])
def test_models_are_opened_at_their_turn_and_make_room(tmp_path, monkeypatch, device, most):
    import torch

    now, seen = [], []
    opening = lambda section, kind, cache: (seen.append(section.path), Held(section, now))[1]  # noqa: E731
    monkeypatch.setattr("prefloop.signals.build.open_backend", opening)
    monkeypatch.setattr("prefloop.engine.load.choose_device", lambda name: torch.device(device))
    with opened(tmp_path / "cache.db", Progress(plain=True)) as models:
        asked = [models.get(ModelSection(path=path), "pairrm") for path in "abc"]
        assert seen == []
        for turn, backend in enumerate(asked, 1):
            assert backend.answer([PairScoreRequest(("x", "y", "z"))]) == [Logits([1.0])]
            assert len(now) == min(turn, most)
        assert seen == ["a", "b", "c"]
        assert asked[2].answer([]) == []
    assert now == []
    assert models.spent["a"] == {"prompt_tokens": 1.0, "generated_tokens": 0.0, "cost": 0.5}


def test_models_are_closed_and_costs_told_when_work_fails(tmp_path, monkeypatch, capsys):
    now = []
    monkeypatch.setattr("prefloop.signals.build.open_backend", lambda section, kind, cache: Held(section, now))

    def fail():
        with opened(tmp_path / "cache.db", Progress(plain=True)) as models:
            models.open(ModelSection(path="m"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert now == []
    assert "m: 1 prompt tokens, 0 generated, paid 0.5" in capsys.readouterr().err


def test_a_server_that_is_opened_again_goes_on_counting(tmp_path, monkeypatch):
    opening = lambda section, kind, cache: Held(section, [section.path])  # noqa: E731
    monkeypatch.setattr("prefloop.signals.build.open_backend", opening)
    with opened(tmp_path / "cache.db", Progress(plain=True)) as models:
        assert models.open(ModelSection(path="m")).inner.earlier_cost == 0
        models.release()
        assert models.open(ModelSection(path="m")).inner.earlier_cost == 0.5
    assert models.spent["m"]["cost"] == 1.0


# -------------------------------------------------------------------------------- where people's text goes


def test_results_go_to_stdout_and_what_is_said_on_the_way_to_stderr(other, tmp_path):
    run = make_run(tmp_path / "run", other, rows_of("questions/heldout", 2), rows_of("questions/train", 2))
    words = [str(w) for w in ("compare", "sandbox", run, *SHORT)]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert "sandbox.correctness:" in done.stdout
    assert "page: " in done.stdout
    assert "compare → " not in done.stdout
    assert "compare → " in done.stderr
    machine = CliRunner().invoke(app, [*words, "--json"], catch_exceptions=False)
    assert json.loads(machine.stdout)["models"] == ["sandbox", "run"]
    assert "page: " in machine.stderr


@pytest.mark.parametrize("words", [["status", "run"], ["inspect", "run", "--stage", "prompts"], ["cache", "ls"]])
def test_every_verb_says_its_results_on_stdout(words, other, tmp_path):
    make_run(tmp_path / "run", other, rows_of("questions/heldout", 2), rows_of("questions/train", 2))
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.stdout.strip()
    assert done.stderr == ""
    machine = CliRunner().invoke(app, [*words, "--json"], catch_exceptions=False)
    json.loads(machine.stdout)
    assert machine.stderr.split()[:2] == done.stdout.split()[:2]
