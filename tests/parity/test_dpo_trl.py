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
from prefloop.train.data import EpochSampler, encode_pairs
from tiny_models import tiny_model_folder

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
from training_runs import make_rows, run

trl = pytest.importorskip("trl")

ROWS, EPOCHS, SEED, BATCH, MICRO = 16, 2, 7, 4, 2
LORA = LoraSection(r=4, alpha=8)
NAMES = ("loss", "grad_norm", "learning_rate", "rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen")


def in_order(rows: list[Any]) -> list[Any]:
    """The rows as our sampler gives them, epoch after epoch."""
    sampler, order = EpochSampler(len(rows), SEED), []
    for sampler.epoch in range(EPOCHS):
        order += [rows[i] for i in sampler]
    return order


def train_with_trl(folder: Path, model: Path, rows: list[Any], *, lora: bool, **settings: Any) -> Any:
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    trainer = trl.DPOTrainer(
        model=policy,
        args=trl.DPOConfig(
            output_dir=str(folder),
            num_train_epochs=1,
            per_device_train_batch_size=MICRO,
            gradient_accumulation_steps=BATCH // MICRO,
            learning_rate=1e-3,
            lr_scheduler_type="linear",
            warmup_steps=1,
            max_grad_norm=1.0,
            beta=0.1,
            logging_steps=1,
            train_sampling_strategy="sequential",
            save_strategy="no",
            report_to="none",
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            disable_tqdm=True,
            max_length=None,
            **settings,
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


@pytest.mark.parametrize("lora", [False, True])
def test_trajectory(lora: bool, tmp_path: Path) -> None:
    """8 optimiser steps of 2 x 2 pairs in float32: every step within 1e-5."""
    rows, model = make_rows(ROWS), tiny_model_folder("llama", spread=4.0)
    theirs = train_with_trl(tmp_path / "trl", model, in_order(rows), lora=lora)

    section = ModelSection(path=str(model), device="cpu")
    tokenizer = load_tokenizer(section)
    end = end_of_turn_ids(tokenizer)[0]
    for pair, example in zip(encode_pairs(in_order(rows), tokenizer, end, 999)[0], theirs.train_dataset, strict=True):
        assert list(pair.prompt_ids) == example["prompt_ids"]
        assert list(pair.chosen_ids) == example["chosen_ids"]
        assert list(pair.rejected_ids) == example["rejected_ids"]

    theirs.train()
    records: list[dict[str, Any]] = []
    run(tmp_path / "t", model, rows, lora=LORA if lora else None, seed=SEED, epochs=EPOCHS, batch_size=BATCH,
        micro_batch_size=MICRO, warmup_ratio=0.1, learning_rate=1e-3, max_length=999, records=records)  # fmt: skip
    expected = [h for h in theirs.state.log_history if "loss" in h]
    assert len(records) == len(expected) == ROWS // BATCH * EPOCHS
    for ours, other in zip(records, expected, strict=True):
        for name in NAMES:
            assert ours[name] == pytest.approx(other[name], abs=1e-5, rel=1e-5), (name, ours["step"])
    assert records[-1]["loss"] < records[0]["loss"] - 0.02, "the policy moved"

    theirs.model.save_pretrained(tmp_path / "theirs")
    (file,) = (tmp_path / "t").glob("*/*.safetensors")
    other_weights = load_file(tmp_path / "theirs" / file.name)
    for name, value in load_file(file).items():
        assert torch.allclose(value, other_weights[name], atol=1e-5), name
