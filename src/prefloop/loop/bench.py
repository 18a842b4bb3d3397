"""What the stages of one process share: the loop, the display, and the models that are open."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING, Any

from prefloop.backends.base import Backend, Usage
from prefloop.config import ModelSection, RagRecipe, Recipe, RetrieverSection
from prefloop.errors import PrefloopError, UsageError
from prefloop.loop.manifest import paid
from prefloop.loop.plan import FIRST_READ
from prefloop.signals.models import OpenModels
from prefloop.store.cache import Cache
from prefloop.store.stagedir import StageDir

if TYPE_CHECKING:
    from prefloop.backends.cached import CachedBackend
    from prefloop.loop.plan import Stage
    from prefloop.loop.run import Loop
    from prefloop.signals.build import Needs
    from prefloop.ui.progress import Progress

logger = logging.getLogger(__name__)

# Seconds between notes of what servers' answers cost. A process that is killed writes no more of them.
NOTE_EVERY = 1.0

Runner = Callable[["Bench", "Stage", StageDir, str], None]


class Bench:
    """What the stages of one process share: the loop, the display, and the loaded models."""

    def __init__(self, loop: Loop, progress: Progress) -> None:
        self.loop, self.progress = loop, progress
        self.on_batch: Callable[[int], None] = lambda done: None
        # Stage and fingerprint of what is being written: the report shows nothing of an earlier recipe.
        self.at: dict[str, str] = {}
        self._models = OpenModels(
            loop.cache,
            earlier_cost=lambda name: paid(loop.run).get(name, 0.0),
            opened=self._note_model,
            closing=self._note_usage_of,
        )
        self._models.on_batch = self._arrived
        self._noted = -math.inf

    @property
    def cache(self) -> Cache:
        """The project's cache; only planning does without one."""
        assert self.loop.cache is not None
        return self.loop.cache

    @property
    def recipe(self) -> Recipe:
        """The recipe of a run that answers prompts."""
        assert isinstance(self.loop.recipe, Recipe)
        return self.loop.recipe

    @property
    def rag(self) -> RagRecipe:
        """The recipe of a run that answers from retrieved documents."""
        assert isinstance(self.loop.recipe, RagRecipe)
        return self.loop.recipe

    @cached_property
    def kept_out(self) -> frozenset[str]:
        """Ids of the preferences' prompts that are measured on; none where the evaluation has prompts of its own.

        Known as soon as the preferences are read.
        """
        from prefloop.pairs.splits import holdout

        if self.recipe.preferences is None or self.recipe.evaluate.prompts is not None:
            return frozenset()
        ids = {row["prompt_id"] for row in self.loop.folder("preferences").rows()}
        return frozenset(holdout(ids, self.recipe.evaluate.holdout))

    def preflight(self) -> None:
        """Find what is wrong with the recipe's functions, templates, judgments and training before hours of work.

        Raises:
            UsageError: a function, a template or judgments are missing or faulty, or the model cannot be trained so.
        """
        from prefloop.evaluate import checkers
        from prefloop.loop.plan import evaluation_signals, measured_otherwise
        from prefloop.retrieve.corpus import read_collection
        from prefloop.retrieve.vectors import require_faiss
        from prefloop.signals import build, references
        from prefloop.train.check import check_trainable

        ways = self.recipe.ways.values()
        for section in (*(way.rate for way in ways), *evaluation_signals(self.recipe)):
            if section is not None:
                build.preflight(section)
        if self.recipe.evaluate.references is not None:
            references.load(self.recipe.evaluate.references)
        for group in self.recipe.evaluate.checkers.values():
            checkers.preflight({name: checker.function for name, checker in group.items()})
        if (bias := self.recipe.source_bias) is not None:
            read_collection(str(bias.judgments), bias.split or "test", [], judged=True)
            if any(retriever.search == "faiss" for retriever in bias.retrievers or ()):
                require_faiss()
        self.check_keys()
        if (own := measured_otherwise(self.recipe)) is not None:
            logger.warning(
                "%s is written for one answer at a time; the measurement compares two, by the built-in prompt: set "
                "evaluate.judge to compare by criteria of your own",
                own,
            )
        self.quiet()
        trainings = [way.train for way in ways] + ([] if self.recipe.first is None else [self.recipe.first.train])
        for training in trainings:
            check_trainable(self.recipe.model, training)

    def check_keys(self) -> None:
        """Look whether the keys of all servers are there.

        Raises:
            UsageError: one is not.
        """
        for section in self.loop.kind.models_of(self.loop.recipe):
            variable = None if section.endpoint is None else section.endpoint.key_variable
            if variable is not None and not os.environ.get(variable):
                raise UsageError(
                    f"the environment variable {variable} is not set, which is to hold the key of {section.path}",
                    where="endpoint.key_variable",
                    fix=f"export {variable}=…, or name another variable",
                )

    def run(self, stage: Stage, folder: StageDir, fingerprint: str, runner: Runner) -> None:
        """Run one stage, and write into the run's files that it began, what it asked of models, and that it ended."""
        run = self.loop.run
        self.at = {"stage": stage.name, "fingerprint": fingerprint}
        run.event("stage_started", **self.at)
        run.log(f"{stage.name} starts")
        started = time.monotonic()
        try:
            runner(self, stage, folder, fingerprint)
        except RuntimeError as error:
            if type(error).__name__ != "OutOfMemoryError":
                raise
            raise PrefloopError(
                f"the GPU's memory is full: {str(error).partition('. ')[0]}",
                where=f"stage {stage.name}",
                fix="lower train.micro_batch_size or set train.gradient_checkpointing=true for training, "
                "model.batch_size for sampling and judging; then start the same command again",
            ) from error
        finally:
            # A stage that failed has asked too, and was paid for.
            self._note_usage()
        self._note_rows(stage, folder)
        seconds = round(time.monotonic() - started, 3)
        run.event("stage_finished", seconds=seconds, **self.at)
        run.log(f"{stage.name} is done after {seconds} s")

    def _note_rows(self, stage: Stage, folder: StageDir) -> None:
        """Say in the stage's line how many rows it kept, and never pass over what it dropped."""
        success = folder.success() or {}
        rows = success.get("rows", {})
        reasons = success.get("reject_reasons") or success.get("extra", {}).get("rejected") or {}
        if stage.verb in ("prompts", "heldout", "preferences", FIRST_READ) and rows:
            self.progress.update(kept=rows["kept"])
        if stage.verb == "pair":
            self.progress.update(pairs=rows["kept"])
        dropped = sum(reasons.values())
        if dropped:
            most = max(reasons, key=lambda reason: reasons[reason], default="")
            self.progress.warn(
                f"{stage.name}: {dropped:,} rows dropped, most of them for: {most} "
                f"(prefloop inspect {self.loop.run.path} --stage {stage.name} --rejects)"
            )

    def backend(self, section: ModelSection | RetrieverSection, kind: str = "language") -> CachedBackend:
        """A section's model behind the cache, opened on first use; the one used longest ago makes room.

        Args:
            section: which model.
            kind: what it is, see `signals.base.Need`.
        """
        return self._models.open(section, kind)

    def backends(self, needs: Needs, policy: ModelSection | None = None) -> dict[str, Backend]:
        """The models that a signal calls, by its names for them; each is opened when it is asked.

        Args:
            policy: for needs of it; without it the loop's first model.
        """
        first = self.loop.base
        return {
            name: self._models.get(need.model or (policy if need.policy else None) or first, need.kind)
            for name, need in needs.items()
        }

    def quiet(self) -> None:
        """Keep transformers' own bars and its remarks on its own code out of the display."""
        from prefloop.engine.load import quiet

        quiet()

    def _note_model(self, section: ModelSection | RetrieverSection, backend: Backend) -> None:
        """Into the manifest: on what the model ran, which rounding depends on."""
        name = backend.place or "a server"
        manifest = self.loop.run.read_manifest() or {}
        manifest["devices"][section.path] = name
        self.loop.run.write_manifest(manifest)
        self.loop.run.event("model_loaded", path=section.path, device=name, identity=backend.identity, **self.at)

    def _arrived(self, done: int) -> None:
        """Results came: so many of a call's."""
        self.on_batch(done)
        if time.monotonic() - self._noted >= NOTE_EVERY:
            self._noted = time.monotonic()
            for backend in self._models:
                if any((spent := backend.spent()).values()):
                    self.loop.run.event("usage", model=backend.name, **self.at, **spent)

    def _note_usage(self) -> None:
        """One event per model: what the stage asked it, how much was cached, and a server's tokens and cost since the
        last note."""
        for backend in self._models:
            self._note_usage_of(backend)

    def _note_usage_of(self, backend: CachedBackend) -> None:
        spent = backend.spent()
        if backend.usage.asked or any(spent.values()):
            self.loop.run.event("usage", model=backend.name, **self.at, **(asdict(backend.usage) | spent))
        backend.usage = Usage()

    def say(self, section: Any, counts: dict[str, float], rows: Iterable[Any] = ()) -> None:
        """Tell a judge's habits, and warn where they make its verdicts doubtful.

        Args:
            counts: summed over the rated rows.
            rows: the scored rows, for what cannot be summed.
        """
        from prefloop.signals.build import card, remark

        if (line := card(section, counts, rows)) is not None:
            self.progress.note(line)
        if (warning := remark(section, counts)) is not None:
            logger.warning(warning)

    def release(self) -> None:
        """Drop all models: training and merging need the memory."""
        self._models.release()

    def close(self) -> None:
        self.release()
