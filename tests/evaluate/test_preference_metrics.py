"""Implicit rewards, calibration and divergence: numbers by hand, exact divergences, and the sandbox model."""

from __future__ import annotations

import math

import numpy as np
import pytest

from prefloop.backends.base import Backend, Refusal, Sampling, Score
from prefloop.config import ModelSection
from prefloop.engine.tokens import load_tokenizer
from prefloop.errors import UsageError
from prefloop.evaluate.preference import (
    Margins,
    calibration,
    divergence,
    implicit_margins,
    reward_accuracy,
)
from prefloop.records import prompt_id
from prefloop.train.encode import Encoder

TOKENIZER = load_tokenizer(ModelSection(path="sandbox"))
ENCODER = Encoder(TOKENIZER, 2, 64, "pairs")


class Table(Backend):
    """Log-probability of an answer: the same for each of its tokens, by the answer's first token."""

    def __init__(self, by_first, default=-1.0):
        self.identity = {"backend": "table"}
        self.by_first, self.default = by_first, default

    def plan(self, requests):
        return [list(range(len(requests)))]

    def run(self, requests):
        found = [self.by_first.get(r.completion_ids[0], self.default) for r in requests]
        return [
            Refusal("too long") if value is None else Score([value] * len(r.completion_ids))
            for value, r in zip(found, requests, strict=True)
        ]


def first(text):
    return TOKENIZER(text, add_special_tokens=False)["input_ids"][0]


def pair(question, chosen, rejected, label=None):
    prompt = [{"role": "user", "content": question}]
    sides = {"chosen": chosen, "rejected": rejected}
    return {
        "id": f"{question}/{chosen}/{rejected}",
        "prompt_id": prompt_id(prompt),
        "prompt": prompt,
        **{k: None if v is None else [{"role": "assistant", "content": v}] for k, v in sides.items()},
        **dict.fromkeys(("score_chosen", "score_rejected", "weight", "margin")),
        "label": label,
        **dict.fromkeys(("source", "strategy", "chosen_id", "rejected_id"), ""),
        "chosen_finish": "stop",
        "rejected_finish": "stop",
        "evidence": [],
    }


def test_margins_by_hand():
    # "Oslo" and its end of turn: two tokens of -0.5 each under the policy, -1 each under the reference.
    policy, reference = Table({first("Oslo"): -0.5, first("Lima"): -2.0}), Table({})
    rows = [pair("a", "Oslo", "Lima"), pair("b", "Lima", "Oslo"), pair("c", "Oslo", None)]
    found = implicit_margins(policy, reference, rows, ENCODER, beta=0.1)
    # 0.1 * ((-1 + 2) - (-4 + 2)) = 0.3
    assert found.margins == pytest.approx([0.3, -0.3])
    assert found.labels == [1.0, 1.0]
    assert found.left_out == {"no rejected answer": 1}
    said = reward_accuracy(found, 300)
    assert (said["accuracy"]["value"], said["n"], said["prompts"]) == (0.5, 2, 2)
    assert said["margin"]["value"] == pytest.approx(0)


def test_what_cannot_be_scored_is_left_out_and_counted():
    policy = Table({first("Lima"): None})
    rows = [pair("a", "Oslo", "Lima"), pair("b", "Oslo", "Cairo")]
    found = implicit_margins(policy, Table({}), rows, ENCODER, beta=1.0)
    assert found.left_out == {"too long": 1}
    assert len(found.margins) == 1
    with pytest.raises(UsageError, match="no held-out pair could be scored: too long"):
        implicit_margins(policy, Table({}), rows[:1], ENCODER, beta=1.0)


def test_an_undecided_pair_counts_half_and_soft_labels_their_share():
    found = Margins([0.0, 1.0, -1.0], [1.0, 0.8, 0.8], ["p", "q", "r"], {})
    assert reward_accuracy(found, 300)["accuracy"]["value"] == pytest.approx((0.5 + 0.8 + 0.2) / 3)


def test_pairs_of_a_prompt_are_resampled_together():
    margins = Margins([1.0] * 9 + [-1.0], [1.0] * 10, ["p"] * 9 + ["q"], {})
    found = reward_accuracy(margins, 2000)["accuracy"]
    assert found["value"] == 0.9
    assert (found["ci_low"], found["ci_high"]) == (0.0, 1.0)  # two prompts, and one of them is all wrong


def test_calibration_by_hand():
    # sigma(log 3) = 0.75: 3 of 4 right is perfect; 0 of 4 is off by 0.75.
    margin = math.log(3)
    right = calibration([margin, margin, margin, -margin], [1.0] * 4)
    assert right["ece"] == pytest.approx(0, abs=1e-12)
    assert right["overconfidence"] == pytest.approx(0)
    (only,) = right["bins"]
    assert (only["low"], only["high"], only["n"]) == (0.75, 0.8, 4)
    assert (only["confidence"], only["accuracy"]) == pytest.approx((0.75, 0.75))
    assert only["ci_low"] < 0.75 < only["ci_high"]
    wrong = calibration([-margin] * 4, [1.0] * 4)
    assert wrong["ece"] == pytest.approx(0.75)
    assert wrong["ece"] > wrong["ece_limit"]


