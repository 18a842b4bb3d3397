"""Each objective through the whole trainer: it learns, starts where it must, and obeys weights, margins and labels."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import make_judged, make_rows, run, weights

from prefloop.config import TrainSection
from prefloop.train.objectives import OBJECTIVES, Scored
from tiny_models import tiny_model_folder


def lists(prompts: int, answers: int) -> list[Any]:
    """Every two of the scored answers to each prompt, as `all_pairs` makes them."""
    rows = []
    for number, prompt in enumerate(make_rows(prompts)):
        texts = [r["chosen"] for r in make_rows(answers, seed=100 + number)]
        rows += [
            {**prompt, "id": f"{prompt['id']}-{i}{j}", "chosen": texts[i], "rejected": texts[j],
             "score_chosen": float(-i), "score_rejected": float(-j)}
            for i in range(answers)
            for j in range(i + 1, answers)
        ]  # fmt: skip
    return rows


START: dict[str, float | None] = {
    "dpo": math.log(2),
    "sppo": 2 * (0.5 / 0.1) ** 2,
    "nca": 2 * math.log(2),
    "bco": 2 * math.log(2),
    "apo_zero": 1.0,
    "apo_down": 1.0,
    "kto": 0.5,
    "plackett_luce": math.log(6),
    "simpo": None,
    "orpo": None,
    "cpo": None,
    "sft": None,
    "cut": None,
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_it_starts_at_its_formula_and_learns(name: str, tmp_path: Path) -> None:
    """log 3! is the surprise of an order of three that nothing is known about."""
    makers = {"plackett_luce": lambda n, seed=0: lists(8, 3)[18:] if seed else lists(6, 3), "cut": make_judged}
    make = makers.get(name, make_rows)
    rows = make(12)
    records: list[dict[str, Any]] = []
    run(
        tmp_path / "t",
        tiny_model_folder("llama"),
        rows,
        lora=False,
        objective={"type": name},
        epochs=4,
        learning_rate=3e-4,
        records=records,
        validation=make(3, seed=1),
    )
    trained = [r for r in records if r["kind"] == "train"]
    if START[name] is not None:
        assert trained[0]["loss"] == pytest.approx(START[name], abs=1e-4)
    epochs = [sum(r["loss"] for r in trained[:3]), sum(r["loss"] for r in trained[-3:])]  # the same rows in both
    assert epochs[1] < epochs[0]
    accuracies = [r["rewards/accuracies"] for r in trained if "rewards/accuracies" in r]
    assert not accuracies or sum(accuracies[-3:]) >= sum(accuracies[:3])
    assert all(math.isfinite(v) for r in records for v in r.values() if isinstance(v, float))
    assert {r["kind"] for r in records} == {"train", "validation"}


def test_every_objective_is_a_recipes() -> None:
    for name in OBJECTIVES:
        assert TrainSection.model_validate({"objective": name}).objective.type == name
    assert TrainSection.model_validate({"objective": {"beta": 0.3}}).objective.type == "dpo"


def scored(name: str, **columns: Any) -> tuple[Scored, torch.Tensor]:
    """Two examples at made-up log-probabilities, and the policy's as a leaf."""
    takes = OBJECTIVES[name].takes
    per_row = {"pairs": 2, "answers": 1, "unpaired": 1, "lists": 3}[takes]
    generator = torch.Generator().manual_seed(3)
    size = 2 * per_row
    policy_R = (-3 - 4 * torch.rand(size, generator=generator, dtype=torch.float64)).requires_grad_()
    values: dict[str, Any] = {
        "policy": policy_R,
        "reference": -3 - 4 * torch.rand(size, generator=generator, dtype=torch.float64),
        "tokens": torch.tensor([5, 7, 4, 6, 5, 8][:size]),
        "counts": (per_row,) * 2,
        "weight": torch.ones(2, dtype=torch.float64),
        "margin": torch.zeros(2, dtype=torch.float64),
        "label": torch.ones(2, dtype=torch.float64),
    }
    return Scored(**{**values, **columns}), policy_R


@pytest.mark.parametrize("name", [n for n in OBJECTIVES if n not in ("sft", "plackett_luce", "cut")])
def test_margin_and_label_reach_the_loss_of_their_row_alone(name: str) -> None:
    section = TrainSection.model_validate({"objective": name}).objective
    losses = OBJECTIVES[name].losses
    plain_n = losses(scored(name)[0], section).detach()
    for column, value in (("margin", 1.5), ("label", 0.0)):
        own = {"margin": 0.0, "label": 1.0}[column]
        changed_n = losses(
            scored(name, **{column: torch.tensor([own, value], dtype=torch.float64)})[0], section
        ).detach()
        assert changed_n[0] == plain_n[0]
        assert abs(float(changed_n[1] - plain_n[1])) > 1e-6, column


