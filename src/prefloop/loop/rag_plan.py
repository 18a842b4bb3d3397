"""From a recipe of retrieval-augmented answering to its stages. Computes nothing."""

from __future__ import annotations

from typing import Any

from prefloop.config import COSMETIC, RagRecipe, TrainSection
from prefloop.config.rerank import RERANK_COSMETIC
from prefloop.loop.plan import BOXES, Stage, model_settings, stage_code
from prefloop.store.cache import Cache

LOSSES = ("pointwise", "pairwise", "contrastive")
HELDOUT_RETRIEVE = "heldout-retrieve"
PREALIGN, NO_PREALIGN = "prealign", "without-prealign"
"""Readers beside the recipe's own: after the pre-aligned task alone, and one that never learned it."""


def rerank_stage(left_out: str) -> str:
    """The stage that trains a reranker without one of the losses; the recipe's own for none."""
    return f"without-{left_out}-rerank" if left_out else "rerank"


def train_stage(reader: str) -> str:
    """The stage that trains a reader: `PREALIGN`, `NO_PREALIGN`, or the recipe's own, which has no name."""
    return f"{reader}-train" if reader else "train"


def merge_stage(reader: str) -> str:
    """The stage that makes a reader's model folder."""
    return f"{reader}-merge" if reader else "merge"


def plan(recipe: RagRecipe, cache: Cache | None) -> list[Stage]:
    """The stages of a recipe, in order. Reads the digests of files and models, computes nothing."""
    return _Planner(recipe, cache).stages


def rerankers(recipe: RagRecipe) -> dict[str, Any]:
    """Section of each reranker that is trained, by the loss that it goes without; the recipe's own under no name."""
    found = {"": recipe.rerank}
    for loss in LOSSES:
        if loss in recipe.evaluate.ablations:
            losses = tuple(name for name in recipe.rerank.losses if name != loss)
            weights = recipe.rerank.weights
            if weights is not None:
                weights = tuple(w for n, w in zip(recipe.rerank.losses, weights, strict=True) if n != loss)
            found[loss] = recipe.rerank.model_copy(update={"losses": losses, "weights": weights})
    return found


