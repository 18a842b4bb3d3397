"""The trainer on tiny models: sums, checks, records, refusals."""

from __future__ import annotations

import gc
import logging
import math
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_runs import make_rows, run, weights

from prefloop.config import DpoObjectiveSection, LoraSection, MergeSection, ModelSection
from prefloop.engine.load import load_model
from prefloop.errors import PrefloopError, UsageError
from prefloop.train import adapters
from prefloop.train.precision import Precision
from prefloop.train.reference import Reference
from prefloop.train.rhythm import Plan
from prefloop.train.run import merge
from prefloop.train.trainer import start_tolerance
from tiny_models import copy_tiny_model, tiny_model_folder

ARCHITECTURES = ("llama", "qwen3", "mistral", "gemma3", "gpt_neox")
CPU = torch.device("cpu")


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[k] - b[k]).abs().max()) for k in a)


def test_the_cut_of_a_batch_does_not_matter(tmp_path: Path) -> None:
    """Rows with weights and margins, 13 pairs: the last step of an epoch has 5 pairs in uneven micro-batches."""
    rows = make_rows(13, weights=True, margins=True)
    losses, trained = [], []
    for micro in (8, 2):
        records: list[dict[str, Any]] = []
        out = tmp_path / f"micro{micro}"
        run(
            out,
            tiny_model_folder("llama"),
            rows,
            lora=False,
            batch_size=8,
            micro_batch_size=micro,
            epochs=2,
            learning_rate=1e-4,
            records=records,
        )
        losses.append([r["loss"] for r in records])
        trained.append(weights(out))
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert distance(*trained) < 1e-6
    assert distance(trained[0], load_file(tiny_model_folder("llama") / "model.safetensors")) > 1e-5, (
        "something was learnt"
    )


def test_a_batch_is_the_sum_of_its_parts(tmp_path: Path) -> None:
    """The recorded loss is sum(w l) / n: with policy = reference, ln 2 times the mean weight."""
    rows = make_rows(6, weights=True)
    records: list[dict[str, Any]] = []
    run(tmp_path / "t", tiny_model_folder("llama"), rows, batch_size=6, micro_batch_size=1, records=records)
    mean_weight = sum(r["weight"] or 0 for r in rows) / 6
    assert records[0]["loss"] == pytest.approx(math.log(2) * mean_weight, abs=1e-6)


def test_equal_seeds_give_equal_weights(tmp_path: Path) -> None:
    model = tiny_model_folder("llama")
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.manual_seed(hash(name))
        run(tmp_path / name, model, seed=seed, lora=LoraSection(r=2, dropout=0.2))
    a, b, c = (weights(tmp_path / name) for name in "abc")
    assert distance(a, b) == 0
    assert distance(a, c) > 0
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "a" / "adapter" / file).read_bytes() == (tmp_path / "b" / "adapter" / file).read_bytes()


@pytest.mark.parametrize("margins", [False, True])
def test_the_first_loss_is_the_formulas(margins: bool, tmp_path: Path) -> None:
    rows = make_rows(4, margins=margins)
    records: list[dict[str, Any]] = []
    run(tmp_path / "t", tiny_model_folder("llama"), rows, records=records)
    expected = sum(math.log1p(math.exp(0.1 * (r["margin"] or 0))) for r in rows) / 4
    assert records[0]["loss"] == pytest.approx(expected, abs=1e-6)
    assert margins or expected == pytest.approx(math.log(2))


def test_a_wrong_reference_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """0.2 nats on one side move the loss by 0.01: far above rounding, invisible in a curve."""
    original = Reference.compute

    def wrong(self: Reference, *args: Any) -> None:
        original(self, *args)
        for part in self._examples:
            if part.reference is not None:
                part.reference[::2] -= 0.2

    monkeypatch.setattr(Reference, "compute", wrong)
    with pytest.raises(PrefloopError, match=r"does not start from its reference.*0\.68\d+, and 0\.6931") as error:
        run(tmp_path / "t", tiny_model_folder("llama"))
    assert "dropout" in str(error.value)
    assert not (tmp_path / "t" / "adapter").exists()


def test_tolerance_of_the_first_loss() -> None:
    assert start_tolerance(Precision(CPU, torch.float32), 0.05, 4000) == pytest.approx(1e-3)
    assert start_tolerance(Precision(CPU, torch.bfloat16), 0.05, 100) == pytest.approx(1e-3 + 0.03)


