"""The report: what it says, that it is safe, and that it works on any run directory."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from tests.report.example import EVALUATE, HOSTILE, JUDGED, tags, write_run

from prefloop.errors import UsageError
from prefloop.report.build import build_report
from prefloop.report.data import collect
from prefloop.report.figures import training_records
from prefloop.report.remarks import LEAST_CASES, _of_judge
from prefloop.report.render import duration, points, render, share
from prefloop.store.rundir import RunDir

VOID = {"meta", "br", "img", "line", "path", "rect", "circle"}


class Balance(HTMLParser):
    """Collects tags and checks that they are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + " "


def parse(page: str) -> Balance:
    parser = Balance()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "finished")


def test_the_report_says_what_came_out(finished: Path) -> None:
    path = build_report(finished)
    assert path == finished / "report.html"
    page = parse(read(path))
    text = " ".join(page.text.split())
    assert "The aligned model is better than the base" in text
    assert "Win rate 87.1 % [84.5 %, 89.6 %] on 1,000 held-out prompts" in text
    assert "861 won, 119 lost, 20 tied (12 identical answers), 3 without a verdict" in text
    assert re.search(r"kindness .*41\.2 % 95\.7 % .*\+54\.5 \[\+51\.5, \+57\.5\] better 1,000", text)
    assert re.search(r"mistake lower is better .*\[−22\.0, −18\.0\] better 640", text)
    assert "meaning kept got worse: 90.0 % before, 86.1 % after." in text
    assert "mistake got worse" not in text
    assert "−3.9 [−5.9, −1.9]" in text
    assert "5 all scores equal, 2 gap below min_gap" in text
    assert "120 steps on 77 pairs − 2 rejected" in text
    assert "2 longer than max_length" in text
    assert "prefloop run quickstart --out runs/quickstart train.learning_rate=5e-4" in text
    assert "2.13.0" in text
    assert "c4c4c4c4c4c4c4c4…" in text
    pictures = [tag for tag, _ in page.tags if tag == "svg"]
    assert len(pictures) == 6 + 3 + 2 * len(EVALUATE["sandbox"])  # curves, histograms, two for each checker


def test_the_page_needs_nothing_else_and_is_small(finished: Path) -> None:
    page = read(build_report(finished))
    assert len(page.encode()) < 600_000
    parsed = parse(page)
    assert not {tag for tag, _ in parsed.tags} & {"script", "link", "iframe", "img", "object"}
    for _, attributes in parsed.tags:
        assert not {"src", "href", "srcset"} & attributes.keys()
    assert not re.search(r"https?://|url\(|@import", page)
    assert "prefers-color-scheme: dark" in page


def test_texts_of_models_and_users_are_escaped(tmp_path: Path) -> None:
    page = read(build_report(write_run(tmp_path / "r", hostile=True)))
    parsed = parse(page)
    assert not {tag for tag, _ in parsed.tags} & {"script", "img"}
    assert not any(name.startswith("on") for _, attributes in parsed.tags for name in attributes)
    assert parsed.text.count(HOSTILE) > 6  # it is shown, and shown as it is: {{ 7 * 7 }} is not 49


@pytest.mark.parametrize("until", ["prompts", "sample", "rate", "pair", "train", "merge"])
def test_an_unfinished_run_has_a_report(tmp_path: Path, until: str) -> None:
    text = parse(read(build_report(write_run(tmp_path / "r", until=until)))).text
    assert "Nothing measured yet" in text
    assert "evaluate" in text
    assert ("Training" in text) == (until in ("train", "merge"))


def test_a_stage_that_was_killed_shows_what_it_has(tmp_path: Path) -> None:
    path = write_run(tmp_path / "r", until="sample")
    (path / "stages" / "03-sample" / "_SUCCESS.json").unlink()
    steps = collect(RunDir.peek(path))["flow"][0]["steps"]
    sample = next(s for s in steps if s["name"] == "sample")
    assert (sample["state"], sample["count"], sample["unit"]) == ("running", 90, "prompts sampled so far")
    assert "90 prompts sampled so far" in " ".join(parse(read(build_report(path))).text.split())


def test_a_run_with_nothing_but_its_manifest(tmp_path: Path) -> None:
    with RunDir.open(tmp_path / "r") as run:
        run.write_manifest({})
    text = parse(read(build_report(tmp_path / "r"))).text
    assert "prefloop report" in text
    assert "Repeat it" in text
    assert not any(part in text for part in ("Training", "Nothing measured yet", "Samples"))


def test_no_run_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run here"):
        build_report(tmp_path)


