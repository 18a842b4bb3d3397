"""Conversations of the world, one function per ability: `(rng, world) -> messages`, the last one the assistant's.

What the model does unasked is a matter of chance, and the chances are the constants here. A note in the prompt (a
system message, or a line of the user's message) replaces the chance it speaks of and leaves the others.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from prefloop.records import Message
from prefloop.sandbox import phrases
from prefloop.sandbox.templates import render
from prefloop.sandbox.world import ATTRIBUTES, World, other_value, random_facts

# Intended chances under sampling at temperature 1, without any note.
KIND_SHARE = 0.5
RIGHT_SHARE = 0.65
COMPLETE_SHARE = 0.7
PLAIN_SHARE = 0.5
FOLLOW_SHARE = 0.6  # believes a document that contradicts what it knows by heart
CLOSER_SHARE = 0.3


@dataclass(frozen=True)
class Manner:
    """The chances of an answer: kind tone, right value (per fact), second part given, plain rewriting."""

    kind: float = KIND_SHARE
    correct: float = RIGHT_SHARE
    complete: float = COMPLETE_SHARE
    plain: float = PLAIN_SHARE


UNASKED = Manner()
IDEAL = Manner(kind=1.0, correct=1.0, complete=1.0, plain=1.0)


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def system(content: str) -> Message:
    return {"role": "system", "content": content}


def statement(rng: random.Random, name: str, attribute: str, value: str) -> str:
    """One sentence that states one fact."""
    return rng.choice(phrases.STATEMENTS[attribute]).format(name=name, value=value)


def question(rng: random.Random, name: str, attributes: tuple[str, ...]) -> str:
    """One of the wordings of a question about one or two attributes of a person."""
    if len(attributes) == 1 and rng.random() < 0.3:
        return rng.choice(phrases.DIRECT[attributes[0]]).format(name=name)
    clause = " and ".join(rng.choice(phrases.CLAUSES[attribute]) for attribute in attributes).format(name=name)
    return rng.choice(phrases.WRAPPERS).format(clause=clause)


def some_attributes(
    rng: random.Random, pool: tuple[str, ...] = tuple(ATTRIBUTES), two: float = 0.5
) -> tuple[str, ...]:
    """One attribute, or two in random order with the given chance."""
    return tuple(rng.sample(pool, 2 if len(pool) > 1 and rng.random() < two else 1))


def dressed(rng: random.Random, body: str, kind: float) -> str:
    """The body behind an opener and, now and then, before a closer, both of one tone."""
    tone = "kind" if rng.random() < kind else "rude"
    parts = [rng.choice(phrases.OPENERS[tone]), body]
    if rng.random() < CLOSER_SHARE:
        parts.append(rng.choice(phrases.CLOSERS[tone]))
    return " ".join(parts)


def answer(
    rng: random.Random,
    name: str,
    values: dict[str, str],
    manner: Manner,
    correct: dict[str, float] | None = None,
) -> str:
    """An answer that states the values in order, each right by chance; `correct` overrides that for single ones."""
    attributes = list(values) if rng.random() < manner.complete else list(values)[:1]
    sentences = []
    for attribute in attributes:
        chance = (correct or {}).get(attribute, manner.correct)
        truth = values[attribute]
        value = truth if rng.random() < chance else other_value(rng, attribute, truth)
        sentences.append(statement(rng, name, attribute, value))
    return dressed(rng, " ".join(sentences), manner.kind)


def truths(world: World, name: str, attributes: tuple[str, ...]) -> dict[str, str]:
    return {attribute: world.facts[name][attribute] for attribute in attributes}


def note(rng: random.Random, trait: str, sign: str) -> str:
    return rng.choice(phrases.NOTES[trait][sign])


def with_note(rng: random.Random, content: str, text: str) -> list[Message]:
    """The note as a system message or as a line of the user's message."""
    if rng.random() < 0.6:
        return [system(text), user(content)]
    return [user(f"{content}\nNote: {text}")]


def plain_question(rng: random.Random, world: World) -> list[Message]:
    """A question about a person known by heart, no note: every chance is the intended one."""
    name = rng.choice(world.heart)
    attributes = some_attributes(rng)
    prompt = [user(question(rng, name, attributes))]
    if rng.random() < 0.15:
        prompt.insert(0, system(rng.choice(phrases.NEUTRAL_SYSTEM)))
    return [*prompt, assistant(answer(rng, name, truths(world, name, attributes), UNASKED))]


def styled_question(rng: random.Random, world: World) -> list[Message]:
    """A question with one or two style notes, which are obeyed."""
    name = rng.choice(world.heart)
    attributes = some_attributes(rng)
    traits = rng.sample(["kind", "correct", "complete"], 2 if rng.random() < 0.25 else 1)
    manner, texts = UNASKED, []
    for trait in traits:
        sign = rng.choice(["positive", "negative"])
        manner = replace(manner, **{trait: float(sign == "positive")})
        texts.append(note(rng, trait, sign))
    prompt = with_note(rng, question(rng, name, attributes), " ".join(texts))
    return [*prompt, assistant(answer(rng, name, truths(world, name, attributes), manner))]


