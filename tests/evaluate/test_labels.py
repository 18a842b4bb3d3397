"""Signals against labels: who is right, beside the longer answer and a coin."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from prefloop.cli.commands import app
from prefloop.cli.evaluate import _remarks
from prefloop.errors import UsageError
from prefloop.evaluate.labels import against_labels
from prefloop.signals.base import Rating


class Says:
    """A signal that scores a text by a function."""

    pairwise = False

    def __init__(self, score):
        self.name, self.score, self.identity = "says", score, {}

    def rate(self, row):
        yield from ()
        return Rating([self.score(c["text"]) for c in row["completions"]])


def pair(i, chosen, rejected):
    def answer(text):
        return None if text is None else [{"role": "assistant", "content": text}]

    prompt = [{"role": "user", "content": f"question {i}"}]
    return {
        "id": f"p{i}",
        "prompt_id": f"q{i}",
        "prompt": prompt,
        "chosen": answer(chosen),
        "rejected": answer(rejected),
    }


PAIRS = [pair(i, f"good {i}" + "!" * (i % 4 == 0), f"bad {i}!") for i in range(40)]


def test_signals_beside_the_trivial_judges():
    signals = {
        "right": (Says(lambda text: float("good" in text)), {}),
        "wrong": (Says(lambda text: float("bad" in text)), {}),
        "silent": (Says(lambda text: None if text.startswith("good 1") else float("good" in text)), {}),
    }
    found = against_labels([*PAIRS, pair(40, "alone", None)], signals, resamples=100)
    assert (found["pairs"], found["left_out"]) == (40, 1)
    shares = {name: f["accuracy"]["value"] for name, f in found["signals"].items()}
    assert (shares["right"], shares["wrong"], shares["silent"]) == (1, 0, 1)
    assert found["signals"]["silent"]["n_null"] == 11
    # "good 4!" is one longer than "bad 4!", all other good answers have the length of the bad ones: ties, never right.
    assert shares["longest"] == pytest.approx(10 / 40)
    assert 0.2 < shares["random"] < 0.8


def test_what_the_table_does_not_tell_is_said_below_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"question {i}", "chosen": "good answer", "rejected": "poor answer"} for i in range(2)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = CliRunner().invoke(app, ["evaluate", "labels", str(file), "--model", "sandbox", "--resamples", "50"])
    assert done.exit_code == 0, done.output
    said = " ".join(done.stdout.split())
    assert "longest │ – (all ties)" in said or "longest – (all ties)" in said
    for words in (
        "by the notes of the attribute harmless",
        "lengths differ by more than 30 characters",
        "only 2 pairs",
        "a tie is no agreement",
    ):
        assert words in said
    several = _remarks({"pairs": 40, "left_out": 0, "signals": {}}, ["harmless", "helpful"])
    assert several == ["self_reward: the mean over the notes of 2 attributes, harmless, helpful"]


def test_pairs_are_needed():
    with pytest.raises(UsageError, match="no pair has two answers"):
        against_labels([pair(0, "alone", None)], {})
