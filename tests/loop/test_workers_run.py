"""A run whose models are held by several workers ends with the rows and weights of a run with one."""

import json

from tests.loop.conftest import make_project

from prefloop.store.rundir import RunDir

JUDGE = {"type": "judge", "template": "sandbox"}


def test_two_workers_give_the_run_of_one(tmp_path, monkeypatch):
    """Sampling, rating by a judge, and measuring by another, of a model as it was and as it became."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    one, two = (
        make_project(
            tmp_path / str(workers),
            model={"path": "sandbox", "batch_size": 16, "workers": workers},
            prompts={"path": "sandbox:questions/train", "limit": 24},
            sample={"n": 3, "max_new_tokens": 24},
            rate=JUDGE | {"mode": "pointwise"},
            evaluate={"holdout": 0.4, "bootstrap": 200, "judge": JUDGE | {"mode": "pairwise"}},
        )
        for workers in (1, 2)
    )
    for project in (one, two):
        project.run_here()
    assert two.contents() == one.contents()
    assert set(one.contents()) >= {"03-sample", "04-rate", "05-pair", "06-train", "08-evaluate"}
    weights = [(project.run_dir / "model" / "model.safetensors").read_bytes() for project in (one, two)]
    assert weights[0] == weights[1]
    summaries = [json.loads((project.run_dir / "summary.json").read_text()) for project in (one, two)]
    assert summaries[0]["evaluate"] == summaries[1]["evaluate"]
    manifest = RunDir.peek(two.run_dir).read_manifest()
    assert manifest["devices"]["sandbox"] == "2 workers on cpu, 1 threads"
    usage = [[e for e in RunDir.peek(p.run_dir).events() if e["kind"] == "usage"] for p in (one, two)]
    assert [e["computed"] for e in usage[0]] == [e["computed"] for e in usage[1]]
    # Where the work is split changes no result: nothing is done again but the report, which shows the recipe.
    two.run_here("model.workers=1")
    done = [e["stage"] for e in RunDir.peek(two.run_dir).events() if e["kind"] == "stage_finished"]
    assert done.count("sample") == done.count("evaluate") == 1
    assert done.count("report") == 2