def test_a_calibrated_model_stays_below_the_limit_and_a_bold_one_does_not():
    rng = np.random.default_rng(0)
    margins = np.abs(rng.normal(0, 1.5, 2000))
    signs = np.where(rng.random(2000) < 1 / (1 + np.exp(-margins)), 1, -1)
    honest = calibration((signs * margins).tolist(), [1.0] * 2000)
    assert honest["ece"] < honest["ece_limit"]
    assert honest["ece_if_calibrated"] > 0
    bold = calibration((signs * margins * 3).tolist(), [1.0] * 2000)
    assert bold["ece"] > 3 * bold["ece_limit"]
    assert bold["overconfidence"] > 0.05


class Categorical(Backend):
    """One token is one answer, with these probabilities; the end of turn is certain."""

    def __init__(self, probabilities):
        self.identity = {"backend": "categorical"}
        self.logps = np.log(probabilities)

    def plan(self, requests):
        return [list(range(len(requests)))]

    def run(self, requests):
        return [
            Score([float(self.logps[r.completion_ids[0]]), *[0.0] * (len(r.completion_ids) - 1)]) for r in requests
        ]


def answers(draws, *, finish="stop"):
    prompts = [[{"role": "user", "content": f"q{i}"}] for i in range(len(draws))]
    return [
        {
            "id": prompt_id(prompt),
            "prompt": prompt,
            "completions": [
                {
                    "id": "x",
                    "text": "",
                    "token_ids": None if t is None else [int(t)],
                    "finish_reason": finish,
                    "sample_index": 0,
                }
            ],
        }
        for prompt, t in zip(prompts, draws, strict=True)
    ]


def test_both_estimators_find_the_exact_divergence():
    p, r = np.array([0.5, 0.3, 0.15, 0.05]), np.array([0.2, 0.3, 0.2, 0.3])
    exact = float((p * np.log(p / r)).sum())
    draws = np.random.default_rng(1).choice(4, size=3000, p=p)
    found = divergence(Categorical(p), Categorical(r), answers(draws), ENCODER, resamples=500)
    for name in ("k1", "k3"):
        assert found[name]["ci_low"] <= exact <= found[name]["ci_high"], name
    # The steadier estimator has the narrower interval.
    assert found["k3"]["ci_high"] - found["k3"]["ci_low"] < found["k1"]["ci_high"] - found["k1"]["ci_low"]
    assert found["tokens"] == 6000  # the end of turn is scored too
    assert found["k1_per_token"]["value"] == pytest.approx(found["k1"]["value"] / 2)
    cut = divergence(Categorical(p), Categorical(r), answers(draws[:9], finish="length"), ENCODER, resamples=200)
    assert cut["tokens"] == 9


def test_k3_is_never_negative_and_both_are_zero_at_home():
    p, r = np.array([0.4, 0.6]), np.array([0.41, 0.59])
    found = divergence(Categorical(p), Categorical(r), answers([0] * 5), ENCODER, resamples=200)
    assert found["k1"]["value"] < 0 < found["k3"]["ci_low"]
    home = divergence(Categorical(p), Categorical(p), answers([0, 1]), ENCODER, resamples=200)
    assert home["k1"]["value"] == home["k3"]["value"] == 0


def test_answers_from_elsewhere_are_left_out():
    p = Categorical(np.array([0.5, 0.5]))
    found = divergence(p, p, answers([0, None, 1]), ENCODER, resamples=200)
    assert found["n"] == 2
    assert sum(found["left_out"].values()) == 1
    with pytest.raises(UsageError, match="not sampled by the model itself"):
        divergence(p, p, answers([None]), ENCODER)


def test_the_sandbox_model_against_itself_and_sharpened():
    """Scores of real answers: no divergence from itself, and some from a model whose logits are twice as large."""
    import torch

    from prefloop.backends.base import GenerateRequest, Generation
    from prefloop.backends.hf import HfBackend
    from prefloop.sandbox.prompts import prompts

    base, sharp = (HfBackend.load(ModelSection(path="sandbox")) for _ in range(2))
    with torch.no_grad():
        sharp.model.get_output_embeddings().weight.mul_(2)
    encoder = Encoder(base.tokenizer, base.stops[0], 512, "pairs")
    given = prompts("questions/heldout", 8)
    sampling = Sampling(max_new_tokens=40, seed=3)
    made = base.answer([GenerateRequest((("user", p[0]["content"]),), sampling) for p in given])
    rows = []
    for prompt, answer in zip(given, made, strict=True):
        assert isinstance(answer, Generation)
        completion = {"id": "x", "text": answer.text, "sample_index": 0, "finish_reason": answer.finish_reason}
        rows.append(
            {"id": prompt_id(prompt), "prompt": prompt, "completions": [completion | {"token_ids": answer.token_ids}]}
        )
    home = divergence(base, base, rows, encoder, resamples=200)
    assert abs(home["k1"]["value"]) < 1e-4
    away = divergence(base, sharp, rows, encoder, resamples=200)
    assert away["k3"]["ci_low"] > 0.1