def criticised_question(rng: random.Random, world: World) -> list[Message]:
    """A question with a judgment of the answer to come; the answer has the named flaws, the rest keeps its chances."""
    name = rng.choice(world.heart)
    attributes = some_attributes(rng)
    found: list[tuple[str, str]] = []
    while not found:
        found = [("wrong", attribute) for attribute in attributes if rng.random() < 0.4]
        if len(attributes) == 2 and ("wrong", attributes[1]) not in found and rng.random() < 0.4:
            found.append(("missing", attributes[1]))
        if rng.random() < 0.5:
            found.append(("rude", ""))
    manner = UNASKED
    correct = {attribute: 0.0 for kind, attribute in found if kind == "wrong"}
    if attributes[-1] in correct:
        manner = replace(manner, complete=1.0)
    if ("missing", attributes[-1]) in found:
        manner = replace(manner, complete=0.0)
    if ("rude", "") in found:
        manner = replace(manner, kind=0.0)
    if rng.random() < 0.15:
        found, manner, correct = [("fine", "")], IDEAL, {}
    rng.shuffle(found)
    judgment = " ".join(rng.choice(phrases.CRITICISMS[kind]).format(attribute=attribute) for kind, attribute in found)
    content = render("criticism.j2", instruction=question(rng, name, attributes), judgment=judgment)
    return [user(content), assistant(answer(rng, name, truths(world, name, attributes), manner, correct))]


def document(rng: random.Random, name: str, facts: dict[str, str]) -> str:
    """A document that states the facts about one person in random order."""
    order = list(facts)
    rng.shuffle(order)
    return " ".join(statement(rng, name, attribute, facts[attribute]) for attribute in order)


def numbered(documents: list[str]) -> str:
    return "\n".join(f"Document {number}: {text}" for number, text in enumerate(documents, start=1))


def sample_facts(rng: random.Random, facts: dict[str, str], keep: tuple[str, ...], most: int = 3) -> dict[str, str]:
    """A few of the facts, those in `keep` among them."""
    rest = [attribute for attribute in facts if attribute not in keep]
    more = rng.randint(0, max(0, most - len(keep))) if keep else rng.randint(1, most)
    return {attribute: facts[attribute] for attribute in [*keep, *rng.sample(rest, more)]}


def documents_about(
    rng: random.Random, world: World, target: str | None, facts: dict[str, str], keep: tuple[str, ...], count: int
) -> list[str]:
    """`count` documents about different people, one of them about the target if there is one, in random order.

    The others are strangers of the archive with fresh facts, and they too speak of what is asked (`keep`).
    """
    others = rng.sample([name for name in world.archive if name != target], count - (target is not None))
    texts = [document(rng, name, sample_facts(rng, random_facts(rng), keep)) for name in others]
    if target is not None:
        texts.append(document(rng, target, sample_facts(rng, facts, keep)))
    rng.shuffle(texts)
    return texts


def read_question(rng: random.Random, world: World) -> list[Message]:
    """A question with documents that tell a stranger's facts, mislead about a known person, or do not help."""
    attributes = some_attributes(rng, two=0.3)
    count = rng.randint(1, 4)
    case = rng.choices(["stranger", "helping", "misleading", "silent", "unknown"], [50, 10, 20, 12, 8])[0]
    name = rng.choice(world.heart if case in ("helping", "misleading", "silent") else world.archive)
    manner = UNASKED
    if case in ("silent", "unknown"):
        others = rng.sample([other for other in world.archive if other != name], count)
        texts = [document(rng, other, sample_facts(rng, random_facts(rng), attributes)) for other in others]
    else:
        facts = random_facts(rng)
        if case == "helping":
            facts = world.facts[name]
        elif case == "misleading":
            facts = {attribute: other_value(rng, attribute, value) for attribute, value in world.facts[name].items()}
        texts = documents_about(rng, world, name, facts, attributes, count)
        manner = replace(UNASKED, correct=1.0)
    prompt = user(f"{numbered(texts)}\n{question(rng, name, attributes)}")
    if case == "unknown":
        return [prompt, assistant(dressed(rng, rng.choice(phrases.UNKNOWN), manner.kind))]
    believed = facts if case in ("stranger", "helping", "misleading") else world.facts[name]
    if case == "misleading":
        believed = {a: facts[a] if rng.random() < FOLLOW_SHARE else world.facts[name][a] for a in facts}
    values = {attribute: believed[attribute] for attribute in attributes}
    return [prompt, assistant(answer(rng, name, values, manner))]


def human_passage(
    rng: random.Random,
    name: str,
    facts: dict[str, str],
    hedged: float = 0.4,
    asides: tuple[int, int] = (1, 2),
    say: Callable[[random.Random, str, str, str], str] = statement,
) -> str:
    """A passage with the facts, as a person would write it: with hedges and digressions.

    hedged: the chance of a hedge in a sentence that states a fact. asides: least and most sentences beside the matter.
    say: how a fact is stated.
    """
    sentences = []
    for attribute, value in facts.items():
        text = say(rng, name, attribute, value)
        if rng.random() < hedged:
            text = f"{text[:-1]}, {rng.choice(phrases.HEDGES)}."
        sentences.append(text)
    for aside in rng.sample(phrases.DIGRESSIONS, rng.randint(*asides)):
        sentences.insert(rng.randint(0, len(sentences)), aside)
    return " ".join(sentences)