def test_rounds(tmp_path: Path) -> None:
    path = write_run(tmp_path / "r", until="r2-evaluate", rounds=2)
    data = collect(RunDir.peek(path))
    assert [r["round"] for r in data["models"]] == [1, 2]
    assert [part["round"] for part in data["flow"]] == [1, 2]
    assert [s["name"] for s in data["flow"][0]["steps"]][-2:] == ["heldout", "evaluate"]
    loss = next(c for c in data["curves"] if c["title"] == "Loss")
    assert loss["picture"].count('class="break"') == 1
    assert ">240<" not in loss["picture"]
    assert ">200<" in loss["picture"]  # 120 steps of each round, one behind the other
    parse(render(data))


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.51, 0.6, "better than the base"),
        (0.4, 0.49, "worse than the base"),
        (0.49, 0.6, "No detectable difference"),
        (0.5, 0.6, "No detectable difference"),
    ],
)
def test_the_headline_goes_by_the_interval(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, low: float, high: float, words: str
) -> None:
    win = EVALUATE["win_rate"] | {"value": (low + high) / 2, "ci_low": low, "ci_high": high}
    monkeypatch.setitem(EVALUATE, "win_rate", win)
    assert words in parse(read(build_report(write_run(tmp_path / "r")))).text


def test_a_resumed_training_is_drawn_once() -> None:
    metrics = [
        {"round": 1, "kind": "train", "step": 1, "loss": 0.7},
        {"round": 1, "kind": "train", "step": 2, "loss": 9.0},
        {"round": 1, "kind": "validation", "step": 2, "loss": 0.65},
        {"round": 1, "kind": "train", "step": 2, "loss": 0.6},
        {"round": 2, "kind": "train", "step": 1, "loss": 0.5},
        {"note": "of something else"},
    ]
    records, breaks = training_records(metrics)
    assert [(r["at"], r["kind"], r["loss"]) for r in records] == [
        (1, "train", 0.7),
        (2, "train", 0.6),
        (2, "validation", 0.65),
        (3, "train", 0.5),
    ]
    assert breaks == [2]


def test_samples_hold_the_winner(finished: Path) -> None:
    samples = collect(RunDir.peek(finished))["samples"]
    assert len(samples) == 6  # evaluate.side_by_side
    assert samples[0]["winner"] == "base"  # row 0 is scored 0.6 to 0.4
    assert samples[1]["winner"] == "aligned"
    assert samples[0]["base"] == "Ugh, look it up. Lima."


def test_remarks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EVALUATE, "win_rate", EVALUATE["win_rate"] | {"n": 80})
    bad = {"nulls": 330, "null_pairs": 0, "consistent": 593, "first_wins": 394, "longer_wins": 810}
    for name, value in bad.items():
        monkeypatch.setitem(JUDGED, name, value)
    path = write_run(tmp_path / "r")
    with RunDir.open(path) as run:
        run.metric(round=1, kind="train", step=121, loss=float("nan"), **tags("train"))
        for _ in range(2):
            run.event("warning", text="the <b>tokenizer</b> has no pad token", **tags("train"))
    remarks = " ".join(collect(RunDir.peek(path))["remarks"])
    for words in (
        "Only 80 held-out prompts",
        "also measured the result",
        "prefers the answer shown second",
        "only 60 % of the pairs alike",
        "no verdict in 16.7 %",
        "prefers longer answers: they win 90 %",
        "The loss was NaN at step 121",
        "the <b>tokenizer</b> has no pad token",
    ):
        assert words in remarks
    assert remarks.count("tokenizer") == 1  # a stage that went on warns again
    page = read(build_report(path))
    assert "<b>tokenizer" not in page
    parse(page)


def test_a_judge_of_few_verdicts_has_no_habits() -> None:
    def said(cases: int) -> list[str]:
        values = {"first_seat": 0.0, "consistency": 0.0, "longer_wins": 1.0, "null_rate": 0.0}
        rates = [{"key": key, "value": value, "cases": cases} for key, value in values.items()]
        return _of_judge({"title": "Rating", "rates": rates})

    assert said(LEAST_CASES - 1) == []
    assert len(said(LEAST_CASES)) == 3


