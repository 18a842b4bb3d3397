"""`sandbox/llm-sbm` whole, on held-out people: half of the bias goes; meaning, length and own words stay."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("llm-sbm")
    command = [sys.executable, "-m", "prefloop", "run", "sandbox/llm-sbm", "--out", "out", "--json"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1])["evaluate"])


def test_the_base_is_favoured_and_half_of_that_goes(found: dict[str, Any]) -> None:
    bias = found["source_bias"]["sandbox"]
    assert (bias["passages"], bias["queries"]) == (171, 342)
    assert bias["relative_delta@10"]["base"]["ci_high"] < -10
    assert bias["gap_closed"]["weighted"]["value"] >= 0.5
    assert bias["gap_closed"]["weighted"]["ci_low"] > 0
    assert bias["change"]["weighted"]["verdict"] == "higher"


def test_meaning_length_and_own_words_stay(found: dict[str, Any]) -> None:
    kept = found["branches"]["weighted"]["sandbox"]["meaning_kept"]
    assert kept["n"] == 171
    assert kept["aligned"] >= 0.95 * kept["base"]
    texts = found["source_texts"]
    assert abs(texts["weighted"]["length_ratio"]["value"] - texts["base"]["length_ratio"]["value"]) <= 0.05
    assert texts["weighted"]["copied"]["value"] <= texts["base"]["copied"]["value"] + 0.05


def test_the_baselines_are_measured_beside_it(found: dict[str, Any]) -> None:
    bias = found["source_bias"]["sandbox"]
    assert set(found["branches"]) == {"weighted", "dpo", "sft"} == set(bias["gap_closed"])
    for figures in (bias["relative_delta@10"], bias["gap_closed"]):
        assert all(figure["ci_low"] <= figure["value"] <= figure["ci_high"] for figure in figures.values())
