"""Attributes: what an answer can be asked to be, or not to be, by a note in its prompt. YAML, shipped and the user's.

An attribute has banks of notes. Which note a prompt gets follows from the seed and the prompt's id, not from other
prompts or any order. Imports neither torch nor transformers: planning reads attributes.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from prefloop.config.base import Section
from prefloop.errors import UsageError
from prefloop.records import Contrast, Message, content_id

FOLDER = "signals/attributes"

Against = Literal["negative", "neutral"]
Side = Literal["positive", "negative"]
SIDES: tuple[Side, Side] = ("positive", "negative")


class Attribute(Section):
    """Something that an answer has or lacks.

    Attributes:
        name: stands in records.
        positive, negative: notes that ask for it, and for its opposite.
        neutral: notes of the same form that ask for neither; none where no note at all is the neutral form.
    """

    name: str = Field(pattern=r"^[\w-]+$")
    positive: tuple[str, ...] = Field(min_length=1)
    negative: tuple[str, ...] = Field(min_length=1)
    neutral: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _sides_differ(self) -> Self:
        for bank in ("negative", "neutral"):
            if both := sorted({*map(str.strip, self.positive)} & {*map(str.strip, getattr(self, bank))}):
                raise ValueError(f"the note {both[0]!r} is in positive and in {bank}: no score could tell them apart")
        return self

    def draw(self, key: Sequence[Any], against: Against) -> tuple[str, str]:
        """One prompt's (positive note, note to set against it); a note may be empty.

        Args:
            key: JSON-able; equal keys draw equal notes.
            against: of which bank the second note is.
        """
        other = self.negative if against == "negative" else self.neutral or ("",)
        places = [int(content_id("note", self.name, side, *key), 16) for side in SIDES]
        return self.positive[places[0] % len(self.positive)], other[places[1] % len(other)]


def load(name: str) -> Attribute:
    """An attribute by the name of a shipped one, or from a YAML file (a name with a suffix or a path separator).

    Raises:
        UsageError: there is no such attribute, or the file does not hold one.
    """
    folder = resources.files("prefloop") / FOLDER
    if not Path(name).suffix and "/" not in name and "\\" not in name:
        file = folder / f"{name}.yaml"
        if not file.is_file():
            known = sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))
            raise UsageError(
                "there is no such attribute",
                where=name,
                fix=f"give one of {', '.join(known)}, or the path of a YAML file",
            )
        text = file.read_text(encoding="utf-8")
    else:
        if not Path(name).is_file():
            raise UsageError("there is no such attribute file", where=name, fix="check the path")
        try:
            text = Path(name).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UsageError(f"not readable as UTF-8: {error}", where=name) from error
    try:
        data = yaml.safe_load(text)
        return Attribute.model_validate(data)
    except yaml.YAMLError as error:
        fix = "mend it where the error says; a note with a colon or a hash in it stands in quotes"
        raise UsageError(f"not readable as YAML: {error}", where=name, fix=fix) from error
    except ValidationError as error:
        # A list whose only text is none counts as too short besides.
        faults = [e for e in error.errors() if e["type"] != "too_short" or not e["input"]]
        problems = "; ".join(map(_fault, faults))
        raise UsageError(
            f"not an attribute: {problems}",
            where=name,
            fix="give name, positive and negative, each bank a list of texts of its own",
        ) from None


def _fault(error: Any) -> str:
    """One of pydantic's errors in the words of the file."""
    loc = error["loc"]
    place = ".".join(map(str, loc)) or "file"
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(loc[-1]), Attribute.model_fields, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(Attribute.model_fields)}"
        return f"{place}: unknown setting; {hint}"
    words = {
        "missing": "is missing",
        "tuple_type": "is no list of texts",
        "too_short": "has no text",
        "string_type": "is no text",
        "model_type": "is no mapping of name, positive and negative",
        "string_pattern_mismatch": "holds more than letters, digits, _ and -",
    }
    return f"{place}: {words.get(error['type']) or error['msg'].removeprefix('Value error, ')}"


def load_all(names: Sequence[str]) -> list[Attribute]:
    """Several attributes.

    Raises:
        UsageError: one of them cannot be had, or two have the same name.
    """
    found = [load(name) for name in names]
    titles = [attribute.name for attribute in found]
    if twice := sorted({title for title in titles if titles.count(title) > 1}):
        raise UsageError(f"two attributes are called {twice[0]}", where=", ".join(names), fix="rename one of them")
    return found


def contrasts(
    attributes: Sequence[Attribute], key: Sequence[Any], against: Against
) -> list[tuple[Contrast, Contrast]]:
    """For each attribute what its positive and its negative answers to one prompt are asked with."""
    found = []
    for attribute in attributes:
        positive, negative = attribute.draw(key, against)
        one, other = (
            Contrast(attribute=attribute.name, side=side, positive=positive, negative=negative) for side in SIDES
        )
        found.append((one, other))
    return found


def with_note(prompt: Sequence[Message], note: str) -> list[Message]:
    """The prompt with a note in its system message, which is made where there is none and says what of it is the note.

    A template without a system role puts the note into the label of the assistant's turn (`ASSISTANT (Be kind):`), or,
    where it writes no label, in front of the first user turn (`engine.tokens.render`).
    """
    if not note:
        return list(prompt)
    first = prompt[0]
    if first["role"] != "system":
        return [{"role": "system", "content": note, "note": note}, *prompt]
    joined: Message = {**first, "content": "\n".join(filter(None, [first["content"], note])), "note": note}
    return [joined, *prompt[1:]]
