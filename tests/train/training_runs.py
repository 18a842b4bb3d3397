"""Preference rows and runs for the training tests."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from prefloop.config import LoraSection, ModelSection, TrainSection
from prefloop.records import JudgmentRow, PreferenceRow, content_id, prompt_id
from prefloop.store.cache import Cache
from prefloop.train.run import Source, train

TEXT = "the kind brown fox help please yes of course Paris France city world hello one two three lazy dog"


def make_rows(n: int, *, seed: int = 0, weights: bool = False, margins: bool = False) -> list[PreferenceRow]:
    """n pairs with random short texts; prompts all differ."""
    draw = random.Random(seed)

    words = TEXT.split()

    def text(low: int, high: int) -> str:
        return " ".join(draw.choices(words, k=draw.randint(low, high)))

    rows: list[PreferenceRow] = []
    for i in range(n):
        prompt = [{"role": "user", "content": f"{text(1, 6)} {seed}.{i}"}]
        rows.append(
            {
                "id": content_id("pair", seed, i),
                "prompt_id": prompt_id(prompt),
                "prompt": prompt,
                "chosen": [{"role": "assistant", "content": text(1, 8)}],
                "rejected": [{"role": "assistant", "content": text(1, 8) + " not"}],
                "score_chosen": 1.0,
                "score_rejected": 0.0,
                "weight": draw.uniform(0.2, 2.0) if weights else None,
                "margin": draw.uniform(-8, 8) if margins else None,
                "label": None,
                "source": "test",
                "strategy": "best_worst",
                "chosen_id": f"c{i}",
                "rejected_id": f"r{i}",
                "chosen_finish": "stop",
                "rejected_finish": "stop",
                "evidence": [],
            }
        )
    return rows


def make_judged(n: int, *, seed: int = 0, weights: bool = False, share: float = 0.6) -> list[JudgmentRow]:
    """n answers, some of them with a judgment; the first has one, the second has none."""
    draw, words = random.Random(seed), TEXT.split()
    rows: list[JudgmentRow] = []
    for i, pair in enumerate(make_rows(n, seed=seed)):
        assert pair["chosen"] is not None
        judged = i == 0 or (i > 1 and draw.random() < share)
        rows.append(
            {
                "id": content_id("judgment", seed, i),
                "prompt_id": pair["prompt_id"],
                "prompt": pair["prompt"],
                "completion": pair["chosen"],
                "judgment": " ".join(draw.choices(words, k=draw.randint(1, 5))) if judged else None,
                "score": None,
                "weight": draw.uniform(0.2, 2.0) if weights else None,
                "source": "test",
                "completion_id": f"c{i}",
                "finish": "stop",
                "evidence": [],
            }
        )
    return rows


def run(
    folder: Path,
    model: Path | str,
    rows: list[Any] | None = None,
    *,
    validation: list[Any] | None = None,
    lora: bool | LoraSection | None = True,
    seed: int = 7,
    dtype: str = "float32",
    records: list[dict[str, Any]] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Train on the CPU below `folder` with small settings; anything of TrainSection may be given."""
    folder.mkdir(parents=True, exist_ok=True)
    values: dict[str, Any] = {
        "lora": LoraSection(r=4, alpha=8, dropout=0.1) if lora is True else lora or None,
        "batch_size": 4,
        "micro_batch_size": 2,
        "learning_rate": 1e-3,
        "max_length": 200,
    }
    with Cache(folder.parent / "cache.db") as cache:
        return train(
            ModelSection(path=str(model), device="cpu", dtype=dtype),  # type: ignore[arg-type]
            Source.of(make_rows(12) if rows is None else rows, validation or []),
            TrainSection(**{**values, **settings}),
            seed=seed,
            out=folder,
            cache=cache,
            on_log=(lambda record: None) if records is None else records.append,
        )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The trained tensors of a training's folder: the adapter's, or all."""
    (file,) = folder.glob("*/*.safetensors")
    return load_file(file)


# 12 steps of 4 pairs (the last of an epoch has 2) in 3 epochs, a checkpoint every fourth; what is random takes part.
RESUME: dict[str, Any] = {
    "rows": make_rows(14, weights=True, margins=True),
    "validation": make_rows(3, seed=1),
    "epochs": 3,
    "save_steps": 4,
}
