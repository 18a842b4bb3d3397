"""Scores from people: votes, ratings or rankings of these very answers, joined by prompt and text.

Answers that are sampled anew have no votes. The signal is for answers that people were shown: those of the same
recipe, whose seeds sample them again, or those that come from a file.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from itertools import combinations
from pathlib import Path
from typing import Any

from prefloop.backends.base import Result
from prefloop.errors import UsageError
from prefloop.inputs.preferences import read_votes
from prefloop.records import CandidatesRow, prompt_id
from prefloop.signals.base import Call, Rating
from prefloop.store.fingerprint import code_digest, file_digest

DECIMALS = 9


class HumanSignal:
    """Signal `human`: an answer's score is the mean share of voters that prefer it to the row's other answers.

    A tie is half a vote for either side. No vote on an answer: no score.

    Args:
        path: a file of votes, see docs/human.md.
    """

    pairwise = True
    name = "human"

    def __init__(self, path: str) -> None:
        self.identity = identity(path)
        self.polls = read_votes(path).polls

    def rate(self, row: CandidatesRow) -> Generator[list[Call], list[Result], Rating]:
        """Score the completions of one row; asks no backend.

        Counts: voted_pairs (pairs of different answers with votes), longer_decided and longer_wins (those of
        different lengths that are decided, and those that the longer one won).
        """
        texts = [c["text"].strip() for c in row["completions"]]
        poll = self.polls.get(prompt_id(row["prompt"]))
        counts = {"voted_pairs": 0.0, "longer_decided": 0.0, "longer_wins": 0.0}
        shares: list[list[float]] = [[] for _ in texts]
        for i, j in combinations(range(len(texts)), 2) if poll is not None else ():
            assert poll is not None
            share, n = poll.share(texts[i], texts[j])
            if texts[i] == texts[j] or not n:
                continue
            shares[i].append(share)
            shares[j].append(1 - share)
            counts["voted_pairs"] += 1
            if share != 0.5 and len(texts[i]) != len(texts[j]):
                counts["longer_decided"] += 1
                counts["longer_wins"] += (share > 0.5) == (len(texts[i]) > len(texts[j]))
        scores = [round(math.fsum(found) / len(found), DECIMALS) if found else None for found in shares]
        return Rating(scores, counts)
        yield []  # makes this a generator, as every signal is


def identity(path: str) -> dict[str, Any]:
    """The votes by the file's content, and the code that counts them, which lies in another box than the signals.

    Raises:
        UsageError: there is no such file.
    """
    if not Path(path).is_file():
        raise UsageError("there is no such file of votes", where=path, fix="name a CSV, JSONL, JSON or Parquet file")
    return {"type": "human", "content": file_digest(path), "code": code_digest("inputs")}
