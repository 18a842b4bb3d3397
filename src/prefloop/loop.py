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
from functools import cache as cache_in_memory
from pathlib import Path
from typing import Any

from prefloop import manifest
from prefloop.config import COSMETIC, JudgeSignalSection, ModelSection, Recipe, SampleSection
from prefloop.engine.load import resolve_model_path
from prefloop.errors import UsageError
from prefloop.store.cache import Cache
from prefloop.store.fingerprint import code_digest, digest, file_digest, model_digest, resolve_commit
from prefloop.store.rundir import RunDir
from prefloop.store.stagedir import StageDir
from prefloop.ui.progress import Progress


@dataclass(frozen=True)
class Stage:
    """One box of the picture in one round.

    Attributes:
        number, name: its folder is `stages/NN-name`; from round 2 on the name carries the round.
        verb: which box it is.
        settings: everything configured that changes its result.
        inputs: names of the stages it reads.
        code: digest of the boxes of the package that compute it, taken when the run was planned.
    """

    number: int
    name: str
    verb: str
    round: int
    settings: dict[str, Any]
    inputs: tuple[str, ...]
    code: str


@dataclass(frozen=True)
class Planned:
    """A stage with its state: done, partial (some parts are there), todo, or waits (an input is not done).

    `success` is the content of its `_SUCCESS.json` when it is done.
    """

    stage: Stage
    state: str
    fingerprint: str | None
    success: dict[str, Any] | None


@dataclass
class Loop:
    """A recipe bound to a run directory and a cache."""

    recipe: Recipe
    run: RunDir
    cache: Cache | None
    stages: list[Stage] = field(init=False)

    def __post_init__(self) -> None:
        # A run keeps the hub commits that it began with, whatever happens upstream.
        manifest_before = self.run.read_manifest() or {}
        self.commits: dict[str, str] = dict(manifest_before.get("commits", {}))
        self._pin()

    def _pin(self) -> None:
        self.recipe = pinned(self.recipe, self.commits)
        self.stages = plan(self.recipe, self.cache)

    def resolve(self) -> None:
        """Turn the branches of hub models into commits, before anything is computed with them.

        Raises:
            UsageError: the hub does not know a model, or cannot be reached.
        """
        for section in models_of(self.recipe):
            if section.endpoint is not None:
                continue
            name = f"{section.path}@{section.revision or 'main'}"
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
        inputs = [[name, contents[name]] for name in stage.inputs]
        if any(content is None for _, content in inputs):
            return None
        return digest([stage.verb, stage.round, stage.settings, inputs, stage.code])

    def survey(self) -> list[Planned]:
        """Every stage with its state."""
        planned: list[Planned] = []
        contents: dict[str, str | None] = {}
        for stage in self.stages:
            fingerprint = self.fingerprint(stage, contents)
            folder = self.folder(stage.name)
            state = stage_state(folder, fingerprint)
            success = folder.success() if state == "done" else None
            contents[stage.name] = None if success is None else success["content"]
            planned.append(Planned(stage, state, fingerprint, success))
        return planned

    def model_folder(self, stage: Stage) -> Path:
        """Where a merge stage writes: the last round's model is the run's `model/`."""
        if stage.round == self.recipe.rounds:
            return self.run.path / "model"
        return self.folder(stage.name).path / "model"

    def policy(self, round_number: int) -> ModelSection:
        """The model that samples in a round, from 1: the recipe's, then the model merged in the round before."""
        if round_number == 1:
            return self.recipe.model
        merged = self.model_folder(self[stage_name("merge", round_number - 1)])
        return self.recipe.model.model_copy(update={"path": str(merged), "revision": None})

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
        if until is not None and until not in verbs:
            raise UsageError(
                f"this recipe has no stage {until}: it trains on preferences that are there",
                where=self.recipe.name,
                fix="stop behind its pairs (prefloop pair), or train, merge, evaluate",
            )
        with _warnings_to(self.run, progress) as warnings:
            computed = self._execute(progress, until, warnings)
        summary = manifest.summarize(self)
        if summary != self.run.read_summary():
            self.run.write_summary(summary)
        return {**summary, "computed": computed}

    def _execute(self, progress: Progress, until: str | None, warnings: _Warnings) -> list[str]:
        from prefloop import stages as runners
        from prefloop.bench import Bench

        last = max((s.number for s in self.stages if s.verb == until), default=len(self.stages))
        bench: Bench | None = None
        computed: list[str] = []
        contents: dict[str, str | None] = {}
        for number in range(1, last + 1):
            stage = self.stages[number - 1]
            fingerprint = self.fingerprint(stage, contents)
            folder = self.folder(stage.name)
            if fingerprint is not None and folder.is_done(fingerprint):
                progress.skip(stage.name, "done before")
            else:
                if bench is None:
                    self._check_same_model()
                    self.resolve()
                    bench = Bench(self, progress)
                    bench.preflight()
                    stage = self.stages[number - 1]
                    fingerprint = self.fingerprint(stage, contents)
                assert fingerprint is not None, "the inputs of a stage are finished before it"
                if folder.success() is not None:
                    progress.note(f"{stage.name}: settings, inputs or code changed since it ran; it runs again")
                self.run.write_manifest(manifest.describe(self))
                progress.stage(stage.name, number, last)
                warnings.at = {"stage": stage.name, "fingerprint": fingerprint}
                bench.run(stage, folder, fingerprint, runners.RUNNERS[stage.verb])
                computed.append(stage.name)
            success = folder.success()
            assert success is not None, "a stage ends with its mark"
            contents[stage.name] = success["content"]
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


