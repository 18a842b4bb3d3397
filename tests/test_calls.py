"""How often a judge will be asked, told before anything is computed."""

from __future__ import annotations

import json

import pytest

from prefloop.cli.commands import main
from prefloop.config import JudgeSignalSection, load_recipe
from prefloop.loop.calls import judge_calls
from prefloop.loop.run import survey
from prefloop.signals.build import asking

PER_CRITERION = 5  # of the default rubric


@pytest.mark.parametrize(
    ("settings", "calls"),
    [
        ({}, 4),
        ({"mode": "pairwise"}, 4 * 3),
        ({"mode": "listwise", "orders": 3}, 3),
        ({"mode": "ranking"}, 2),
        ({"samples": 3, "temperature": 1.0}, 4 * 3),
        ({"by_criterion": True}, 4 * PER_CRITERION),
        ({"panel": ["a", "b"], "mode": "pairwise"}, 2 * 4 * 3),
    ],
)
def test_calls_for_a_row(settings, calls):
    found = asking(JudgeSignalSection.model_validate({"type": "judge", **settings}), 4, 100)
    assert found.calls == calls
    assert found.read > calls * 100
    assert found.written == calls * 512


def test_few_answers_have_few_orders():
    assert asking(JudgeSignalSection(type="judge", mode="listwise", orders=5), 2, 1).calls == 2
    assert asking(JudgeSignalSection(type="judge", mode="ranking"), 1, 1).calls == 0
    chosen = asking(JudgeSignalSection(type="judge", verdict="choose"), 2, 10)
    assert (chosen.calls, chosen.written) == (2, 2)


def dry(tmp_path, *overrides):
    recipe = load_recipe("quickstart", list(overrides))
    return judge_calls(recipe, survey(recipe, tmp_path / "out", tmp_path / "cache"))


JUDGE = ["rate.type=judge", "rate.mode=pairwise", "sample.n=3", "rounds=1"]


def test_a_limit_of_prompts_gives_a_number(tmp_path):
    found = dry(tmp_path, *JUDGE, "prompts.limit=10")
    assert found["rate"].json()["calls"] == 10 * 3 * 2
    assert "up to 60 calls" in str(found["rate"])
    assert found["rate"].json()["tokens_written"] == 60 * 512
    assert dry(tmp_path, *JUDGE, "prompts.limit=11", "rounds=2")["r2-rate"].prompts == 6


def test_prompts_that_are_not_read_are_not_guessed(tmp_path):
    found = dry(tmp_path, *JUDGE, "prompts.limit=null")
    assert found["rate"].json() == {"calls_per_prompt": 6, "prompts": None}
    assert str(found["rate"]) == "for each prompt: 6 calls"


def test_a_measurement_asks_both_orders_for_every_signal(tmp_path):
    one = dry(tmp_path, *JUDGE)["evaluate"].each.calls
    assert one == 2
    also = "evaluate.also=[{type: judge, mode: pairwise, model: sandbox}]"
    assert dry(tmp_path, *JUDGE, also)["evaluate"].each.calls == 4


def test_the_dry_run_shows_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "sys.argv", ["prefloop", "run", "quickstart", *JUDGE, "prompts.limit=10", "--dry-run", "--json"]
    )
    with pytest.raises(SystemExit, match="0"):
        main()
    said = capsys.readouterr()
    stages = {s["name"]: s for s in json.loads(said.out.strip().splitlines()[-1])["stages"]}
    assert stages["rate"]["judge"]["calls"] == 60
    assert "judge" not in stages["train"]
