"""From a recipe to its stages: their order, inputs and settings. Computes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache as cache_in_memory
from pathlib import Path
from typing import Any

from prefloop.config import (
    COSMETIC,
    FirstSection,
    HarnessSection,
    JudgeSignalSection,
    ModelSection,
    Recipe,
    RetrieverSignalSection,
    SampleSection,
    SelfRewardSignalSection,
    SourceBiasSection,
    Way,
)
from prefloop.engine.load import resolve_model_path
from prefloop.errors import UsageError
from prefloop.store.cache import Cache
from prefloop.store.fingerprint import code_digest, file_digest, model_digest

FIRST_READ, FIRST_TRAIN, FIRST_MERGE = "first-preferences", "first-train", "first-merge"
"""The stages of `first`, training before the loop. They are in round 0."""
BOXES = ("backends", "engine")
"""What computes wherever a model is asked."""
TRAINED_BY = ("train", "engine", "pairs/splits.py", "loop/bench.py")
MERGED_BY = ("train/adapters.py", "train/run.py", "engine")
_MEASURING = ("loop/sampling.py", "loop/measuring.py", "loop/bench.py")
MEASURED_BY: tuple[str, ...] = (
    "evaluate",
    "train/judged.py",
    "pairs/judgments.py",
    "intervals.py",
    "signals",
    "inputs",
    *_MEASURING,
    *BOXES,
)

REWRITING = ("inputs/rewriting.py", "inputs/rewritten.py", "loop/rewriting.py", "evaluate/refusals.py")
"""What asks for rewrites and reads them."""


@dataclass(frozen=True)
class Stage:
    """One box of the picture in one round.

    Attributes:
        number, name: its folder is `stages/NN-name`; the name carries the branch and, from round 2 on, the round.
        round: from 1; 0 before the loop (`first`).
        verb: which box it is.
        branch: which of the recipe's branches; empty for what they share, and where there are none.
        settings: everything configured that changes its result.
        inputs: names of the stages it reads.
        code: digest of the boxes of the package that compute it, taken when the run was planned.
    """

    number: int
    name: str
    verb: str
    round: int
    branch: str
    settings: dict[str, Any]
    inputs: tuple[str, ...]
    code: str


def stage_name(verb: str, round_number: int, branch: str = "") -> str:
    """`train`, then `r2-train`, `r3-train`; of a branch `judge-train`, `r2-judge-train`."""
    return "-".join([*([f"r{round_number}"] if round_number > 1 else []), *([branch] if branch else []), verb])


def winner(round_number: int) -> str:
    """Stands, as an input, for the model that a round of several branches hands on."""
    return f"{stage_name('evaluate', round_number)}.winner"


def plan(recipe: Recipe, cache: Cache | None) -> list[Stage]:
    """The stages of a recipe, in order. Reads the digests of files and models, computes nothing."""
    return _Planner(recipe, cache).stages


class _Planner:
    def __init__(self, recipe: Recipe, cache: Cache | None) -> None:
        self.recipe, self.cache = recipe, cache
        self.stages: list[Stage] = []
        held_out = recipe.evaluate.prompts
        self.own = {"holdout": recipe.evaluate.holdout} if held_out is None else {}
        # What the loop begins with, and the stage that makes it where one does.
        self.base: Any = model_settings(recipe.model, cache)
        self.begin: tuple[str, ...] = ()
        self._read()
        if recipe.first is not None:
            self._first(recipe.first)
        for r in range(1, recipe.rounds + 1):
            self._round(r)
        everything = tuple(s.name for s in self.stages)
        if selects(recipe):
            rules = {"stop": recipe.stop and recipe.stop.model_dump()}
            self._add("select", 1, "", rules, everything, "loop/measuring.py", "loop/rounds.py")
            everything += ("select",)
        self._add("report", 1, "", {"recipe": recipe.model_dump()}, everything, "report", "loop/manifest.py")

    def _add(
        self, verb: str, r: int, branch: str, settings: dict[str, Any], inputs: tuple[str, ...], *code: str
    ) -> str:
        name = stage_name(verb, r, branch)
        digest_of_code = stage_code(*code, "loop/stages.py", "loop/reading.py", "records.py")
        self.stages.append(Stage(len(self.stages) + 1, name, verb, r, branch, settings, inputs, digest_of_code))
        return name

    def _read(self) -> None:
        from prefloop.inputs.identity import identity

        recipe = self.recipe
        read: tuple[str, ...] = ("inputs", "pairs/splits.py")
        source = recipe.preferences or recipe.sampled.prompts
        given = (recipe.preferences, None if recipe.first is None else recipe.first.preferences)
        if any(section is not None and section.learn == "critic" for section in given):
            read += ("signals/critic.py", "signals/template.py", "signals/templates")  # what is asked and replied
        verb = "prompts" if recipe.preferences is None else "preferences"
        # Preferences are kept whole, and training leaves out the rows of prompts that are measured on.
        split_at_once = self.own if recipe.preferences is None else {}
        self._add(verb, 1, "", identity(source, recipe.seed, self.cache) | split_at_once, (), *read)
        read_again = recipe.evaluate.prompts or recipe.prompts
        settings = {} if read_again is None else identity(read_again, recipe.seed, self.cache)
        before = [verb]
        if recipe.first is not None:
            tuned_on = identity(recipe.first.preferences, recipe.seed, self.cache)
            before.append(self._add(FIRST_READ, 0, "", tuned_on, (), *read))
        self._add("heldout", 1, "", settings | self.own, tuple(before), *read)

    def _first(self, section: FirstSection) -> None:
        """Training before the loop: what it merges is the loop's first model."""
        recipe = self.recipe
        training = {"train": section.train.model_dump(exclude=COSMETIC), "model": self.base, "seed": recipe.seed}
        # Prompts that the evaluation splits off are left out here too; prompts of its own are checked against these.
        inputs = (FIRST_READ, "heldout") if recipe.evaluate.prompts is None else (FIRST_READ,)
        self._add(FIRST_TRAIN, 0, "", training, inputs, *TRAINED_BY)
        settings = {"merge": recipe.merge.model_dump(), "place": "stage", "model": self.base}
        self.begin = (self._add(FIRST_MERGE, 0, "", settings, (FIRST_TRAIN,), *MERGED_BY),)
        self.base = "the model of the first stage"

    def _round(self, r: int) -> None:
        """Sampling, then every branch's rating, pairing, training and merging, then one measurement of them all."""
        recipe, seed = self.recipe, self.recipe.seed
        policy: Any = self.base if r == 1 else "the model that the round before chose"
        before = self.begin
        if r > 1:
            # Of several models the measurement says which goes on.
            before = (winner(r - 1),) if recipe.branches else (stage_name("merge", r - 1),)
        if recipe.preferences is None:
            section = recipe.sampled.sample
            who = policy if section.model is None else model_settings(section.model, self.cache)
            sampling = {"sample": section.model_dump(exclude={"model"}), "model": who, "seed": seed}
            sampling |= {"notes": _notes(section)} if section.contrast is not None else {}
            sampling |= {"wordings": _wordings(section)} if section.rewrite is not None else {}
            chunk = {"round": r, "rounds": recipe.rounds}
            sampled_by: tuple[str, ...] = (*BOXES, "pairs/splits.py", "loop/sampling.py", "signals/attribute.py")
            if section.rewrite is not None:
                sampled_by = (*sampled_by, *REWRITING)
            asked = before if section.model is None else ()
            self._add("sample", r, "", sampling | chunk, ("prompts", *asked), *sampled_by)
        merged = []
        for branch, way in recipe.ways.items():
            source = "preferences" if recipe.preferences is not None else self._pairs(r, branch, way, before)
            training: dict[str, Any] = {"train": way.train.model_dump(exclude=COSMETIC), "model": policy, "seed": seed}
            training |= self.own if recipe.preferences is not None else {}
            training |= _judged_prompt(way)
            held_to: tuple[str, ...] = ()
            if r > 1 and way.train.reference == "first":
                training["reference"], held_to = self.base, self.begin
            train = self._add("train", r, branch, training, (source, *before, *held_to), *TRAINED_BY)
            settings = {"merge": recipe.merge.model_dump(), "place": self._place(), "model": policy}
            merged.append(self._add("merge", r, branch, settings, (train, *before), *MERGED_BY))
        inputs = ("heldout", *merged, *self.begin)
        if recipe.preferences is not None and contrasted(recipe) is not None:
            inputs += ("preferences",)  # their held-out judgments are scored
        boxes = MEASURED_BY
        if recipe.sample is not None and recipe.sample.rewrite is not None:
            boxes += (*REWRITING, "retrieve")
        self._add("evaluate", r, "", self._measurement(), inputs, *boxes)
        if recipe.evaluate.harness is not None:
            settings = {"harness": self._harness(recipe.evaluate.harness), "base": self.base, "seed": seed}
            settings["bootstrap"] = recipe.evaluate.bootstrap
            self._add("ability", r, "", settings, (*merged, *self.begin), "evaluate", "loop/measuring.py", "engine")

    def _pairs(self, r: int, branch: str, way: Way, before: tuple[str, ...]) -> str:
        assert way.rate is not None and way.pair is not None  # noqa: PT018
        rating = self._signal(way.rate)
        inputs: tuple[str, ...] = (stage_name("sample", r),)
        if r > 1 and isinstance(way.rate, SelfRewardSignalSection) and way.rate.model is None:
            rating["models"] = dict.fromkeys(rating["models"], "the model that the round before chose")
            inputs += before
        elif None in way.rate.models.values():
            inputs += self.begin
        rated_by: tuple[str, ...] = ("signals", "inputs", "loop/bench.py", *BOXES)
        if isinstance(way.rate, RetrieverSignalSection):
            inputs += ("heldout",)  # queries that are measured on are not asked
            rated_by += ("retrieve",)
        rate = self._add("rate", r, branch, rating, inputs, *rated_by)
        if way.judged:
            return self._add("judgments", r, branch, {}, (rate,), "pairs")
        settings = {"pair": way.pair.model_dump(), "seed": self.recipe.seed}
        paired_by = ("pairs", "inputs/rewriting.py") if way.pair.strategy == "straddle" else ("pairs",)
        return self._add("pair", r, branch, settings, (rate,), *paired_by)

    def _harness(self, section: HarnessSection) -> dict[str, Any]:
        from prefloop.evaluate.harness import identity

        return identity(section, self.cache)

    def _source_bias(self, section: SourceBiasSection) -> dict[str, Any]:
        from prefloop.inputs.identity import collection_digest
        from prefloop.retrieve.retriever import retriever_identity

        return {
            "judgments": collection_digest(str(section.judgments), self.cache),
            "split": section.split,
            "retrievers": [retriever_identity(one, self.cache) for one in section.retrievers or ()],
            "similarity": section.similarity and retriever_identity(section.similarity, self.cache),
            "no_hit": section.no_hit,
            "unread": section.unread,
        }

    def _place(self) -> str:
        return "stage" if selects(self.recipe) else "model"

    def _signal(self, section: Any) -> dict[str, Any]:
        from prefloop.signals.build import identity

        models = {n: self.base if m is None else model_settings(m, self.cache) for n, m in section.models.items()}
        return {"signal": identity(section, self.recipe.seed, self.cache), "models": models}

    def _measurement(self) -> dict[str, Any]:
        from prefloop.signals.build import function_identity

        recipe = self.recipe
        sampled = evaluation_sample(recipe)
        more: dict[str, Any] = {} if sampled.rewrite is None else {"wordings": _wordings(sampled)}
        if (bias := recipe.source_bias) is not None:
            more["source_bias"] = self._source_bias(bias)
        if (way := contrasted(recipe)) is not None:
            more |= _judged_prompt(way) | {"threshold": way.train.objective.threshold}  # type: ignore[union-attr]
        return more | {
            "sample": sampled.model_dump(exclude={"model"}),
            "judges": [self._signal(section) for section in evaluation_signals(recipe)],
            "checkers": {
                group: {
                    name: function_identity(checker.function) | {"lower_is_better": checker.lower_is_better}
                    for name, checker in functions.items()
                }
                for group, functions in recipe.evaluate.checkers.items()
            },
            "references": _references(recipe.evaluate.references, self.cache),
            "bootstrap": recipe.evaluate.bootstrap,
            "unmerged": recipe.evaluate.unmerged,
            "perplexity": recipe.evaluate.perplexity,
            "base": self.base,
            "seed": recipe.seed,
        }


