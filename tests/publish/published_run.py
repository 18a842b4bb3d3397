"""A run directory with made-up rows and numbers and with paths of some machine: what publishing starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefloop.store.rundir import RunDir

HERE = "/home/somebody/secret"
EVALUATE = {
    "win_rate": {"value": 0.712, "ci_low": 0.66, "ci_high": 0.764, "n": 300, "wins": 200, "losses": 80, "ties": 20},
    "lengths": {"base": {"chars": 41.2}, "aligned": {"chars": 47.9}},
    "sandbox": {
        "kindness": {
            **{"base": 0.4, "aligned": 0.9, "n": 300},
            "difference": {"value": 0.5, "ci_low": 0.44, "ci_high": 0.56},
        },
        "mistake": {
            **{"base": 0.4, "aligned": 0.1, "n": 300, "lower_is_better": True},
            "difference": {"value": -0.3, "ci_low": -0.36, "ci_high": -0.24},
        },
    },
}


def pair(prompt: str, chosen: str, rejected: str, **more: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": f"id-{prompt}",
        "prompt_id": f"p-{prompt}",
        "prompt": [{"role": "user", "content": prompt}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "score_chosen": 0.75,
        "score_rejected": 0.25,
        **dict.fromkeys(("weight", "margin", "label")),
        "source": "judge",
        "strategy": "best_worst",
        "chosen_id": f"c-{prompt}",
        "rejected_id": f"r-{prompt}",
        "chosen_finish": "stop",
        "rejected_finish": "length",
        "evidence": ["e1"],
    }
    return row | more


def pairs(n: int, first: int = 0) -> list[dict[str, Any]]:
    """Pairs whose chosen answer is the longer one in every second; one with a system message."""
    rows = []
    for i in range(first, first + n):
        short, long = f"Yes, {i}.", f"Yes, {i}, and here is why: häufig „so“."
        rows.append(pair(f"Question {i}?", *((long, short) if i % 2 else (short, long))))
    rows[0]["prompt"] = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        *rows[0]["prompt"],
    ]
    return rows


def write_run(
    path: Path,
    rows: list[list[dict[str, Any]]],
    *,
    given: bool = False,
    measured: bool = True,
    branches: tuple[str, ...] = ("",),
    **recipe: Any,
) -> Path:
    """Write a run that has trained and merged.

    Args:
        rows: the pairs of each round.
        given: whether they were preference data that was there.
        measured: whether the measurement is done.
        branches: names of the recipe's; each has the same pairs with the answers of every second branch turned round.
        recipe: further entries of the recipe.
    """
    verbs = ("rate", "pair", "train", "merge")
    plan = [("preferences", 1, ""), ("train", 1, ""), ("merge", 1, ""), ("evaluate", 1, "")]
    several = len(rows) > 1 or len(branches) > 1
    if not given:
        plan = []
        for r in range(1, len(rows) + 1):
            plan += [(verb, r, branch) for branch in branches for verb in verbs] + [("evaluate", r, "")]
        plan += [("select", 1, "")] if several else []
    names = ["-".join(filter(None, (f"r{r}" if r > 1 else "", branch, verb))) for verb, r, branch in plan]
    settings: dict[str, Any] = {
        "name": "my run",
        "model": {"path": f"{HERE}/base-model", "revision": None},
        "rounds": len(rows),
        "seed": 3,
        "train": {
            "objective": {"type": "dpo", "beta": 0.1},
            "lora": {"r": 8, "alpha": 16},
            **{"learning_rate": 5e-5, "batch_size": 8, "epochs": 3},
        },
        "evaluate": {"prompts": None, "holdout": 0.25},
    }
    if given:
        settings["preferences"] = {"path": f"{HERE}/pairs.jsonl", "format": "auto"}
    else:
        settings |= {
            "prompts": {"path": f"{HERE}/my prompts.jsonl"},
            "sample": {"n": 5, "temperature": 1.0, "max_new_tokens": 64},
            "rate": {
                **{"type": "judge", "mode": "pairwise"},
                "model": {"path": "ORG/judge", "endpoint": {"url": "http://10.1.2.3:8000/v1", "key_variable": "KEY"}},
            },
            "pair": {"strategy": "best_worst", "min_gap": 0.0},
        }
    if branches != ("",):
        settings["branches"] = {
            name: {"train": settings["train"], "pair": settings["pair"], "rate": {"type": name}} for name in branches
        }
    with RunDir.open(path) as run:
        run.write_manifest(
            {
                "name": "my run",
                "recipe": settings | recipe,
                "command": [
                    "prefloop",
                    "run",
                    f"{HERE}/recipe.yaml",
                    "--out",
                    str(path),
                    f"prompts.path={HERE}/p.jsonl",
                ],
                "created": "2026-01-02T03:04:05+00:00",
                "versions": {"prefloop": "0.1.0", "torch": "2.13.0"},
                "stages": [
                    {
                        "number": i,
                        "name": n,
                        "verb": v,
                        "round": r,
                        "branch": b,
                        "fingerprint": f"f-{n}",
                        "settings": {},
                    }
                    for i, (n, (v, r, b)) in enumerate(zip(names, plan), 1)
                ],
            }
        )
        for i, (name, (verb, number, branch)) in enumerate(zip(names, plan), 1):
            stage, done = run.stage(i, name), f"f-{name}"
            if verb == "evaluate" and not measured:
                continue
            stage.begin(done)
            if verb == "rate":
                counts = {"verdicts": 100, "nulls": 4, "pairs": 50, "consistent": 40}
                counts |= {"first_decided": 96, "first_wins": 60, "longer_decided": 45, "longer_wins": 27}
                stage.write_part(0, [], "scored", counts=counts)
                stage.finish(done, rows_in=0)
            elif verb in ("pair", "preferences"):
                lost = [{"id": "x", "stage": verb, "reason": "equal_scores", "attempts": 1, "row": "{}"}]
                made = rows[number - 1]
                if branches.index(branch) % 2 if branch else False:
                    made = [r | {"chosen": r["rejected"], "rejected": r["chosen"]} for r in made]
                stage.write_part(0, made, "preference", rejects=lost)
                stage.finish(done, rows_in=len(rows[number - 1]) + 1)
            elif verb == "train":
                adapter = stage.path / "adapter"
                adapter.mkdir()
                (adapter / "adapter_config.json").write_text(f'{{"base_model_name_or_path": "{HERE}/base-model"}}')
                (adapter / "adapter_model.safetensors").write_bytes(b"weights")
                stage.finish_files(done, extra={"steps": 30, "pairs": 80, "rejected": {"longer than max_length": 2}})
            elif verb == "merge":
                model = stage.path / "model" if several else run.path / "model"
                model.mkdir()
                (model / "config.json").write_text("{}")
                stage.finish_files(done, folder=model)
            elif verb == "select":
                (run.path / "model").mkdir()
                (run.path / "model" / "config.json").write_text("{}")
                chosen = {"round": len(rows), "branch": branches[-1], "reason": "the last round"}
                stage.finish_files(done, folder=run.path / "model", extra=chosen)
            else:
                evaluate: dict[str, Any] = EVALUATE
                if branches != ("",):
                    said = {
                        b: EVALUATE | {"win_rate": EVALUATE["win_rate"] | {"n": n}} for n, b in enumerate(branches, 1)
                    }
                    evaluate = said[branches[-1]] | {"winner": branches[-1], "branches": said}
                stage.write_part(0, [], "scored")
                stage.finish(done, rows_in=0, extra={"evaluate": evaluate, "counts": {}})
    return path
