"""Several generators as one: their calls of a wave are asked together."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TypeVar

from prefloop.backends.base import Result
from prefloop.signals.base import Call

T = TypeVar("T")


def together(
    generators: Sequence[Generator[list[Call], list[Result], T]],
) -> Generator[list[Call], list[Result], list[T]]:
    """Run generators side by side: each is sent the results of its own calls; returns what they return, in order."""
    returned: dict[int, T] = {}
    asked: dict[int, list[Call]] = {}
    answers: dict[int, list[Result]] = {}
    waiting = list(range(len(generators)))
    first = True
    while waiting:
        for i in waiting:
            try:
                asked[i] = next(generators[i]) if first else generators[i].send(answers[i])
            except StopIteration as end:
                returned[i] = end.value
        first = False
        waiting = [i for i in waiting if i not in returned]
        if waiting:
            results = yield [call for i in waiting for call in asked[i]]
            rest = iter(results)
            answers = {i: [next(rest) for _ in asked[i]] for i in waiting}
    return [returned[i] for i in range(len(generators))]