def stage_name(verb: str, round_number: int) -> str:
    """`train`, then `r2-train`, `r3-train`."""
    return verb if round_number == 1 else f"r{round_number}-{verb}"


def plan(recipe: Recipe, cache: Cache | None) -> list[Stage]:
    """The stages of a recipe, in order. Reads the digests of files and models, computes nothing."""
    from prefloop.inputs.identity import identity as input_identity
    from prefloop.signals.build import function_identity
    from prefloop.signals.build import identity as signal_identity

    base = _model_settings(recipe.model, cache)

    def signal_settings(section: Any) -> dict[str, Any]:
        models = {n: base if m is None else _model_settings(m, cache) for n, m in section.models.items()}
        return {"signal": signal_identity(section), "models": models}

    stages: list[Stage] = []

    def add(verb: str, round_number: int, settings: dict[str, Any], inputs: tuple[str, ...], *code: str) -> None:
        name = stage_name(verb, round_number)
        digest_of_code = _code(*code, "stages.py", "reading.py", "records.py")
        stages.append(Stage(len(stages) + 1, name, verb, round_number, settings, inputs, digest_of_code))

    held_out = recipe.evaluate.prompts
    own = {"holdout": recipe.evaluate.holdout} if held_out is None else {}
    read = ("inputs", "pairs/splits.py")
    source = recipe.preferences or recipe.sampled.prompts
    verb = "prompts" if recipe.preferences is None else "preferences"
    # Preferences are kept whole, and training leaves out the rows of prompts that are measured on.
    split_at_once = own if recipe.preferences is None else {}
    add(verb, 1, input_identity(source, recipe.seed, cache) | split_at_once, (), *read)
    read_again = held_out or recipe.prompts
    settings = {} if read_again is None else input_identity(read_again, recipe.seed, cache)
    add("heldout", 1, settings | own, (verb,), *read)
    for r in range(1, recipe.rounds + 1):
        policy = base if r == 1 else "the model merged in the round before"
        merged = (stage_name("merge", r - 1),) if r > 1 else ()
        sample, rate, pair = (stage_name(v, r) for v in ("sample", "rate", "pair"))
        train, merge = stage_name("train", r), stage_name("merge", r)
        boxes = ("backends", "engine")
        training = {"train": recipe.train.model_dump(exclude=COSMETIC), "model": policy, "seed": recipe.seed}
        if recipe.preferences is None:
            section = recipe.sampled.sample
            who = policy if section.model is None else _model_settings(section.model, cache)
            sampling = {"sample": section.model_dump(exclude={"model"}), "model": who, "seed": recipe.seed}
            chunk = {"round": r, "rounds": recipe.rounds}
            add("sample", r, sampling | chunk, ("prompts", *merged), *boxes, "pairs/splits.py")
            add("rate", r, signal_settings(recipe.sampled.rate), (sample,), "signals", *boxes)
            add("pair", r, {"pair": recipe.sampled.pair.model_dump(), "seed": recipe.seed}, (rate,), "pairs")
            add("train", r, training, (pair, *merged), "train", "engine", "pairs/splits.py")
        else:
            add("train", r, training | own, ("preferences",), "train", "engine", "pairs/splits.py")
        place = "model" if r == recipe.rounds else "stage"
        settings = {"merge": recipe.merge.model_dump(), "place": place, "model": policy}
        add("merge", r, settings, (train, *merged), "train/adapters.py", "train/run.py", "engine")
        signal = evaluation_signal(recipe)
        settings = {
            "sample": evaluation_sample(recipe).model_dump(exclude={"model"}),
            "judge": None if signal is None else signal_settings(signal),
            "checkers": {
                group: {name: function_identity(path) for name, path in functions.items()}
                for group, functions in recipe.evaluate.checkers.items()
            },
            "bootstrap": recipe.evaluate.bootstrap,
            "base": base,
            "seed": recipe.seed,
        }
        add("evaluate", r, settings, ("heldout", merge), "evaluate", "signals", *boxes)
    everything = tuple(s.name for s in stages)
    add("report", 1, {"recipe": recipe.model_dump()}, everything, "report", "manifest.py")
    return stages


