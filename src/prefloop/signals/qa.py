"""How right a short answer is: three measures under three names, and abstention as a class of its own.

- `exact_match`: the normalised answer is a normalised reference (SQuAD's strict measure, Rajpurkar et al. 2016).
- `containment`: the words of a normalised reference stand in the normalised answer, in a row. Published work often
  calls this "EM", "accuracy" or "hit".
- `f1`: harmonic mean of precision and recall over tokens (SQuAD).

Each is the maximum over the references.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)

# Looked for in normalised answers: no punctuation, no articles, small letters.
_ABSTENTIONS = re.compile(
    r"\bunknown\b|\bunanswerable\b|\bnot known\b|\bno (?:answer|information|mention)\b"
    r"|\b(?:do not|dont|does not|doesnt|did not|didnt) (?:know|mention|say|state|tell|provide|specify|contain)\b"
    r"|\b(?:is|are|was|were|isnt|arent|wasnt|werent) not (?:mentioned|stated|given|provided|specified|clear)\b"
    r"|\b(?:isnt|arent|wasnt|werent) (?:mentioned|stated|given|provided|specified|clear|known)\b"
    r"|\b(?:cannot|can not|cant|could not|couldnt|unable to|not possible to) (?:be )?"
    r"(?:answer|determine|say|tell|find)"
)


@dataclass(frozen=True)
class Judged:
    """One answer against its references.

    Attributes:
        exact_match, containment: 0 or 1.
        f1: 0..1.
        abstained: it says that it does not know, or says nothing, and holds no reference.
    """

    exact_match: float
    containment: float
    f1: float
    abstained: bool


def normalised(text: str) -> str:
    """SQuAD's normal form: small letters, no ASCII punctuation, no a/an/the, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, references: Sequence[str]) -> float:
    """1 where the normal forms of the answer and of some reference are equal."""
    return float(any(normalised(answer) == normalised(reference) for reference in references))


def containment(answer: str, references: Sequence[str]) -> float:
    """1 where the words of some reference's normal form stand in the answer's, in a row.

    A reference of articles and punctuation alone is in no answer but one of the same kind.
    """
    given = normalised(answer).split()
    for reference in references:
        wanted = normalised(reference).split()
        if not wanted and not given:
            return 1.0
        if wanted and any(given[i : i + len(wanted)] == wanted for i in range(len(given) - len(wanted) + 1)):
            return 1.0
    return 0.0


def token_f1(answer: str, references: Sequence[str]) -> float:
    """The best token F1 with a reference, 0..1; where one side has no token, 1 if both have none."""
    return max((_f1(normalised(answer).split(), normalised(r).split()) for r in references), default=0.0)


def _f1(given: list[str], wanted: list[str]) -> float:
    if not given or not wanted:
        return float(given == wanted)
    common = (Counter(given) & Counter(wanted)).total()
    return 2 * common / (len(given) + len(wanted))


def abstains(answer: str) -> bool:
    """Whether an answer says that it does not know, or says nothing."""
    text = normalised(answer)
    return not text or _ABSTENTIONS.search(text) is not None


def judge(answer: str, references: Sequence[str]) -> Judged:
    """All measures of one answer.

    Args:
        references: at least one.
    """
    contained = containment(answer, references)
    return Judged(
        exact_match=exact_match(answer, references),
        containment=contained,
        f1=token_f1(answer, references),
        abstained=not contained and abstains(answer),
    )
