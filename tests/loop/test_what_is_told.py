"""What a run says on its way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.loop.conftest import make_project

from prefloop.ui.progress import Progress


class Killed(Exception):
    pass


def test_rounds_and_a_training_that_starts_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    facts: dict[str, Any] = {}
    monkeypatch.setattr(Progress, "note", lambda self, text: said.append(text))
    monkeypatch.setattr(Progress, "update", lambda self, **figures: facts.update(figures))

    def killed(*_: Any, out: Path, **__: Any) -> None:
        (out / "checkpoint-5").mkdir()  # without its mark
        raise Killed

    project = make_project(tmp_path / "p", rounds=2)
    with monkeypatch.context() as patch:
        patch.setattr("prefloop.train.run.train", killed)
        with pytest.raises(Killed):
            project.run_here(until="train")
    assert said[0] == "checking the recipe and its models"
    (first,) = (text for text in said if text.startswith("round "))
    assert first.startswith("round 1 of 2: ")
    assert not any("no checkpoint" in text for text in said)
    project.run_here(until="sample")
    assert "the interrupted training left no checkpoint: it starts from the beginning" in said
    assert sum(text.startswith("round 2 of 2: ") for text in said) == 1
    assert {"loss", "validation loss"} <= set(facts)
