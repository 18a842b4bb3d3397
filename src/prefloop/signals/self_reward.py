"""Self-reward: how much likelier an answer becomes when its prompt asks for an attribute than when it asks against it.

    reward(a) = LL(a | positive note) - LL(a | negative note)

LL is the sum of the natural log-probabilities of the answer's own tokens, end of turn excluded, not divided by length;
`average: tokens` divides. The margin of two answers is the difference of their rewards. Liu et al. 2024 (DLMA, arXiv
2402.11907). It says how strongly a note explains an answer, not how good the answer is: docs/dlma.md tells how to
check that before a training.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Sequence
from typing import Any

from prefloop.backends.base import AnswerScoreRequest, Result, Score, freeze
from prefloop.errors import UsageError
from prefloop.records import CandidatesRow, Completion, Contrast, PartScores
from prefloop.signals.attribute import Against, Attribute, contrasts, with_note
from prefloop.signals.base import Call, Rating


class SelfRewardSignal:
    """Rewards of single answers.

    Args:
        attributes: by which every answer is scored, the mean over them; None for the one that it was sampled for, with
            the very notes of its prompt.
        against: which notes stand against the positive ones, where `attributes` are given.
        average: `sum` as published, or per token.
        backend: name of the model among the driver's.
    """

    pairwise = False

    def __init__(
        self, attributes: Sequence[Attribute] | None, against: Against, average: str, backend: str = "self"
    ) -> None:
        self.attributes, self.against, self.average, self.backend = attributes, against, average, backend
        self.name = ":".join(["self_reward", *(a.name for a in attributes or ())])
        self.identity: dict[str, Any] = {
            "type": "self_reward",
            "attributes": None if attributes is None else [a.model_dump(mode="json") for a in attributes],
            "against": against,
            "average": average,
        }

    def rate(self, row: CandidatesRow) -> Generator[list[Call], list[Result], Rating]:
        """Two calls for each answer and attribute; an empty answer has no token to score and gets none.

        Raises:
            UsageError: the answers were not sampled for any attribute, and none is given.
        """
        counts: Counter[str] = Counter()
        asked: list[tuple[int, str, int]] = []
        calls: list[Call] = []
        for place, completion in enumerate(row["completions"]):
            if not completion["text"]:
                counts["empty"] += 1
                continue
            ids = tuple(completion["token_ids"] or ())
            for contrast in self._contrasts(row, completion):
                for note in (contrast["positive"], contrast["negative"]):
                    messages = freeze(with_note(row["prompt"], note))
                    calls.append(Call(self.backend, AnswerScoreRequest(messages, completion["text"], ids)))
                asked.append((place, contrast["attribute"], len(calls) - 2))
        results = yield calls
        rewards: dict[int, list[float]] = {}
        parts: dict[str, list[float | None]] = {}
        for place, attribute, at in asked:
            positive, negative = results[at], results[at + 1]
            if not isinstance(positive, Score) or not isinstance(negative, Score):
                counts["refused"] += 1
                continue
            tokens = len(positive.token_logps)
            reward = positive.total - negative.total
            counts["scored"] += 1
            counts["tokens"] += tokens
            kept = {"positive": positive.total, "negative": negative.total, "tokens": float(tokens)}
            for name, value in (kept | {"per_token": reward / tokens}).items():
                parts.setdefault(f"{attribute}/{name}", [None] * len(row["completions"]))[place] = value
            rewards.setdefault(place, []).append(reward / tokens if self.average == "tokens" else reward)
        wanted = 1 if self.attributes is None else len(self.attributes)
        found = (rewards.get(place, []) for place in range(len(row["completions"])))
        # An answer that one of the attributes could not be scored by is on another scale than the rest: no score.
        scores = [sum(some) / wanted if len(some) == wanted else None for some in found]
        return Rating(scores, dict(counts), [PartScores(name=n, scores=s) for n, s in parts.items()])

    def _contrasts(self, row: CandidatesRow, completion: Completion) -> list[Contrast]:
        if self.attributes is not None:
            return [one for one, _ in contrasts(self.attributes, [row["id"]], self.against)]
        if "contrast" not in completion:
            raise UsageError(
                "these answers were not sampled for an attribute, and the signal names none",
                fix="set rate.attributes, or sample with sample.contrast",
            )
        return [completion["contrast"]]


def by_token(positive: Score, negative: Score) -> list[float]:
    """What each token of an answer adds to its reward: their sum is the reward."""
    return [a - b for a, b in zip(positive.token_logps, negative.token_logps, strict=True)]