def selects(recipe: Recipe) -> bool:
    """Whether there are several models of which one becomes the run's."""
    return recipe.rounds > 1 or len(recipe.ways) > 1


def contrasted(recipe: Recipe) -> Way | None:
    """The first way that trains by `cut`: its form and threshold measure held-out judgments."""
    return next((way for way in recipe.ways.values() if way.train.objective.type == "cut"), None)


def evaluation_sample(recipe: Recipe) -> SampleSection:
    """Decoding of the evaluation: its own section, or the sample section's with one answer a prompt."""
    plain = {"n": 1, "model": None, "contrast": None}
    section = recipe.evaluate.sample or (recipe.sample or SampleSection()).model_copy(update=plain)
    rewrite = section.rewrite or (recipe.sample and recipe.sample.rewrite)
    if rewrite is None:
        return section
    # One rewrite of each passage: a corpus holds one version of it by each model.
    return section.model_copy(update={"rewrite": rewrite.model_copy(update={"assign": "turn"})})


def evaluation_signals(recipe: Recipe) -> list[Any]:
    """Who compares, the one that the win rate is of first; nobody where there is neither a judge nor a signal."""
    first = recipe.evaluate.judge or _comparing(next(iter(recipe.ways.values())).rate, recipe.sample)
    return [section.comparing() for section in (first, *recipe.evaluate.also) if section is not None]


