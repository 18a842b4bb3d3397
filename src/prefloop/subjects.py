"""What is measured outside a run: models by path or by run directory, the prompts, the decoding, the answers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from prefloop.backends.base import Backend
from prefloop.config import ModelSection, PromptsSection, Recipe, SampleSection
from prefloop.errors import UsageError
from prefloop.records import CandidatesRow, PromptRow, RejectRow
from prefloop.store.cache import Cache
from prefloop.store.rundir import RunDir

NAMED = re.compile(r"(?P<name>[\w.+-]+)=(?P<rest>.+)", re.DOTALL)


@dataclass(frozen=True)
class Subject:
    """A model that is measured.

    Attributes:
        name: what it is called in tables.
        model: its section.
        run, recipe: where it comes from a run directory.
    """

    name: str
    model: ModelSection
    run: Path | None = None
    recipe: Recipe | None = None


def subjects(given: Sequence[str]) -> list[Subject]:
    """Models from the words of a command line: PATH or NAME=PATH, a path being a run directory, a model's or an
    adapter's folder, a hub id or `sandbox`.

    Raises:
        UsageError: a run has no model yet, or two have one name.
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
    recipe = run_recipe(folder)
    if not (folder / "model").is_dir():
        raise UsageError(
            "this run has made no model yet",
            where=path,
            fix="go on with it first; `prefloop status` says how far it is",
        )
    model = recipe.model.model_copy(update={"path": str(folder / "model"), "revision": None})
    return Subject(name, model, folder, recipe)


def run_recipe(folder: Path) -> Recipe:
    """The recipe of a run directory, as its manifest has it.

    Raises:
        UsageError: there is no run, or one of a version with other settings.
    """
    manifest = RunDir.peek(folder).read_manifest()
    if manifest is None:
        raise UsageError("there is no run here", where=str(folder), fix="give the --out folder of a run")
    try:
        return Recipe.model_validate(manifest["recipe"])
    except ValidationError as error:
        raise UsageError(
            f"its recipe is not one of this version: {error.errors()[0]['msg']}", where=str(folder / "manifest.json")
        ) from None


def stage_rows(folder: Path, name: str) -> list[Any]:
    """The rows of a stage of a run's plan; empty where it has no such stage or that has not run."""
    run = RunDir.peek(folder)
    for stage in (run.read_manifest() or {}).get("stages", []):
        if stage["name"] == name and (found := run.stage(stage["number"], name)).path.is_dir():
            return list(found.rows())
    return []


def held_out_pairs(folder: Path) -> list[Any]:
    """The preference rows that a run of given preferences was not trained on; none of a run that made its own."""
    kept_out = {row["id"] for row in stage_rows(folder, "heldout")}
    return [row for row in stage_rows(folder, "preferences") if row["prompt_id"] in kept_out]


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
        kept_out = {row["id"] for row in stage_rows(subject.run, "heldout")}
        learned = stage_rows(subject.run, "prompts") or [
            {"id": row["prompt_id"], "prompt": row["prompt"]}
            for row in stage_rows(subject.run, "preferences")
            if row["prompt_id"] not in kept_out
        ]
        if seen := set(overlap(learned, rows)):
            trained[subject.name] = len(seen)
            rows = [row for row in rows if row["id"] not in seen]
    if not rows:
        why = f" ({trained} were trained on)" if trained else ""
        raise UsageError(f"no prompt is left to measure on{why}", where=where, fix="give --prompts FILE with others")
    return Asked(rows[:limit], trained, rejects)


def decoding(models: Sequence[Subject], **changes: Any) -> SampleSection:
    """How all models answer: as the first run was measured, with the given changes (None: no change)."""
    from prefloop.plan import evaluation_sample

    recipe = next((subject.recipe for subject in models if subject.recipe is not None), None)
    start = SampleSection(n=1) if recipe is None else evaluation_sample(recipe)
    return SampleSection.model_validate(start.model_dump() | {k: v for k, v in changes.items() if v is not None})


class Models:
    """Models behind the project's cache, opened one after the other; what is still open is closed at the end."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self._open: dict[str, Backend] = {}

    def get(self, section: ModelSection, kind: str = "language") -> Backend:
        """The section's model; open until `release`."""
        from prefloop.backends.cached import CachedBackend
        from prefloop.engine.load import quiet
        from prefloop.signals.build import open_backend

        key = f"{kind} {section.model_dump_json()}"
        if key not in self._open:
            quiet()
            self._open[key] = CachedBackend(open_backend(section, kind, self.cache), self.cache)
        return self._open[key]

    def loaded(self, section: ModelSection) -> Any:
        """The model itself, without the cache: its tokenizer and its context are asked for. An `HfBackend`."""
        from prefloop.backends.cached import CachedBackend

        backend = self.get(section)
        assert isinstance(backend, CachedBackend)
        return backend.inner

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

    def release(self) -> None:
        """Close all."""
        for backend in self._open.values():
            backend.close()
        self._open.clear()


@contextmanager
def opened(cache_path: Path) -> Iterator[Models]:
    """Models with the project's cache."""
    with Cache(cache_path) as cache:
        models = Models(cache)
        try:
            yield models
        finally:
            models.release()


def answers(
    models: Models, subject: Subject, rows: Sequence[PromptRow], section: SampleSection, seed: int
) -> tuple[list[CandidatesRow], dict[str, str]]:
    """A subject's answers, and the prompts that it cannot take with the reason. The model is closed behind it."""
    from prefloop.sampling import sample

    kept, rejects, _ = sample(models.get(subject.model), rows, section, seed, subject.name)
    models.release()
    return kept, {row["id"]: row["reason"] for row in rejects}
