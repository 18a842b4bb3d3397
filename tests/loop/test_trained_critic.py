"""A critic trained with this tool: judgments as demonstrations of judging, and the model as the signal `critic`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.tiny_models import tiny_model_folder

from prefloop.backends.base import Generation
from prefloop.config import PreferencesSection, load_recipe, parse_recipe
from prefloop.errors import UsageError
from prefloop.inputs.preferences import PreferenceReader
from prefloop.loop.plan import plan
from prefloop.loop.run import open_loop
from prefloop.signals.critic import CriticSignal, readable
from prefloop.store.rows import read_rows
from prefloop.ui.progress import Progress

ROWS: list[dict[str, Any]] = [
    {"prompt": f"Name {n} cities of Norway.", "completion": f"Oslo and {n} more", "judgment": None} for n in range(12)
]
CRITICISED = {"prompt": "Name a city.", "completion": "Blue", "judgment": "Blue is no city."}


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def execute(data: dict[str, Any], out: Path) -> dict[str, Any]:
    recipe = parse_recipe({"name": "t", "evaluate": {"bootstrap": 100}, **data}, where="here")
    with open_loop(recipe, out, out.parent / "cache.db") as loop, Progress(plain=True, title="t") as progress:
        return loop.execute(progress)


def test_a_judgment_becomes_what_the_critic_is_asked_and_replies(tmp_path: Path) -> None:
    dirty = [{**CRITICISED, "judgment": "$ERROR$"}, {**CRITICISED, "completion": "Red", "judgment": "Perfect."}]
    path = written(tmp_path / "j.jsonl", [ROWS[0], CRITICISED, *dirty])
    reader = PreferenceReader(PreferencesSection(path=str(path), learn="critic"))
    ((rows, rejects),) = reader.parts(10)
    fine = "Verdict: fine"
    replies = [row["chosen"][0]["content"] for row in rows if row["chosen"]]
    assert replies == [fine, "Verdict: flawed\nBlue is no city.", fine]
    assert [r["reason"] for r in rejects] == ["failed judgment"]
    for row, given in zip(rows, [ROWS[0], CRITICISED], strict=False):
        asked = CriticSignal(None, 10, 0).rate(
            {
                "id": "x",
                "prompt": [{"role": "user", "content": given["prompt"]}],
                "completions": [{"text": given["completion"]}],  # type: ignore[typeddict-item]
            }
        )
        ((call,),) = [next(asked)]
        request: Any = call.request
        assert [{"role": role, "content": text} for role, text in request.messages] == row["prompt"]
        # The signal reads in the reply what the file says.
        with pytest.raises(StopIteration) as end:
            asked.send([Generation((row["chosen"] or [])[0]["content"], [], "stop", 0.0)])
        assert end.value.value.judgments == [given["judgment"]]


def test_pairs_teach_no_critic(tmp_path: Path) -> None:
    path = written(tmp_path / "pairs.jsonl", [{"prompt": "a?", "chosen": "b", "rejected": "c"}])
    with pytest.raises(UsageError, match="a critic learns from written judgments"):
        list(PreferenceReader(PreferencesSection(path=str(path), learn="critic")))


def test_the_shipped_recipe_plans(tmp_path: Path) -> None:
    path = written(tmp_path / "j.jsonl", ROWS)
    recipe = load_recipe("critic", ["model=sandbox", f"preferences.path={path}"])
    assert [s.verb for s in plan(recipe, None)] == ["preferences", "heldout", "train", "merge", "evaluate", "report"]
    assert recipe.train.objective.type == "sft"
    other = load_recipe("critic", ["model=sandbox", f"preferences.path={path}", "preferences.learn=answer"])
    assert plan(other, None)[0].settings != plan(recipe, None)[0].settings


def test_a_model_that_learned_judging_is_the_critic(tmp_path: Path) -> None:
    """A tiny model learns one verdict by heart, and then rates answers in a run of CUT."""
    critic = tmp_path / "critic"
    given = {"path": str(written(tmp_path / "j.jsonl", ROWS)), "learn": "critic"}
    training = {"objective": "sft", "lora": None, "epochs": 16, "batch_size": 4, "learning_rate": 1e-2}
    model = str(tiny_model_folder("llama", max_positions=2048))
    summary = execute(
        {
            "model": model,
            "preferences": given,
            "train": {**training, "max_length": 2048},
            "evaluate": {
                "sample": {"temperature": 0.0, "n": 1, "max_new_tokens": 16},
                "checkers": {"critic": {"readable": "prefloop.signals.critic:readable"}},
                "bootstrap": 100,
            },
        },
        critic,
    )
    figure = summary["evaluate"]["critic"]["readable"]
    assert (figure["base"], figure["aligned"]) == (0.0, 1.0)
    prompts = tmp_path / "p.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"Name {n} towns."}) + "\n" for n in range(6)))
    out = tmp_path / "cut"
    execute(
        {
            "model": model,
            "prompts": {"path": str(prompts)},
            "sample": {"n": 1, "max_new_tokens": 8},
            "rate": {"type": "critic", "model": {"path": str(critic / "model")}, "max_new_tokens": 16},
            "train": {"objective": "cut", "batch_size": 2, "validation_share": 0.0},
            "evaluate": {"holdout": 0.3},
        },
        out,
    )
    (folder,) = (out / "stages").glob("*-judgments")
    judged = list(read_rows(sorted(folder.glob("part-*.parquet"))))
    assert judged
    assert all(row["judgment"] is None and row["score"] == 1.0 for row in judged)


def test_a_reply_counts_as_readable_or_not() -> None:
    assert readable([], "Verdict: fine") == 1.0
    assert readable([], "Verdict: flawed\nThe city is wrong.") == 1.0
    assert readable([], "It is fine.") == 0.0
