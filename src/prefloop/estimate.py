"""`prefloop estimate`: what the training of a recipe will need, from its settings and from its pairs once made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefloop.config import Recipe
from prefloop.engine.tokens import end_of_turn_ids, load_tokenizer
from prefloop.errors import UsageError
from prefloop.loop.plan import FIRST_TRAIN, Stage
from prefloop.loop.run import Loop
from prefloop.store.cache import Cache
from prefloop.store.rundir import RunDir

if TYPE_CHECKING:
    from rich.console import RenderableType

    from prefloop.train.encode import Example
    from prefloop.train.estimate import Estimate, Row

SAMPLED = 2000
"""Rows whose lengths are looked at; more would change nothing but the time it takes."""


def estimate_recipe(
    recipe: Recipe, out: Path, cache_path: Path, pairs: int | None, stage: str | None = None
) -> Estimate:
    """Predict a training.

    Args:
        out: the run directory, which may not exist yet. Where its pairs are made, their lengths are used.
        pairs: how many there will be; needed while they are not made.
        stage: which training; without it the first round's, of several branches the first one's.

    Raises:
        UsageError: neither made nor said how many; there is no such training; or the model cannot be trained as asked.
    """
    from prefloop.train.encode import Encoder
    from prefloop.train.estimate import estimate
    from prefloop.train.judged import judged_prompt
    from prefloop.train.objectives import OBJECTIVES

    with Cache(cache_path) if cache_path.exists() else nullcontext() as cache:
        loop = Loop(recipe, RunDir(out, None), cache)
        planned = {p.stage.name: p for p in loop.survey()}
        training = _training(loop, stage)
        _, section = recipe.training(training.round, training.branch)
        before = loop.previous(training)
        success = planned[before].success
        if success is None:
            if pairs is None:
                raise UsageError(
                    f"the stage {before} is not done, so it is not known how many pairs there will be",
                    fix="say how many with --pairs, or run the recipe up to its pairs first (prefloop pair …)",
                )
            unpaired = OBJECTIVES[section.objective.type].takes == "unpaired"
            return estimate(recipe.model, section, None, pairs * (2 if unpaired else 1))
        tokenizer = load_tokenizer(recipe.model)
        objective = section.objective
        takes, judged = OBJECTIVES[objective.type].takes, judged_prompt(objective)
        encoder = Encoder(tokenizer, end_of_turn_ids(tokenizer)[0], section.max_length, takes, judged)
        rows: Iterator[Any] = islice(loop.folder(before).rows(), SAMPLED)
        lengths: list[Row] = [
            (len(example.prompt_ids), _lengths(example))
            for _, found in encoder(rows)
            if isinstance(found, list)
            for example in found
        ]
        if not lengths:
            raise UsageError("none of the pairs fits train.max_length", fix="raise train.max_length")
        # Lists take several rows each, single answers are two of a row: scale what was looked at.
        kept = success["rows"]["kept"]
        trained = pairs or (1 - section.validation_share) * kept
        return estimate(recipe.model, section, lengths, round(trained * len(lengths) / min(SAMPLED, kept)))


def _training(loop: Loop, name: str | None) -> Stage:
    """A training by its stage's name; without one the first of the loop's."""
    found = [stage for stage in loop.stages if stage.verb in ("train", FIRST_TRAIN)]
    if name is None:
        return next(stage for stage in found if stage.round == 1)
    for stage in found:
        if stage.name == name:
            return stage
    raise UsageError("this recipe has no such training", where=name, fix=f"one of {', '.join(s.name for s in found)}")


def _lengths(example: Example) -> tuple[int, ...]:
    """Of the responses; another prompt that they are scored behind counts as a part of them."""
    own = tuple(map(len, example.responses))
    return own + tuple(len(example.judged_ids) + length for length in own if example.judged_ids)


def table(found: Estimate) -> RenderableType:
    """For people."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    memory = Table(title="memory of one process at its peak", title_justify="left", show_header=False)
    for name, amount in (
        ("weights", found.weights),
        ("gradients", found.gradients),
        ("optimiser", found.optimizer),
        ("activations of the largest micro-batch", found.activations),
        ("output head", found.head),
        ("together", found.peak),
    ):
        memory.add_row(name, _bytes(amount), style="bold" if name == "together" else None)
    time = Table(title="time", title_justify="left")
    for header in ("", "quick", "likely", "slow"):
        time.add_column(header, justify="left" if not header else "right")
    for name, seconds in (
        ("one step", found.step_seconds),
        ("reference, once", found.reference_seconds),
        ("validation, all its passes", found.validation_seconds),
        (f"{found.steps:,} steps and these two", found.total_seconds),
    ):
        time.add_row(name, *map(_duration, seconds))
    lines = [Text(f"{found.parameters:,} parameters, {found.trainable:,} of them trained")]
    if found.assumed_rows:
        lines.append(Text("The pairs are not made yet: every row is taken to be as long as train.max_length allows."))
    return Group(*lines, memory, time)


def _bytes(amount: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:,.1f} TB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.2g} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
