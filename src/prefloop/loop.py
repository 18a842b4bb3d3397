"""The loop: plan the stages of a recipe, skip what is done, run the rest, repeat rounds.

A stage is done when its `_SUCCESS.json` carries its fingerprint: the hash of its settings, of the content of its
inputs, and of the code that computes it. Fingerprints chain through content, so a stage that ran again and gave the
same rows leaves everything after it done, and editing a late stage keeps the early ones.

Planning and skipping import neither torch nor network code (tests/test_imports.py).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefloop import manifest
from prefloop.config import JudgeSignalSection, ModelSection, PromptsSection, Recipe, SampleSection
from prefloop.engine.load import resolve_model_path
from prefloop.errors import Interrupted, UsageError
from prefloop.store.cache import Cache
from prefloop.store.fingerprint import code_digest, digest, file_digest, model_digest
from prefloop.store.rundir import RunDir
from prefloop.store.stagedir import StageDir
from prefloop.ui.progress import Progress

VERBS = ("sample", "rate", "pair", "train", "merge", "evaluate", "report")


@dataclass(frozen=True)
class Stage:
    """One box of the picture in one round.

    Attributes:
        number, name: its folder is `stages/NN-name`; from round 2 on the name carries the round.
        verb: which box it is.
        settings: everything configured that changes its result.
        inputs: names of the stages it reads.
        code: the boxes of the package whose code computes it.
    """

    number: int
    name: str
    verb: str
    round: int
    settings: dict[str, Any]
    inputs: tuple[str, ...]
    code: tuple[str, ...]


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
        self.stages = plan(self.recipe, self.cache)

    def previous(self, stage: Stage) -> str:
        """Name of the stage before this one in the same round."""
        return self.stages[stage.number - 2].name

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
        return digest([stage.verb, stage.round, stage.settings, inputs, code_digest(*stage.code)])

    def survey(self) -> list[Planned]:
        """Every stage with its state."""
        planned: list[Planned] = []
        contents: dict[str, str | None] = {}
        for stage in self.stages:
            fingerprint = self.fingerprint(stage, contents)
            folder = self.folder(stage.name)
            if fingerprint is None:
                state = "waits"
            elif folder.is_done(fingerprint):
                state = "done"
            else:
                state = "partial" if folder.has_work(fingerprint) else "todo"
            success = folder.success() if state == "done" else None
            contents[stage.name] = None if success is None else success["content"]
            planned.append(Planned(stage, state, fingerprint, success))
        return planned

    def model_folder(self, stage: Stage) -> Path:
        """Where a merge stage writes: the last round's model is the run's `model/`."""
        if stage.round == self.recipe.rounds:
            return self.run.path / "model"
        return self.run.stage(stage.number, stage.name).path / "model"

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
            The summary (summary.json).

        Raises:
            PrefloopError: a stage failed; what is done stays done.
        """
        handler = _Warnings(self.run, progress)
        logger = logging.getLogger("prefloop")
        logger.addHandler(handler)
        try:
            return self._execute(progress, until)
        finally:
            logger.removeHandler(handler)

    def _execute(self, progress: Progress, until: str | None) -> dict[str, Any]:
        from prefloop import stages as runners

        last = max((s.number for s in self.stages if s.verb == until), default=len(self.stages))
        todo = [s for s in self.stages if s.number <= last]
        bench = None
        computed = []
        contents: dict[str, str | None] = {}
        for stage in todo:
            fingerprint = self.fingerprint(stage, contents)
            folder = self.folder(stage.name)
            assert fingerprint is not None, "the inputs of a stage are finished before it"
            if folder.is_done(fingerprint):
                progress.skip(stage.name, "done before")
            else:
                if bench is None:
                    self.run.write_manifest(manifest.describe(self))
                    bench = runners.Bench(self, progress)
                progress.stage(stage.name, stage.number, len(todo))
                self.run.event("stage_started", stage=stage.name, fingerprint=fingerprint)
                self.run.log(f"{stage.name} starts")
                started = time.monotonic()
                runners.RUNNERS[stage.verb](bench, stage, folder, fingerprint)
                bench.note_usage(stage)
                computed.append(stage.name)
                seconds = round(time.monotonic() - started, 3)
                self.run.event("stage_finished", stage=stage.name, seconds=seconds)
                self.run.log(f"{stage.name} is done after {seconds} s")
            success = folder.success()
            assert success is not None, "a stage ends with its mark"
            contents[stage.name] = success["content"]
        if bench is not None:
            bench.close()
        if computed or self.run.read_summary() is None:
            self.run.write_summary(manifest.summarize(self))
        return {**(self.run.read_summary() or {}), "computed": computed}