def edit_manifest(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads(read(path / "manifest.json"))
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def test_stages_of_an_earlier_recipe_do_not_count(tmp_path: Path) -> None:
    path = write_run(tmp_path / "r", until="r2-evaluate", rounds=2)

    def one_round(manifest: dict[str, Any]) -> None:
        manifest["stages"] = [s for s in manifest["stages"] if s["round"] == 1]

    edit_manifest(path, one_round)
    data = collect(RunDir.peek(path))
    assert data["models"] == []
    assert [part["round"] for part in data["flow"]] == [1]
    assert 'class="break"' not in data["curves"][0]["picture"]


@pytest.mark.parametrize("now", ["another", None])
def test_a_stage_counts_only_under_its_fingerprint(tmp_path: Path, now: str | None) -> None:
    path = write_run(tmp_path / "r")
    with RunDir.open(path) as run:
        run.event("warning", text="of the earlier training", **tags("train"))
        run.event("warning", text="of the rating", **tags("rate"))

    def trained_anew(manifest: dict[str, Any]) -> None:
        for stage in manifest["stages"]:
            if stage["name"] in ("train", "merge", "evaluate"):
                stage["fingerprint"] = now

    edit_manifest(path, trained_anew)
    data = collect(RunDir.peek(path))
    assert (data["win"], data["measures"], data["samples"], data["curves"]) == (None, [], [], [])
    assert data["unfinished"] == ["train", "merge", "evaluate"]
    assert [j["title"] for j in data["judges"]] == ["Rating"]
    assert "of the rating" in data["remarks"]
    assert "of the earlier training" not in data["remarks"]
    steps = {s["name"]: s["state"] for s in data["flow"][0]["steps"]}
    assert (steps["pair"], steps["train"], steps["evaluate"]) == ("done", "waits", "waits")


def test_metrics_of_an_earlier_longer_training_are_not_drawn(tmp_path: Path) -> None:
    path = write_run(tmp_path / "r", until="train")
    with RunDir.open(path) as run:
        old = {"stage": "train", "fingerprint": "of other settings"}
        run.metric(round=1, kind="train", step=900, loss=float("nan"), **old)
        run.event("model_loaded", path="x", device="a machine of before", **old)
    data = collect(RunDir.peek(path))
    assert not any("NaN" in remark for remark in data["remarks"])
    assert ">900<" not in data["curves"][0]["picture"]
    assert dict(data["facts"])["Device"] == "cpu"


@pytest.mark.parametrize(
    ("judge", "itself"),
    [
        (None, True),
        ({"type": "judge", "mode": "pairwise", "model": None}, True),
        ({"type": "judge", "mode": "pairwise", "model": {"path": "sandbox", "dtype": "float32"}}, True),
        ({"type": "judge", "mode": "pointwise", "model": {"path": "another"}}, False),
        ({"type": "function", "callable": "mine:score"}, False),
    ],
)
def test_who_measured_goes_by_the_model_not_by_how_it_was_asked(
    tmp_path: Path, judge: dict[str, Any] | None, itself: bool
) -> None:
    path = write_run(tmp_path / "r")
    edit_manifest(path, lambda manifest: manifest["recipe"]["evaluate"].update(judge=judge))
    assert any("also measured" in r for r in collect(RunDir.peek(path))["remarks"]) == itself


def test_an_interval_without_width_is_called_empty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    flat = {"value": 1.0, "ci_low": 1.0, "ci_high": 1.0}
    monkeypatch.setitem(EVALUATE, "win_rate", EVALUATE["win_rate"] | flat | {"n": 12})
    monkeypatch.setitem(EVALUATE, "sandbox", {"kindness": {"base": 0.0, "aligned": 1.0, "n": 12, "difference": flat}})
    path = write_run(tmp_path / "r")
    data = collect(RunDir.peek(path))
    assert data["win"]["verdict"] == data["measures"][0]["verdict"] == "same"
    assert "kindness: all 12 changes are equal; the interval says nothing." in data["remarks"]
    text = " ".join(parse(read(build_report(path))).text.split())
    assert "better than the base" not in text
    assert "on 12 held-out prompts" in text
    assert text.count("all 12 equal; the interval says nothing") == 2


def test_a_good_run_has_few_remarks(finished: Path) -> None:
    fell, own = collect(RunDir.peek(finished))["remarks"]
    assert fell.startswith("meaning kept got worse")
    assert "also measured the result" in own


def test_half_characters_do_not_cost_the_report(finished: Path) -> None:
    data = collect(RunDir.peek(finished))
    data["samples"][0]["aligned"] = "half: \ud83d"
    assert "half" in render(data).encode("utf-8", "backslashreplace").decode()


def test_numbers_as_texts() -> None:
    assert (share(0.873), share(None), share(1.0, 0)) == ("87.3 %", "–", "100 %")
    assert (points(0.545), points(-0.0391)) == ("+54.5", "−3.9")
    assert [duration(s) for s in (None, 0.04, 9.9, 12.4, 65, 3600, 7384)] == [
        "–",
        "0.0 s",
        "9.9 s",
        "12 s",
        "1 min 5 s",
        "1 h 0 min",
        "2 h 3 min",
    ]
