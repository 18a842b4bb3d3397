"""Against TRL 1.16's KTOTrainer and SFTTrainer: same rows, order and start; losses and weights agree."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefloop.engine.tokens import end_of_turn_ids
from prefloop.train.encode import Encoder, Example
from prefloop.train.steps import permutation
from tiny_models import tiny_model_folder

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
from training_runs import make_rows, run

trl = pytest.importorskip("trl")

EPOCHS, SEED, BATCH = 2, 7, 4
SHARED: dict[str, Any] = {
    "num_train_epochs": 1,
    "per_device_train_batch_size": BATCH,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "linear",
    "warmup_steps": 1,
    "max_grad_norm": 1.0,
    "logging_steps": 1,
    "train_sampling_strategy": "sequential",
    "save_strategy": "no",
    "report_to": "none",
    "bf16": False,
    "gradient_checkpointing": False,
    "use_cpu": True,
    "disable_tqdm": True,
    "max_length": 999,
}


def in_order(rows: list[Any], model: Path, takes: Any) -> list[Example]:
    """The examples as our sampler gives them, epoch after epoch."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    encoder = Encoder(tokenizer, end_of_turn_ids(tokenizer)[0], 999, takes)
    examples = [e for _, found in encoder(rows) if isinstance(found, list) for e in found]
    return [examples[i] for epoch in range(EPOCHS) for i in permutation(len(examples), SEED, epoch)]


def compare(theirs: Any, model: Path, rows: list[Any], objective: str, folder: Path) -> None:
    theirs.train()
    records: list[dict[str, Any]] = []
    run(folder / "t", model, rows, lora=None, seed=SEED, epochs=EPOCHS, batch_size=BATCH, micro_batch_size=BATCH,
        warmup_ratio=0.05, learning_rate=1e-3, max_length=999, objective=objective, records=records)  # fmt: skip
    expected = [h for h in theirs.state.log_history if "loss" in h]
    assert len(records) == len(expected) == 20
    for ours, other in zip(records, expected, strict=True):
        assert ours["loss"] == pytest.approx(other["loss"], abs=1e-5, rel=1e-5), ours["step"]
        assert ours["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4), ours["step"]
    theirs.model.save_pretrained(folder / "theirs")
    (file,) = (folder / "t").glob("*/*.safetensors")
    start, other_weights = load_file(model / "model.safetensors"), load_file(folder / "theirs" / file.name)
    for name, value in load_file(file).items():
        assert torch.allclose(value, other_weights[name], atol=1e-5), name
    assert max(float((v - start[k]).abs().max()) for k, v in load_file(file).items()) > 1e-3, "the policy moved"


def test_kto(tmp_path: Path) -> None:
    """20 steps of 4 answers. TRL gets our strangers: its own come from the batch and may answer the same prompt."""
    rows, model = make_rows(20), tiny_model_folder("llama", spread=4.0)
    examples = in_order(rows, model, "unpaired")
    by_id = {
        f"{r['id']}/{side}": (r["prompt"], r[side], side == "chosen") for r in rows for side in ("chosen", "rejected")
    }
    table = [dict(zip(("prompt", "completion", "label"), by_id[e.id], strict=True)) for e in examples]
    theirs = trl.KTOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        ref_model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        args=trl.KTOConfig(output_dir=str(tmp_path / "trl"), beta=0.1, **SHARED),
        train_dataset=Dataset.from_list(table),
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    own = theirs.train_dataset
    assert [list(e.prompt_ids) for e in examples] == list(own["prompt_ids"])
    assert [list(e.responses[0]) for e in examples] == list(own["completion_ids"])
    strangers = [list(e.responses[1]) for e in examples]
    theirs.train_dataset = own.remove_columns("KL_completion_ids").add_column("KL_completion_ids", strangers)
    compare(theirs, model, rows, "kto", tmp_path)


def test_sft(tmp_path: Path) -> None:
    """20 steps of 4 demonstrations, every token of a step alike."""
    rows, model = make_rows(40), tiny_model_folder("llama", spread=4.0)
    by_id = {r["id"]: {"prompt": r["prompt"], "completion": r["chosen"]} for r in rows}
    theirs = trl.SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        args=trl.SFTConfig(output_dir=str(tmp_path / "trl"), completion_only_loss=True, **SHARED),
        train_dataset=Dataset.from_list([by_id[e.id] for e in in_order(rows, model, "answers")]),
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    compare(theirs, model, rows, "sft", tmp_path)
