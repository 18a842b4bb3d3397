"""When a judge's verdicts are doubtful or of no use: warned of, or refused, from the summed counts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import count

from prefloop.errors import PrefloopError
from prefloop.signals.bias import FEW_CASES, HIGH_LONGER_WINS, LOW_CONSISTENCY, rates
from prefloop.signals.judge.ask import MASS, NULL, REFUSED, SUM, TOO_LONG, UNREAD, UNSUPPORTED

# Before the end of a stage: the share of null verdicts, and over how many, that no later part will make good.
EARLY_NULLS, EARLY_VERDICTS = 0.5, 100

LOW_LABEL_MASS = 0.05

# What helps against nulls, by the kind of their reason.
FIXES = {
    UNSUPPORTED: "ask for written verdicts, which every server can give: verdict=text (or auto)",
    TOO_LONG: "use a judge with a longer context (rate.model, in the measurement evaluate.judge.model), lower "
    "sample.max_new_tokens (there evaluate.sample.max_new_tokens), or give shorter prompts",
    UNREAD: "use a judge that follows the template, ask for its verdicts in another form (verdict=json or choose), or "
    "raise max_new_tokens if its replies are cut off",
    MASS: "ask for written verdicts (verdict=text), use a judge that follows the template, or lower min_label_mass",
    REFUSED: "put right what the server or model complains of; each call stands in the table calls",
}


def check_nulls(counts: Mapping[str, float], max_null_share: float, *, final: bool, where: str = "judge") -> None:
    """Stop when too many verdicts are null.

    Args:
        counts: summed over the rows so far.
        max_null_share: the limit at the end, 0..1.
        final: whether these are all rows. Before that the first rows may be unlike the rest, and only half of a
            hundred verdicts (or more than the limit, where that is higher) are a reason to stop.
        where: for the message.

    Raises:
        PrefloopError: more than the limit are null.
    """
    nulls, verdicts = counts.get("nulls", 0), counts.get("verdicts", 0)
    limit = max_null_share if final else max(max_null_share, EARLY_NULLS)
    if nulls > limit * verdicts and (final or verdicts >= EARLY_VERDICTS):
        found = rates(counts)
        kind, reason, times = null_reasons(counts)[0] if null_reasons(counts) else (UNREAD, "", 0)
        why = f"; {times:,.0f} because {reason}" if reason else ""
        mass = f"; mean label mass {found['label_mass']:.3f}" if "label_mass" in found else ""
        unparsed = f"; {counts['unparsed']:.0f} replies held no verdict" if counts.get("unparsed") else ""
        raise PrefloopError(
            f"the judge gave no verdict in {nulls:.0f} of {verdicts:.0f} calls (at most {max_null_share:.0%} may be "
            f"null{why}{mass}{unparsed})",
            where=where,
            fix=f"{FIXES[kind]}; or allow more with max_null_share",
        )


def null_reasons(counts: Mapping[str, float]) -> list[tuple[str, str, float]]:
    """Why there were nulls: (kind, reason in words, how many), the most frequent first. Its numbers are means."""
    found = []
    for key, times in counts.items():
        if key.startswith(NULL) and times:
            kind, _, reason = key.removeprefix(NULL).partition(":")
            found.append((kind, _with_numbers(reason, key, times, counts), times))
    return sorted(found, key=lambda entry: (-entry[2], entry[1]))


def _with_numbers(reason: str, key: str, times: float, counts: Mapping[str, float]) -> str:
    """The reason with the means of its numbers where they are known."""
    places = count()
    known = f"{SUM}0:{key}" in counts

    def mean(found: re.Match[str]) -> str:
        total = counts.get(f"{SUM}{next(places)}:{key}")
        return found[0] if total is None else f"{total / times:.0f}"

    said = re.sub(r"\bN\b", mean, reason)
    return f"{said}, on average" if known and times > 1 else said


def check_noise(counts: Mapping[str, float], *, force: bool) -> None:
    """Refuse to train on scores that are noise or length.

    Args:
        counts: summed over all rows.
        force: go on all the same; it is warned of then (`warning`).

    Raises:
        PrefloopError: the orders agree too seldom, or the longer answer wins too often, over enough cases.
    """
    if (said := _noise(counts)) and not force:
        raise PrefloopError(
            "; ".join(said),
            where="judge",
            fix="take a stronger judge, a clearer template or rubric, or pairs of answers of similar length; to train "
            "on these scores all the same, set rate.force=true (what was judged is kept)",
        )


def _noise(counts: Mapping[str, float]) -> list[str]:
    found = rates(counts)
    decided = counts.get("pairs", 0) - counts.get("null_pairs", 0) - counts.get("undecided_pairs", 0)
    said = []
    if decided >= FEW_CASES and found["consistency"] < LOW_CONSISTENCY:
        said.append(
            f"the judge decides only {found['consistency']:.0%} of the pairs alike in both orders: its verdicts are "
            "mostly noise (tossed coins reach 50 %)"
        )
    if counts.get("longer_decided", 0) >= FEW_CASES and found["longer_wins"] > HIGH_LONGER_WINS:
        said.append(
            f"the longer answer wins {found['longer_wins']:.0%} of the judge's decided pairs: it reads length, and "
            "the rest is noise"
        )
    return said


def warning(counts: Mapping[str, float]) -> str | None:
    """What makes a judge's verdicts doubtful, from its summed counts; None when nothing does."""
    found = rates(counts)
    said = _noise(counts)
    if said:
        said[-1] += "; take a stronger judge, a clearer template or rubric, or set pair.max_length_ratio"
    if found.get("label_mass", 1.0) < LOW_LABEL_MASS:
        said.append(
            f"the judge gives all labels together a mean probability of {found['label_mass']:.3f}: it wanted to say "
            "something else; take a judge that follows the template, or set min_label_mass"
        )
    if counts.get("unreferenced"):
        said.append(
            f"{counts['unreferenced']:.0f} of {counts['unreferenced'] + counts['referenced']:.0f} prompts have no "
            "reference answer, and the judge read their answers without one; prompts must be written as in the run's"
        )
    if (short := _short_of_room(counts)) is not None:
        said.append(short)
    return "; ".join(said) or None


def _short_of_room(counts: Mapping[str, float]) -> str | None:
    """What to tell a person about verdicts for which the judge's context was too short; None when there are none."""
    shortened, brief, verdicts = (counts.get(name, 0) for name in ("shortened", "brief", "verdicts"))
    if not shortened and not brief:
        return None
    return (
        f"the judge's context is short: of {verdicts:.0f} verdicts {shortened:.0f} were on answers cut at the end and "
        f"{brief:.0f} by the brief form of its prompt; a judge with more positions reads them whole"
    )
