"""`sandbox/cut` whole, on held-out people: the criticised mistake goes, nothing else does, and flags hit the flaws."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prefloop.config import ModelSection, load_recipe
from prefloop.pairs.judgments import judgment_rows
from prefloop.sandbox.flaws import criticism, places
from prefloop.store.rows import read_rows
from prefloop.train.spoken import spoken, sweep

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
FLAGS = 0.8
"""Least precision and recall. The flags of some 1,200 answers, 2,000 tokens: an interval of less than 2 points."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("cut")
    command = [sys.executable, "-m", "prefloop", "run", "sandbox/cut", "--out", "out", "--json"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "out", json.loads(done.stdout.splitlines()[-1])["evaluate"]


def test_the_mistake_goes_and_nothing_gets_worse(finished: tuple[Path, dict[str, Any]]) -> None:
    """By the intervals: what is claimed would still hold at their unfavourable ends."""
    found = finished[1]["branches"]
    assert set(found) == {"cut", "sft", "dpo"}
    rates = found["cut"]["sandbox"]
    assert all(rate["n"] >= 1500 for rate in rates.values())
    mistake = rates.pop("mistake")
    assert mistake["base"] + mistake["difference"]["ci_high"] <= mistake["base"] / 2
    for name, rate in rates.items():
        assert rate["difference"]["ci_low"] > -0.03, name
    assert found["cut"]["win_rate"]["ci_low"] > 0.5


def test_flags_hit_the_wrong_tokens_of_held_out_answers(finished: tuple[Path, dict[str, Any]]) -> None:
    """The base model's answers, at the recipe's threshold, which was chosen on training prompts."""
    (folder,) = (finished[0] / "stages").glob("*-evaluate")
    scored = list(read_rows(sorted(folder.glob("part-*.parquet"))))
    for row in scored:
        base = row["completions"][0]
        said = criticism(row["prompt"], base["text"])
        row |= {"completions": [base], "scores": [float(said is None)], "judgments": [said]}
    rows = judgment_rows(scored, "critic").rows
    objective: Any = load_recipe("sandbox/cut").ways["cut"].train.objective
    found, left_out = spoken(
        ModelSection(path="sandbox"), rows, judged_prompt=objective.judged_prompt, max_length=256, limit=len(rows)
    )
    assert len(found) > 1000
    assert not left_out
    wrong = [answer.at(places(answer.row["prompt"], answer.row["completion"][0]["content"])) for answer in found]
    (at,) = sweep(found, [objective.threshold], wrong)
    print(at)
    assert at["precision"] >= FLAGS
    assert at["recall"] >= FLAGS