def stage_name(verb: str, round_number: int) -> str:
    """`train`, then `r2-train`, `r3-train`."""
    return verb if round_number == 1 else f"r{round_number}-{verb}"


def plan(recipe: Recipe, cache: Cache | None) -> list[Stage]:
    """The stages of a recipe, in order. Reads the digests of files and models, computes nothing."""
    base = _model_settings(recipe.model, cache)
    judge = _signal_settings(recipe.rate, base, cache)
    measure = evaluation_signal(recipe)
    stages: list[Stage] = []

    def add(verb: str, round_number: int, settings: dict[str, Any], inputs: tuple[str, ...], *code: str) -> None:
        name = stage_name(verb, round_number)
        stages.append(
            Stage(len(stages) + 1, name, verb, round_number, settings, inputs, (*code, "stages.py", "records.py"))
        )

    held_out = recipe.evaluate.prompts
    own = {"holdout": recipe.evaluate.holdout, "seed": recipe.seed} if held_out is None else {}
    add("prompts", 1, {**_prompts_settings(recipe.prompts, cache), **own}, (), "inputs", "pairs/splits.py")
    add(
        "heldout",
        1,
        {**_prompts_settings(held_out or recipe.prompts, cache), **own},
        ("prompts",),
        "inputs",
        "pairs/splits.py",
    )
    for r in range(1, recipe.rounds + 1):
        policy = base if r == 1 else "the model merged in the round before"
        merged = (stage_name("merge", r - 1),) if r > 1 else ()
        sample, rate, pair = (stage_name(v, r) for v in ("sample", "rate", "pair"))
        train, merge = stage_name("train", r), stage_name("merge", r)
        rounds = {"round": r, "rounds": recipe.rounds, "seed": recipe.seed}
        add(
            "sample",
            r,
            {"sample": recipe.sample.model_dump(), "model": policy, **rounds},
            ("prompts", *merged),
            "backends",
            "engine",
        )
        add("rate", r, {"rate": judge}, (sample,), "signals", "backends", "engine")
        add("pair", r, {"pair": recipe.pair.model_dump(), "seed": recipe.seed}, (rate,), "pairs")
        training = recipe.train.model_dump(exclude={"report_to", "save_steps", "logging_steps"})
        add("train", r, {"train": training, "model": policy, "seed": recipe.seed}, (pair, *merged), "train", "engine")
        place = "model" if r == recipe.rounds else "stage"
        add("merge", r, {"merge": recipe.merge.model_dump(), "place": place}, (train,), "train/adapters.py", "train/run.py", "engine")
        evaluation = recipe.evaluate.model_dump(exclude={"prompts", "judge", "holdout"})
        evaluation |= {
            "sample": evaluation_sample(recipe).model_dump(),
            "judge": _signal_settings(measure, base, cache),
            "checkers": {
                group: {name: _function_settings(path) for name, path in functions.items()}
                for group, functions in recipe.evaluate.checkers.items()
            },
            "base": base,
            "seed": recipe.seed,
        }
        add("evaluate", r, evaluation, ("heldout", merge), "evaluate", "signals", "backends", "engine")
    everything = tuple(s.name for s in stages)
    add("report", 1, {"recipe": recipe.model_dump()}, everything, "report", "manifest.py")
    return stages


