"""The loop: plan the stages of a recipe, skip what is done, run the rest, repeat rounds.

A stage is done when its `_SUCCESS.json` carries its fingerprint: the hash of its settings, of the content of its
inputs, and of the code that computes it. Fingerprints chain through content, so a stage that ran again and gave the
same rows leaves everything after it done, and editing a late stage keeps the early ones.

Planning and skipping import neither torch nor network code (tests/test_layers.py).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefloop.config import AnyRecipe, ModelSection
from prefloop.engine.load import resolve_model_path
from prefloop.errors import UsageError
from prefloop.loop import manifest
from prefloop.loop.kinds import Kind, kind_of
from prefloop.loop.pins import key
from prefloop.loop.plan import FIRST_MERGE, Stage, stage_name, winner
from prefloop.loop.rounds import broken
from prefloop.publish.model_card import write_model_cards
from prefloop.store.cache import Cache
from prefloop.store.fingerprint import digest, resolve_commit
from prefloop.store.rundir import RunDir
from prefloop.store.stagedir import StageDir
from prefloop.ui.progress import Progress

SKIPPED = "skipped"
"""Stands for the content of a stage that was not run."""


@dataclass(frozen=True)
class Planned:
    """A stage with its state: done, partial (some parts are there), todo, waits (an input is not done), or skipped.

    `success` is the content of its `_SUCCESS.json` when it is done. Skipped are rounds behind one that broke a rule.
    """

    stage: Stage
    state: str
    fingerprint: str | None
    success: dict[str, Any] | None


@dataclass
class Loop:
    """A recipe bound to a run directory and a cache."""

    recipe: AnyRecipe
    run: RunDir
    cache: Cache | None
    stages: list[Stage] = field(init=False)

    def __post_init__(self) -> None:
        # A run keeps the hub commits that it began with, whatever happens upstream.
        manifest_before = self.run.read_manifest() or {}
        self.commits: dict[str, str] = dict(manifest_before.get("commits", {}))
        self._pin()

    @property
    def kind(self) -> Kind:
        """How the loop treats this kind of recipe."""
        return kind_of(self.recipe)

    def _pin(self) -> None:
        self.recipe = self.kind.pinned(self.recipe, self.commits)
        self.stages = self.kind.plan(self.recipe, self.cache)

    def resolve(self) -> None:
        """Turn the branches of hub models into commits, before anything is computed with them.

        Raises:
            UsageError: the hub does not know a model, or cannot be reached.
        """
        for section in self.kind.models_of(self.recipe):
            if section.endpoint is not None:
                continue
            name = key(section.path, section.revision)
            commit = resolve_commit(resolve_model_path(section.path), section.revision)
            if commit is not None and commit != section.revision:
                self.commits[name] = commit
        self._pin()

    def previous(self, stage: Stage) -> str:
        """Name of the stage whose rows or files this one works on."""
        return stage.inputs[0]

    def folder(self, name: str) -> StageDir:
        """The directory of a stage, by name."""
        stage = self[name]
        return self.run.stage(stage.number, stage.name)

    def __getitem__(self, name: str) -> Stage:
        return next(s for s in self.stages if s.name == name)

    def fingerprint(self, stage: Stage, contents: dict[str, str | None]) -> str | None:
        """Hash of settings, inputs' content and code; None while an input is not done.

        Args:
            contents: digest of what each stage before this one made, None where it is not done.
        """
        inputs = [[name, contents.get(name)] for name in stage.inputs]
        if any(content is None for _, content in inputs):
            return None
        return digest([stage.verb, stage.round, stage.settings, inputs, stage.code])

    def survey(self) -> list[Planned]:
        """Every stage with its state."""
        planned: list[Planned] = []
        contents: dict[str, str | None] = {}
        for stage in self.stages:
            if self._ended_before(stage, contents) is not None:
                planned.append(Planned(stage, "skipped", None, None))
                contents[stage.name] = SKIPPED
                continue
            fingerprint = self.fingerprint(stage, contents)
            folder = self.folder(stage.name)
            state = stage_state(folder, fingerprint)
            success = folder.success() if state == "done" else None
            self._note(contents, stage, success)
            planned.append(Planned(stage, state, fingerprint, success))
        return planned

    def _note(self, contents: dict[str, str | None], stage: Stage, success: dict[str, Any] | None) -> None:
        """What a stage made, for the fingerprints of those behind it; None where it is not done."""
        contents[stage.name] = None if success is None else success["content"]
        if stage.verb == "evaluate" and self.recipe.branches and success is not None:
            # The next round takes the better model and nothing else of the measurement.
            best = success["extra"]["evaluate"]["winner"]
            contents[winner(stage.round)] = digest([best, contents[stage_name("merge", stage.round, best)]])

    def _ended_before(self, stage: Stage, contents: dict[str, str | None]) -> str | None:
        """Why a stage is not run: the rounds ended before its own. None where they did not, or it is not known yet."""
        for r in range(1, stage.round):
            if contents.get(stage_name("evaluate", r)) in (None, SKIPPED):
                return None
            if (rule := broken(self.recipe.stop, self.evaluations(r))) is not None:
                return f"round {r} was the last: {rule}"
        return None

    def evaluations(self, last: int) -> list[dict[str, Any]]:
        """What was measured in the rounds up to `last`, or up to the one that broke a rule.

        Behind that one there may be rounds of an earlier recipe in the same folder.
        """
        found: list[dict[str, Any]] = []
        for r in range(1, last + 1):
            success = self.folder(stage_name("evaluate", r)).success()
            if success is None or broken(self.recipe.stop, found) is not None:
                break
            found.append(success["extra"]["evaluate"])
        return found

    def model_folder(self, stage: Stage) -> Path:
        """Where a merge stage writes: into the run's `model/`, or, where it may not be the run's, beside it."""
        apart = stage.name == FIRST_MERGE or self.kind.selects(self.recipe)
        return (self.folder(stage.name).path if apart else self.run.path) / "model"

    def merged(self, round_number: int, branch: str = "") -> ModelSection:
        """The model that came out of a round, by one of the branches; of round 0, of the first stage."""
        name = stage_name("merge", round_number, branch) if round_number else FIRST_MERGE
        folder = self.model_folder(self[name])
        return self.recipe.model.model_copy(update={"path": str(folder), "revision": None})

    @property
    def base(self) -> ModelSection:
        """The loop's first model, which all is compared with: the recipe's, or what its first stage made of it."""
        return self.policy(1)

    def policy(self, round_number: int) -> ModelSection:
        """The model that a round begins with: the loop's first one, then the better one of the round before."""
        if round_number == 0 or (round_number == 1 and self.recipe.first is None):
            return self.recipe.model
        if round_number == 1:
            return self.merged(0)
        branch = self.evaluations(round_number - 1)[-1]["winner"] if self.recipe.branches else ""
        return self.merged(round_number - 1, branch)

    def execute(self, progress: Progress, until: str | None = None) -> dict[str, Any]:
        """Run every stage that is not done, in order.

        Args:
            until: stop behind the last stage of this verb; without it run to the end.

        Returns:
            The summary (summary.json), with the names of the stages that were computed.

        Raises:
            PrefloopError: a stage failed; what is done stays done.
        """
        verbs = {stage.verb for stage in self.stages}
        if until == "pair" and "preferences" in verbs:
            until = "preferences"  # where the pairs of such a recipe come from
        elif until == "pair" and "rows" in verbs:
            until = "rows"  # what a reranker learns from
        elif until == "pair" and "pair" not in verbs:
            until = "judgments"  # what such a recipe is trained on in place of pairs
        if until is not None and until not in verbs:
            raise UsageError(
                f"this recipe has no stage {until}; it has {', '.join(dict.fromkeys(s.verb for s in self.stages))}",
                where=self.recipe.name,
                fix="stop behind its pairs (prefloop pair), or train, merge, evaluate",
            )
        with _warnings_to(self.run, progress) as warnings:
            computed = self._execute(progress, until, warnings)
        summary = manifest.summarize(self)
        if summary != self.run.read_summary():
            self.run.write_summary(summary)
        if computed:
            write_model_cards(self.run.path)
        return {**summary, "computed": computed}

    def _execute(self, progress: Progress, until: str | None, warnings: _Warnings) -> list[str]:
        from prefloop.loop.bench import Bench

        runners = self.kind.runners()
        last = max((s.number for s in self.stages if s.verb == until), default=len(self.stages))
        bench: Bench | None = None
        computed: list[str] = []
        contents: dict[str, str | None] = {}
        for number in range(1, last + 1):
            stage = self.stages[number - 1]
            if (reason := self._ended_before(stage, contents)) is not None:
                progress.skip(stage.name, reason)
                contents[stage.name] = SKIPPED
                continue
            fingerprint = self.fingerprint(stage, contents)
            folder = self.folder(stage.name)
            if fingerprint is not None and folder.is_done(fingerprint):
                progress.skip(stage.name, "done before")
            else:
                if bench is None:
                    progress.note("checking the recipe and its models")
                    self._check_same_model()
                    self.resolve()
                    bench = Bench(self, progress)
                    self.kind.preflight(bench)
                    stage = self.stages[number - 1]
                    fingerprint = self.fingerprint(stage, contents)
                assert fingerprint is not None, "the inputs of a stage are finished before it"
                if folder.success() is not None:
                    progress.note(f"{stage.name}: settings, inputs or code changed since it ran; it runs again")
                self.run.write_manifest(manifest.describe(self))
                progress.stage(stage.name, number, last)
                warnings.at = {"stage": stage.name, "fingerprint": fingerprint}
                bench.run(stage, folder, fingerprint, runners[stage.verb])
                computed.append(stage.name)
            success = folder.success()
            assert success is not None, "a stage ends with its mark"
            self._note(contents, stage, success)
        if bench is not None:
            bench.close()
            self.run.write_manifest(manifest.describe(self))
        return computed

    def _check_same_model(self) -> None:
        """A finished run of another model is not overwritten because both have the recipe's name."""
        before = (self.run.read_manifest() or {}).get("recipe", {}).get("model", {}).get("path")
        if before not in (None, self.recipe.model.path):
            raise UsageError(
                f"holds a run that began from {before}, not from {self.recipe.model.path}",
                where=str(self.run.path),
                fix="give another folder with --out, or remove this one",
            )


