"""`prefloop rerank train` and `apply` as commands."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent / "rerank"))
from test_rerank_training import ranking_rows
from tiny_rerankers import tiny_reranker

from prefloop.cli.commands import app
from prefloop.errors import UsageError


def run(*arguments: object):
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


def write(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_train_then_apply(tmp_path):
    rows = write(tmp_path / "rows.jsonl", ranking_rows(10))
    settings = ["epochs=1", "device=cpu", "max_length=64", "learning_rate=1e-3", "losses=[pointwise, pairwise]"]
    done = run(
        *("rerank", "train", rows, *settings, "--model", tiny_reranker("bert"), "--out", tmp_path / "out"),
        *("--plain", "--json"),
    )
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["groups"] == 8
    applied = run(
        *("rerank", "apply", tmp_path / "out" / "model", rows, "--out", tmp_path / "ranked.jsonl", "--top", 3),
        *("--device", "cpu", "--plain", "--json"),
    )
    assert applied.exit_code == 0, applied.output
    told = json.loads(applied.stdout.splitlines()[-1])
    assert told["pairs"] == 60
    assert 0 < told["measures"]["ndcg@10"] <= 1
    ranked = [json.loads(line) for line in (tmp_path / "ranked.jsonl").read_text().splitlines()]
    assert len(ranked) == 10
    for row in ranked:
        assert len(row["documents"]) == len(row["labels"]) == len(row["document_ids"]) == 3
        assert row["scores"] == sorted(row["scores"], reverse=True)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("learning_rat=1", "did you mean learning_rate"),
        ("epochs=-1", "epochs"),
        ("weights=[1, 2, 3]", "set weighting=fixed"),
        ("losses=[pointwise, pointwise]", "different losses"),
        ("normalize=l2 weighting=fixed", "does nothing"),
    ],
)
def test_wrong_settings_are_named(setting, said, tmp_path):
    rows = write(tmp_path / "rows.jsonl", ranking_rows(2))
    with pytest.raises(UsageError, match=said):
        run("rerank", "train", rows, *setting.split(" w")[:1], *(["w" + s for s in setting.split(" w")[1:]]))


def test_the_file_that_is_read_is_not_written_over(tmp_path):
    rows = write(tmp_path / "rows.jsonl", ranking_rows(2))
    before = Path(rows).read_bytes()
    with pytest.raises(UsageError, match="the file that is read"):
        run("rerank", "apply", "sandbox", rows, "--out", str(rows))
    assert Path(rows).read_bytes() == before


def test_planning_help_loads_no_torch():
    import subprocess

    script = (
        "import sys; sys.argv = ['prefloop', 'rerank', 'train', '--help']\n"
        "from prefloop.cli.commands import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print('torch' in sys.modules, 'sentence_transformers' in sys.modules, 'prefloop.cli.rerank' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "False False True"
