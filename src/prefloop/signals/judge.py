"""Scores from a language model that reads the answers (LLM-as-a-judge, Zheng et al. 2023).

A verdict is read from the log-probabilities of a few labels: nothing is parsed, and the same judge says the same
thing twice. Pointwise, the score is the expectation of the rating. Pairwise, every two answers are shown in both
orders and the two verdicts averaged, so a judge that only prefers a seat says 0.5. A verdict that could not be had
is null: excluded and counted, never a tie and never a loss.

A judge whose context is too short is asked again with shorter answers, all cut at the same length, and by the built-in
prompt in its brief form at last. How often is counted and said.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Generator, Sequence
from itertools import combinations
from typing import Any, Literal

from prefloop.backends.base import Choice, ChooseRequest, Refusal, Result
from prefloop.errors import PrefloopError
from prefloop.records import CandidatesRow
from prefloop.signals import template
from prefloop.signals.base import Call, Rating

RATINGS = ("1", "2", "3", "4", "5")
SEATS = ("A", "B")

# Scores are rounded to this many decimals: float noise in a sum must not turn a tie into a preference
# (tests/signals/test_judge.py::test_a_judge_that_prefers_a_seat_sees_a_tie).
DECIMALS = 9

# How short answers become for a judge whose context is too short: whole, then a half, a quarter, an eighth.
CUTS = (1, 2, 4, 8)

# Before the end of a stage: the share of null verdicts, and over how many, that no later part will make good.
EARLY_NULLS, EARLY_VERDICTS = 0.5, 100

# When a rate is warned of, and over how many cases; below them a rate says little.
LOW_CONSISTENCY = 0.6  # tossed coins agree in half of the pairs
HIGH_LONGER_WINS = 0.8
LOW_LABEL_MASS = 0.05
FEW_CASES = 20

Counts = defaultdict[str, float]


class JudgeSignal:
    """Signal `judge`. Calls the backend named "judge"."""

    def __init__(
        self, mode: Literal["pointwise", "pairwise"], template_name: str | None, min_label_mass: float
    ) -> None:
        """
        Args:
            mode: pointwise or pairwise.
            template_name: see `signals.template.load`.
            min_label_mass: a verdict is null when all labels together get less probability than this, 0..1.
        """
        self.mode = mode
        self.template = template.load(template_name, mode)
        # Only the built-in prompt has a brief form; a prompt of the user's own is asked as it is.
        self.brief = template.load("brief", mode) if template_name in (None, "default") else None
        self.min_label_mass = min_label_mass
        self.pairwise = mode == "pairwise"
        self.name = f"judge-{mode}@{self.template.sha[:8]}"
        self.identity: dict[str, Any] = {
            "type": "judge",
            "mode": mode,
            "template_sha": self.template.sha,
            "brief_sha": None if self.brief is None else self.brief.sha,
            "labels": list(SEATS if self.pairwise else RATINGS),
            "min_label_mass": min_label_mass,
        }

    def try_template(self) -> None:
        """Render the prompt once with texts of no meaning.

        Raises:
            UsageError: the template fails on them, as it would on a row.
        """
        seats = ("first", "second") if self.pairwise else ("answer",)
        self.template.render(instruction="a request", **{seat: f"text {i}" for i, seat in enumerate(seats)})

    def rate(self, row: CandidatesRow) -> Generator[list[Call], list[Result], Rating]:
        """Score the completions of one row; answers that are equal but for outer white space are judged once.

        Counts, pointwise and pairwise: verdicts (asked for), nulls, shortened (verdicts on answers that were cut),
        brief (verdicts by the brief prompt), label_mass (sum over the verdicts that are not refused), unequal_labels
        (verdicts whose labels have different numbers of tokens). Pairwise also: pairs (asked), null_pairs, consistent
        (pairs that both orders decide alike), first_decided and first_wins (verdicts that prefer a seat, and the
        first), longer_decided and longer_wins (decided pairs of answers of different lengths, and those won by the
        longer).
        """
        return (yield from (self._pairwise(row) if self.pairwise else self._pointwise(row)))

    def _pointwise(self, row: CandidatesRow) -> Generator[list[Call], list[Result], Rating]:
        texts, member = _distinct(row)
        instruction = template.conversation(row["prompt"])
        counts: Counts = defaultdict(float)
        results = yield from self._ask(RATINGS, instruction, [{"answer": text} for text in texts], counts)
        scores: list[float | None] = []
        for result in results:
            chances = self._chances(result, counts)
            expected = None if chances is None else sum(int(label) * p for label, p in zip(RATINGS, chances))
            scores.append(None if expected is None else round(expected, DECIMALS))
        return Rating([scores[i] for i in member], dict(counts))

    def _pairwise(self, row: CandidatesRow) -> Generator[list[Call], list[Result], Rating]:
        texts, member = _distinct(row)
        instruction = template.conversation(row["prompt"])
        pairs = list(combinations(range(len(texts)), 2))
        seatings = [seats for i, j in pairs for seats in ((i, j), (j, i))]
        counts: Counts = defaultdict(float)
        shown = [{"first": texts[i], "second": texts[j]} for i, j in seatings]
        results = yield from self._ask(SEATS, instruction, shown, counts)
        chances = [self._chances(result, counts) for result in results]
        wins: dict[tuple[int, int], float | None] = {(i, i): 0.5 for i in range(len(texts))}
        for (i, j), forward, backward in zip(pairs, chances[::2], chances[1::2], strict=True):
            p = _debiased(forward, backward, counts)
            wins[i, j], wins[j, i] = p, None if p is None else 1 - p
            if p is not None and p != 0.5 and len(texts[i]) != len(texts[j]):
                counts["longer_decided"] += 1
                counts["longer_wins"] += (len(texts[i]) > len(texts[j])) == (p > 0.5)
        return Rating([_mean_win(seat, member, wins) for seat in range(len(member))], dict(counts))

    def _ask(
        self, labels: tuple[str, ...], instruction: str, shown: Sequence[dict[str, str]], counts: Counts
    ) -> Generator[list[Call], list[Result], list[Result]]:
        """One verdict for each set of answers; what does not fit is asked again, shorter each time."""
        results: list[Result] = [Refusal("not asked")] * len(shown)
        waiting = list(range(len(shown)))
        longest = [max(map(len, answers.values())) for answers in shown]
        counts["shortened"] += 0
        for prompt, cut in self._ladder():
            # Both answers of a pair are cut at one length: cutting each in half would favour the longer.
            texts = {i: {seat: _cut(t, longest[i] // cut) for seat, t in shown[i].items()} for i in waiting}
            answered = yield [
                Call("judge", ChooseRequest((("user", prompt.render(instruction=instruction, **texts[i])),), labels))
                for i in waiting
            ]
            for i, result in zip(waiting, answered, strict=True):
                results[i] = result
                if isinstance(result, Choice):
                    counts["shortened"] += texts[i] != shown[i]
                    counts["brief"] += prompt is self.brief
            waiting = [i for i in waiting if isinstance(refusal := results[i], Refusal) and refusal.too_long]
            if not waiting:
                break
        return results

    def _ladder(self) -> list[tuple[template.JudgeTemplate, int]]:
        """Prompt, and into how many parts answers are cut of which the first is shown, in the order of the tries."""
        prompts = [self.template] if self.brief is None else [self.template, self.brief]
        return [(prompt, cut) for prompt in prompts for cut in CUTS]

    def _chances(self, result: Result, counts: Counts) -> list[float] | None:
        """Probabilities of the labels among themselves; None when there is no verdict."""
        counts["verdicts"] += 1
        counts["nulls"] += 0
        if not isinstance(result, Choice):
            counts["nulls"] += 1
            return None
        mass = result.label_mass
        counts["label_mass"] += mass
        counts["unequal_labels"] += len(set(result.label_tokens)) > 1
        # `not >` also catches NaN; without any mass the labels' probabilities are not defined.
        if not mass > 0 or mass < self.min_label_mass:
            counts["nulls"] += 1
            return None
        return result.probabilities


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]} […]"


def _distinct(row: CandidatesRow) -> tuple[list[str], list[int]]:
    """The different texts of a row (the first of equals), and for each completion the index of its text."""
    index: dict[str, int] = {}
    texts: list[str] = []
    member: list[int] = []
    for completion in row["completions"]:
        key = completion["text"].strip()
        if key not in index:
            index[key] = len(texts)
            texts.append(completion["text"])
        member.append(index[key])
    return texts, member


def _debiased(forward: list[float] | None, backward: list[float] | None, counts: Counts) -> float | None:
    """P(x is better) from the label chances with x in seat A (`forward`) and with x in seat B (`backward`).

    Null unless both orders gave a verdict: one order alone carries the judge's preference for a seat.
    """
    for chances in (forward, backward):
        if chances is not None and chances[0] != chances[1]:
            counts["first_decided"] += 1
            counts["first_wins"] += chances[0] > chances[1]
    counts["pairs"] += 1
    if forward is None or backward is None:
        counts["null_pairs"] += 1
        return None
    counts["consistent"] += (forward[0] - 0.5) * (backward[1] - 0.5) > 0
    return round((forward[0] + backward[1]) / 2, DECIMALS)


def _mean_win(seat: int, member: list[int], wins: dict[tuple[int, int], float | None]) -> float | None:
    """Mean win probability of one completion against the others; None when no judged pair of its has a verdict."""
    others = [other for i, other in enumerate(member) if i != seat]
    verdicts = [p for other in others if (p := wins[member[seat], other]) is not None]
    judged = [other for other in others if other != member[seat]]
    if not verdicts or (judged and all(wins[member[seat], other] is None for other in judged)):
        return None
    # fsum does not depend on the order, so equal texts have equal scores.
    return round(math.fsum(verdicts) / len(verdicts), DECIMALS)


def rates(counts: dict[str, float]) -> dict[str, float]:
    """A judge's bias card from its summed counts; a rate without any case is absent.

    Returns:
        null_rate (of verdicts); label_mass (mean); consistency (judged pairs that both orders decide alike);
        first_seat (decided verdicts for the answer shown first; 0.5 is unbiased); longer_wins (decided pairs of
        different lengths won by the longer one).
    """
    judged_pairs = counts.get("pairs", 0) - counts.get("null_pairs", 0)
    table = {
        "null_rate": (counts.get("nulls", 0), counts.get("verdicts", 0)),
        "label_mass": (counts.get("label_mass", 0), counts.get("verdicts", 0)),
        "consistency": (counts.get("consistent", 0), judged_pairs),
        "first_seat": (counts.get("first_wins", 0), counts.get("first_decided", 0)),
        "longer_wins": (counts.get("longer_wins", 0), counts.get("longer_decided", 0)),
    }
    return {name: part / whole for name, (part, whole) in table.items() if whole}


def check_nulls(counts: dict[str, float], max_null_share: float, *, final: bool) -> None:
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
        raise PrefloopError(
            f"the judge gave no verdict in {nulls:.0f} of {verdicts:.0f} calls (at most {max_null_share:.0%} may be "
            f"null; mean label mass {rates(counts).get('label_mass', 0):.3f})",
            where="judge",
            fix="shorten prompts that exceed the judge's context, use a judge that follows the template, or set "
            "min_label_mass or max_null_share",
        )


def card(counts: dict[str, float]) -> str | None:
    """A pairwise judge's rates in one line for people; None where no pair was judged."""
    found = rates(counts)
    if "consistency" not in found:
        return None
    judged_pairs = counts["pairs"] - counts.get("null_pairs", 0)
    parts = [f"both orders agree on {found['consistency']:.0%} of {judged_pairs:,.0f} pairs"]
    for name, what in (("first_seat", "the answer shown first"), ("longer_wins", "the longer answer")):
        if name in found:
            parts.append(f"{what} wins {found[name]:.0%}")
    return f"the judge: {', '.join(parts)}"


