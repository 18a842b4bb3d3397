"""A run directory as the loop leaves it, with made-up numbers: what the report's tests and its author look at."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

from prefloop.store.rundir import RunDir

HOSTILE = '<script>alert("x")</script><img src=x onerror=alert(1)> & {{ 7 * 7 }} [bold]'
NAMES = ("prompts", "heldout", "sample", "rate", "pair", "train", "merge", "evaluate", "report")


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def assistant(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def completion(name: str, text: str) -> dict[str, Any]:
    return {"id": name, "text": text, "token_ids": [1, 2, 3], "finish_reason": "stop", "sample_index": 0}


def scored(name: str, prompt: str, texts: list[str], scores: list[float | None]) -> dict[str, Any]:
    completions = [completion(f"{name}-{i}", text) for i, text in enumerate(texts)]
    return {
        "id": name,
        "prompt": user(prompt),
        "completions": completions,
        "scores": scores,
        "signal": "judge-pointwise@0a1b2c3d",
        "evidence": [],
    }


def pair(name: str, rng: random.Random) -> dict[str, Any]:
    good, bad = rng.gauss(4.1, 0.4), rng.gauss(2.3, 0.7)
    return {
        "id": name,
        "prompt_id": name,
        "prompt": user("Where does Ada live?"),
        "chosen": assistant("Happy to help! " + "Ada lives in Oslo. " * rng.randint(1, 4)),
        "rejected": assistant("Ugh. Look it up yourself. " * rng.randint(1, 3)),
        "score_chosen": good,
        "score_rejected": min(bad, good - 0.1),
        "weight": None,
        "margin": None,
        "label": None,
        "source": "judge",
        "strategy": "best_worst",
        "chosen_id": name + "c",
        "rejected_id": name + "r",
        "chosen_finish": "stop",
        "rejected_finish": "stop",
        "evidence": [],
    }


def metric(step: int, steps: int, round_number: int, rng: random.Random) -> dict[str, Any]:
    done = step / steps
    margin = 2.4 * (1 - math.exp(-3 * done)) + rng.gauss(0, 0.12)
    return {
        "round": round_number,
        "kind": "train",
        "step": step,
        "loss": math.log1p(math.exp(-margin)) + abs(rng.gauss(0, 0.02)),
        "rewards/chosen": 0.55 * margin + rng.gauss(0, 0.06),
        "rewards/rejected": -0.45 * margin + rng.gauss(0, 0.06),
        "rewards/margins": margin,
        "rewards/accuracies": min(1.0, 0.5 + 0.48 * (1 - math.exp(-4 * done)) + rng.gauss(0, 0.02)),
        "logps/chosen": -28 + 5.5 * margin + rng.gauss(0, 1),
        "logps/rejected": -31 - 4.5 * margin + rng.gauss(0, 1),
        "learning_rate": 5e-4 * (1 - done),
    }


def difference(value: float, half: float) -> dict[str, float]:
    return {"value": value, "ci_low": value - half, "ci_high": value + half}


EVALUATE: dict[str, Any] = {
    "win_rate": {
        **{"value": 0.8712, "ci_low": 0.845, "ci_high": 0.896, "n": 1000},
        **{"wins": 861, "losses": 119, "ties": 20, "identical": 12, "nulls": 3},
        **{"longer_wins": 0.58, "consistency": 0.93, "first_seat": {"value": 0.53, "ci_low": 0.51, "ci_high": 0.55}},
    },
    "lengths": {
        "base": {"chars": 41.2, "tokens": 11.4, "truncated": 0.002},
        "aligned": {"chars": 47.9, "tokens": 12.6, "truncated": 0.0},
    },
    "sandbox": {
        "kindness": {"base": 0.412, "aligned": 0.957, "n": 1000, "difference": difference(0.545, 0.03)},
        "correctness": {"base": 0.573, "aligned": 0.641, "n": 1000, "difference": difference(0.068, 0.035)},
        "mistake": {
            "base": 0.31,
            "aligned": 0.11,
            "n": 640,
            "difference": difference(-0.2, 0.02),
            "lower_is_better": True,
        },
        "meaning_kept": {"base": 0.9, "aligned": 0.861, "n": 980, "difference": difference(-0.039, 0.02)},
    },
}


JUDGED: dict[str, float] = {
    **{"verdicts": 1976, "nulls": 6, "label_mass": 1940.0, "pairs": 988, "null_pairs": 3, "consistent": 916},
    **{"first_decided": 1970, "first_wins": 1044, "longer_decided": 900, "longer_wins": 522},
}


def manifest(name: str, names: tuple[str, ...]) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "prompts": {"content": "9f" * 32},
        "heldout": {"content": "3a" * 32},
        "evaluate": {"base": {"weights": "c4" * 32}},
    }
    return {
        "name": name,
        "recipe": {
            "name": name,
            "model": {"path": "sandbox", "dtype": "auto"},
            "prompts": {"path": "sandbox:questions/train", "limit": 1000},
            "seed": 0,
            "rate": {"type": "judge", "mode": "pointwise"},
            "train": {"objective": {"type": "dpo", "beta": 0.1}},
            "evaluate": {"judge": None, "side_by_side": 6},
        },
        "command": ["prefloop", "run", name, "--out", f"runs/{name}", "train.learning_rate=5e-4"],
        "created": "2026-01-02T03:04:05+00:00",
        "seed": 0,
        "versions": {"prefloop": "0.1.0", "python": "3.11.7", "torch": "2.13.0", "transformers": "5.23.0"},
        "machine": {"platform": "Linux-6.1-x86_64", "cores": 2},
        "devices": {},
        "stages": [
            {
                **{"number": i, "name": n, "verb": verb(n), "round": round_of(n)},
                **{"fingerprint": fingerprint(n), "settings": settings.get(n, {})},
            }
            for i, n in enumerate(names, 1)
        ],
    }


def verb(name: str) -> str:
    return name.rpartition("-")[2]


def round_of(name: str) -> int:
    return int(name[1 : name.index("-")]) if "-" in name else 1


def fingerprint(name: str) -> str:
    return f"fingerprint of {name}"


def tags(name: str) -> dict[str, str]:
    """What the loop writes with every metric and with its events of kind warning, model_loaded and usage."""
    return {"stage": name, "fingerprint": fingerprint(name)}


def write_run(path: Path, *, until: str = "evaluate", rounds: int = 1, hostile: bool = False) -> Path:
    """Write a run that went as far as `until` (a stage's name) in its last round."""
    rng = random.Random(0)
    names = NAMES[:-1] + tuple(f"r{r}-{n}" for r in range(2, rounds + 1) for n in NAMES[2:-1]) + NAMES[-1:]
    with RunDir.open(path) as run:
        run.write_manifest(manifest(HOSTILE if hostile else "quickstart", names))
        run.event("model_loaded", path="sandbox", device="cpu", **tags("sample"))
        for number, name in enumerate(names[:-1], 1):
            stage = run.stage(number, name)
            stage.begin(fingerprint(name))
            _stage(run, stage, rng, hostile)
            if name == until:
                break
    return path


def _stage(run: RunDir, stage: Any, rng: random.Random, hostile: bool) -> None:
    done, box = fingerprint(stage.name), verb(stage.name)
    text = HOSTILE if hostile else "Of course! Ada lives in Oslo.\nIs there anything else?"
    if box in ("prompts", "heldout"):
        rows = [{"id": f"p{i}", "prompt": user(f"Where is {i}?"), "source_id": None} for i in range(90)]
        lost = [
            {"id": f"x{i}", "stage": box, "reason": "duplicate prompt", "attempts": 1, "row": "{}"} for i in range(3)
        ]
        stage.write_part(0, rows, "prompts", rejects=lost)
        stage.finish(done, rows_in=93)
    elif box == "sample":
        rows = [
            {k: v for k, v in scored(f"p{i}", "q", ["a"] * 5, []).items() if k in ("id", "prompt", "completions")}
            for i in range(90)
        ]
        stage.write_part(0, rows, "candidates", counts={"answers": 450, "cut_off": 2, "tokens": 5320})
        stage.finish(done, rows_in=90)
    elif box == "rate":
        rows = [scored(f"p{i}", "q", ["a"] * 5, [rng.gauss(3.2, 0.9) for _ in range(4)] + [None]) for i in range(90)]
        counts = {"answers": 450, "unscored": 90, "verdicts": 450, "nulls": 4, "label_mass": 440.0}
        stage.write_part(0, rows, "scored", counts=counts)
        stage.finish(done, rows_in=90)
    elif box == "pair":
        lost = [
            {"id": f"x{i}", "stage": box, "reason": r, "attempts": 1, "row": "{}"}
            for i, r in enumerate(["all scores equal"] * 5 + ["gap below min_gap"] * 2)
        ]
        stage.write_part(0, [pair(f"p{i}", rng) for i in range(83)], "preference", rejects=lost)
        stage.finish(done, rows_in=90)
    elif box == "train":
        for step in range(1, 121):
            record = metric(step, 120, round_of(stage.name), rng) | tags(stage.name)
            run.metric(**record)
            if step % 40 == 0:
                run.metric(**record | {"kind": "validation"})
        (stage.path / "adapter.safetensors").write_bytes(b"weights")
        stage.finish_files(done, extra={"steps": 120, "pairs": 77, "rejected": {"longer than max_length": 2}})
    elif box == "merge":
        (stage.path / "config.json").write_text("{}")
        stage.finish_files(done)
    else:
        rows = [
            scored(
                f"p{i}",
                text if hostile else f"Where does Ada live, and with whom ({i})?",
                ["Ugh, look it up. Lima.", text],
                [0.2, 0.8] if i % 5 else [0.6, 0.4],
            )
            for i in range(40)
        ]
        stage.write_part(0, rows, "scored")
        stage.finish(done, rows_in=40, extra={"evaluate": EVALUATE, "counts": JUDGED})
