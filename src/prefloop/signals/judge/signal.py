"""The judge: its settings, and how one row is judged by it.

Whatever the mode, a row may be judged by all criteria of the rubric together, or once by each of them. The second
costs a verdict more for every criterion; all are kept, and the score is their weighted mean.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from typing import Any, Literal

from prefloop.backends.base import Result
from prefloop.errors import UsageError
from prefloop.records import CandidatesRow, PartScores
from prefloop.signals import rubric as rubrics
from prefloop.signals import template
from prefloop.signals.base import Call, Rating
from prefloop.signals.judge.ask import Asked, Context, Counts, Manner
from prefloop.signals.judge.lockstep import together
from prefloop.signals.judge.modes import DECIMALS, Scores, Scoring, Texts, listwise, pairwise, pointwise, ranking
from prefloop.signals.judge.verdicts import FORMS, SEATS, Form
from prefloop.signals.references import References
from prefloop.signals.rubric import Criterion, Rubric

Mode = Literal["pointwise", "pairwise", "listwise", "ranking"]

# Modes whose verdict is more than one label.
LISTS = ("listwise", "ranking")

# Of English, for estimates.
CHARACTERS_A_TOKEN = 4


class JudgeSignal:
    """Signal `judge`, with one model.

    Args:
        mode: pointwise, pairwise, listwise (ratings) or ranking (an order).
        template_name: see `signals.template.load`.
        min_label_mass: a chosen verdict is null when all labels together get less probability than this, 0..1.
        rubric: see `signals.rubric.load`.
        by_criterion: one verdict for each criterion.
        references: right answers to compare with.
        verdict: its form; auto takes the first of choose, json and text that the model's backend can serve.
        samples: written replies to one question, whose mean counts.
        temperature: of written replies.
        max_new_tokens: of written replies with reasons.
        orders: in how many orders a list is shown.
        seed: of sampled replies, those at a temperature above 0.
        backend: the model's name among the signal's backends.

    Raises:
        UsageError: the template or rubric is missing or faulty, or the template leaves out what is set here.
    """

    def __init__(
        self,
        mode: Mode,
        template_name: str | None,
        min_label_mass: float,
        *,
        rubric: str | None = None,
        by_criterion: bool = False,
        references: References | None = None,
        verdict: Literal["auto", "choose", "json", "text"] = "auto",
        samples: int = 1,
        temperature: float = 0.0,
        max_new_tokens: int = 512,
        orders: int = 2,
        seed: int = 0,
        backend: str = "judge",
    ) -> None:
        self.mode, self.orders, self.references = mode, orders, references
        self.template = template.load(template_name, mode)
        self.rubric = rubrics.load(rubric)
        self._check_shown(rubric is not None or by_criterion)
        # What judges: the whole rubric, or each of its criteria.
        self.judged: list[tuple[Criterion | None, Rubric]] = [(None, self.rubric)]
        if by_criterion:
            self.judged = [(criterion, self.rubric.only(criterion)) for criterion in self.rubric.criteria]
        # Only the built-in prompt has a brief form, which knows the built-in rubric alone, and no lists.
        plain = template_name in (None, "default") and rubric is None and not by_criterion and mode not in LISTS
        brief = template.load("brief", mode) if plain else None
        forms: tuple[Form, ...] = FORMS if verdict == "auto" else (verdict,)
        if mode in LISTS:
            forms = tuple(form for form in forms if form != "choose")
        seats = template.SHOWN[mode][1:]
        self.manner = Manner(
            backend, self.template, brief, seats, forms, samples, temperature, max_new_tokens, min_label_mass, seed
        )
        # Of a rank as of a pair, a score is the mean win probability against the others.
        self.pairwise = mode in ("pairwise", "ranking")
        named = "" if rubric is None else f"-{self.rubric.name}"
        self.name = f"judge-{mode}{named}@{self.template.sha[:8]}"
        self.identity: dict[str, Any] = {
            "type": "judge",
            "mode": mode,
            "template_sha": self.template.sha,
            "brief_sha": None if brief is None else brief.sha,
            "labels": list(SEATS if mode == "pairwise" else map(str, self.rubric.ratings)),
            "min_label_mass": min_label_mass,
            "rubric": self.rubric.model_dump(mode="json"),
            "by_criterion": by_criterion,
            "references": None if references is None else references.digest,
            "forms": list(forms),
            "written": [samples, temperature, max_new_tokens],
            "orders": orders if mode in LISTS else 2,
        }
        if temperature > 0:
            self.identity["seed"] = seed

    def _check_shown(self, rubric_is_set: bool) -> None:
        """A template that shows nothing of what is set would judge by something else."""
        needed = {"rubric": rubric_is_set, "reference": self.references is not None}
        for name, is_set in needed.items():
            if is_set and name not in self.template.used:
                raise UsageError(
                    f"the judge would never see the {name} that is set",
                    where=self.template.where,
                    fix=f"show {{{{ {name} }}}} in the template, or take the setting out",
                )

    def try_template(self) -> None:
        """Render the prompt once with texts of no meaning.

        Raises:
            UsageError: the template fails on them, as it would on a row.
        """
        seats = self.manner.by_seat(["text 0", "text 1"][: len(self.manner.seats)])
        shown = {"instruction": "a request", **seats}
        self.template.render(shown, rubric=self.rubric.values(), reference="a right answer")

    def asking(self, answers: int, tokens: int) -> tuple[int, int, int]:
        """For a row of so many different answers of so many tokens each: calls, tokens read and tokens written, at
        most if every reply holds a verdict. The instruction is not counted."""
        lists = min(self.orders, math.factorial(min(answers, 10)))
        questions, shown = {
            "pointwise": (answers, 1),
            "pairwise": (answers * (answers - 1), 2),
            "listwise": (lists, answers),
            "ranking": (lists if answers > 1 else 0, answers),
        }[self.mode]
        chosen = self.manner.forms == ("choose",)
        calls = questions * len(self.judged) * self.manner.samples
        read = len(self.template.source) // CHARACTERS_A_TOKEN + shown * tokens
        return calls, calls * read, calls * (1 if chosen else self.manner.max_new_tokens)

    def rate(self, row: CandidatesRow) -> Generator[list[Call], list[Result], Rating]:
        """Score the completions of one row; answers that are equal but for outer white space are judged once.

        Counts: see `ask.Asked`, and `bias.count_orders`, `count_pair` and `count_outcome`; with reference answers also
        referenced and unreferenced rows; by criterion also criteria (of rows) and criteria_left_out, those by which an
        answer of the row has no verdict.
        """
        counts: Counts = defaultdict(float)
        reference = None if self.references is None else self.references.of(row)
        if self.references is not None:
            counts["referenced"] += reference is not None
            counts["unreferenced"] += reference is None
        instruction = template.conversation(row["prompt"])
        texts = Texts(row)
        found = yield from together(
            [self._by(part, Context(instruction, part.values(), reference), texts, counts) for _, part in self.judged]
        )
        parts: list[PartScores] = [
            {"name": criterion.name, "scores": scores}
            for (criterion, _), scores in zip(self.judged, found, strict=True)
            if criterion is not None
        ]
        weights = [1.0 if criterion is None else criterion.weight for criterion, _ in self.judged]
        if parts:
            counts["criteria"] += len(parts)
            counts["criteria_left_out"] += sum(None in scores for scores in found)
        return Rating(weighted_means(found, weights) if parts else found[0], dict(counts), parts)

    def _by(self, rubric: Rubric, context: Context, texts: Texts, counts: Counts) -> Scoring:
        """Scores by one rubric."""

        def ask(questions: Sequence[Any]) -> Any:
            return Asked(self.manner, context, questions, counts).run()

        modes: dict[str, Callable[[], Scoring]] = {
            "pointwise": lambda: pointwise(texts, rubric.ratings, ask, counts),
            "pairwise": lambda: pairwise(texts, ask, counts),
            "listwise": lambda: listwise(texts, rubric.ratings, self.orders, ask, counts),
            "ranking": lambda: ranking(texts, self.orders, ask, counts),
        }
        return modes[self.mode]()


def weighted_means(columns: Sequence[Scores], weights: Sequence[float]) -> Scores:
    """For each answer the weighted mean by those criteria by which every answer has a score; None without any.

    A mean over different criteria would compare unlike things: the answer that a strict criterion is missing for
    would seem the better one.

    Args:
        columns: [criteria][answers].
        weights: [criteria].
    """
    whole = [(scores, weight) for scores, weight in zip(columns, weights, strict=True) if None not in scores]
    total = math.fsum(weight for _, weight in whole)
    means: Scores = []
    for i in range(len(columns[0])):
        weighted = [score * weight for scores, weight in whole if (score := scores[i]) is not None]
        means.append(round(math.fsum(weighted) / total, DECIMALS) if whole else None)
    return means