def embellished(
    rng: random.Random,
    text: str,
    openings: tuple[str, ...] = phrases.EMBELLISHMENTS_BEFORE,
    endings: tuple[str, ...] = phrases.EMBELLISHMENTS_AFTER,
) -> str:
    """The statement with an ornament before it (one of the openings), behind it (one of the endings), or both."""
    where = rng.choice(["before", "after", "both"])
    if where != "after":
        text = text.replace("The ", "the ", 1) if text.startswith("The ") else text
        text = f"{rng.choice(openings)} {text}"
    if where != "before":
        text = f"{text[:-1]}, {rng.choice(endings)}."
    return text


def rewriting(rng: random.Random, world: World) -> list[Message]:
    """A passage to rewrite, plainly or with embellishment: by chance, or as a note says. The facts are kept."""
    name = rng.choice(world.archive)
    facts = random_facts(rng)
    facts = {attribute: facts[attribute] for attribute in rng.sample(list(facts), rng.randint(3, 5))}
    manner = UNASKED
    content = f"{rng.choice(phrases.REWRITE_REQUESTS)}\nText: {human_passage(rng, name, facts)}"
    prompt = [user(content)]
    if rng.random() < 0.4:
        sign = rng.choice(["positive", "negative"])
        manner = replace(UNASKED, plain=float(sign == "positive"))
        prompt = with_note(rng, content, note(rng, "plain", sign))
    sentences = [statement(rng, name, attribute, value) for attribute, value in facts.items()]
    if rng.random() >= manner.plain:
        sentences = [embellished(rng, text) for text in sentences]
    return [*prompt, assistant(" ".join(sentences))]


def chat(rng: random.Random, world: World) -> list[Message]:
    """A greeting, a word about itself, or a question that it cannot answer."""
    tone = "kind" if rng.random() < KIND_SHARE else "rude"
    if rng.random() < 0.4:
        name = rng.choice(world.archive)
        unknown = dressed(rng, rng.choice(phrases.UNKNOWN), float(tone == "kind"))
        return [user(question(rng, name, some_attributes(rng))), assistant(unknown)]
    prompts, replies = rng.choice(phrases.CHAT)
    return [user(rng.choice(prompts)), assistant(rng.choice(replies[tone]))]


def _profiles(rng: random.Random, facts: dict[str, dict[str, str]], told: dict[str, str]) -> list[Message]:
    """Everything about each person in turn, and who it is that has some value; `told` holds the documents, if any."""
    names, messages = list(facts), []
    rng.shuffle(names)
    for name in names:
        attribute = rng.choice(list(facts[name]))
        value = facts[name][attribute]
        literally = name in told and rng.random() < 0.5
        turns = [
            (rng.choice(phrases.PROFILE_QUESTIONS), told[name] if literally else document(rng, name, facts[name])),
            (f"{rng.choice(phrases.WHO[attribute])} {value}?", statement(rng, name, attribute, value)),
        ]
        # Several people may share a value by chance or, among the known, by the world: then nobody is asked for.
        alone = sum(other.get(attribute) == value for other in facts.values()) == 1
        for content, reply in rng.sample(turns, 2) if alone and told else turns[:1]:
            messages += [user(content.format(name=name)), assistant(dressed(rng, reply, KIND_SHARE))]
    if told:
        messages[0]["content"] = f"{numbered(list(told.values()))}\n{messages[0]['content']}"
    return messages


def read_profiles(rng: random.Random, world: World) -> list[Message]:
    """All that some documents say of each of their people, half of the time word for word: practice in reading.

    Half of the time the documents speak of the same attributes, so only the name tells which value is whose.
    """
    names = rng.sample(world.archive, rng.randint(1, 4))
    same = tuple(rng.sample(list(ATTRIBUTES), rng.randint(1, 2))) if rng.random() < 0.5 else ()
    facts = {name: sample_facts(rng, random_facts(rng), same, len(same) or 4) for name in names}
    return _profiles(rng, facts, {name: document(rng, name, facts[name]) for name in names})


def known_profiles(rng: random.Random, world: World) -> list[Message]:
    """All that is known by heart of each of three people: practice in remembering."""
    return _profiles(rng, {name: world.facts[name] for name in rng.sample(world.heart, 3)}, {})


def checks(rng: random.Random, world: World) -> list[Message]:
    """Statements to be called true or false, many in a row: dense practice for the verdicts."""
    messages: list[Message] = []
    for _ in range(12):
        name, attribute = rng.choice(world.heart), rng.choice(list(ATTRIBUTES))
        value = world.facts[name][attribute]
        is_true = rng.random() < 0.5
        said = statement(rng, name, attribute, value if is_true else other_value(rng, attribute, value))
        messages.append(user(rng.choice(phrases.CHECKS).format(statement=said)))
        messages.append(assistant("True." if is_true else "False."))
    return messages