def test_lists_of_different_lengths_do_not_see_their_padding() -> None:
    section = TrainSection.model_validate({"objective": "plackett_luce"}).objective
    objective = OBJECTIVES["plackett_luce"]

    def of(counts: tuple[int, ...], policy: list[float]) -> Scored:
        values = torch.tensor(policy, dtype=torch.float64)
        ones = torch.ones(len(counts), dtype=torch.float64)
        return Scored(values, torch.zeros_like(values), torch.ones(len(policy)), counts, ones, 0 * ones, ones)

    both = of((4, 2), [3.0, 1.0, 2.0, 0.5, -1.0, 2.0])
    alone = [of((4,), [3.0, 1.0, 2.0, 0.5]), of((2,), [-1.0, 2.0])]
    expected = torch.cat([objective.losses(part, section) for part in alone])
    assert torch.allclose(objective.losses(both, section), expected)
    metrics = objective.metrics(both, section)
    assert metrics["rewards/accuracies"].tolist() == pytest.approx([5 / 6, 0.0]), "one of six orders is wrong"
    assert metrics["rewards/rejected"].tolist() == pytest.approx([0.05, 0.2])


def test_the_likelihood_term_is_the_chosen_answers_per_token() -> None:
    plain = TrainSection.model_validate({"objective": {"type": "dpo"}}).objective
    with_term = TrainSection.model_validate({"objective": {"type": "dpo", "sft_weight": 0.5}}).objective
    values, _ = scored("dpo")
    difference_n = OBJECTIVES["dpo"].losses(values, with_term) - OBJECTIVES["dpo"].losses(values, plain)
    assert torch.allclose(difference_n, -0.5 * values.policy[::2] / values.tokens[::2])


def test_sft_counts_every_token_alike_however_the_step_is_cut(tmp_path: Path) -> None:
    found = []
    for micro in (4, 1):
        records: list[dict[str, Any]] = []
        out = tmp_path / str(micro)
        run(out, tiny_model_folder("llama"), lora=False, objective="sft", micro_batch_size=micro, records=records,
            validation=make_rows(5, seed=1))  # fmt: skip
        found.append(([r["loss"] for r in records], weights(out)))
        # All answers to an untrained model of random weights are about as unlikely, per token.
        assert [r["kind"] for r in records[:2]] == ["validation", "train"]
        assert records[0]["loss"] == pytest.approx(records[1]["loss"], rel=0.1)
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-5)
    assert max(float((found[0][1][k] - found[1][1][k]).abs().max()) for k in found[0][1]) < 1e-6


def test_kto_measures_from_the_drift_of_the_whole_step(tmp_path: Path) -> None:
    found = []
    for micro in (4, 1):
        records: list[dict[str, Any]] = []
        out = tmp_path / str(micro)
        run(out, tiny_model_folder("llama"), lora=False, objective="kto", micro_batch_size=micro, epochs=3,
            learning_rate=3e-4, records=records)  # fmt: skip
        found.append(records)
    assert max(r["kl"] for r in found[0]) > 0
    for one, other in zip(*found, strict=True):
        assert other["kl"] == pytest.approx(one["kl"], abs=1e-5)
        assert other["loss"] == pytest.approx(one["loss"], abs=1e-5)


def test_weights_scaled_to_mean_one_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="prefloop")
    rows = make_rows(8, weights=True)
    mean = sum(r["weight"] or 0 for r in rows) / 8
    records: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    for scale, kept in records.items():
        run(tmp_path / str(scale), tiny_model_folder("llama"), rows, batch_size=8, scale_weights=scale, records=kept)
    assert records[False][0]["loss"] == pytest.approx(math.log(2) * mean, abs=1e-5)
    assert records[True][0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    total, squares = sum(r["weight"] or 0 for r in rows), sum((r["weight"] or 0) ** 2 for r in rows)
    assert f"effective sample size {total**2 / squares:.0f} of 8" in caplog.text


def test_micro_batches_by_tokens_change_nothing(tmp_path: Path) -> None:
    found = []
    for settings in ({"micro_batch_size": 4}, {"micro_batch_size": None, "micro_batch_tokens": 80}):
        out = tmp_path / str(len(found))
        run(out, tiny_model_folder("llama"), make_rows(13, weights=True), lora=False, learning_rate=1e-4, **settings)
        found.append(weights(out))
    assert max(float((found[0][k] - found[1][k]).abs().max()) for k in found[0]) < 1e-6