def stage_state(folder: StageDir, fingerprint: str | None) -> str:
    """done, partial (an interrupted run left something), todo, or waits (the fingerprint is not known yet)."""
    if fingerprint is None:
        return "waits"
    if folder.is_done(fingerprint):
        return "done"
    return "partial" if folder.has_work(fingerprint) else "todo"


class _Warnings(logging.Handler):
    """Sends our own loggers' lines to the display and to run.log, and warnings, as events, to the report too."""

    def __init__(self, run: RunDir, progress: Progress) -> None:
        super().__init__(logging.INFO)
        self.run, self.progress = run, progress
        self.at: dict[str, str] = {}

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        self.run.log(text)
        if record.levelno < logging.WARNING:
            self.progress.note(text)
            return
        self.progress.warn(text)
        self.run.event("warning", text=text, **self.at)


@contextmanager
def _warnings_to(run: RunDir, progress: Progress) -> Iterator[_Warnings]:
    handler, logger = _Warnings(run, progress), logging.getLogger("prefloop")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield handler
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


@contextmanager
def open_loop(recipe: AnyRecipe, out: Path, cache_path: Path) -> Iterator[Loop]:
    """Open (or make) a run directory and the project's cache, locked for this process."""
    with Cache(cache_path) as cache, RunDir.open(out) as run:
        yield Loop(recipe, run, cache)


def survey(recipe: AnyRecipe, out: Path, cache_path: Path) -> list[Planned]:
    """The state of every stage of a recipe in a run directory that may not exist yet. Takes no lock, makes nothing."""
    with Cache(cache_path) if cache_path.exists() else nullcontext() as cache:
        return Loop(recipe, RunDir(out, None), cache).survey()
