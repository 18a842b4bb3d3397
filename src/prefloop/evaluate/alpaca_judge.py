"""Between a judge and AlpacaEval's rows: its coin for the order, its preference from log-probabilities, and ours.

Our own judges read both orders; the single order is AlpacaEval's, at half the price, and gives its published verdicts
(tests/evaluate/test_alpaca_eval.py::test_every_published_preference_comes_out_of_its_logprobs).
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prefloop.evaluate.win_rate import probability
from prefloop.records import CandidatesRow, Completion, Message, ScoredRow, completion_id, prompt_id
from prefloop.signals.template import conversation


def switched(instruction: str, seed: int = 0) -> bool:
    """Whether AlpacaEval shows the model's answer first: its seeded coin, the same for every judge and model."""
    return random.Random("is_switched_outputs" + instruction + str(seed)).choices([False, True], k=1)[0]


def weighted_preference(logprob_m: float, logprob_M: float, *, is_switched: bool) -> float:
    """The preference, 1..2, of a judge asked once (`weighted_alpaca_eval_gpt4_turbo`).

    Args:
        logprob_m, logprob_M: log-probabilities of the names of the answer shown first and of the one shown second;
            -inf for a name that is not among the top ones.
        is_switched: whether the model's answer was shown first (`switched`).

    Raises:
        ValueError: both are -inf: the judge gave no verdict.
    """
    top = max(logprob_m, logprob_M)
    if top == -math.inf:
        raise ValueError("neither answer's name has any probability")
    first, second = math.exp(logprob_m - top), math.exp(logprob_M - top)
    shown = 2 - first / (first + second)
    return 3 - shown if is_switched else shown


def annotations_of(
    rows: Iterable[ScoredRow], *, pairwise: bool, generators: tuple[str, str], annotator: str | None = None
) -> list[dict[str, Any]]:
    """The verdicts of a run as AlpacaEval's rows; outer white space is taken off the answers, as its decoder does.

    Args:
        rows: of two completions each, [base, aligned], as the stage `evaluate` keeps them.
        pairwise: whether the signal's scores are probabilities of winning (`Signal.pairwise`); else the higher wins.
        generators: names of base and aligned model.
        annotator: who judged; None: the rows' own signal.
    """
    found = []
    for row in rows:
        base, aligned = (completion["text"].strip() for completion in row["completions"])
        p = 0.5 if base == aligned else probability(row, pairwise)
        found.append(
            {
                "instruction": conversation(row["prompt"]),
                "output_1": base,
                "generator_1": generators[0],
                "output_2": aligned,
                "generator_2": generators[1],
                "dataset": None,
                "annotator": annotator or row["signal"],
                "preference": None if p is None else 1 + p,
            }
        )
    return found


def candidates_of(rows: Sequence[Mapping[str, Any]]) -> list[CandidatesRow]:
    """AlpacaEval's rows (instruction, output_1, output_2) as pairs of answers for a signal of ours to compare."""
    found: list[CandidatesRow] = []
    for row in rows:
        prompt: list[Message] = [{"role": "user", "content": row["instruction"]}]
        name = prompt_id(prompt)
        found.append(
            {"id": name, "prompt": prompt, "completions": [_answer(name, row[f"output_{s}"]) for s in (1, 2)]}
        )
    return found


def _answer(name: str, text: str) -> Completion:
    return {
        "id": completion_id(name, text, 0),
        "text": text,
        "token_ids": None,
        "finish_reason": "stop",
        "sample_index": 0,
    }
