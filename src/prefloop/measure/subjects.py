"""What is measured outside a run: models by path or by run directory, the prompts, the decoding, the answers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from prefloop.backends.base import Backend
from prefloop.config import ModelSection, PromptsSection, Recipe, SampleSection, Way
from prefloop.errors import UsageError
from prefloop.loop.plan import FIRST_MERGE, FIRST_READ, selects
from prefloop.publish import facts as of_run
from prefloop.records import CandidatesRow, PromptRow, RejectRow
from prefloop.signals.models import OpenModels
from prefloop.store.cache import Cache

if TYPE_CHECKING:
    from prefloop.backends.cached import CachedBackend
    from prefloop.ui.progress import Progress

NAMED = re.compile(r"(?P<name>[\w.+-]+)=(?P<rest>.+)", re.DOTALL)


@dataclass(frozen=True)
class Subject:
    """A model that is measured.

    Attributes:
        name: what it is called in tables.
        model: its section.
        run, recipe: where it comes from a run directory.
        round, branch: of the run's model, the one that was chosen.
    """

    name: str
    model: ModelSection
    run: Path | None = None
    recipe: Recipe | None = None
    round: int = 1
    branch: str = ""

    @property
    def way(self) -> Way | None:
        """How a run's model was rated, paired and trained; None of any other."""
        return None if self.recipe is None else self.recipe.ways[self.branch]


def subjects(given: Sequence[str]) -> list[Subject]:
    """Models from the words of a command line: PATH or NAME=PATH, a path being a run directory, a model's or an
    adapter's folder, a hub id or `sandbox`.

    Raises:
        UsageError: a run has no model yet, or only one of an earlier recipe, or two have one name.
    """
    found = [_subject(word) for word in given]
    names = [subject.name for subject in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"two models are called {twice[0]!r}", fix=f"name them: first={given[0]} second=…")
    return found


def _subject(word: str) -> Subject:
    match = None if Path(word).exists() else NAMED.fullmatch(word)
    name, path = (match["name"], match["rest"]) if match else (None, word)
    folder = Path(path)
    name = name or folder.resolve().name
    if not (folder / "manifest.json").is_file():
        return Subject(name, ModelSection(path=path))
    recipe, facts = run_recipe(folder), of_run.read(folder)
    # What lies in `model` may be an earlier recipe's, or of a round that is not chosen yet.
    if not facts.done("select" if selects(recipe) else "merge") or not (folder / "model").is_dir():
        raise UsageError(
            "this run has made no model yet",
            where=path,
            fix="go on with it first; `prefloop status` says how far it is",
        )
    model = recipe.model.model_copy(update={"path": str(folder / "model"), "revision": None})
    return Subject(name, model, folder, recipe, *facts.chosen())


def base_of(folder: Path) -> ModelSection:
    """The model that a run's loop began with: its recipe's, or what its first stage made of that.

    Raises:
        UsageError: the first stage's model is not there.
    """
    recipe, facts = run_recipe(folder), of_run.read(folder)
    if recipe.first is None:
        return recipe.model
    made = [part.folder.path / "model" for part in facts.done(FIRST_MERGE)]
    if not made or not made[0].is_dir():
        raise UsageError(
            "the model of the first stage, which this run's is compared with, is not there",
            where=str(folder),
            fix="go on with the run first, or give both models",
        )
    return recipe.model.model_copy(update={"path": str(made[0]), "revision": None})


def run_recipe(folder: Path) -> Recipe:
    """The recipe of a run directory, as its manifest has it.

    Raises:
        UsageError: there is no run, or one of a version with other settings.
    """
    facts = of_run.read(folder)
    if facts.retrieves:
        raise UsageError(
            "is a run of questions and documents: its own stage evaluate measures its readers, in report.html and "
            "summary.json",
            where=str(folder),
            fix=f"to measure the trained reader as a model by itself, give {folder / 'model'}",
        )
    try:
        return Recipe.model_validate(facts.recipe)
    except ValidationError as error:
        raise UsageError(
            f"its recipe is not one of this version: {error.errors()[0]['msg']}", where=str(folder / "manifest.json")
        ) from None


def stage_rows(folder: Path, name: str) -> list[Any]:
    """The rows of a stage of a run's plan; empty where the plan has no such stage, or the rounds ended before it.

    Raises:
        UsageError: it is not done by the recipe as it stands: rows of an earlier one or half of the rows would pass
            for all.
    """
    facts = of_run.read(folder)
    skipped = {stage["name"] for stage in facts.manifest.get("stages", []) if stage.get("skipped")}
    for part in facts.parts:
        if part.name == name and name not in skipped:
            if part.success is None:
                raise UsageError(
                    f"the stage {name} is not done",
                    where=str(folder),
                    fix="go on with the run first; `prefloop status` says how far it is",
                )
            return list(part.folder.rows())
    return []


def learned(folder: Path) -> list[Any]:
    """The prompts that a run may have been trained on, each with id and prompt: all but those that it held out."""
    kept_out = {row["id"] for row in stage_rows(folder, "heldout")}
    return stage_rows(folder, "prompts") + [
        {"id": row["prompt_id"], "prompt": row["prompt"]}
        for name in ("preferences", FIRST_READ)
        for row in stage_rows(folder, name)
        if row["prompt_id"] not in kept_out
    ]