def measured_otherwise(recipe: Recipe) -> str | None:
    """The rating judge's own template, where the measurement cannot use it and is not told what to use."""
    from prefloop.signals.template import is_shipped

    rate = next(iter(recipe.ways.values())).rate
    if recipe.evaluate.judge is not None or not isinstance(rate, JudgeSignalSection) or rate.mode == "pairwise":
        return None
    return None if is_shipped(rate.template) else rate.template


def _comparing(rate: Any, sample: SampleSection | None) -> Any:
    """A signal as one that compares: a judge then reads pairs, and self-reward goes by the notes of the sampling."""
    from prefloop.signals.template import is_shipped

    if isinstance(rate, RetrieverSignalSection):
        return None  # says whose text it finds sooner, not whose is better
    if isinstance(rate, SelfRewardSignalSection) and rate.attributes is None:
        # The answers that are compared are sampled without a note.
        contrast = None if sample is None else sample.contrast
        assert contrast is not None, "the recipe refuses self-reward without any notes"
        return rate.model_copy(update={"attributes": contrast.attributes, "against": contrast.against})
    if isinstance(rate, JudgeSignalSection) and rate.mode != "pairwise":
        # A template file is written for one mode; a shipped set has both.
        kept = rate.template if rate.template is None or is_shipped(rate.template) else None
        return rate.model_copy(update={"mode": "pairwise", "template": kept})
    return rate


