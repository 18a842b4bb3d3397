"""Who compares models outside a run: signals given on the command line, or those of a run's recipe."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import TypeAdapter, ValidationError

from prefloop.config import JudgeSignalSection, ModelSection, SignalSection
from prefloop.errors import UsageError
from prefloop.measure.subjects import NAMED, Models, Subject, base_of

if TYPE_CHECKING:
    from prefloop.evaluate.several import Comparer
    from prefloop.store.cache import Cache
    from prefloop.ui.progress import Progress

_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def signals(models: Sequence[Subject], given: Sequence[str] | None) -> dict[str, SignalSection]:
    """Who compares, by name.

    Args:
        given: see `signal`; None or empty: those of the first run's recipe, its checkers among them. Several of one
            type are numbered as in a run's measurement, and checkers are called group.name.

    Raises:
        UsageError: nobody is given and there is no run, or one is faulty, or two have one name.
    """
    from prefloop.loop.plan import evaluation_signals

    if given:
        return named(given, "--signal")
    recipe = next((subject.recipe for subject in models if subject.recipe is not None), None)
    if recipe is None:
        raise UsageError(
            "nobody says which answers are better",
            fix="give --signal with a YAML file of a signal section, such as {type: judge, mode: pairwise, model: "
            "ORG/NAME}, or a function module:name; or a run, whose own signals are used",
        )
    wanted = [(section.type, section) for section in evaluation_signals(recipe)]
    for group, functions in recipe.evaluate.checkers.items():
        wanted += [
            (f"{group}.{name}", parse_signal({"type": "function", "callable": c.function}, c.function))
            for name, c in functions.items()
        ]
    found: dict[str, SignalSection] = {}
    for name, section in wanted:
        same = sum(other == name for other, _ in wanted[: len(found)])
        found[f"{name} ({same + 1})" if same else name] = section
    return found


def costs(models: Sequence[Subject], given: Sequence[str] | None) -> set[str]:
    """Names of those of `signals` whose lower score is the better one: checkers of a recipe that says so."""
    recipe = None if given else next((subject.recipe for subject in models if subject.recipe is not None), None)
    groups = {} if recipe is None else recipe.evaluate.checkers
    return {f"{group}.{name}" for group, own in groups.items() for name, c in own.items() if c.lower_is_better}


def named(given: Sequence[str], option: str, taken: Collection[str] = ()) -> dict[str, SignalSection]:
    """The signals of a command line by name.

    Args:
        given: see `signal`.
        option: which they were given as, for messages.
        taken: names that others have.

    Raises:
        UsageError: one is faulty, or has a name that is taken, by a trivial judge perhaps.
    """
    from prefloop.evaluate.agreement import TRIVIAL

    found: dict[str, SignalSection] = {}
    for word in given:
        name, section = signal(word)
        if name in found:
            raise UsageError(f"two signals are called {name!r}", fix=f"name them: {option} first=… {option} second=…")
        if name in taken or name in TRIVIAL:
            raise UsageError(
                f"the name {name!r} is taken by another judge", where=f"{option} {word}", fix=f"{option} NAME=…"
            )
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


def comparers(
    models: Models, given: Sequence[Subject], sections: Mapping[str, SignalSection], seed: int
) -> list[Comparer]:
    """The signals with their models, each of which is opened at its turn. A signal without a model of its own means
    the first run's first model. The seed is of replies that are sampled."""
    from prefloop.evaluate.several import Comparer
    from prefloop.signals.build import build

    default = next((base_of(subject.run) for subject in given if subject.run is not None), None)
    found = []
    for name, section in sections.items():
        signal, needs = build(section, seed)
        found.append(Comparer(name, signal, models.backends(needs, default)))
    return found


def own_judges(
    given: Sequence[Subject], sections: Mapping[str, SignalSection], cache: Cache | None
) -> dict[str, list[str]]:
    """Judges that are among the compared models: the signal's name -> names of the models with the judge's weights.

    A panel is no such judge. Models that differ in precision or template alone are the same.
    """
    default = next((base_of(subject.run) for subject in given if subject.run is not None), None)
    found = {}
    for name, section in sections.items():
        if not isinstance(section, JudgeSignalSection) or section.panel is not None:
            continue
        judge = section.model or default
        same = [s.name for s in given if judge is not None and _weights(s.model, cache) == _weights(judge, cache)]
        if same:
            found[name] = same
    return found


def _weights(section: ModelSection, cache: Cache | None) -> list[str | None]:
    from prefloop.engine.load import resolve_model_path
    from prefloop.store.fingerprint import model_digest

    if section.endpoint is not None:
        return ["served", *section.endpoint.urls, section.path, section.revision]
    return ["weights", model_digest(resolve_model_path(section.path), section.revision, memo=cache)]


def checked(sections: Mapping[str, SignalSection], progress: Progress) -> Callable[[str, Mapping[str, float]], None]:
    """What is done as soon as a signal has judged all: too many nulls stop the work, a judge's habits are told.

    Returns:
        a function of the signal's name and its summed counts; of other names it says nothing.

    Raises:
        PrefloopError: by that function: a judge gave no verdict in more calls than `max_null_share` allows.
    """
    from prefloop.signals.build import card, check, remark

    def look(name: str, counts: Mapping[str, float]) -> None:
        section = sections.get(name)
        if section is None:
            return
        check(section, counts)
        if (line := card(section, counts)) is not None:
            progress.note(f"{name}: {line}")
        if (warning := remark(section, counts)) is not None:
            progress.warn(f"{name}: {warning}")

    return look
