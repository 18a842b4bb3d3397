"""Scores from a reward model: a sequence classifier that reads the prompt with one answer (Bradley-Terry models,
multi-attribute ones, quality classifiers).

The score of an answer is the value of one head, a logit without a scale of its own: only differences between answers
to one prompt mean something. Nothing is normalised; `pair.min_gap` is in the units of the head.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from itertools import combinations
from pathlib import PurePath
from typing import Any

from prefloop.backends.base import Logits, Result, RewardRequest, freeze
from prefloop.config import RewardModelSignalSection
from prefloop.errors import PrefloopError, UsageError
from prefloop.inputs.problems import nearest
from prefloop.records import CandidatesRow
from prefloop.signals.base import Call, Rating


class RewardModelSignal:
    """Signal `reward_model`. Calls the backend named "reward".

    Args:
        model: the reward model's name, for records.
        head: which of its outputs is the score, from 0.
        identity: as `identity` gives it.
    """

    pairwise = False

    def __init__(self, model: str, head: int, identity: dict[str, Any]) -> None:
        self.head, self.identity = head, identity
        chosen = "" if identity["head"] is None else f"[{identity['head']}]"
        self.name = f"reward_model-{PurePath(model).name}{chosen}"

    def rate(self, row: CandidatesRow) -> Generator[list[Call], list[Result], Rating]:
        """Score the completions of one row, one call each.

        An answer that the model cannot take whole has no score: nothing is cut.

        Counts: refused and too_long (answers without a score, and those of them that do not fit the model);
        longer_decided and longer_wins (pairs of answers with different lengths and scores, and those in which the
        longer one has the higher score).
        """
        results = yield [
            Call("reward", RewardRequest((*freeze(row["prompt"]), ("assistant", c["text"]))))
            for c in row["completions"]
        ]
        scores = [self._value(result) for result in results]
        counts = {
            "refused": float(sum(score is None for score in scores)),
            "too_long": float(sum(getattr(result, "too_long", False) for result in results)),
            "longer_decided": 0.0,
            "longer_wins": 0.0,
        }
        scored = [(score, len(c["text"])) for score, c in zip(scores, row["completions"]) if score is not None]
        for (one, chars), (other, other_chars) in combinations(scored, 2):
            if one != other and chars != other_chars:
                counts["longer_decided"] += 1
                counts["longer_wins"] += (one > other) == (chars > other_chars)
        return Rating(scores, counts)

    def _value(self, result: Result) -> float | None:
        if not isinstance(result, Logits):
            return None
        if self.head >= len(result.values):
            raise PrefloopError(f"the model gave {len(result.values)} values, and head {self.head} is to be the score")
        return result.values[self.head]


def identity(section: RewardModelSignalSection) -> dict[str, Any]:
    """What changes a score besides the model. Loads nothing: names of heads belong to the model's configuration."""
    return {"type": "reward_model", "head": section.head}


def build(section: RewardModelSignalSection) -> RewardModelSignal:
    """The signal; reads the model's configuration, and no weights.

    Raises:
        UsageError: there is no such model, it is a language model, it has no such head, or several and none is chosen.
    """
    from prefloop.backends.reward import refuse_language_model
    from prefloop.engine.load import load_config

    config = load_config(section.model)
    refuse_language_model(config, section.model.path)
    labels: Mapping[int, str] = config.id2label
    head = choose_head({int(index): str(name) for index, name in labels.items()}, section.head)
    return RewardModelSignal(section.model.path, head, identity(section))


def choose_head(labels: Mapping[int, str], wanted: str | None) -> int:
    """The number of the head that is the score.

    Args:
        labels: the model's heads by number.
        wanted: a label, or a number where no label is called so; None: the only one there is.

    Raises:
        UsageError: there is no such head, or several and none is named.
    """
    known = ", ".join(f"{number} {name}" for number, name in sorted(labels.items()))
    where = "signal reward_model, head"
    if wanted is None:
        if len(labels) == 1:
            return next(iter(labels))
        what = f"the reward model has {len(labels)} outputs, and nothing says which is the score: {known}"
        raise UsageError(what, where=where, fix="set it to one of these names or numbers")
    named = [number for number, name in labels.items() if name == wanted]
    if len(named) == 1:
        return named[0]
    if not named and wanted.isdecimal() and int(wanted) in labels:
        return int(wanted)
    meant = nearest(wanted, list(labels.values()))
    what = f"{len(named)} outputs are called {wanted!r}" if named else f"the reward model has no output {wanted!r}"
    raise UsageError(
        f"{what}; its outputs: {known}", where=where, fix=f"did you mean {meant!r}?" if meant else "name one of these"
    )
