"""A judge's habits in one line for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prefloop.intervals import wilson
from prefloop.records import ScoredRow
from prefloop.signals.bias import length_correlation, rates
from prefloop.signals.judge.checks import null_reasons
from prefloop.signals.judge.panel import agreement

FORMS = {"choose": "log-probability", "json": "JSON", "text": "text"}


def card(counts: Mapping[str, float], rows: Iterable[ScoredRow] = ()) -> str | None:
    """A judge's habits in one line for people; None where nobody was asked.

    Args:
        counts: summed over the rows.
        rows: the scored rows, for the correlation of score and length; none leaves it out.
    """
    verdicts = counts.get("verdicts", 0)
    if not verdicts:
        return None
    found = rates(counts)
    forms = [f"{counts[f'by_{form}']:,.0f} by {what}" for form, what in FORMS.items() if counts.get(f"by_{form}")]
    parts = [f"{verdicts:,.0f} verdicts" + (f" ({', '.join(forms)})" if forms else "")]
    if counts.get("nulls"):
        reasons = null_reasons(counts)
        most = f" (most because {reasons[0][1]})" if reasons else ""
        parts.append(f"{counts['nulls']:,.0f} null{most}")
    if counts.get("criteria_left_out"):
        parts.append(
            f"{counts['criteria_left_out']:,.0f} of {counts['criteria']:,.0f} criteria left out of a row's scores "
            "because an answer of it has no verdict by them"
        )
    if "consistency" in found:
        decided = counts["pairs"] - counts.get("null_pairs", 0) - counts.get("undecided_pairs", 0)
        parts.append(f"the orders agree on {found['consistency']:.0%} of {decided:,.0f} pairs")
    if "first_seat" in found:
        _, low, high = wilson(int(counts["first_wins"]), int(counts["first_decided"]))
        parts.append(f"the answer shown first wins {found['first_seat']:.0%} ({low:.0%} to {high:.0%})")
    if "longer_wins" in found:
        parts.append(f"the longer answer wins {found['longer_wins']:.0%}")
    if (correlation := length_correlation(rows)) is not None:
        parts.append(f"length and score correlate by {correlation:+.2f}")
    if "list_wins" in found:
        parts.append(f"the answer with a list wins {found['list_wins']:.0%}")
    if found.get("tie_rate", 0) >= 0.005:
        parts.append(f"{found['tie_rate']:.0%} ties")
    agreed = agreement(counts)
    if "alpha" in agreed:
        parts.append(f"the judges agree by Krippendorff's alpha {agreed['alpha']:.2f}")
    kappas = [f"{name.removeprefix('kappa/')} {value:.2f}" for name, value in agreed.items() if name != "alpha"]
    if kappas:
        parts.append(f"by Cohen's kappa {', '.join(kappas)}")
    return f"the judge: {', '.join(parts)}"
