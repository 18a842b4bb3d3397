"""The win rate of a judge's own answers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from prefloop.config import JudgeSignalSection, ModelSection
from prefloop.evaluate.compare import Judged
from prefloop.evaluate.self_preference import of_the_base, self_preference
from prefloop.evaluate.several import Measured
from prefloop.loop.measuring import _note_self_preference
from prefloop.measure.referees import own_judges
from prefloop.measure.subjects import Subject
from prefloop.records import prompt_id


def row(question):
    prompt = [{"role": "user", "content": question}]
    return {"id": prompt_id(prompt), "prompt": prompt, "completions": []}


def test_own_answers_against_all_others_by_hand():
    """Two samples of one prompt and one of another; j is second in one pair and first in the other."""
    rows = [row("q"), row("q"), row("r"), row("s")]
    preferences = {
        ("a", "j"): [1.0, 0.5, 0.0, None],
        ("j", "b"): [0.0, None, 0.25, None],
        ("a", "b"): [0.5, 0.5, 0.5, 0.5],
    }
    found = self_preference(Judged({}, preferences, [], {}), rows, "j", resamples=200)
    # q: 1, 1 and 0.5; r: 0 and 0.75; s has no verdict.
    assert found["value"] == pytest.approx((2.5 / 3 + 0.75 / 2) / 2)
    assert found["n"] == 2
    assert self_preference(Judged({}, {("a", "j"): [None] * 4}, [], {}), rows, "j") is None


def test_of_a_base_it_is_the_rest_of_the_win_rate():
    found = of_the_base({"value": 0.75, "ci_low": 0.5, "ci_high": 0.875, "n": 8})
    assert found == {"value": 0.25, "ci_low": 0.125, "ci_high": 0.5, "n": 8}


def noted(base, judge, kind="judge"):
    stage = SimpleNamespace(settings={"base": base, "judges": [{"signal": {"type": kind}, "models": judge}]})
    said = []
    bench = SimpleNamespace(progress=SimpleNamespace(note=said.append))
    measured = Measured({"win_rate": {"value": 0.75, "ci_low": 0.5, "ci_high": 0.875, "n": 8}})
    _note_self_preference(bench, stage, measured)
    return measured.summary["win_rate"].get("self_preference"), said


def test_a_run_says_it_where_the_first_model_judges():
    base = {"weights": "abc", "dtype": "auto", "template": "auto"}
    found, said = noted(base, {"judge": base | {"dtype": "float32"}})
    assert found["value"] == 0.25
    assert said == ["the judge is the first model: its own answers win 25% of 8 prompts"]
    served = {"served": "abc", "revision": None, "body": {}}
    for judges in ({"judge": base | {"weights": "d"}}, {"judge": served}, {"judge": base, "judge2": base}):
        assert noted(base, judges) == (None, [])
    assert noted(base, {"pairrm": base}, "pairrm") == (None, [])


def test_judges_among_the_compared_models_are_found_by_their_weights(tmp_path):
    for name, content in (("one", "x"), ("two", "y"), ("copy", "x")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text(content)
    given = [Subject(name, ModelSection(path=str(tmp_path / name))) for name in ("one", "two")]

    def judge(**settings):
        return JudgeSignalSection.model_validate({"type": "judge", **settings})

    sections = {
        "same": judge(model=str(tmp_path / "copy")),
        "nobody": judge(),
        "panel": judge(panel=[str(tmp_path / "one"), str(tmp_path / "two")]),
        "server": judge(model={"path": "one", "endpoint": {"url": "http://localhost:1/v1"}}),
    }
    assert own_judges(given, sections, None) == {"same": ["one"]}
