"""From a recipe's signal section to the signal and the models that it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from prefloop.backends.base import Backend
from prefloop.config import FunctionSignalSection, JudgeSignalSection, ModelSection, SignalSection
from prefloop.signals import function, judge
from prefloop.signals.base import Need, Signal
from prefloop.store.cache import Cache

# By the names under which the signal calls them.
Needs = dict[str, Need]


def _function(section: FunctionSignalSection) -> tuple[Signal, Needs]:
    return function.FunctionSignal(section.callable), {}


def _judge(section: JudgeSignalSection) -> tuple[Signal, Needs]:
    signal = judge.JudgeSignal(section.mode, section.template, section.min_label_mass)
    return signal, {"judge": Need(section.model)}


BUILDERS: dict[str, Callable[[Any], tuple[Signal, Needs]]] = {"function": _function, "judge": _judge}


IDENTITIES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "function": lambda section: function.identity(section.callable),
    "judge": lambda section: _judge(section)[0].identity,
}


def build(section: SignalSection) -> tuple[Signal, Needs]:
    """The signal, and the models that its backends need, by backend name.

    Raises:
        UsageError: the function or template that the section names is not there or faulty.
    """
    return BUILDERS[section.type](section)


def open_backend(section: ModelSection, kind: str, cache: Cache | None) -> Backend:
    """The model of a section, loaded or connected to.

    Args:
        kind: what it is, see `base.Need`.
        cache: remembers file digests between runs.

    Raises:
        UsageError: there is no such model, or it is not of this kind.
    """
    from prefloop.backends.hf import HfBackend

    openers: dict[str, Callable[[ModelSection, Cache | None], Backend]] = {"language": HfBackend.load}
    return openers[kind](section, cache)


def identity(section: SignalSection) -> dict[str, Any]:
    """Everything about a signal, besides its models, that changes a score; for the fingerprint of a stage.

    A judge is known by the text of its templates, a function by the digest of its file. Loads no model and imports no
    user code. How many nulls stop a stage changes no score and is not in it.

    Raises:
        UsageError: a judge's template is not there or faulty.
    """
    return IDENTITIES[section.type](section)


def function_identity(path: str) -> dict[str, Any]:
    """As `identity`, of a checker's `module:name`."""
    return function.identity(path)


def preflight(section: SignalSection) -> None:
    """Find what is wrong with a signal before hours of work, not after. Imports the user's module, loads no model.

    Raises:
        UsageError: the function, its module or a judge's template is missing or faulty.
    """
    signal, _ = build(section)
    if isinstance(signal, judge.JudgeSignal):
        signal.try_template()


def remark(section: SignalSection, counts: Mapping[str, float]) -> str | None:
    """A warning about a rating from its summed counts; None when there is nothing to warn of."""
    return judge.warning(dict(counts)) if isinstance(section, JudgeSignalSection) else None


def card(section: SignalSection, counts: Mapping[str, float]) -> str | None:
    """A pairwise judge's rates in one neutral line; None of any other signal, and where nothing was decided."""
    return judge.card(dict(counts)) if isinstance(section, JudgeSignalSection) else None


def check(section: SignalSection, counts: Mapping[str, float], final: bool = True) -> None:
    """Stop when the summed counts of a rating say that its scores cannot be used.

    Args:
        section: the signal's.
        counts: summed over the rows so far.
        final: whether these are all rows; before the end only a judge that hardly ever gives a verdict is stopped.

    Raises:
        PrefloopError: a judge gave no verdict in more calls than `max_null_share` allows.
    """
    if isinstance(section, JudgeSignalSection):
        judge.check_nulls(dict(counts), section.max_null_share, final=final)
