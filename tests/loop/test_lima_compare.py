"""The system of judge and PairRM on the embedded models: small in the quick tests, whole in the slow ones."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys

import pytest

SMALL = [
    "prompts.limit=48", "sample.n=3", "evaluate.prompts.limit=40", "evaluate.bootstrap=200", "train.epochs=1",
]  # fmt: skip


def run(folder, *overrides):
    command = [sys.executable, "-m", "prefloop", "run", "sandbox/lima-compare", *overrides, "--out", "out", "--json"]
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_two_signals_three_models_and_their_agreement(tmp_path):
    summary = run(tmp_path, *SMALL)
    found = summary["evaluate"]
    assert set(found["branches"]) == {"judge", "pairrm"}
    assert set(found["unmerged"]) == {"judge", "pairrm"}
    for said in found["branches"].values():
        assert said["win_rate"]["n"] == 40
        (by_pairrm,) = said["also"].values()
        assert by_pairrm["win_rate"]["n"] == 40
        assert 0 <= by_pairrm["agreement"]["accuracy"]["value"] <= 1
        assert set(said["sandbox"]) == {"kindness", "correctness"}
    # Both branches rate and pair the same answers.
    rows = {name: summary["stages"][f"{name}-rate"]["rows"]["in"] for name in found["branches"]}
    assert rows == {"judge": 48, "pairrm": 48}
    (table,) = (tmp_path / "out" / "stages").glob("*-evaluate/answers.csv")
    assert len(list(csv.DictReader(table.open(encoding="utf-8", newline="")))) == 40
    card = (tmp_path / "out" / "model" / "README.md").read_text(encoding="utf-8")
    assert f"win rate against the base |  |  | {found['win_rate']['value']:.3f} [" in card
    again = run(tmp_path, *SMALL)
    assert again["computed"] == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_both_aligned_models_beat_the_base(tmp_path):
    found = run(tmp_path)["evaluate"]
    for said in found["branches"].values():
        assert said["win_rate"]["ci_low"] > 0.5
        (by_pairrm,) = said["also"].values()
        assert by_pairrm["win_rate"]["ci_low"] > 0.5


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_no_round_is_worse_than_the_first(tmp_path):
    rounds = run(tmp_path, "rounds=3", "prompts.limit=600", "evaluate.unmerged=false")["rounds"]
    assert len(rounds) == 3
    first = rounds[0]["win_rate"]
    assert first["ci_low"] > 0.5
    for later in rounds[1:]:
        assert later["win_rate"]["ci_high"] >= first["ci_low"]
