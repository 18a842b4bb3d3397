"""Safety, always next to helpfulness: a model that refuses everything is harmless, and of no use.

Two sets of prompts: harmful requests, and harmless ones, best of all look-alikes of the harmful (XSTest, Röttger et
al. 2024: "how do I kill a process?"). On the first refusing is right, on the second it is over-refusal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefloop.backends.base import Backend
from prefloop.config import JudgeSignalSection
from prefloop.evaluate.compare import Compared, compare_answers
from prefloop.evaluate.perplexity import perplexity
from prefloop.evaluate.refusals import RefusalSignal
from prefloop.evaluate.several import Comparer
from prefloop.records import CandidatesRow

Rows = Sequence[CandidatesRow]
REFUSAL, HARMLESSNESS, HELPFULNESS = "refusal", "harmlessness", "helpfulness"


@dataclass(frozen=True)
class Safety:
    """What is said of the answers to harmful and to harmless prompts.

    Attributes:
        summary: `harmful` and `benign`, each as `compare.compare_answers` says it; `refusals_by`: "rules", "rules
            and judge" or "rules and panel"; `not_measured`: what was not, and why.
        harmful, benign: all answers with all scores.
    """

    summary: dict[str, Any]
    harmful: Compared
    benign: Compared


def safety(
    harmful: Mapping[str, Rows],
    benign: Mapping[str, Rows],
    *,
    harmlessness: Comparer | None = None,
    helpfulness: Comparer | None = None,
    scores: Sequence[Comparer] = (),
    costs: Sequence[Comparer] = (),
    judge: JudgeSignalSection | None = None,
    backends: Mapping[str, Backend] | None = None,
    language: Backend | None = None,
    resamples: int = 10_000,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
    on_judged: Callable[[str, Mapping[str, float]], None] | None = None,
) -> Safety:
    """Compare models' answers to harmful and to harmless prompts.

    Args:
        harmful, benign: model -> its answers, the same models in both.
        harmlessness: who compares on harmful prompts, a pairwise judge with a rubric of harmlessness.
        helpfulness: who compares on harmless prompts.
        scores, costs: reward models, and cost models (more is worse), asked about both sets.
        judge: who tells refusals which the string rules do not catch; None: rules alone, and the rates are a floor.
        backends: the judge's models, by its names for them.
        language: the first of the models itself, by whose probabilities the answers' perplexity is measured; None: it
            is not.
        resamples, seed, on_progress, on_judged: as for `compare.compare_answers`; of each set of prompts.

    Returns:
        Under `signals` of `harmful`: refusal (the rate of each model, its differences), harmlessness, scores; of
        `benign`: refusal (over-refusal), helpfulness, scores.
        With `language`, `perplexity` in both: what `perplexity.perplexity` says.

    Raises:
        PrefloopError: the judge said too seldom whether an answer refuses.
    """
    signal = RefusalSignal(judge, seed)

    def look(name: str, counts: Mapping[str, float]) -> None:
        if name == REFUSAL:
            signal.check(counts)
        if on_judged is not None:
            on_judged(name, counts)

    refusal = Comparer(REFUSAL, signal, backends or {})
    on_harmful = [refusal, *([harmlessness] if harmlessness else []), *scores, *costs]
    on_benign = [refusal, *([helpfulness] if helpfulness else []), *scores, *costs]
    found = [
        compare_answers(
            answers,
            signals,
            lower_is_better=[c.name for c in costs],
            resamples=resamples,
            seed=seed,
            on_progress=on_progress,
            on_judged=look,
        )
        for answers, signals in ((harmful, on_harmful), (benign, on_benign))
    ]
    for compared, answers in zip(found, (harmful, benign), strict=True):
        _reword(compared.summary["signals"][REFUSAL])
        if language is not None:
            first = next(iter(answers))
            likely = perplexity(answers, language, first=first, resamples=resamples, seed=seed)
            compared.summary["perplexity"] = likely | {"under": first}
    missing = {
        HARMLESSNESS: None if harmlessness else "no judge compares harmlessness",
        HELPFULNESS: None
        if helpfulness
        else "no judge compares helpfulness; a model that refuses all would look safe",
    }
    summary = {
        "harmful": found[0].summary,
        "benign": found[1].summary,
        "refusals_by": "rules" if judge is None else f"rules and {'judge' if judge.panel is None else 'panel'}",
        "not_measured": {name: why for name, why in missing.items() if why is not None},
    }
    return Safety(summary, *found)


def _reword(refusal: dict[str, Any]) -> None:
    """To refuse more is not to be better: the verdict says who refuses more."""
    refusal["kind"] = "rate"
    for pair in refusal["pairs"]:
        more = pair.pop("better")
        pair["better"] = None
        if more is not None:
            pair["verdict"] = f"{more} refuses more"
