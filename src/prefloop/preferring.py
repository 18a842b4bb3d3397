"""`prefloop evaluate preference`: what training did to the model itself, on held-out pairs and on its own answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from prefloop.comparing import How
from prefloop.config import PreferencesSection, PromptsSection, SampleSection
from prefloop.errors import UsageError
from prefloop.records import CandidatesRow
from prefloop.store import atomic
from prefloop.subjects import Models, Subject, answers, held_out_pairs, opened, prompts

if TYPE_CHECKING:
    from prefloop.ui.progress import Progress

BETA = 0.1
NO_PAIRS = "no held-out pairs; give --pairs FILE (a run of given preferences has some of its own)"
NO_PROMPTS = "no prompts to sample on; give --prompts FILE, or --run RUN"


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
        base, aligned: models of one tokenizer; a run's aligned model brings held-out pairs, prompts and β.
        pairs: file of held-out pairs, by its path.
        file: prompts to sample on.
        beta: of the implicit reward; None: the run's, else 0.1.

    Returns:
        `pairs` (see `evaluate.preference.reward_accuracy`, with beta), `divergence`, `answers` (model -> lengths and
        diversity), `not_measured` (what was not, and why).

    Raises:
        UsageError: neither pairs nor prompts, or two tokenizers.
    """
    from prefloop.evaluate import preference
    from prefloop.evaluate.diversity import diversity, lengths

    held_out = _pairs(aligned, pairs, how.limit)
    asked = None if file is None and aligned.run is None else prompts([aligned], file, how.limit)
    if not held_out and asked is None:
        raise UsageError("there is nothing to measure on", fix="give --pairs FILE, --prompts FILE or --run RUN")
    beta = beta if beta is not None else _beta(aligned)
    found: dict[str, Any] = {"models": {s.name: s.model.path for s in (base, aligned)}, "not_measured": {}}
    margins: list[float] = []
    with opened(how.cache) as models:
        rows: dict[str, list[CandidatesRow]] = {}
        if asked is not None:
            # At temperature 1 with nothing cut off: only then is the divergence that of the two models.
            sampling = SampleSection(n=how.n or 1, temperature=1.0, max_new_tokens=how.max_new_tokens or 512)
            for number, subject in enumerate((base, aligned), 1):
                progress.stage(subject.name, number, 3)
                rows[subject.name], _ = answers(models, subject, asked.rows, sampling, how.seed)
        progress.stage("score", 3, 3)
        reference, policy = (models.get(subject.model) for subject in (base, aligned))
        encoder = _encoder(models, base, aligned)
        if held_out:
            scored = preference.implicit_margins(policy, reference, held_out, encoder, beta=beta)
            margins = scored.margins
            found["pairs"] = preference.reward_accuracy(scored, how.resamples, how.seed) | {"beta": beta}
        else:
            found["not_measured"]["reward accuracy and calibration"] = NO_PAIRS
        if asked is not None:
            found["divergence"] = preference.divergence(
                policy, reference, rows[aligned.name], encoder, resamples=how.resamples, seed=how.seed
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


def _pairs(aligned: Subject, file: PromptsSection | None, limit: int | None) -> Sequence[Any]:
    if file is not None:
        from prefloop.inputs.preferences import PreferenceReader

        section = PreferencesSection.model_validate({"path": file.path, "limit": limit, "ignore_columns": "all"})
        return [row for rows, _ in PreferenceReader(section).parts(1000) for row in rows]
    return [] if aligned.run is None else held_out_pairs(aligned.run)[:limit]


def _beta(aligned: Subject) -> float:
    """β of the run's objective; not every objective has one."""
    if aligned.recipe is None:
        return BETA
    found = getattr(aligned.recipe.train.objective, "beta", BETA)
    return float(found)


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