def evaluation_sample(recipe: Recipe) -> SampleSection:
    """Decoding of the evaluation: its own section, or the sample section's with one answer a prompt."""
    return recipe.evaluate.sample or recipe.sample.model_copy(update={"n": 1})


def evaluation_signal(recipe: Recipe) -> Any:
    """Who compares in the evaluation: its own judge, or the rate section's, a judge then reading pairs."""
    if recipe.evaluate.judge is not None:
        return recipe.evaluate.judge
    if isinstance(recipe.rate, JudgeSignalSection):
        # A template file is written for one mode; a shipped set has both.
        file = recipe.rate.template is not None and Path(recipe.rate.template).suffix
        own = None if recipe.rate.mode != "pairwise" and file else recipe.rate.template
        return recipe.rate.model_copy(update={"mode": "pairwise", "template": own})
    return recipe.rate


def _prompts_settings(section: PromptsSection, cache: Cache | None) -> dict[str, Any]:
    """Everything about a source of prompts that changes what is read; files by content, not by name."""
    settings = section.model_dump(exclude={"path"})
    if section.path.startswith("sandbox:"):
        return settings | {"path": section.path, "code": code_digest("sandbox")}
    if section.path.startswith("hub:"):
        return settings | {"path": section.path}
    path = Path(section.path)
    if not path.is_file():
        raise UsageError("there is no such file", where=section.path, fix="set prompts.path to a file of prompts")
    return settings | {"suffix": path.suffix, "content": file_digest(path, memo=cache)}


def _model_settings(section: ModelSection, cache: Cache | None) -> dict[str, Any]:
    """What of a model section changes results: the weights and how they are used, not where they run."""
    return {
        "weights": model_digest(resolve_model_path(section.path), section.revision, memo=cache),
        "dtype": section.dtype,
        "template": _template_settings(section.template),
    }


def _template_settings(template: str) -> str:
    return file_digest(template) if Path(template).is_file() else template


def _signal_settings(section: Any, base: dict[str, Any], cache: Cache | None) -> dict[str, Any]:
    """Everything that changes a score: the section, the judge's weights and template, or the function's source."""
    settings: dict[str, Any] = section.model_dump(exclude={"model", "template"})
    if isinstance(section, JudgeSignalSection):
        model = base if section.model is None else _model_settings(section.model, cache)
        # A shipped template is code of the signals or sandbox box.
        template = section.template and _template_settings(section.template)
        return settings | {"model": model, "template": template}
    return settings | {"function": _function_settings(section.callable)}


def _function_settings(name: str) -> dict[str, Any]:
    """A function by name and by the content of its module's file, so that editing it computes again."""
    from prefloop.signals.function import module_file

    file = module_file(name.partition(":")[0])
    return {"name": name, "source": None if file is None else file_digest(file)}


class _Warnings(logging.Handler):
    """Sends warnings of our own loggers to the display, to run.log and, as an event, to the report."""

    def __init__(self, run: RunDir, progress: Progress) -> None:
        super().__init__(logging.WARNING)
        self.run, self.progress = run, progress

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        self.progress.warn(text)
        self.run.log(text)
        self.run.event("warning", text=text)


@contextmanager
def open_loop(recipe: Recipe, out: Path, cache_path: Path) -> Iterator[Loop]:
    """Open (or make) a run directory and the project's cache, locked for this process."""
    cache_path.parent.mkdir(parents=True, exist_ok=True)
    with Cache(cache_path) as cache, RunDir.open(out) as run:
        yield Loop(recipe, run, cache)


def survey(recipe: Recipe, out: Path, cache_path: Path) -> list[Planned]:
    """The state of every stage of a recipe in a run directory that may not exist yet. Takes no lock, makes nothing."""
    with Cache(cache_path) if cache_path.exists() else nullcontext() as cache:
        return Loop(recipe, RunDir(out, None), cache).survey()


__all__ = ["Interrupted", "Loop", "Planned", "Stage", "open_loop", "plan", "stage_name", "survey"]
