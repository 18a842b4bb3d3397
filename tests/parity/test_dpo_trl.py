"""Against TRL 1.16's DPOTrainer: same rows, same order, same start; ids, losses, metrics and final weights agree.

TRL is an oracle here and nowhere imported by the package. It loads its reference again from the folder that the model
came from, so the model must be that folder's, unchanged.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefloop.config import LoraSection, ModelSection
from prefloop.engine.load import load_model
from prefloop.engine.tokens import end_of_turn_ids, load_tokenizer
from prefloop.train.adapters import add_lora
from prefloop.train.encode import Encoder
from prefloop.train.shift import RewardShift
from prefloop.train.steps import permutation
from tiny_models import tiny_model_folder

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
from training_runs import make_rows, run

trl = pytest.importorskip("trl")

ROWS, EPOCHS, SEED, BATCH, MICRO = 40, 2, 7, 4, 2
LORA = LoraSection(r=4, alpha=8)
NAMES = ("loss", "grad_norm", "learning_rate", "rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen")


def in_order(rows: list[Any]) -> list[Any]:
    """The rows as our sampler gives them, epoch after epoch."""
    return [rows[i] for epoch in range(EPOCHS) for i in permutation(len(rows), SEED, epoch)]


def train_with_trl(folder: Path, model: Path, rows: list[Any], *, lora: bool, rate: float, **settings: Any) -> Any:
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    trainer = trl.DPOTrainer(
        model=policy,
        args=trl.DPOConfig(
            output_dir=str(folder),
            num_train_epochs=1,
            per_device_train_batch_size=MICRO,
            gradient_accumulation_steps=BATCH // MICRO,
            learning_rate=rate,
            lr_scheduler_type="linear",
            warmup_steps=1,
            max_grad_norm=1.0,
            logging_steps=1,
            train_sampling_strategy="sequential",
            save_strategy="no",
            report_to="none",
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            disable_tqdm=True,
            max_length=None,
            **{"beta": 0.1, **settings},
        ),
        train_dataset=Dataset.from_list([{k: r[k] for k in ("prompt", "chosen", "rejected")} for r in rows]),
        processing_class=AutoTokenizer.from_pretrained(model),
        peft_config=LoraConfig(
            task_type="CAUSAL_LM", r=LORA.r, lora_alpha=LORA.alpha, lora_dropout=0.0, target_modules="all-linear"
        )
        if lora
        else None,
    )
    if lora:
        transformers.set_seed(SEED)
        ours = add_lora(load_model(ModelSection(path=str(model), device="cpu")), LORA).state_dict()
        start = {name: value for name, value in ours.items() if "lora_" in name}
        assert not trainer.model.load_state_dict(start, strict=False).unexpected_keys
    return trainer


# Our objective -> TRL's settings, where both mean the same loss.
LOSSES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sigmoid": ({"type": "dpo"}, {"loss_type": ["sigmoid"]}),
    "sigmoid_norm": ({"type": "dpo", "kind": "sigmoid_norm"}, {"loss_type": ["sigmoid_norm"]}),
    "robust": (
        {"type": "dpo", "kind": "robust", "label_smoothing": 0.2},
        {"loss_type": ["robust"], "label_smoothing": 0.2},
    ),
    "hinge": ({"type": "dpo", "kind": "hinge"}, {"loss_type": ["hinge"]}),
    "ipo": ({"type": "dpo", "kind": "ipo_norm"}, {"loss_type": ["ipo"]}),
    "exo": (
        {"type": "dpo", "kind": "exo", "label_smoothing": 0.01},
        {"loss_type": ["exo_pair"], "label_smoothing": 0.01},
    ),
    "discopop": ({"type": "dpo", "kind": "discopop"}, {"loss_type": ["discopop"]}),
    "nca": ({"type": "nca"}, {"loss_type": ["nca_pair"]}),
    "bco": ({"type": "bco"}, {"loss_type": ["bco_pair"]}),
    "sppo": ({"type": "sppo", "beta": 0.02}, {"loss_type": ["sppo_hard"], "beta": 0.02}),
    "apo_zero": ({"type": "apo_zero"}, {"loss_type": ["apo_zero"]}),
    "apo_down": ({"type": "apo_down"}, {"loss_type": ["apo_down"]}),
}


@pytest.mark.parametrize(
    ("loss", "lora"),
    [("sigmoid", True), *((name, False) for name in LOSSES)],
)
def test_trajectory(loss: str, lora: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """20 optimiser steps of 4 pairs in float32: every step within 1e-5, and so are the weights in the end."""
    if loss == "bco":
        # TRL leaves out the paper's reward shift; tests/train/test_shift.py has a trajectory with it.
        monkeypatch.setattr(RewardShift, "mean", 0.0)
    rows, model = make_rows(ROWS), tiny_model_folder("llama", spread=4.0)
    objective, settings = LOSSES[loss]
    # DiscoPOP bends within a twentieth of a nat; larger steps make a chaos in which rounding grows to 1e-5.
    rate = 2e-4 if loss == "discopop" else 1e-3
    theirs = train_with_trl(tmp_path / "trl", model, in_order(rows), lora=lora, rate=rate, **settings)

    section = ModelSection(path=str(model), device="cpu")
    tokenizer = load_tokenizer(section)
    end = end_of_turn_ids(tokenizer)[0]
    for (_, found), other in zip(
        Encoder(tokenizer, end, 999, "pairs")(in_order(rows)), theirs.train_dataset, strict=True
    ):
        assert isinstance(found, list)
        assert list(found[0].prompt_ids) == other["prompt_ids"]
        assert [list(ids) for ids in found[0].responses] == [other["chosen_ids"], other["rejected_ids"]]

    theirs.train()
    records: list[dict[str, Any]] = []
    run(tmp_path / "t", model, rows, lora=LORA if lora else None, seed=SEED, epochs=EPOCHS, batch_size=BATCH,
        micro_batch_size=MICRO, warmup_ratio=0.05, learning_rate=rate, max_length=999, objective=objective,
        records=records)  # fmt: skip
    expected = [h for h in theirs.state.log_history if "loss" in h]
    assert len(records) == len(expected) == ROWS // BATCH * EPOCHS == 20
    for ours, other in zip(records, expected, strict=True):
        for name in NAMES:
            relative = 1e-4 if name == "grad_norm" else 1e-5
            assert ours[name] == pytest.approx(other[name], abs=1e-5, rel=relative), (name, ours["step"])
    # Not by its sign: DiscoPOP may come to rest on the wrong side (`losses.discopop`).
    assert abs(records[-1]["rewards/margins"] - records[0]["rewards/margins"]) > 0.01, "the policy moved"

    theirs.model.save_pretrained(tmp_path / "theirs")
    (file,) = (tmp_path / "t").glob("*/*.safetensors")
    other_weights = load_file(tmp_path / "theirs" / file.name)
    for name, value in load_file(file).items():
        assert torch.allclose(value, other_weights[name], atol=1e-5), name
