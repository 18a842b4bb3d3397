"""Who compares models outside a run: signals given on the command line, or those of a run's recipe."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import TypeAdapter, ValidationError

from prefloop.config import SignalSection
from prefloop.errors import UsageError
from prefloop.subjects import NAMED, Models, Subject

if TYPE_CHECKING:
    from prefloop.evaluate.several import Comparer

_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def signals(models: Sequence[Subject], given: Sequence[str] | None) -> dict[str, SignalSection]:
    """Who compares, by name.

    Args:
        given: see `signal`; None or empty: those of the first run's recipe, its checkers among them.

    Raises:
        UsageError: nobody is given and there is no run, or one is faulty, or two have one name.
    """
    from prefloop.plan import evaluation_signals

    if given:
        named = [signal(word) for word in given]
    else:
        recipe = next((subject.recipe for subject in models if subject.recipe is not None), None)
        if recipe is None:
            raise UsageError(
                "nobody says which answers are better",
                fix="give --signal with a YAML file of a signal section, such as {type: judge, mode: pairwise, model: "
                "ORG/NAME}, or a function module:name; or a run, whose own signals are used",
            )
        named = [(section.type, section) for section in evaluation_signals(recipe)]
        for functions in recipe.evaluate.checkers.values():
            named += [
                (name, parse_signal({"type": "function", "callable": path}, path)) for name, path in functions.items()
            ]
    found: dict[str, SignalSection] = {}
    for name, section in named:
        if name in found:
            raise UsageError(f"two signals are called {name!r}", fix="name them: --signal first=… --signal second=…")
        found[name] = section
    return found


def signal(word: str) -> tuple[str, SignalSection]:
    """(name, section) of a signal on the command line: [NAME=] and a YAML file of its section, the section itself as
    YAML in braces, or a function module:name.

    Raises:
        UsageError: it is none of these, or the section is faulty.
    """
    match = None if Path(word).is_file() else NAMED.fullmatch(word)
    name, text = (match["name"], match["rest"]) if match else (None, word)
    if Path(text).is_file():
        try:
            data = yaml.safe_load(Path(text).read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UsageError(f"not readable as YAML: {error}", where=text) from error
        return name or Path(text).stem, parse_signal(data, text)
    if _FUNCTION.fullmatch(text):
        return name or text.rpartition(":")[2], parse_signal({"type": "function", "callable": text}, text)
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"not readable as YAML: {error}", where=text) from error
    if not isinstance(data, dict):
        raise UsageError(
            "neither a file, nor a section in braces, nor a function module:name", where=text, fix="check the path"
        )
    return name or str(data.get("type")), parse_signal(data, text)


def parse_signal(data: Any, where: str) -> SignalSection:
    """A signal section from data.

    Raises:
        UsageError: it is faulty; says which setting.
    """
    try:
        section: SignalSection = TypeAdapter(SignalSection).validate_python(data)
    except ValidationError as error:
        # pydantic puts the tag of the union in front.
        lines = [f"{'.'.join(map(str, e['loc'][1:])) or 'signal'}: {e['msg']}" for e in error.errors()]
        raise UsageError(
            "\n".join(lines), where=where, fix="see docs/signals.md for what a signal section says"
        ) from None
    return section


def preflight(sections: Mapping[str, SignalSection]) -> None:
    """Find a faulty signal before models answer.

    Raises:
        UsageError: a function, template or checkpoint is missing or faulty.
    """
    from prefloop.signals import build

    for section in sections.values():
        build.preflight(section)


def comparers(models: Models, given: Sequence[Subject], sections: Mapping[str, SignalSection]) -> list[Comparer]:
    """The signals with their models, opened. A signal without a model of its own means the first run's first model."""
    from prefloop.evaluate.several import Comparer
    from prefloop.signals.build import build

    default = next((subject.recipe.model for subject in given if subject.recipe is not None), None)
    found = []
    for name, section in sections.items():
        signal, needs = build(section)
        found.append(Comparer(name, signal, models.backends(needs, default)))
    return found
