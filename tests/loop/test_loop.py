"""The loop on a tiny model: what it writes, what it skips, what it computes again."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time

import pytest
from tests.loop.conftest import make_project, write_prompts

from prefloop.errors import PrefloopError, UsageError

STAGES = ["prompts", "heldout", "sample", "rate", "pair", "train", "merge", "evaluate", "report"]


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the finished run that a test may change."""
    shutil.copytree(finished.root, tmp_path / "copy")
    return type(finished)(tmp_path / "copy")


def test_a_run_leaves_everything_that_the_design_promises(finished):
    folder = finished.run_dir
    for name in ("manifest.json", "run.log", "events.jsonl", "metrics.jsonl", "summary.json", "report.html"):
        assert (folder / name).stat().st_size > 0, name
    assert [p.name.partition("-")[2] for p in sorted((folder / "stages").iterdir())] == STAGES
    assert (folder / "model" / "model.safetensors").is_file()
    summary = json.loads((folder / "summary.json").read_text())
    win = summary["evaluate"]["win_rate"]
    assert 0 <= win["ci_low"] <= win["value"] <= win["ci_high"] <= 1
    assert win["n"] == finished.success("heldout")["rows"]["kept"]
    letters = summary["evaluate"]["own"]["letters"]
    assert letters["difference"]["value"] == pytest.approx(letters["aligned"] - letters["base"])


def test_rows_reconcile_from_stage_to_stage(finished):
    prompts = finished.success("prompts")["rows"]
    held_out = finished.success("heldout")["rows"]
    assert prompts["kept"] + held_out["kept"] == 24
    assert held_out["kept"] == round(0.2 * 24)
    sampled = finished.success("sample")["rows"]
    assert sampled == {"in": prompts["kept"], "kept": prompts["kept"], "rejected": 0}
    assert finished.success("rate")["rows"]["in"] == sampled["kept"]
    pairs = finished.success("pair")
    assert pairs["extra"]["rows"] == sampled["kept"]


def test_the_merged_model_is_a_plain_folder(finished):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = finished.run_dir / "model"
    assert not list(folder.glob("adapter*"))
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template
    assert model.generate(**tokenizer("Hello", return_tensors="pt"), max_new_tokens=2).shape[1] > 2


def test_the_manifest_says_everything_needed_to_repeat(finished):
    manifest = json.loads((finished.run_dir / "manifest.json").read_text())
    assert manifest["recipe"]["sample"]["n"] == 3
    assert manifest["seed"] == 0
    assert {"prefloop", "python", "torch", "transformers", "peft"} <= set(manifest["versions"])
    settings = {s["name"]: s["settings"] for s in manifest["stages"]}
    assert len(settings["prompts"]["content"]) == 64
    assert len(settings["sample"]["model"]["weights"]) == 64
    assert manifest["devices"]


def test_the_manifest_alone_repeats_the_run(finished, tmp_path):
    import yaml

    again = make_project(tmp_path / "again")
    manifest = json.loads((finished.run_dir / "manifest.json").read_text())
    (again.root / "recipe.yaml").write_text(yaml.safe_dump(manifest["recipe"]))
    again.run_here()
    assert again.contents() == finished.contents()


def test_running_again_computes_nothing(copy):
    before = {p: p.stat().st_mtime_ns for p in copy.run_dir.rglob("*") if p.is_file() and p.name != ".lock"}
    assert copy.run_here()["computed"] == []
    after = {p: p.stat().st_mtime_ns for p in copy.run_dir.rglob("*") if p.is_file() and p.name != ".lock"}
    assert after == before