@pytest.mark.parametrize("lora", [True, False])
def test_dropout_of_the_model_is_off(lora: bool, tmp_path: Path) -> None:
    """With it on, the first loss would not be ln 2 and the run would stop."""
    model = copy_tiny_model(tmp_path / "m", "gpt_neox", attention_dropout=0.5, hidden_dropout=0.5)
    records: list[dict[str, Any]] = []
    run(tmp_path / "t", model, lora=LoraSection(r=2) if lora else None, records=records)
    assert records[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    policy = load_model(ModelSection(path=str(model), device="cpu")).train()
    ids = torch.arange(10, 30)[None]
    assert not torch.equal(policy(ids).logits, policy(ids).logits)
    adapters.switch_off_dropout(policy)
    assert torch.equal(policy(ids).logits, policy(ids).logits)


def test_a_loss_that_is_not_finite_names_its_rows(tmp_path: Path) -> None:
    rows = make_rows(8)
    rows[5]["margin"] = 1e30  # its square is beyond float32
    with pytest.raises(PrefloopError, match=f"loss is not finite at step . *; rows {rows[5]['id']}\n.*learning_rate"):
        run(tmp_path / "t", tiny_model_folder("llama"), rows, objective={"kind": "ipo"})


def test_a_gradient_that_is_not_finite_stops_before_the_step(tmp_path: Path) -> None:
    """The row's loss, ln 2, and its weight are finite, but not the slope of their product, weight times beta."""
    rows = make_rows(8)
    rows[5]["weight"] = 1e30
    with pytest.raises(PrefloopError, match=r"gradient is not finite at step \d") as error:
        run(tmp_path / "t", tiny_model_folder("llama"), rows, micro_batch_size=4, objective={"beta": 1e10})
    assert rows[5]["id"] in str(error.value)


def test_records(tmp_path: Path) -> None:
    records: list[dict[str, Any]] = []
    result = run(tmp_path / "t", tiny_model_folder("llama"), make_rows(12), validation=make_rows(5, seed=1), epochs=2,
                 records=records)  # fmt: skip
    assert [(r["kind"], r["step"]) for r in records] == [
        ("validation", 0), ("train", 1), ("train", 2), ("train", 3), ("validation", 3),
        ("train", 4), ("train", 5), ("train", 6), ("validation", 6),
    ]  # fmt: skip
    shared = {
        "kind", "step", "epoch", "loss", "rewards/chosen", "rewards/rejected", "rewards/margins",
        "rewards/accuracies", "logps/chosen", "logps/rejected", "kl", "padding",
    }  # fmt: skip
    assert set(records[0]) == shared
    assert set(records[1]) == shared | {"grad_norm", "learning_rate", "tokens_per_second", "utilisation"}
    assert records[3]["epoch"] == 1.0
    assert all(isinstance(v, (int, float, str)) and v == v for r in records for v in r.values())
    last = records[-2]
    assert last["rewards/margins"] == pytest.approx(last["rewards/chosen"] - last["rewards/rejected"])
    assert result["first_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert result["validation"]["after"]["loss"] == records[-1]["loss"] < records[0]["loss"]
    assert (result["steps"], result["pairs"], result["validation_pairs"]) == (6, 12, 5)


def test_records_between_steps_are_averages(tmp_path: Path) -> None:
    """logging_steps 3 over 4 steps: one record of three steps, one of the last alone."""
    each: list[dict[str, Any]] = []
    some: list[dict[str, Any]] = []
    run(tmp_path / "a", tiny_model_folder("llama"), make_rows(16), records=each)
    run(tmp_path / "b", tiny_model_folder("llama"), make_rows(16), records=some, logging_steps=3)
    assert [r["step"] for r in some] == [3, 4]
    for name in ("loss", "logps/chosen", "rewards/margins"):
        assert some[0][name] == pytest.approx(sum(r[name] for r in each[:3]) / 3, abs=1e-5)
        assert some[1][name] == pytest.approx(each[3][name], abs=1e-6)


def test_validation_does_not_depend_on_batches(tmp_path: Path) -> None:
    """5 pairs in batches of 2 and of 5: the mean is over pairs."""
    values = []
    for micro in (1, 2, 4):
        records: list[dict[str, Any]] = []
        run(tmp_path / str(micro), tiny_model_folder("llama"), make_rows(4), micro_batch_size=micro,
            validation=make_rows(5, seed=1, weights=True), records=records)  # fmt: skip
        values.append([records[0]["loss"], records[0]["logps/chosen"]])
    assert values[0] == pytest.approx(values[1], abs=1e-5)
    assert values[0] == pytest.approx(values[2], abs=1e-5)


def test_warm_up_that_never_ends_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "prefloop"):
        run(tmp_path / "t", tiny_model_folder("llama"), make_rows(4))
    assert "warm-up takes all 1 steps" in caplog.text


def test_plan() -> None:
    plan = Plan.of(10, 4, 1.5, 0.1, log=1, save=5, validate=True)
    assert (plan.epoch, plan.total, plan.warmup) == (3, 5, 1)
    assert Plan.of(10, 4, 1.5, 0.1, log=1, save=5, validate=True, warmup_steps=3).warmup == 3
    assert Plan.of(1, 8, 0.1, 0.0, log=1, save=5, validate=False).total == 1


def test_half_an_epoch_more(tmp_path: Path) -> None:
    """1.5 epochs end in the middle of the second, with a validation."""
    records: list[dict[str, Any]] = []
    run(tmp_path / "t", tiny_model_folder("llama"), make_rows(16), validation=make_rows(2, seed=1), epochs=1.5,
        records=records)  # fmt: skip
    assert [r["step"] for r in records if r["kind"] == "validation"] == [0, 4, 6]
    assert records[-1]["epoch"] == 1.5


@pytest.mark.parametrize("lora", [True, False])
def test_gradient_checkpointing_changes_nothing(lora: bool, tmp_path: Path) -> None:
    for name, on in (("a", False), ("b", True)):
        run(tmp_path / name, tiny_model_folder("llama"), lora=lora, gradient_checkpointing=on)
    assert distance(weights(tmp_path / "a"), weights(tmp_path / "b")) < 1e-6


@pytest.mark.parametrize("lora", [True, False])
def test_bfloat16_trains_float32_weights(lora: bool, tmp_path: Path) -> None:
    records: list[dict[str, Any]] = []
    model = tiny_model_folder("llama", spread=2.0)
    run(tmp_path / "t", model, lora=lora, dtype="bfloat16", epochs=4, records=records)
    assert {w.dtype for w in weights(tmp_path / "t").values()} == {torch.float32}
    assert records[0]["loss"] == pytest.approx(math.log(2), abs=0.03)
    assert records[-1]["loss"] < records[0]["loss"] - 0.02


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("lora", [True, False])
def test_architectures(arch: str, lora: bool, tmp_path: Path) -> None:
    records: list[dict[str, Any]] = []
    run(tmp_path / "t", tiny_model_folder(arch), make_rows(4), lora=lora, warmup_ratio=0.0, epochs=2, records=records)
    assert records[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert records[1]["loss"] < records[0]["loss"]


def test_label_smoothing_reaches_the_loss(tmp_path: Path) -> None:
    records: dict[float, list[dict[str, Any]]] = {0.0: [], 0.3: []}
    for smoothing, kept in records.items():
        run(tmp_path / str(smoothing), tiny_model_folder("llama"), lora=False, epochs=2, records=kept,
            objective=DpoObjectiveSection(label_smoothing=smoothing))  # fmt: skip
    assert records[0.3][0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert records[0.3][-1]["rewards/margins"] < records[0.0][-1]["rewards/margins"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "float16"}, "float16 is not supported"),
        ({"lora": LoraSection(target_modules=["q_proj", "lm_head"])}, "output head is no target"),
        ({"lora": LoraSection(target_modules=["nothing"])}, "no LoRA with target_modules"),
    ],
)
def test_refusals(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        run(tmp_path / "t", tiny_model_folder("llama"), **settings)


@pytest.mark.parametrize("lora", [True, False])
def test_a_trained_model_is_freed(lora: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two models do not fit where one does: what a training or merge loaded must be gone when it returns."""
    loaded: list[weakref.ref[Any]] = []

    def noted(section: ModelSection, quantize: str | None = None) -> Any:
        model = load_model(section, quantize)
        loaded.append(weakref.ref(model.get_input_embeddings().weight))
        return model

    base = tiny_model_folder("llama")
    monkeypatch.setattr("prefloop.train.run.load_model", noted)
    monkeypatch.setattr("prefloop.train.adapters.load_model", noted)
    gc.disable()  # or it might come by on its own, and hide that nobody called it
    try:
        run(tmp_path / "t", base, make_rows(4), lora=lora)
        merge(ModelSection(path=str(base), device="cpu"), tmp_path / "t", tmp_path / "merged", MergeSection())
        assert [model() for model in loaded] == [None, None]
    finally:
        gc.enable()


@pytest.mark.parametrize(("lora", "base"), [(True, "bfloat16"), (False, "float32")])
def test_the_references_key_says_how_the_base_was_held(lora: bool, base: str, tmp_path: Path) -> None:
    result = run(tmp_path / "t", tiny_model_folder("llama", spread=2.0), make_rows(4), lora=lora, dtype="bfloat16")
    assert (result["reference"]["dtype"], result["reference"]["weights"]) == ("bfloat16", base)


def test_the_precision_is_the_models_whatever_accelerate_was_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference and its key go by `model.dtype`; a configuration of accelerate would cast the policy alone."""
    settings: dict[str, Any] = {"lora": False, "epochs": 2}
    run(tmp_path / "a", tiny_model_folder("llama", spread=2.0), **settings)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    run(tmp_path / "b", tiny_model_folder("llama", spread=2.0), **settings)
    assert distance(weights(tmp_path / "a"), weights(tmp_path / "b")) == 0