def _judged_prompt(way: Way) -> dict[str, Any]:
    """The form of judged prompts by its content, as it may be a file; nothing where there are none."""
    from prefloop.train.judged import judged_prompt

    form = judged_prompt(way.train.objective)
    return {} if form is None else {"judged_prompt": form.sha}


@cache_in_memory
def stage_code(*boxes: str) -> str:
    """Digest of the package's boxes that compute a stage."""
    # Once a process: what is running is the code that was there when it started.
    return code_digest(*boxes)


def _references(path: str | None, cache: Cache | None) -> str | None:
    if path is not None and not Path(path).is_file():
        raise UsageError("there is no such file", where=path, fix="check evaluate.references")
    return None if path is None else file_digest(path, cache)


def _notes(section: SampleSection) -> list[dict[str, Any]]:
    """The banks that notes are drawn from: editing one changes what is sampled."""
    from prefloop.signals.attribute import load_all

    assert section.contrast is not None
    return [attribute.model_dump(mode="json") for attribute in load_all(section.contrast.attributes)]


def _wordings(section: SampleSection) -> dict[str, Any]:
    """What rewrites are asked with: editing the bank changes what is sampled."""
    from prefloop.inputs.rewriting import load

    assert section.rewrite is not None
    return load(section.rewrite).model_dump(mode="json")


def model_settings(section: ModelSection, cache: Cache | None) -> dict[str, Any]:
    """What of a model section changes results: the weights and how they are used, not where they run."""
    if section.endpoint is not None:
        return {"served": section.path, "revision": section.revision, "body": section.endpoint.extra_body}
    template = file_digest(section.template) if Path(section.template).is_file() else section.template
    weights = model_digest(resolve_model_path(section.path), section.revision, memo=cache)
    return {"weights": weights, "dtype": section.dtype, "template": template}
