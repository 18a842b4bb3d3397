"""Splits by prompt, never by row, and the check that evaluation prompts were not trained on.

Prompts are ranked by a hash of their id: a split does not depend on their order, and a prompt that is added moves
hardly any other.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple, TypedDict

from prefloop.errors import UsageError
from prefloop.records import Message, content_id

NGRAM = 13

# Scripts without spaces between words: a sentence of theirs is one "word" to `\w+`, so their characters are counted.
# A word of Chinese has 1.5 characters, one of Japanese about 2: 13 words are 20 to 26 characters, and the lower bound
# rather asks once too often. Thai and its neighbours need no such rule, as their vowel signs end a `\w+`; Korean has
# spaces.
CHARACTERS = 20
_UNSPACED = r"\u3005\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U000323af"
_SPACELESS = re.compile(f"[{_UNSPACED}]")

# A mark between two digits is a sign (2+3 is not 2-3); any other may differ in one and the same question.
_WORDS = re.compile(r"\w+|(?<=\d)\s*[^\w\s]+\s*(?=\d)")

# An n-gram that stands in more training prompts than this is boilerplate ("Below is an instruction that …"), not a
# leaked prompt (Brown et al. 2020, appendix C, use the same bound).
BOILERPLATE = 10


class Prompt(TypedDict):
    """Any row with an id and a prompt."""

    id: str
    prompt: list[Message]


def _rank(ids: Collection[str], salt: str) -> list[str]:
    return sorted(set(ids), key=lambda name: (content_id("split", salt, name), name))


def holdout(ids: Collection[str], share: float, salt: str = "holdout") -> set[str]:
    """A share of the ids, chosen by hash.

    Args:
        ids: prompt ids; doubles count once.
        share: 0..1, 1 excluded. Above 0, at least one id is held out and at least one is left, when there are two.
        salt: splits with different salts are independent of each other.
    """
    order = _rank(ids, salt)
    if share == 0 or len(order) < 2:
        return set()
    return set(order[: min(max(round(share * len(order)), 1), len(order) - 1)])


class Held(NamedTuple):
    """A holdout of pairs.

    Attributes:
        prompts: ids of the prompts (passages) whose rows are held out.
        crossing: ids of the rows that belong to neither side.
    """

    prompts: set[str]
    crossing: set[str]


def holdout_pairs(rows: Iterable[Mapping[str, Any]], share: float) -> Held:
    """A share of the pairs by prompt; of pairs with a query neither query nor prompt stands on both sides.

    Queries are held out, and of the passages those with such queries alone. A row of a held-out query whose passage is
    trained on for another query crosses: it is left out. So a pair is never dropped from training but for its query,
    and the larger side loses nothing by the overlap. Where each passage of the held-out queries has others too,
    nothing is held out and nothing is left out.

    Args:
        rows: preference rows; read once.
        share: 0..1 of the prompts, or of the queries, as for `holdout`.
    """
    prompts: set[str] = set()
    queries: dict[str, set[str]] = {}
    units: list[tuple[str, str, str]] = []
    for row in rows:
        prompts.add(row["prompt_id"])
        if (query := row.get("query")) is not None:
            queries.setdefault(row["prompt_id"], set()).add(query)
            units.append((row["id"], row["prompt_id"], query))
    if not queries:
        return Held(holdout(prompts, share), set())
    held = holdout({query for some in queries.values() for query in some}, share)
    whole = {prompt for prompt, some in queries.items() if some <= held}
    if plain := prompts - queries.keys():
        whole |= holdout(plain, share)
    if not whole:
        return Held(set(), set())
    return Held(whole, {name for name, prompt, query in units if query in held and prompt not in whole})


def round_chunk(ids: Collection[str], rounds: int, round: int) -> set[str]:
    """The ids of one round: disjoint between rounds, together all, sizes equal up to one.

    Args:
        ids: prompt ids; doubles count once.
        rounds: how many there are.
        round: which one, from 1.

    Raises:
        UsageError: there are fewer prompts than rounds.
    """
    order = _rank(ids, "rounds")
    if len(order) < rounds:
        raise UsageError(
            f"{rounds} rounds need as many prompts, and there are {len(order)}", where="rounds", fix="lower rounds"
        )
    return set(order[(round - 1) * len(order) // rounds : round * len(order) // rounds])


def overlap(train: Iterable[Prompt], evaluation: Iterable[Prompt]) -> list[str]:
    """Ids of the evaluation prompts that are found among the training prompts, in their order.

    Two prompts match when their words are equal up to case, Unicode form, white space and punctuation, or when they
    share 13 consecutive words (which shorter prompts cannot), or 20 consecutive characters of which at least half are
    Chinese or Japanese. System messages are left out: they are meant to be the same.
    Memory grows with the evaluation prompts, and by one hash for each training prompt.
    """
    texts: dict[tuple[str, ...], list[str]] = {}
    grams: dict[tuple[str, ...], list[str]] = {}
    order: list[str] = []
    for row in evaluation:
        order.append(row["id"])
        text = _text(row["prompt"])
        texts.setdefault(_words(text), []).append(row["id"])
        for gram in _grams(text):
            grams.setdefault(gram, []).append(row["id"])
    found: set[str] = set()
    seen: Counter[tuple[str, ...]] = Counter()
    trained: set[str] = set()
    for row in train:
        text = _text(row["prompt"])
        words = _words(text)
        name = content_id(*words)
        if name in trained:  # a prompt repeated in training does not make its words boilerplate
            continue
        trained.add(name)
        found.update(texts.get(words, ()))
        seen.update(gram for gram in _grams(text) if gram in grams)
    for gram, count in seen.items():
        if count <= BOILERPLATE:
            found.update(grams[gram])
    return [name for name in order if name in found]


def _text(prompt: Iterable[Message]) -> str:
    words = " ".join(message["content"] for message in prompt if message["role"] != "system")
    return " ".join(unicodedata.normalize("NFKC", words).casefold().split())


def _words(text: str) -> tuple[str, ...]:
    """What two equal prompts have in common: their words, or the whole text where it has none."""
    return tuple(word.strip() for word in _WORDS.findall(text)) or (text,)


def _grams(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text)
    found = {tuple(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1)}
    if _SPACELESS.search(text):
        letters = "".join(words)
        spaceless = [_SPACELESS.match(letter) is not None for letter in letters]
        # Each stretch is judged by itself, so that what stands around it in one of two texts hides nothing.
        found |= {
            (letters[i : i + CHARACTERS],)
            for i in range(len(letters) - CHARACTERS + 1)
            if 2 * sum(spaceless[i : i + CHARACTERS]) >= CHARACTERS
        }
    return found
