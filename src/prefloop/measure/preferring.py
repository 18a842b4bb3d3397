"""`prefloop evaluate preference`: what training did to the model itself, on held-out pairs and on its own answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from prefloop.config import PreferencesSection, PromptsSection, SampleSection
from prefloop.errors import UsageError
from prefloop.measure.comparing import How
from prefloop.measure.subjects import Models, Subject, answers, base_of, held_out_pairs, learned, opened, prompts
from prefloop.publish import facts as of_run
from prefloop.publish.model_card import folder_of
from prefloop.records import CandidatesRow
from prefloop.store import atomic

if TYPE_CHECKING:
    from prefloop.ui.progress import Progress

BETA = 0.1
NO_PAIRS = "no held-out pairs; give --pairs FILE (a run of given preferences has some of its own)"
NO_PROMPTS = "no prompts to sample on; give --prompts FILE, or --run RUN"
NO_REFERENCE = (
    "the objective {} trains without a reference, so its rewards are no differences from one; give --beta to measure "
    "the implicit reward all the same"
)


@dataclass(frozen=True)
class Pairs:
    """The pairs to measure on.

    Attributes:
        rows: preference rows.
        held_out: whether it was looked that none of them was trained on.
        trained: how many were left out because the run was trained on their prompts.
        not_usable: how many rows of the file could not be used.
    """

    rows: list[Any] = field(default_factory=list)
    held_out: bool = True
    trained: int = 0
    not_usable: int = 0


def reference(aligned: Subject) -> Subject:
    """The model that a run's model was held to in its last training: the recipe's first one, or that of the round
    before the one that was chosen.

    Raises:
        UsageError: the model of the round before is not there any more.
    """
    assert aligned.run is not None and aligned.recipe is not None and aligned.way is not None  # noqa: PT018
    first = Subject("base", base_of(aligned.run))
    if aligned.round == 1 or aligned.way.train.reference == "first":
        return first
    before, facts = aligned.round - 1, of_run.read(aligned.run)
    folder = folder_of(facts, "model", before, facts.winner(before))
    if folder is None or not folder.is_dir():
        raise UsageError(
            f"the model of round {before}, which this one was held to, is not there",
            where=str(aligned.run),
            fix="give both models: prefloop evaluate preference BEFORE AFTER",
        )
    name = f"round-{before}" if aligned.name != f"round-{before}" else "before"
    return replace(first, name=name, model=first.model.model_copy(update={"path": str(folder), "revision": None}))


def measure(
    base: Subject,
    aligned: Subject,
    pairs: PromptsSection | None,
    file: PromptsSection | None,
    beta: float | None,
    how: How,
    progress: Progress,
) -> dict[str, Any]:
    """Measure a trained model against the one it was trained from and write preference.json and preference.html.

    Args:
        base, aligned: models of one tokenizer; a run's aligned model brings held-out pairs, prompts and β, and its
            base is what `reference` says.
        pairs: file of held-out pairs, by its path; those whose prompts the run was trained on are left out.
        file: prompts to sample on.
        beta: of the implicit reward; None: the run's, else 0.1.

    Returns:
        `pairs` (see `evaluate.preference.reward_accuracy`, with beta and `held_out`: whether it was looked that none
        was trained on), `divergence`, `answers` (model -> lengths and diversity), `left_out` (of pairs and of prompts
        which, and how many), `not_measured` (what was not, and why).

    Raises:
        UsageError: neither pairs nor prompts, or two tokenizers.
    """
    from prefloop.evaluate import preference
    from prefloop.evaluate.diversity import diversity, lengths

    given = _pairs(aligned, pairs, how.limit)
    asked = None if file is None and aligned.run is None else prompts([aligned], file, how.limit)
    if not given.rows and asked is None:
        why = f" ({given.trained} pairs were trained on)" if given.trained else ""
        what = f"there is nothing to measure on{why}"
        raise UsageError(what, fix="give --pairs FILE, --prompts FILE or --run RUN")
    without = _without_reference(aligned) if beta is None else None
    beta = beta if beta is not None else _beta(aligned)
    found: dict[str, Any] = {"models": {s.name: s.model.path for s in (base, aligned)}, "not_measured": {}}
    found["left_out"] = {"pairs": {"trained": given.trained, "not_usable": given.not_usable}}
    margins: list[float] = []
    with opened(how.cache, progress) as models:
        rows: dict[str, list[CandidatesRow]] = {}
        refused: dict[str, dict[str, str]] = {}
        if asked is not None:
            # At temperature 1 with nothing cut off: only then is the divergence that of the two models.
            sampling = SampleSection(n=how.n or 1, temperature=1.0, max_new_tokens=how.max_new_tokens or 512)
            for number, subject in enumerate((base, aligned), 1):
                progress.stage(subject.name, number, 3)
                progress.total(len(asked.rows) * sampling.n, "answers")
                models.on_batch = progress.at
                rows[subject.name], refused[subject.name] = answers(models, subject, asked.rows, sampling, how.seed)
            models.on_batch = lambda done: None
            found["left_out"]["prompts"] = {
                "trained": asked.trained,
                "not_usable": len(asked.rejects),
                "refused": {name: reasons for name, reasons in refused.items() if reasons},
            }
        progress.stage("score", 3, 3)
        held_to, policy = (models.get(subject.model) for subject in (base, aligned))
        encoder = _encoder(models, base, aligned)
        if not given.rows or without is not None:
            found["not_measured"]["reward accuracy and calibration"] = without or NO_PAIRS
        else:
            scored = preference.implicit_margins(policy, held_to, given.rows, encoder, beta=beta)
            margins = scored.margins
            found["pairs"] = preference.reward_accuracy(scored, how.resamples, how.seed)
            found["pairs"] |= {"beta": beta, "held_out": given.held_out}
        if asked is not None:
            found["divergence"] = preference.divergence(
                policy, held_to, rows[aligned.name], encoder, resamples=how.resamples, seed=how.seed
            )
            found["answers"] = {
                name: {
                    "lengths": lengths(side, how.resamples, how.seed),
                    "diversity": diversity(side, how.resamples, how.seed),
                }
                for name, side in rows.items()
            }
        else:
            found["not_measured"]["divergence, diversity and length"] = NO_PROMPTS
    how.out.mkdir(parents=True, exist_ok=True)
    atomic.write_json(how.out / "preference.json", found)
    _page(how, found, margins)
    return found


def _pairs(aligned: Subject, file: PromptsSection | None, limit: int | None) -> Pairs:
    from prefloop.inputs.preferences import PreferenceReader
    from prefloop.pairs.splits import overlap

    if file is None:
        return Pairs() if aligned.run is None else Pairs(held_out_pairs(aligned.run)[:limit])
    # Before the run's own prompts are taken out it is not known how many rows make `limit`.
    most = limit if aligned.run is None else None
    section = PreferencesSection.model_validate({"path": file.path, "limit": most, "ignore_columns": "all"})
    parts = list(PreferenceReader(section).parts(1000))
    rows, faulty = [row for part, _ in parts for row in part], sum(len(rejects) for _, rejects in parts)
    if aligned.run is None:
        return Pairs(rows, held_out=False, not_usable=faulty)
    questions = {row["prompt_id"]: row["prompt"] for row in rows}
    seen = set(overlap(learned(aligned.run), [{"id": name, "prompt": p} for name, p in questions.items()]))
    kept = [row for row in rows if row["prompt_id"] not in seen]
    return Pairs(kept[:limit], trained=len(rows) - len(kept), not_usable=faulty)


def _without_reference(aligned: Subject) -> str | None:
    """Why a run's objective has no implicit reward; None where it has one, and of other models."""
    from prefloop.train.objectives import OBJECTIVES

    if aligned.way is None:
        return None
    kind = aligned.way.train.objective.type
    return None if OBJECTIVES[kind].needs_reference else NO_REFERENCE.format(kind)


def _beta(aligned: Subject) -> float:
    """β of the objective that made a run's model."""
    return BETA if aligned.way is None else float(getattr(aligned.way.train.objective, "beta", BETA))


def _encoder(models: Models, base: Subject, aligned: Subject) -> Any:
    """The encoder of both models.

    Raises:
        UsageError: they cut texts differently, so their log-probabilities are of different things.
    """
    from prefloop.train.encode import Encoder

    found = []
    for subject in (base, aligned):
        inner = models.loaded(subject.model)
        longest = inner.max_positions or 1 << 30
        found.append(Encoder(inner.tokenizer, inner.stops[0], longest, "pairs"))
    if found[0].identity != found[1].identity:
        raise UsageError(
            "the two models have different tokenizers, chat templates or contexts",
            where=aligned.model.path,
            fix="compare a model with the one it was trained from, or use `prefloop compare`",
        )
    return found[1]


def _page(how: How, found: dict[str, Any], margins: Sequence[float]) -> None:
    from prefloop.report.preference import render_preference

    atomic.write_text(how.out / "preference.html", render_preference(found, margins))
