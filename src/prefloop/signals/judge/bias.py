"""A judge's habits: what its verdicts depend on besides the answers. Counted row by row, told at the end.

Counts add up over rows; rates, warnings and refusals are made from their sums. Only the rank
correlation with length needs the rows themselves.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

from prefloop.errors import PrefloopError
from prefloop.records import ScoredRow

# Before the end of a stage: the share of null verdicts, and over how many, that no later part will make good.
EARLY_NULLS, EARLY_VERDICTS = 0.5, 100

# When a rate is warned of, and over how many cases; below them a rate says little.
LOW_CONSISTENCY = 0.6  # tossed coins agree in half of the pairs
HIGH_LONGER_WINS = 0.8
LOW_LABEL_MASS = 0.05
FEW_CASES = 20

_LIST_ITEM = re.compile(r"^ {0,3}(?:[-*+•]|\d{1,3}[.)])\s+\S", re.MULTILINE)


def count_orders(preferences: Sequence[float | None], counts: defaultdict[str, float]) -> None:
    """Seats: `first_decided`, verdicts on two seats that prefer one, and `first_wins`, those for the earlier one.

    Args:
        preferences: for two seats of one prompt how far the earlier one is preferred, above or below 0.
    """
    for preference in preferences:
        if preference:
            counts["first_decided"] += 1
            counts["first_wins"] += preference > 0


def count_pair(orders: Sequence[float | None], counts: defaultdict[str, float]) -> None:
    """Orders: `pairs` judged in several orders, `null_pairs` (an order has no verdict), `undecided_pairs` (no order
    prefers either answer) and `consistent` (all prefer the same).

    Args:
        orders: how far each order prefers the one answer over the other, above or below 0; None without a verdict.
    """
    counts["pairs"] += 1
    found = [preference for preference in orders if preference is not None]
    if len(found) < len(orders):
        counts["null_pairs"] += 1
        return
    counts["consistent"] += all(p > 0 for p in found) or all(p < 0 for p in found)
    counts["undecided_pairs"] += not any(found)


def count_outcome(a: str, b: str, p: float | None, counts: defaultdict[str, float]) -> None:
    """Outcomes: `compared` pairs of answers, `ties`, `longer_decided` (decided, of different lengths), `longer_wins`,
    `list_decided` (decided, one of the two has a list in it) and `list_wins`.

    Args:
        a, b: the texts.
        p: above 0.5 where a is the better one, below where b is; None without a verdict.
    """
    if p is None:
        return
    counts["compared"] += 1
    if p == 0.5:
        counts["ties"] += 1
        return
    if len(a) != len(b):
        counts["longer_decided"] += 1
        counts["longer_wins"] += (len(a) > len(b)) == (p > 0.5)
    if has_list(a) != has_list(b):
        counts["list_decided"] += 1
        counts["list_wins"] += has_list(a) == (p > 0.5)


def has_list(text: str) -> bool:
    """Whether a text has a list in it: two lines or more that begin as items do."""
    return len(_LIST_ITEM.findall(text)) > 1


def rates(counts: Mapping[str, float]) -> dict[str, float]:
    """A judge's bias card from its summed counts; a rate without any case is absent.

    Returns:
        null_rate (of verdicts); label_mass (mean, of chosen verdicts); consistency (of pairs that any order decides,
        those that all orders decide alike); first_seat (decided verdicts for the answer shown earlier; 0.5 is
        unbiased); tie_rate (of compared pairs); longer_wins (decided pairs of different lengths won by the longer
        answer); list_wins (decided pairs of an answer with a list and one without won by the one with).
    """
    get = counts.get
    verdicts = get("verdicts", 0)
    table = {
        "null_rate": (get("nulls", 0), verdicts),
        # Ratings of runs before verdicts were written have no count of the chosen ones: all were.
        "label_mass": (get("label_mass", 0), get("by_choose", verdicts) if "label_mass" in counts else 0),
        "consistency": (
            get("consistent", 0),
            get("pairs", 0) - get("null_pairs", 0) - get("undecided_pairs", 0),
        ),
        "first_seat": (get("first_wins", 0), get("first_decided", 0)),
        "tie_rate": (get("ties", 0), get("compared", 0)),
        "longer_wins": (get("longer_wins", 0), get("longer_decided", 0)),
        "list_wins": (get("list_wins", 0), get("list_decided", 0)),
    }
    return {name: part / whole for name, (part, whole) in table.items() if whole}


def length_correlation(rows: Iterable[ScoredRow]) -> float | None:
    """Spearman's rank correlation between the difference in length (characters) of two answers and that of their
    scores, over every two answers of a row that have both; -1..1, 0 is unbiased.

    None where there are fewer than `FEW_CASES` pairs, or all are alike in length or score. The pair's order is that
    of the row: turned round, both differences change their sign.
    """
    lengths: list[int] = []
    scores: list[float] = []
    for row in rows:
        scored = [(c["text"], s) for c, s in zip(row["completions"], row["scores"], strict=True) if s is not None]
        for (text_a, a), (text_b, b) in combinations(scored, 2):
            lengths.append(len(text_a) - len(text_b))
            scores.append(a - b)
    if len(lengths) < FEW_CASES or len(set(lengths)) == 1 or len(set(scores)) == 1:
        return None
    from scipy.stats import spearmanr

    return float(spearmanr(lengths, scores).statistic)


def check_nulls(counts: Mapping[str, float], max_null_share: float, *, final: bool) -> None:
    """Stop when too many verdicts are null.

    Args:
        counts: summed over the rows so far.
        max_null_share: the limit at the end, 0..1.
        final: whether these are all rows. Before that the first rows may be unlike the rest, and only half of a
            hundred verdicts (or more than the limit, where that is higher) are a reason to stop.

    Raises:
        PrefloopError: more than the limit are null.
    """
    nulls, verdicts = counts.get("nulls", 0), counts.get("verdicts", 0)
    limit = max_null_share if final else max(max_null_share, EARLY_NULLS)
    if nulls > limit * verdicts and (final or verdicts >= EARLY_VERDICTS):
        found = rates(counts)
        mass = f"; mean label mass {found['label_mass']:.3f}" if "label_mass" in found else ""
        unparsed = f"; {counts['unparsed']:.0f} replies held no verdict" if counts.get("unparsed") else ""
        raise PrefloopError(
            f"the judge gave no verdict in {nulls:.0f} of {verdicts:.0f} calls (at most {max_null_share:.0%} may be "
            f"null{mass}{unparsed})",
            where="judge",
            fix="shorten prompts that exceed the judge's context, use a judge that follows the template, ask for its "
            "verdicts in another form (verdict=text), or set min_label_mass or max_null_share",
        )


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