def test_running_again_imports_no_torch(copy):
    code = (
        "import sys; sys.argv = ['prefloop', 'run', 'recipe.yaml', '--out', 'out']\n"
        "from prefloop.cli.commands import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print('\\n'.join(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=copy.root, env=copy.environment(), capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert "prefloop.loop.run" in loaded
    assert not loaded & {"torch", "transformers", "datasets", "peft", "httpx", "httpx2", "requests"}


def test_changing_the_evaluation_keeps_the_trained_model(copy):
    weights = (copy.run_dir / "model" / "model.safetensors").stat().st_mtime_ns
    assert copy.run_here("evaluate.bootstrap=300")["computed"] == ["evaluate", "report"]
    assert (copy.run_dir / "model" / "model.safetensors").stat().st_mtime_ns == weights


def test_changing_the_pairs_keeps_the_answers(copy):
    computed = copy.run_here("pair.strategy=all_pairs")["computed"]
    assert computed == ["pair", "train", "merge", "evaluate", "report"]


def test_a_change_that_gives_the_same_rows_stops_there(copy):
    # A length guard that nothing meets: the pairs come out the same, so the training stands.
    assert copy.run_here("pair.max_length_ratio=1000")["computed"] == ["pair", "report"]


def test_editing_the_scoring_function_scores_again(copy):
    source = (copy.root / "scorers.py").read_text()
    (copy.root / "scorers.py").write_text(source.replace('"aeiou"', '"xyz"'))
    computed = copy.run_here()["computed"]
    assert computed[0] == "rate"
    assert "sample" not in computed


def test_adding_prompts_samples_only_the_new_ones(copy):
    write_prompts(copy.root / "prompts.jsonl", range(30))
    copy.run_here("evaluate.holdout=0.2")
    events = [json.loads(line) for line in (copy.run_dir / "events.jsonl").read_text().splitlines()]
    usage = [e for e in events if e["kind"] == "usage" and e["stage"] == "sample"][-1]
    assert usage["asked"] == 3 * copy.success("sample")["rows"]["in"]
    # 6 prompts are new; one of the old ones may have moved out of the held-out share.
    old = {json.dumps(p) for p in prompts_of(copy, "prompts")} & before_prompts(copy)
    assert usage["computed"] == usage["asked"] - 3 * len(old)
    assert usage["computed"] < usage["asked"] / 2


def prompts_of(project, stage):
    import pyarrow.parquet as pq

    (folder,) = (project.run_dir / "stages").glob(f"*-{stage}")
    return [r["prompt"] for r in pq.read_table(folder / "part-00000.parquet").to_pylist()]


def before_prompts(project):
    """Prompts that the first run sampled (its training prompts), from the finished run that `copy` was made of."""
    from prefloop.pairs.splits import holdout
    from prefloop.records import prompt_id

    first = [[{"role": "user", "content": f"Say the number {n} in words."}] for n in range(24)]
    ids = {prompt_id(p): json.dumps(p) for p in first}
    return {text for key, text in ids.items() if key not in holdout(list(ids), 0.2)}


def test_raising_n_samples_only_the_new_answers(copy):
    copy.run_here("sample.n=5")
    events = [json.loads(line) for line in (copy.run_dir / "events.jsonl").read_text().splitlines()]
    usage = [e for e in events if e["kind"] == "usage" and e["stage"] == "sample"][-1]
    rows = copy.success("sample")["rows"]["in"]
    assert (usage["asked"], usage["computed"]) == (5 * rows, 2 * rows)


def test_two_runs_with_the_same_seed_give_the_same_rows_and_weights(finished, tmp_path):
    other = make_project(tmp_path / "other")
    other.run_here()
    assert other.contents() == finished.contents()


def test_another_seed_gives_other_rows(finished, tmp_path):
    other = make_project(tmp_path / "other", seed=1)
    other.run_here()
    assert other.contents()["03-sample"] != finished.contents()["03-sample"]


def test_rounds_sample_from_the_merged_model_on_fresh_prompts(tmp_path):
    project = make_project(tmp_path / "rounds", rounds=2)
    summary = project.run_here()
    assert [r["round"] for r in summary["rounds"]] == [1, 2]
    names = {p.name.partition("-")[2]: p for p in (project.run_dir / "stages").iterdir()}
    assert (names["merge"] / "model" / "config.json").is_file()
    assert (project.run_dir / "model" / "config.json").is_file()
    import pyarrow.parquet as pq

    first, second = (
        {r["id"] for r in pq.read_table(names[s] / "part-00000.parquet").to_pylist()} for s in ("sample", "r2-sample")
    )
    assert first
    assert second
    assert not first & second
    assert project.run_here()["computed"] == []


def test_stage_verbs_stop_behind_their_stage(project):
    done = project.prefloop("pair", "recipe.yaml", "--out", "out", "--json")
    assert json.loads(done.stdout)["computed"] == STAGES[:5]
    assert project.run_here()["computed"] == STAGES[5:]


def test_status_and_inspect_read_a_run(copy):
    result = json.loads(copy.prefloop("status", "out", "--json").stdout)
    assert [s["state"] for s in result["stages"]] == ["done"] * len(STAGES)
    rows = json.loads(copy.prefloop("inspect", "out", "--stage", "pair", "-n", "2", "--json").stdout)
    assert len(rows) == 2
    assert rows[0]["score_chosen"] > rows[0]["score_rejected"]
    (copy.run_dir / "stages").joinpath("05-pair", "_SUCCESS.json").unlink()
    for arguments in (["status", "out"], ["run", "recipe.yaml", "--out", "out", "--dry-run"]):
        states = {s["name"]: s["state"] for s in json.loads(copy.prefloop(*arguments, "--json").stdout)["stages"]}
        assert (states["rate"], states["pair"]) == ("done", "partial")
    assert states["train"] == "waits"


def test_dry_run_says_what_would_run_and_makes_nothing(project):
    done = project.prefloop("run", "recipe.yaml", "--out", "out", "--dry-run", "--json")
    states = {s["name"]: s["state"] for s in json.loads(done.stdout)["stages"]}
    assert states["prompts"] == "todo"
    assert states["evaluate"] == "waits"
    assert not project.run_dir.exists()
    assert not (project.root / ".prefloop").exists()


def test_status_needs_nothing_but_the_folder(copy, tmp_path):
    moved = copy.run_dir.rename(tmp_path / "moved")
    done = subprocess.run(
        copy.command("status", str(moved), "--json"), cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert {s["state"] for s in json.loads(done.stdout)["stages"]} == {"done"}


def test_fewer_rounds_in_the_same_folder_show_only_what_is_planned(tmp_path):
    project = make_project(tmp_path / "rounds", rounds=2)
    project.run_here()
    summary = project.run_here("rounds=1")
    assert [r["round"] for r in summary["rounds"]] == [1]
    assert not any(name.startswith("r2-") for name in summary["stages"])
    value = summary["evaluate"]["win_rate"]["value"]
    assert f"{100 * value:.0f}" in (project.run_dir / "report.html").read_text()


def test_settings_that_change_no_row_keep_everything(copy):
    assert copy.run_here("train.micro_batch_size=1", "train.logging_steps=2")["computed"] == ["report"]
    assert copy.run_here("model.batch_size=3", "evaluate.side_by_side=2")["computed"] == ["report"]


def test_another_model_does_not_overwrite_a_run(copy):
    from tests.tiny_models import tiny_model_folder

    done = copy.prefloop("run", "recipe.yaml", f"model={tiny_model_folder('qwen3')}", "--out", "out", expect=2)
    assert "--out" in done.stderr
    assert copy.run_here()["computed"] == []


def test_prompts_that_the_model_cannot_take_stop_the_run_or_are_rejected(project):
    with (project.root / "prompts.jsonl").open("a") as stream:
        stream.write(json.dumps({"prompt": "very long " * 200}) + "\n")
    overrides = ["evaluate.holdout=0.01"]
    with pytest.raises(UsageError, match=r"positions(.|\n)*on_bad_row=reject"):
        project.run_here(*overrides)
    project.run_here(*overrides, "prompts.on_bad_row=reject")
    assert project.success("sample")["rows"]["rejected"] == 1


def test_a_full_gpu_is_one_message(project, monkeypatch):
    import torch

    from prefloop.loop import stages

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setitem(stages.RUNNERS, "train", full)
    with pytest.raises(PrefloopError, match=r"train\.micro_batch_size"):
        project.run_here()


def test_a_second_process_is_kept_out(project):
    first = subprocess.Popen(
        project.command("run", "recipe.yaml", "--out", "out"), cwd=project.root, env=project.environment(), stderr=-3
    )
    try:
        while not (project.run_dir / "manifest.json").exists():
            time.sleep(0.02)
        done = project.prefloop("run", "recipe.yaml", "--out", "out", expect=2)
        assert str(first.pid) in done.stderr
    finally:
        first.kill()
        first.wait()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "nosuch"], "no recipe is called 'nosuch'"),
        (["run", "recipe.yaml", "sample.max_tokens=3"], "did you mean max_new_tokens?"),
        (["run", "recipe.yaml", "prompts.path=nosuch.jsonl"], "nosuch.jsonl"),
        (["run", "recipe.yaml", "model=nosuch"], "nosuch"),
        (["run", "recipe.yaml", "rate.callable=scorers:nosuch"], "scorers"),
        (["run", "recipe.yaml", "evaluate.checkers.own.x=scorers:nosuch"], "scorers"),
        (["run", "recipe.yaml", "rate.type=judge", "rate.template=nosuch.j2"], "nosuch.j2"),
        (["run", "recipe.yaml", "model.device=cuda:9"], "cuda"),
        (["run", "recipe.yaml", "--nosuch"], "--nosuch"),
        (["report", "nosuch"], "no run directory"),
        (["inspect", "nosuch"], "no run directory"),
        (["status", "nosuch"], "nosuch"),
        (["cache", "prune"], "--all"),
    ],
    ids=lambda a: " ".join(a) if isinstance(a, list) else "",
)
def test_mistakes_end_with_code_2_and_one_message(project, arguments, says):
    done = project.prefloop(*arguments, expect=2)
    assert says in done.stderr.replace("\n", " ")
    # Before any work, not after hours of it.
    assert not list(project.root.glob("*/stages/*/*"))