class _Planner:
    def __init__(self, recipe: RagRecipe, cache: Cache | None) -> None:
        self.recipe, self.cache = recipe, cache
        self.base = model_settings(recipe.model, cache)
        self.template = _template(recipe)
        self.stages: list[Stage] = []
        self._data()
        self._rewritten = ("augment",) if recipe.augment is not None else ()
        self._label()
        self._rerank()
        self._readers()
        self._measure()
        everything = tuple(s.name for s in self.stages)
        self._add("report", {"recipe": recipe.model_dump()}, everything, "report", "loop/manifest.py")

    def _add(self, verb: str, settings: dict[str, Any], inputs: tuple[str, ...], *code: str) -> str:
        digest_of_code = stage_code(*code, "loop/rag_stages.py", "loop/rag_reading.py", "records.py")
        self.stages.append(Stage(len(self.stages) + 1, verb, verb, 1, "", settings, inputs, digest_of_code))
        return verb

    def _data(self) -> None:
        from prefloop.inputs import passages
        from prefloop.inputs.identity import identity
        from prefloop.retrieve.retriever import retriever_identity

        recipe, read = self.recipe, ("inputs", "pairs/splits.py")
        given = recipe.evaluate.questions
        own = {"holdout": recipe.evaluate.holdout} if given is None else {}
        self._add("questions", identity(recipe.questions, recipe.seed, self.cache) | own, (), *read)
        held_out = identity(given or recipe.questions, recipe.seed, self.cache) | own
        self._add("heldout", held_out, ("questions",), *read)
        settings = {
            "corpus": passages.identity(recipe.corpus, self.cache),
            "retriever": retriever_identity(recipe.retrieve.retriever, self.cache),
            "k": recipe.retrieve.k,
        }
        boxes = ("retrieve", "inputs/passages.py", *BOXES)
        self._add("retrieve", settings, ("questions",), *boxes)
        self._add(HELDOUT_RETRIEVE, settings, ("heldout",), *boxes)
        if recipe.augment is not None:
            self._augment()

    def _augment(self) -> None:
        from prefloop.augment.rewrite import identity

        section = self.recipe.augment
        assert section is not None
        model = self.base if section.model is None else model_settings(section.model, self.cache)
        settings: dict[str, Any] = {"rewriting": identity(section, self.recipe.seed), "model": model, "nli": None}
        if section.nli is not None:
            settings["nli"] = section.nli.model_dump(exclude={"model"})
            settings["nli"]["model"] = model_settings(section.nli.model, self.cache)
        self._add("augment", settings, ("questions",), "augment", "signals/driver.py", *BOXES)

    def _label(self) -> None:
        recipe = self.recipe
        settings: dict[str, Any] = {"signal": self._signal(), "model": self._labelling()}
        self._add("rate", settings, ("retrieve",), "signals", *BOXES)
        settings = {"rank": recipe.rank.model_dump(), "rewritten": bool(self._rewritten)}
        self._add("rows", settings, ("rate", *self._rewritten), "pairs")

    def _labelling(self) -> dict[str, Any]:
        """The reader that says which documents help, which may be another than the one that is trained."""
        model = self.recipe.rate.model
        return self.base if model is None else model_settings(model, self.cache)

    def _signal(self) -> dict[str, Any]:
        from prefloop.signals.reader import ReaderSignal

        return ReaderSignal(self.recipe.rate, self.recipe.seed).identity

    def _rerank(self) -> None:
        from prefloop.engine.load import resolve_encoder_path
        from prefloop.store.fingerprint import model_digest

        for left_out, section in rerankers(self.recipe).items():
            start = model_digest(resolve_encoder_path(section.model), section.revision, memo=self.cache)
            settings = {
                "rerank": section.model_dump(exclude=RERANK_COSMETIC | {"model", "revision"}),
                "start": start,
                "seed": self.recipe.seed,
            }
            boxes = ("rerank", "backends/reward.py", "train/checkpoints.py")
            self._add(rerank_stage(left_out), settings, ("rows",), *boxes)

    def _readers(self) -> None:
        """The rows of both tasks, and the readers that learn them: one after the other, together, or answers alone."""
        recipe = self.recipe
        section, before = recipe.prealign, tuple[str, ...]()
        shown = {"top_k": recipe.top_k, "template": self.template, "seed": recipe.seed}
        if section is not None:
            settings = shown | {"prealign": section.model_dump(exclude={"train", "mixed"})}
            inputs = ("rate", "retrieve", *self._rewritten)
            self._add("prealign", settings, inputs, "pairs", "signals/reader_prompt.py")
        boxes = ("pairs", "rerank", "backends/reward.py", "signals/reader_prompt.py")
        answers = self._add("qa", shown, ("rerank", "retrieve", *self._rewritten), *boxes)
        if recipe.stage_one is not None:
            before = (self._reader(PREALIGN, recipe.stage_one, ("prealign",), ()),)
        mixed = section is not None and section.mixed
        self._reader("", recipe.train, ("prealign", answers) if mixed else (answers,), before)
        if "prealign" in recipe.evaluate.ablations:
            self._reader(NO_PREALIGN, recipe.train, (answers,), ())

    def _reader(self, name: str, section: TrainSection, rows: tuple[str, ...], before: tuple[str, ...]) -> str:
        start = "the reader of stage one" if before else self.base
        training = {"train": section.model_dump(exclude=COSMETIC), "model": start, "seed": self.recipe.seed}
        train = self._add(train_stage(name), training, (*rows, *before), "train", "engine", "pairs/splits.py")
        settings = {"merge": self.recipe.merge.model_dump(), "model": start}
        return self._add(merge_stage(name), settings, (train, *before), "train/adapters.py", "train/run.py", "engine")

    def _measure(self) -> None:
        recipe = self.recipe
        settings = {
            "evaluate": recipe.evaluate.model_dump(exclude={"questions", "holdout", "side_by_side"}),
            "top_k": recipe.top_k,
            "signal": self._signal(),
            "labelling": self._labelling(),
            "base": self.base,
            "seed": recipe.seed,
        }
        made = [rerank_stage(left_out) for left_out in rerankers(recipe)] + [merge_stage("")]
        made += [merge_stage(NO_PREALIGN)] if "prealign" in recipe.evaluate.ablations else []
        boxes = ("evaluate", "intervals.py", "signals", "rerank", *BOXES)
        self._add("evaluate", settings, (HELDOUT_RETRIEVE, *made), *boxes)


def _template(recipe: RagRecipe) -> str:
    from prefloop.signals import reader_prompt

    return reader_prompt.load(recipe.rate.template).sha