def evaluation_sample(recipe: Recipe) -> SampleSection:
    """Decoding of the evaluation: its own section, or the sample section's with one answer a prompt."""
    return recipe.evaluate.sample or (recipe.sample or SampleSection()).model_copy(update={"n": 1, "model": None})


def evaluation_signal(recipe: Recipe) -> Any:
    """Who compares: its own judge, or the rate section's, a judge then reading pairs. None: nobody."""
    from prefloop.signals.template import is_shipped

    if recipe.evaluate.judge is not None:
        return recipe.evaluate.judge
    rate = recipe.rate
    if isinstance(rate, JudgeSignalSection) and rate.mode != "pairwise":
        # A template file is written for one mode; a shipped set has both.
        kept = rate.template if rate.template is None or is_shipped(rate.template) else None
        return rate.model_copy(update={"mode": "pairwise", "template": kept})
    return rate


def models_of(recipe: Recipe) -> list[ModelSection]:
    """Every model section of a recipe."""
    signals = [s for s in (recipe.rate, recipe.evaluate.judge) if s is not None]
    others = [model for signal in signals for model in signal.models.values()]
    if recipe.sample is not None:
        others.append(recipe.sample.model)
    return [recipe.model, *(model for model in others if model is not None)]


def pinned(recipe: Recipe, commits: dict[str, str]) -> Recipe:
    """The recipe with every hub model at its commit, where that is known ("ORG/NAME@BRANCH" -> commit)."""

    def pin(section: ModelSection) -> ModelSection:
        commit = commits.get(f"{section.path}@{section.revision or 'main'}")
        return section if commit is None else section.model_copy(update={"revision": commit})

    def pin_models(section: Any) -> Any:
        return section and section.with_models(pin)

    evaluate = recipe.evaluate.model_copy(update={"judge": pin_models(recipe.evaluate.judge)})
    sample = recipe.sample
    if sample is not None and sample.model is not None:
        sample = sample.model_copy(update={"model": pin(sample.model)})
    changed = {"model": pin(recipe.model), "sample": sample, "rate": pin_models(recipe.rate), "evaluate": evaluate}
    return recipe.model_copy(update=changed)


@cache_in_memory
def _code(*boxes: str) -> str:
    # Once a process: what is running is the code that was there when it started.
    return code_digest(*boxes)


def _model_settings(section: ModelSection, cache: Cache | None) -> dict[str, Any]:
    """What of a model section changes results: the weights and how they are used, not where they run."""
    if section.endpoint is not None:
        return {"served": section.path, "revision": section.revision, "body": section.endpoint.extra_body}
    template = file_digest(section.template) if Path(section.template).is_file() else section.template
    weights = model_digest(resolve_model_path(section.path), section.revision, memo=cache)
    return {"weights": weights, "dtype": section.dtype, "template": template}


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
def open_loop(recipe: Recipe, out: Path, cache_path: Path) -> Iterator[Loop]:
    """Open (or make) a run directory and the project's cache, locked for this process."""
    with Cache(cache_path) as cache, RunDir.open(out) as run:
        yield Loop(recipe, run, cache)


def survey(recipe: Recipe, out: Path, cache_path: Path) -> list[Planned]:
    """The state of every stage of a recipe in a run directory that may not exist yet. Takes no lock, makes nothing."""
    with Cache(cache_path) if cache_path.exists() else nullcontext() as cache:
        return Loop(recipe, RunDir(out, None), cache).survey()