def held_out_pairs(folder: Path) -> list[Any]:
    """The preference rows that a run of given preferences was not trained on; none of a run that made its own."""
    kept_out = {row["id"] for row in stage_rows(folder, "heldout")}
    rows = stage_rows(folder, "preferences")
    return [row for row in rows if row["prompt_id"] in kept_out and "chosen" in row]  # judgments are no pairs


@dataclass(frozen=True)
class Asked:
    """The prompts to measure on.

    Attributes:
        rows: the prompts.
        trained: run -> how many prompts were left out because that run was trained on them.
        rejects: rows of the file that could not be used.
    """

    rows: list[PromptRow]
    trained: dict[str, int] = field(default_factory=dict)
    rejects: list[RejectRow] = field(default_factory=list)


def prompts(models: Sequence[Subject], section: PromptsSection | None, limit: int | None = None) -> Asked:
    """The prompts of a file, or those that all given runs held out; without those that a given run was trained on.

    Raises:
        UsageError: there is no file and no run, or no prompt is left.
    """
    from prefloop.inputs.prompts import read_prompts
    from prefloop.pairs.splits import overlap

    runs = [subject for subject in models if subject.run is not None]
    rejects: list[RejectRow] = []
    if section is not None:
        rows, rejects = read_prompts(section)
        where = section.path
    elif runs:
        where = ", ".join(str(subject.run) for subject in runs)
        held_out = [{row["id"]: row for row in stage_rows(subject.run, "heldout")} for subject in runs if subject.run]
        rows = [row for name, row in held_out[0].items() if all(name in other for other in held_out)]
    else:
        raise UsageError(
            "nothing says on which prompts", fix="give --prompts FILE, or a run, whose held-out prompts are used"
        )
    trained: dict[str, int] = {}
    for subject in runs:
        assert subject.run is not None
        if seen := set(overlap(learned(subject.run), rows)):
            trained[subject.name] = len(seen)
            rows = [row for row in rows if row["id"] not in seen]
    if not rows:
        why = f" ({trained} were trained on)" if trained else ""
        raise UsageError(f"no prompt is left to measure on{why}", where=where, fix="give --prompts FILE with others")
    return Asked(rows[:limit], trained, rejects)


def decoding(models: Sequence[Subject], **changes: Any) -> SampleSection:
    """How all models answer: as the first run was measured, with the given changes (None: no change)."""
    from prefloop.loop.plan import evaluation_sample

    recipe = next((subject.recipe for subject in models if subject.recipe is not None), None)
    start = SampleSection(n=1) if recipe is None else evaluation_sample(recipe)
    return SampleSection.model_validate(start.model_dump() | {k: v for k, v in changes.items() if v is not None})


class Models(OpenModels):
    """The models of a command, with what servers were paid.

    Attributes:
        spent: of servers, name -> what `Backend.spent` counted in this command, so far as they were closed.
    """

    def __init__(self, cache: Cache) -> None:
        # A server that is opened again has cost something before: its limit is the command's.
        super().__init__(
            cache,
            earlier_cost=lambda name: self.spent.get(name, {}).get("cost", 0.0),
            closing=self._count,
        )
        self.spent: dict[str, dict[str, float]] = {}

    def loaded(self, section: ModelSection) -> Any:
        """The model itself, without cache and workers: its tokenizer and its context are asked for. An `HfBackend`."""
        return self.open(section.model_copy(update={"workers": 1})).inner

    def backends(self, needs: Mapping[str, Any], default: ModelSection | None) -> dict[str, Backend]:
        """The models that a signal calls, by its names for them.

        Raises:
            UsageError: a signal names no model, and there is no run whose first model it could mean.
        """
        found = {}
        for name, need in needs.items():
            section = need.model or default
            if section is None:
                raise UsageError("names no model", where=f"signal's {name}", fix="set its model")
            found[name] = self.get(section, need.kind)
        return found

    def _count(self, held: CachedBackend) -> None:
        if counted := held.spent():
            before = self.spent.get(held.name, {})
            names = {**before, **counted}
            self.spent[held.name] = {n: before.get(n, 0) + counted.get(n, 0) for n in names}


@contextmanager
def opened(cache_path: Path, progress: Progress) -> Iterator[Models]:
    """Models with the project's cache; what servers were paid is told at the end, also of work that failed."""
    with Cache(cache_path) as cache:
        models = Models(cache)
        try:
            yield models
        finally:
            models.release()
            for name, spent in models.spent.items():
                cost = f", paid {spent['cost']:.6g}" if "cost" in spent else ""
                progress.note(
                    f"{name}: {spent['prompt_tokens']:,.0f} prompt tokens, {spent['generated_tokens']:,.0f} generated"
                    + cost
                )


def answers(
    models: Models, subject: Subject, rows: Sequence[PromptRow], section: SampleSection, seed: int
) -> tuple[list[CandidatesRow], dict[str, str]]:
    """A subject's answers, and the prompts that it cannot take with the reason. The model is closed behind it."""
    from prefloop.loop.sampling import sample

    kept, rejects, _ = sample(models.get(subject.model), rows, section, seed, subject.name)
    models.release()
    return kept, {row["id"]: row["reason"] for row in rejects}
