"""`sandbox/dpa-rag` whole, on people that no training question spoke of: better answers, from documents that help."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("rag")
    command = [sys.executable, "-m", "prefloop", "run", "sandbox/dpa-rag", "--out", "out", "--json"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "ablation" in (folder / "out" / "report.html").read_text().lower()
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])["evaluate"]["rag_qa"]
    return said


def test_accuracy_rises_by_ten_points(found: dict[str, Any]) -> None:
    accuracy = found["accuracy"]
    assert accuracy["n"] >= 1000
    assert accuracy["difference"]["value"] >= 0.1
    assert accuracy["difference"]["ci_low"] > 0


def test_more_documents_help_and_fewer_mislead(found: dict[str, Any]) -> None:
    assert found["aligned_share"]["difference"]["ci_low"] > 0
    assert found["misleading_share"]["difference"]["ci_high"] < 0


def test_every_part_is_left_out_once(found: dict[str, Any]) -> None:
    without = {"self_alignment", "reranker", "prealign", "pointwise", "pairwise", "contrastive"}
    assert {entry["a"] for entry in found["ablations"]} == {"plain", *(f"without_{name}" for name in without)}
    by_name = {entry["a"]: entry for entry in found["ablations"]}
    assert by_name["without_reranker"]["verdict"] == "higher"
