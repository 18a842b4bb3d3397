"""The prediction against what a real step keeps, and what follows from the settings."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from prefloop.config import LaunchSection, LoraSection, ModelSection, TrainSection
from prefloop.engine.load import load_model
from prefloop.engine.logprob import attach_scorer, scored_states
from prefloop.engine.sharing import build, check_sharing
from prefloop.train import adapters
from prefloop.train import estimate as module
from prefloop.train.estimate import Estimate, estimate
from prefloop.train.rhythm import Plan
from tiny_models import tiny_model_folder


def predict(arch: str = "llama", rows: Any = ((60, (30, 20)),) * 8, count: int = 800, **settings: Any) -> Estimate:
    model = ModelSection(path=str(tiny_model_folder(arch)), device="cpu")
    return estimate(model, TrainSection(**{"validation_share": 0.0, **settings}), rows, count)


@pytest.mark.parametrize("rows", [[(100, (50, 60))] * 4, [(300, (50, 60))] * 4, [(40, (50,))] * 4, [(400, (40,) * 5)]])
@pytest.mark.parametrize("arch", ["llama", "gemma3", "gpt_neox"])
@pytest.mark.parametrize("lora", [True, False])
def test_activations_are_those_of_a_real_forward_pass(rows: Any, arch: str, lora: bool) -> None:
    """Within a quarter; to a thousandth where every response has its own prompt and the rows are padded."""
    section = ModelSection(path=str(tiny_model_folder(arch)), device="cpu")
    settings = TrainSection(lora=LoraSection() if lora else None)
    policy = attach_scorer(load_model(section))
    sharing = check_sharing(policy)
    if settings.lora is not None:
        policy = adapters.add_lora(policy, settings.lora)
    layout = build([([5] * p, [[6] * r for r in rs]) for p, rs in rows], 0, sharing)
    own = {p.untyped_storage()._cdata for p in policy.parameters()}
    kept: dict[int, Any] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        scored_states(policy.train(), layout)
    real = sum(storage.nbytes() for storage in kept.values())
    hollow = module._hollow(section, settings, torch.float32)
    assert module._kept(hollow, rows, sharing) == pytest.approx(real, rel=0.25)


def test_parameters_and_their_state() -> None:
    whole = sum(p.numel() for p in load_model(ModelSection(path=str(tiny_model_folder("llama")))).parameters())
    full = predict(lora=None)
    assert (full.parameters, full.trainable) == (whole, whole)
    assert (full.weights, full.gradients, full.optimizer) == (4 * whole, 4 * whole, 8 * whole)
    adapter = predict(lora=LoraSection(r=4))
    assert adapter.parameters == whole + adapter.trainable
    assert adapter.gradients == 4 * adapter.trainable
    assert full.peak == full.weights + full.gradients + full.optimizer + full.activations + full.head


def test_a_quantised_base() -> None:
    """Its linear layers but the head, in 4 bits with a byte for each 64 and four for each 16,384."""
    section = ModelSection(path=str(tiny_model_folder("llama")), device="cpu")
    policy = load_model(section)
    linear = {m.weight for m in policy.modules() if isinstance(m, torch.nn.Linear)} - {policy.lm_head.weight}
    packed = sum(weight.numel() for weight in linear)
    hollow = module._hollow(section, TrainSection(lora=LoraSection(r=4)), torch.float32)
    assert module._quantised(hollow) == packed
    assert 2**14 * module.NF4 == 2**13 + 2**8 + 4


def test_steps_are_those_of_the_training() -> None:
    plan = Plan.of(801, 8, 1.01, 0.0, log=1, save=1, validate=False)
    assert predict(count=801, batch_size=8, epochs=1.01).steps == plan.total == 103


def test_less_memory() -> None:
    plain = predict(batch_size=8)
    assert predict(batch_size=8, micro_batch_size=2).activations < plain.activations / 2
    assert predict(batch_size=8, gradient_checkpointing=True).activations < plain.activations
    assert predict(batch_size=8, micro_batch_tokens=170).activations == predict(micro_batch_size=1).activations


def test_processes_share_time_and_where_it_is_sharded_memory() -> None:
    alone = predict(lora=None)
    doubled = predict(lora=None, launch=LaunchSection(config="ddp", processes=2))
    sharded = predict(lora=None, launch=LaunchSection(config="fsdp2", processes=2))
    assert doubled.weights == alone.weights
    assert sharded.weights == alone.weights // 2
    for found in (doubled, sharded):
        assert found.step_seconds[1] == pytest.approx(alone.step_seconds[1] / 2)


def test_time_goes_with_the_rows() -> None:
    short, long = predict(count=800), predict(count=1600)
    assert (short.steps, long.steps) == (100, 200)
    assert long.total_seconds[1] == pytest.approx(2 * short.total_seconds[1])
    assert short.step_seconds[0] < short.step_seconds[1] < short.step_seconds[2]
    assert predict(objective="sft").reference_seconds == (0.0, 0.0, 0.0)
    assert short.validation_seconds == (0.0, 0.0, 0.0)


def test_validation_is_one_pass_before_and_one_after_each_epoch() -> None:
    without, held = predict(count=800), predict(count=800, validation_share=0.2, epochs=3)
    assert held.step_seconds == without.step_seconds
    assert held.reference_seconds[1] == pytest.approx(without.reference_seconds[1] * 1000 / 800)
    assert held.validation_seconds[1] == pytest.approx(4 * without.reference_seconds[1] * 200 / 800)
    assert held.total_seconds[1] == pytest.approx(
        300 * held.step_seconds[1] + held.reference_seconds[1] + held.validation_seconds[1]
    )


@pytest.mark.parametrize(("lora", "more"), [(None, 4 / 3), (LoraSection(), 3 / 2)])
def test_recomputation_takes_the_layers_forward_once_more(lora: LoraSection | None, more: float) -> None:
    """Weights of the trunk dominate here: three passes become four, with an adapter two become three."""
    rows = [(60, (2, 2))] * 8
    plain, again = (predict(rows=rows, lora=lora, gradient_checkpointing=on).step_seconds[1] for on in (False, True))
    assert again / plain == pytest.approx(more, rel=0.06)


def test_ktos_drift_is_a_forward_pass_with_another_answer() -> None:
    rows = [(60, (30, 30))] * 8
    alone, drifting = predict(rows=[(60, (30,))] * 8, objective="sft"), predict(rows=rows, objective="kto")
    scored = predict(rows=[(60, (30,))] * 8, objective="dpo").reference_seconds[1] / 800
    assert drifting.step_seconds[1] == pytest.approx(alone.step_seconds[1] + 8 * scored)
    assert drifting.reference_seconds[1] == pytest.approx(2 * 800 * scored), "the stranger has a reference, too"
    assert drifting.activations == alone.activations


def test_unknown_rows_are_the_longest_there_may_be() -> None:
    unknown = predict(rows=None, max_length=200)
    assert unknown.assumed_rows
    assert unknown.activations > predict(rows=[(60, (30, 20))]).activations
