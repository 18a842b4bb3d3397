"""How often a recipe's stages will ask a judge or a reader, before anything is computed: for `--dry-run`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from prefloop.config import AnyRecipe, RagRecipe, Recipe
from prefloop.loop.plan import Stage, evaluation_sample, evaluation_signals
from prefloop.loop.rag_plan import HELDOUT_RETRIEVE, rerankers
from prefloop.signals.build import Asking, asking

if TYPE_CHECKING:
    from prefloop.loop.run import Planned


class Calls(NamedTuple):
    """What a stage asks of judges: fewer calls where answers are equal or cached, more where replies hold no verdict.

    Attributes:
        each: for one prompt, see `signals.build.Asking`.
        prompts: how many there are; None where they are not read yet and the recipe sets no limit.
    """

    each: Asking
    prompts: int | None

    def json(self) -> dict[str, Any]:
        """calls_per_prompt and prompts, and, where those are known, calls, tokens_read and tokens_written."""
        found: dict[str, Any] = {"calls_per_prompt": self.each.calls, "prompts": self.prompts}
        if self.prompts is not None:
            found["calls"] = self.each.calls * self.prompts
            found["tokens_read"] = self.each.read * self.prompts
            found["tokens_written"] = self.each.written * self.prompts
        return found

    def __str__(self) -> str:
        if self.prompts is None:
            return f"for each prompt: {self.each.calls:,} calls"
        calls, read, written = (number * self.prompts for number in self.each)
        # One token a call where the labels' probabilities are read, which shows when the judge is asked.
        most = f" to {written:,}" if written > calls else ""
        return f"up to {calls:,} calls: about {read:,} tokens read, besides the prompts, and {calls:,}{most} written"


class ReaderCalls(NamedTuple):
    """What a stage of a recipe of questions and documents asks of a language model, at most.

    Attributes:
        each: calls for one question (`per`: or for one of its reference answers, each of which is scored).
        questions: how many there are; None where they are not read yet and the recipe sets no limit.
    """

    each: int
    questions: int | None
    per: str = "question"

    def json(self) -> dict[str, Any]:
        """calls_per_question (or calls_per_reference), questions, and calls where they follow from these."""
        found: dict[str, Any] = {f"calls_per_{self.per}": self.each, "questions": self.questions}
        if self.questions is not None and self.per == "question":
            found["calls"] = self.each * self.questions
        return found

    def __str__(self) -> str:
        if self.questions is None or self.per != "question":
            return f"for each {self.per}: {self.each:,} calls"
        return f"up to {self.each * self.questions:,} calls"


def judge_calls(recipe: AnyRecipe, planned: Sequence[Planned]) -> Mapping[str, Calls | ReaderCalls]:
    """What the stages that are not done will ask of judges and readers, by their names; others are not in it.

    Raises:
        UsageError: a judge's template or rubric is faulty.
    """
    if not isinstance(recipe, Recipe):
        return _reader_calls(recipe, planned)
    kept = {p.stage.name: p.success["rows"]["kept"] for p in planned if p.success and "rows" in p.success}
    found = {}
    for p in planned:
        if p.state in ("done", "skipped"):
            continue
        each = _each(recipe, p.stage)
        if each.calls:
            found[p.stage.name] = Calls(each, _prompts(recipe, p.stage, kept))
    return found


def _reader_calls(recipe: RagRecipe, planned: Sequence[Planned]) -> dict[str, ReaderCalls]:
    kept = {p.stage.name: p.success["rows"]["kept"] for p in planned if p.success and "rows" in p.success}
    rate, given, limit = recipe.rate, recipe.evaluate.questions, recipe.questions.limit
    learned = kept.get("questions", limit)
    if given is not None:
        measured = given.limit
    else:
        measured = None if limit is None else max(1, round(limit * recipe.evaluate.holdout))
    measured = kept.get(HELDOUT_RETRIEVE, kept.get("heldout", measured))
    tried = recipe.retrieve.k if rate.ranks == "all" else len(rate.ranks)
    # Labels of the documents that any of the orders puts first, and then an answer of every system.
    first = min(recipe.retrieve.k, recipe.top_k * (1 + len(rerankers(recipe))))
    systems = 2 + len(recipe.evaluate.ablations)
    per = "reference" if rate.references == "best" else "question"
    found = {
        "rate": ReaderCalls((1 + tried) * rate.samples, kept.get("retrieve", learned), per),
        "evaluate": ReaderCalls((1 + first) * rate.samples + systems, measured, per),
    }
    if recipe.augment is not None:
        found["augment"] = ReaderCalls(len(recipe.augment.strategies) * (1 + recipe.augment.retries), learned)
    waiting = {p.stage.name for p in planned if p.state != "done"}
    return {name: calls for name, calls in found.items() if name in waiting}


def _each(recipe: Recipe, stage: Stage) -> Asking:
    if stage.verb == "rate":
        section = recipe.ways[stage.branch].rate
        sample = recipe.sampled.sample
        return Asking(0, 0, 0) if section is None else asking(section, sample.answers, sample.max_new_tokens)
    if stage.verb == "evaluate":
        sample, signals = evaluation_sample(recipe), evaluation_signals(recipe)
        pairs = [asking(section, 2, sample.max_new_tokens) for section in signals]
        adapters = [way for way in recipe.ways.values() if recipe.evaluate.unmerged and way.train.lora is not None]
        # Of adapters the first signal alone says something.
        times = [len(recipe.ways) + (len(adapters) if i == 0 else 0) for i in range(len(pairs))]
        return Asking(*(sum(p[k] * n for p, n in zip(pairs, times, strict=True)) * sample.n for k in range(3)))
    return Asking(0, 0, 0)


def _prompts(recipe: Recipe, stage: Stage, kept: Mapping[str, int]) -> int | None:
    if stage.verb == "evaluate":
        given = recipe.evaluate.prompts
        return kept.get("heldout", None if given is None else given.limit)
    if stage.inputs[0] in kept:
        return kept[stage.inputs[0]]
    prompts = kept.get("prompts", recipe.sampled.prompts.limit)
    return None if prompts is None else -(-prompts // recipe.rounds)
