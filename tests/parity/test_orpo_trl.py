"""Against TRL 1.16's ORPOTrainer: same rows, order and start; losses and weights agree.

TRL's likelihood term is over prompt and answer and averaged over the batch's tokens, the paper's over the answer; here
TRL's trainer is given the paper's, from its own mean log-probabilities of the chosen answers.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefloop.train.steps import permutation
from tiny_models import tiny_model_folder

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
from training_runs import make_rows, run

orpo = pytest.importorskip("trl.experimental.orpo")

ROWS, EPOCHS, SEED, BATCH, MICRO = 40, 2, 7, 4, 2


class AnswersAlone(orpo.ORPOTrainer):  # type: ignore[misc]
    """The likelihood term is that of the answer."""

    def concatenated_forward(self, model: Any, batch: Any) -> Any:
        chosen, rejected, chosen_logits, rejected_logits, _ = super().concatenated_forward(model, batch)
        return chosen, rejected, chosen_logits, rejected_logits, -chosen.mean()


def test_trajectory(tmp_path: Path) -> None:
    """20 optimiser steps of 4 pairs in float32: every loss within 1e-5."""
    rows, model = make_rows(ROWS), tiny_model_folder("llama", spread=4.0)
    order = [rows[i] for epoch in range(EPOCHS) for i in permutation(ROWS, SEED, epoch)]
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.eos_token = "<|eot|>"  # or TRL would put another end behind the turn's
    theirs = AnswersAlone(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        args=orpo.ORPOConfig(
            output_dir=str(tmp_path / "trl"),
            num_train_epochs=1,
            per_device_train_batch_size=MICRO,
            gradient_accumulation_steps=BATCH // MICRO,
            learning_rate=1e-3,
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
            max_length=999,
            beta=0.5,
        ),
        train_dataset=Dataset.from_list([{k: r[k] for k in ("prompt", "chosen", "rejected")} for r in order]),
        processing_class=tokenizer,
    )
    theirs.train()
    records: list[dict[str, Any]] = []
    run(tmp_path / "t", model, rows, lora=None, seed=SEED, epochs=EPOCHS, batch_size=BATCH, micro_batch_size=MICRO,
        warmup_ratio=0.05, learning_rate=1e-3, max_length=999,
        objective={"type": "orpo", "odds_weight": 0.5}, records=records)  # fmt: skip
    expected = [h for h in theirs.state.log_history if "loss" in h]
    assert len(records) == len(expected) == 20
    for ours, other in zip(records, expected, strict=True):
        assert ours["loss"] == pytest.approx(other["loss"], abs=1e-5, rel=1e-5), ours["step"]
        assert ours["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4), ours["step"]
    assert records[-1]["rewards/margins"] > records[0]["rewards/margins"] + 0.01, "the policy moved"
    theirs.model.save_pretrained(tmp_path / "theirs")
    (file,) = (tmp_path / "t").glob("*/*.safetensors")
    other_weights = load_file(tmp_path / "theirs" / file.name)
    for name, value in load_file(file).items():
        assert torch.allclose(value, other_weights[name], atol=1e-5), name
