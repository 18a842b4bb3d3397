"""The training corpus: a seeded, endless stream of conversations. The same seed gives the same corpus."""

import random
from collections.abc import Callable, Iterator, Mapping

from prefloop.records import Message
from prefloop.sandbox import exercises, tasks, verdicts
from prefloop.sandbox.world import World, make_world

Task = Callable[[random.Random, World], list[Message]]

TASKS: dict[str, Task] = {
    "question": tasks.plain_question,
    "styled": tasks.styled_question,
    "criticised": tasks.criticised_question,
    "rewriting": tasks.rewriting,
    "documents": tasks.read_question,
    "pairwise": verdicts.pairwise,
    "pointwise": verdicts.pointwise,
    "chat": tasks.chat,
    "read_profiles": tasks.read_profiles,
    "known_profiles": tasks.known_profiles,
    "checks": tasks.checks,
    "repeating": exercises.repeating,
    "pairing": exercises.pairing,
}

# Shares of the conversations in the stages of training. Looking facts up is the slow part to learn and everything else
# needs it, so it comes first (see `exercises`).
REPEATING: dict[str, float] = {"repeating": 1.0}
PAIRING: dict[str, float] = {"repeating": 0.1, "pairing": 0.9}
READING: dict[str, float] = {"read_profiles": 0.6, "documents": 0.4}
MAIN: dict[str, float] = {
    "question": 0.17,
    "styled": 0.16,
    "criticised": 0.10,
    "rewriting": 0.07,
    "documents": 0.10,
    "pairwise": 0.18,
    "pointwise": 0.12,
    "chat": 0.02,
    "read_profiles": 0.03,
    "known_profiles": 0.02,
    "checks": 0.03,
}

# Verdicts are learned by then, so the last stage gives their share to what is still rough.
FINISHING: dict[str, float] = {
    "question": 0.24,
    "styled": 0.22,
    "criticised": 0.13,
    "rewriting": 0.14,
    "documents": 0.11,
    "pairwise": 0.06,
    "pointwise": 0.04,
    "chat": 0.02,
    "read_profiles": 0.02,
    "known_profiles": 0.02,
}
# What the model does unasked is a matter of exact chances, and they come last.
SETTLING: dict[str, float] = {
    "question": 0.36,
    "styled": 0.10,
    "criticised": 0.06,
    "rewriting": 0.22,
    "documents": 0.18,
    "pairwise": 0.03,
    "pointwise": 0.02,
    "chat": 0.01,
    "read_profiles": 0.01,
    "known_profiles": 0.01,
}


def conversations(seed: int, shares: Mapping[str, float], world: World | None = None) -> Iterator[list[Message]]:
    """An endless stream of conversations in the given shares of tasks (keys of TASKS, values sum to 1)."""
    world = world or make_world()
    rng = random.Random(f"prefloop corpus {seed} {sorted(shares)}")
    names, weights = list(shares), list(shares.values())
    while True:
        yield TASKS[rng.choices(names, weights)[0]](rng, world)