def test_no_pair_fails_with_the_reason(project):
    (project.root / "scorers.py").write_text("def vowels(prompt, completion): return 1.0\nletters = vowels\n")
    with pytest.raises(PrefloopError, match="no preference pair") as error:
        project.run_here()
    assert error.value.exit_code == 1
    assert "equal_scores" in str(error.value)


def test_what_a_stage_drops_is_said(tmp_path):
    project = make_project(tmp_path)
    prompts = (tmp_path / "prompts.jsonl").read_text()
    (tmp_path / "prompts.jsonl").write_text(prompts + '{"prompt": ""}\n{"prompt": ""}\n')
    said = project.prefloop("pair", "recipe.yaml", "prompts.on_bad_row=reject", "--out", "out").stderr
    assert "prompts: 2 rows dropped" in said
    assert "--stage prompts --rejects" in said
    assert "pairs" in said


def test_what_was_dropped_can_be_looked_at_when_no_pair_is_left(tmp_path):
    from prefloop.ui.rows import stage_rows

    project = make_project(tmp_path, pair={"min_gap": 1e9})
    for _ in range(2):  # the second time the rows are there already
        with pytest.raises(PrefloopError, match="--stage pair --rejects"):
            project.run_here()
        dropped = list(stage_rows(project.run_dir, None, 100, rejects=True))
        assert len(dropped) > 10
        assert {row["reason"] for row in dropped} <= {"min_gap", "equal_scores"}
