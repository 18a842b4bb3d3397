"""Judgments through the whole loop: sampled and criticised, or read from a file; and looked at before any training."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from prefloop.cli.commands import app
from prefloop.config import load_recipe
from prefloop.errors import UsageError
from prefloop.loop.run import open_loop
from prefloop.sandbox.flaws import criticism, places
from prefloop.sandbox.prompts import prompts
from prefloop.store.rows import read_rows
from prefloop.ui.progress import Progress

OBJECTIVE = "train.objective={type: cut, judged_prompt: sandbox, threshold: 1.5, downsample: 0.25}"
SMALL = ("model.batch_size=64", "train.batch_size=8", "train.epochs=1", "evaluate.bootstrap=100")


def execute(recipe: str, out: Path, *overrides: str, until: str | None = None) -> dict[str, Any]:
    loaded = load_recipe(recipe, [*SMALL, *overrides])
    with open_loop(loaded, out, out.parent / "cache.db") as loop, Progress(plain=True, title="t") as progress:
        return loop.execute(progress, until)


def rows(out: Path, stage: str) -> list[dict[str, Any]]:
    (folder,) = (out / "stages").glob(f"*-{stage}")
    return list(read_rows(sorted(folder.glob("part-*.parquet"))))


def test_answers_are_criticised_and_learned_from(tmp_path: Path) -> None:
    """No pair stage; every answer of the sample is a judgment row, and what is done is not done again."""
    out = tmp_path / "run"
    settings = ("prompts.limit=24", "evaluate.prompts.limit=20", "sample.n=1", "branches={}", OBJECTIVE)
    summary = execute("recipes/sandbox/cut.yaml", out, *settings)
    assert summary["computed"] == [
        *("prompts", "heldout", "sample", "rate", "judgments", "train", "merge", "evaluate", "report")
    ]
    judged = rows(out, "judgments")
    assert len(judged) == 24
    for row in judged:
        assert row["judgment"] == criticism(row["prompt"], row["completion"][0]["content"])
        assert row["score"] == float(row["judgment"] is None)
    bad = sum(row["judgment"] is not None for row in judged)
    trained = json.loads(next((out / "stages").glob("*-train/trained.json")).read_text())
    assert trained["pairs"] + trained["validation_pairs"] + trained.get("left_out", 0) == 24
    assert trained["pairs"] <= bad + bad // 4
    assert any("flags/rate" in line for line in (out / "metrics.jsonl").read_text().splitlines())
    assert (out / "report.html").is_file()
    assert execute("recipes/sandbox/cut.yaml", out, *settings)["computed"] == []
    assert execute("recipes/sandbox/cut.yaml", out, *settings, until="pair")["computed"] == []

    page = tmp_path / "page.html"
    command = [
        "inspect-cut",
        str(out),
        "--truth",
        "prefloop.sandbox.flaws:places",
        "--out",
        str(page),
        "--json",
    ]
    found = CliRunner().invoke(app, command)
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout.splitlines()[-1])
    assert told["threshold"] == 1.5  # the run's own, and so is the form
    assert len(told["answers"]) == bad
    sweep = {row["threshold"]: row["rate"] for row in told["sweep"]}
    flags = [token["flagged"] for answer in told["answers"] for token in answer["tokens"]]
    assert sweep[1.5] == pytest.approx(sum(flags) / len(flags))
    assert 0 < sweep[1.5] < 0.3
    (at,) = (row for row in told["sweep"] if row["threshold"] == 1.5)
    hits = 0
    for answer, row in zip(told["answers"], (row for row in judged if row["judgment"]), strict=True):
        texts, text = [token["text"] for token in answer["tokens"]], row["completion"][0]["content"]
        starts = [len("".join(texts[:i])) for i in range(len(texts))]
        wrong = {max(i for i, start in enumerate(starts) if start <= at) for at in places(row["prompt"], text)}
        hits += sum(answer["tokens"][i]["flagged"] for i in wrong)
    assert at["precision"] == pytest.approx(hits / sum(flags))
    assert at["recall"] > 0.5
    assert sorted(sweep.values(), reverse=True) == [sweep[t] for t in sorted(sweep)]
    assert page.read_text().count("<b title=") == sum(flags)


def test_likelihood_and_pairs_beside_it(tmp_path: Path) -> None:
    """Of the same judged answers: `sft` learns every satisfactory one, `dpo` the pairs that the scores make."""
    out = tmp_path / "run"
    summary = execute("recipes/sandbox/cut.yaml", out, "prompts.limit=24", "evaluate.prompts.limit=20", "sample.n=3")
    found = summary["evaluate"]
    assert set(found["branches"]) == {"cut", "sft", "dpo"}
    for said in found["branches"].values():
        assert set(said["judgments"]) == {"satisfactory_text", "criticised_tokens"}
        # The base's own answers to the 20 prompts, by what the critic says of them; nothing else was judged.
        assert said["judgments"]["satisfactory_text"]["n"] + said["judgments"]["criticised_tokens"]["n"] <= 20
    assert found["judgments"] == found["branches"][found["winner"]]["judgments"]
    judged = rows(out, "sft-judgments")
    assert judged == rows(out, "cut-judgments")
    good = sum(row["judgment"] is None for row in judged)
    trained = {
        name: json.loads(next((out / "stages").glob(f"*-{name}-train/trained.json")).read_text())
        for name in ("cut", "sft")
    }
    assert trained["sft"]["pairs"] + trained["sft"]["validation_pairs"] == good
    assert trained["cut"]["pairs"] + trained["cut"]["validation_pairs"] == len(judged)
    for pair in rows(out, "dpo-pair"):
        assert (pair["score_chosen"], pair["score_rejected"]) == (1.0, 0.0)
    # Whichever branch's model was chosen: judgments are what is looked at.
    page = ["-n", "5", "--out", str(tmp_path / "new" / "page.html")]
    found = CliRunner().invoke(app, ["inspect-cut", str(out), *page])
    assert found.exit_code == 0, found.output
    assert "5 criticised answers" in found.output
    assert CliRunner().invoke(app, ["inspect", str(out)]).exit_code == 0
    nowhere = CliRunner().invoke(app, ["inspect-cut", str(out), *page, "--truth", "builtins:divmod"])
    assert isinstance(nowhere.exception, UsageError)


def test_a_file_of_judgments(tmp_path: Path) -> None:
    """Held-out prompts are not trained on; the same rows serve `sft`, and are refused by `dpo`."""
    answers = ["Sure! It is Oslo.", "No idea."]
    path = tmp_path / "judged.jsonl"
    given_rows: list[dict[str, Any]] = []
    for n, prompt in enumerate(prompts("questions/train", 40)):
        said = "The city is wrong." if n % 3 else None
        row = {"instruction": prompt[0]["content"], "input": "", "output": answers[n % 2], "judgment": said}
        given_rows.append(row)
    given_rows.append({**row, "output": "x", "judgment": "$ERROR$"})
    path.write_text("".join(json.dumps(row) + "\n" for row in given_rows))
    objective = "train.objective={type: cut, judged_prompt: sandbox}"
    given = ("model=sandbox", f"preferences={path}", "evaluate.sample.max_new_tokens=8", "evaluate.holdout=0.2")
    out = tmp_path / "run"
    summary = execute("recipes/dpo-file.yaml", out, *given, objective)
    assert "train" in summary["computed"]
    success = json.loads(next((out / "stages").glob("*-preferences/_SUCCESS.json")).read_text())
    assert success["extra"]["verdicts"] == {"criticised": 26, "satisfactory": 14}
    assert success["reject_reasons"] == {"failed judgment": 1}
    trained = json.loads(next((out / "stages").glob("*-train/trained.json")).read_text())
    kept_out = {row["id"] for row in rows(out, "heldout")}
    held = [row for row in rows(out, "preferences") if row["prompt_id"] in kept_out]
    text = summary["evaluate"]["judgments"]["satisfactory_text"]
    assert text["n"] == len({row["prompt_id"] for row in held if row["judgment"] is None})
    assert trained["pairs"] + trained["validation_pairs"] == 40 - len(kept_out)
    # Another threshold, or another judgment of a held-out answer, is another measurement, whatever the model learned.
    again = execute("recipes/dpo-file.yaml", out, *given, objective[:-1] + ", threshold: 1.1000001}")
    assert "evaluate" in again["computed"]
    first = next(
        row
        for row in given_rows
        if row["judgment"] is None and row["instruction"] in {r["prompt"][0]["content"] for r in held}
    )
    first["judgment"] = "The city is wrong."
    path.write_text("".join(json.dumps(row) + "\n" for row in given_rows))
    again = execute("recipes/dpo-file.yaml", out, *given, objective)
    assert again["evaluate"]["judgments"]["satisfactory_text"]["n"] == text["n"] - 1
    assert "train" in execute("recipes/dpo-file.yaml", tmp_path / "sft", *given, "train.objective=sft")["computed"]
    with pytest.raises(Exception, match="objective dpo takes pairs"):
        execute("recipes/dpo-file.yaml", tmp_path / "dpo", *given)


def test_inspect_cut_is_a_verb_in_two_words_too(tmp_path):
    command = [sys.executable, "-m", "prefloop", "inspect", "cut", "--help"]
    said = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True).stdout
    assert "inspect-cut" in said
