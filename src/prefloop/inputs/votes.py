"""Votes, ratings and rankings of people as preferences.

Whatever people were asked, what one of them says of one prompt is a *ballot*: some answers with a grade each. Two
answers on one ballot are a comparison: the higher grade wins, equal grades tie. Ballots on one prompt are counted
together, and answers are told apart by their text (outer white space aside), so it does not matter who saw which
answer in which seat, or in which row. A tie is half a win for each side, and is counted; a ballot that is not there is
neither a tie nor a loss.

How people write them is `inputs.ballots`' business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Literal

from prefloop.inputs.agreement import cohen_kappa, krippendorff_alpha
from prefloop.inputs.messages import Fault, given_id
from prefloop.inputs.problems import Problem, raw_json
from prefloop.inputs.readers import Record, Stream
from prefloop.records import Message, prompt_id

SOURCE = "human"


@dataclass
class Ballot:
    """What one person says of some answers to one prompt.

    Attributes:
        voter: None where nobody is named.
        grades: answer -> grade, higher is better.
        id: the row's own, where it has one.
        merges: ratings stand in rows of their own; those of one voter for one prompt are one ballot.
    """

    prompt: list[Message]
    voter: str | None
    grades: dict[str, float]
    id: str | None = None
    merges: bool = False


Parse = Callable[[Mapping[str, Any]], tuple[list[Ballot], list[Fault]]]


@dataclass
class Poll:
    """All ballots on one prompt. `row` and `unit` are the place of the first one."""

    prompt: list[Message]
    row: int
    unit: str
    ballots: list[Ballot] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)  # without outer white space -> as it was first written

    def share(self, first: str, second: str) -> tuple[float, int]:
        """(share of the comparisons that the first answer won, a tie being half; how many there are)."""
        a, b = first.strip(), second.strip()
        found = [_outcome(ballot, a, b) for ballot in self.ballots if a in ballot.grades and b in ballot.grades]
        return (sum(found) / len(found) if found else 0.0), len(found)

    def score(self, text: str) -> float:
        """Share of all comparisons of an answer that it won, 0..1: one number for each answer of the prompt."""
        shares = [self.share(text, other) for other in self.texts if other != text.strip()]
        return sum(share * n for share, n in shares) / sum(n for _, n in shares)

    def pairs(self) -> Iterator[tuple[str, str, float]]:
        """(first, second, share of the first) of all answers that were compared, in the order of appearance."""
        for first, second in combinations(self.texts, 2):
            share, n = self.share(first, second)
            if n:
                yield first, second, share


@dataclass
class Tally:
    """Reads ballots and counts them; holds all of them in memory.

    Attributes:
        path: where they come from, for problems.
        parse: what a row means.
        note: told of every row, for its columns.
        polls: by prompt id.
        repeated: second verdicts of the same voter, which do not count.
    """

    path: str
    parse: Parse
    note: Callable[[Record], None] = lambda record: None
    polls: dict[str, Poll] = field(default_factory=dict)
    repeated: int = 0

    def read(self, stream: Stream) -> Stream:
        """The problems of the ballots, then one record for each pair of answers, written as a preference row.

        A row of the file gives at most one problem, and so does a prompt: what comes out is kept or rejected one by
        one. The chosen answer is the one with more than half of the comparisons; a pair that splits the voters evenly
        says nothing of which is better, and is left out and counted.
        """
        for item in stream:
            if isinstance(item, Problem):
                yield item
            elif (problem := self.add(item)) is not None:
                yield problem
        for poll in self.polls.values():
            yield from self._rows(poll)

    def add(self, record: Record) -> Problem | None:
        """Count a row, or say what is wrong with it."""
        self.note(record)
        ballots, faults = self.parse(record.value)
        own, wrong_id = given_id(record.value)
        if found := faults + wrong_id:
            reason = "; ".join(f"{fault.field} {fault.reason}" for fault in found[1:])
            first = found[0]
            reason = f"{first.reason}; {reason}" if reason else first.reason
            return self._problem(record, Fault(first.kind, first.field, reason, first.fix))
        if any(self._voted(ballot) for ballot in ballots):
            self.repeated += 1
            reason = "a second verdict of the same voter on the same answers; the first counts"
            fix = "keep one of them, or name the voters apart in the column voter"
            return self._problem(record, Fault("duplicate_row", "voter", reason, fix), "duplicate")
        for ballot in ballots:
            ballot.id = own
            self._cast(record, ballot)
        return None

    def _problem(self, record: Record, fault: Fault, level: Literal["error", "duplicate"] = "error") -> Problem:
        place = (self.path, record.row, fault.field, fault.reason, fault.fix, record.unit)
        return Problem(fault.kind, *place, level, raw_json(record.value))

    def _voted(self, ballot: Ballot) -> bool:
        """Whether the same voter spoke on these answers before. Ratings without a name are one voter's."""
        poll = self.polls.get(prompt_id(ballot.prompt))
        if poll is None or (ballot.voter is None and not ballot.merges):
            return False
        texts = {text.strip() for text in ballot.grades}
        enough = 1 if ballot.merges else 2
        return any(b.voter == ballot.voter and len(b.grades.keys() & texts) >= enough for b in poll.ballots)

    def _cast(self, record: Record, ballot: Ballot) -> None:
        poll = self.polls.setdefault(prompt_id(ballot.prompt), Poll(ballot.prompt, record.row, record.unit))
        for text in ballot.grades:
            poll.texts.setdefault(text.strip(), text)
        ballot.grades = {text.strip(): grade for text, grade in ballot.grades.items()}
        earlier = next((b for b in poll.ballots if b.voter == ballot.voter), None)
        if ballot.merges and earlier is not None:
            earlier.grades |= ballot.grades
        else:
            poll.ballots.append(ballot)

    def _rows(self, poll: Poll) -> Stream:
        split = compared = 0
        ids = {ballot.id for ballot in poll.ballots}
        for first, second, share in poll.pairs():
            compared += 1
            if share == 0.5:
                split += 1
                continue
            chosen, rejected = (first, second) if share > 0.5 else (second, first)
            label = max(share, 1 - share)
            value = {
                "prompt": poll.prompt,
                "chosen": poll.texts[chosen],
                "rejected": poll.texts[rejected],
                "label": None if label == 1 else label,
                "score_chosen": poll.score(chosen),
                "score_rejected": poll.score(rejected),
                "source": SOURCE,
                "strategy": "votes",
                "id": ids.copy().pop() if len(ids) == 1 and len(poll.texts) == 2 else None,
            }
            yield Record(poll.row, value, poll.unit)
        place = (self.path, poll.row, None)
        if split:
            reason = f"the voters are evenly split on {split} of its {compared} pairs of answers"
            fix = "nothing to do: such pairs are left out and counted; an odd number of voters decides more of them"
            yield Problem(
                "split_votes", *place, reason, fix, poll.unit, "duplicate", raw_json({"prompt": poll.prompt})
            )
        elif not compared:
            reason = "nobody compared two answers to this prompt"
            fix = "rate at least two answers to it, or take the row out"
            yield Problem(
                "not_compared", *place, reason, fix, poll.unit, "duplicate", raw_json({"prompt": poll.prompt})
            )

    def agreement(self) -> dict[str, Any]:
        """How many voted, and how far they agree on which of two answers is better (or that neither is).

        Returns:
            ballots; repeated (second verdicts of a voter, left out); voters (named ones); pairs (that somebody
            compared); shared_pairs (that several did); agreement (share of equal verdicts among all pairs of verdicts
            on one pair of answers); krippendorff_alpha; cohen_kappa (where there are exactly two voters). None where
            there is nothing to say.
        """
        units: list[dict[str, float]] = []
        anonymous = 0
        for poll in self.polls.values():
            for first, second, _ in poll.pairs():
                unit = {}
                for ballot in poll.ballots:
                    if first in ballot.grades and second in ballot.grades:
                        anonymous += 1
                        # Nobody's name begins with a blank: names are stripped.
                        who = f" {anonymous}" if ballot.voter is None else ballot.voter
                        unit[who] = _outcome(ballot, first, second)
                units.append(unit)
        verdicts = [list(unit.values()) for unit in units]
        both = sum(len(v) * (len(v) - 1) for v in verdicts)
        alike = sum(n * (n - 1) for v in verdicts for n in (v.count(x) for x in (0.0, 0.5, 1.0)))
        voters = sorted({who for unit in units for who in unit if not who.startswith(" ")})
        kappa = None
        if len(voters) == 2 and all(not who.startswith(" ") for unit in units for who in unit):
            common = [unit for unit in units if len(unit) == 2]
            kappa = cohen_kappa(*([unit[who] for unit in common] for who in voters))
        return {
            "ballots": sum(len(poll.ballots) for poll in self.polls.values()),
            "repeated": self.repeated,
            "voters": len(voters),
            "pairs": len(units),
            "shared_pairs": sum(len(v) > 1 for v in verdicts),
            "agreement": alike / both if both else None,
            "krippendorff_alpha": krippendorff_alpha(verdicts),
            "cohen_kappa": kappa,
        }


def agreement_line(found: Mapping[str, Any]) -> str:
    """`Tally.agreement` in one line for people."""
    voters = f" of {found['voters']:,} voters" if found["voters"] else ""
    parts = [f"{found['ballots']:,} ballots{voters} on {found['pairs']:,} pairs of answers"]
    if found["repeated"]:
        parts.append(f"{found['repeated']:,} second verdicts of the same voter left out")
    if found["agreement"] is not None:
        parts.append(f"{found['shared_pairs']:,} pairs compared by several, {found['agreement']:.0%} equal verdicts")
    for key, name in (("krippendorff_alpha", "Krippendorff's alpha"), ("cohen_kappa", "Cohen's kappa")):
        if found[key] is not None:
            parts.append(f"{name} {found[key]:.2f}")
    return "; ".join(parts)


def _outcome(ballot: Ballot, first: str, second: str) -> float:
    a, b = ballot.grades[first], ballot.grades[second]
    return 0.5 if a == b else float(a > b)