def warning(counts: dict[str, float]) -> str | None:
    """What makes a judge's verdicts doubtful, from its summed counts; None when nothing does."""
    found = rates(counts)
    judged_pairs = counts.get("pairs", 0) - counts.get("null_pairs", 0)
    said = []
    if judged_pairs >= FEW_CASES and found["consistency"] < LOW_CONSISTENCY:
        said.append(
            f"the judge decides only {found['consistency']:.0%} of the pairs alike in both orders: its verdicts are "
            "mostly noise (tossed coins reach 50 %); take a stronger judge or a clearer template"
        )
    if counts.get("longer_decided", 0) >= FEW_CASES and found["longer_wins"] > HIGH_LONGER_WINS:
        said.append(
            f"the longer answer wins {found['longer_wins']:.0%} of the judge's decided pairs: it reads length, and "
            "the rest is noise; set pair.max_length_ratio or take another judge"
        )
    if "label_mass" in counts and found["label_mass"] < LOW_LABEL_MASS:
        said.append(
            f"the judge gives all labels together a mean probability of {found['label_mass']:.3f}: it wanted to say "
            "something else; take a judge that follows the template, or set min_label_mass"
        )
    if (short := _short_of_room(counts)) is not None:
        said.append(short)
    return "; ".join(said) or None


def _short_of_room(counts: dict[str, float]) -> str | None:
    """What to tell a person about verdicts for which the judge's context was too short; None when there are none."""
    shortened, brief, verdicts = (counts.get(name, 0) for name in ("shortened", "brief", "verdicts"))
    if not shortened and not brief:
        return None
    return (
        f"the judge's context is short: of {verdicts:.0f} verdicts {shortened:.0f} were on answers cut at the end and "
        f"{brief:.0f} by the brief form of its prompt; a judge with more positions reads them whole"
    )
