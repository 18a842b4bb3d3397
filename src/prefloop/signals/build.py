"""From a recipe's signal section to the signal and the models that it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from prefloop.config import FunctionSignalSection, JudgeSignalSection, ModelSection, SignalSection
from prefloop.signals import function, judge
from prefloop.signals.base import Signal

# Backend name -> the model it needs; None stands for the recipe's first model.
Needs = dict[str, ModelSection | None]


def _function(section: FunctionSignalSection) -> tuple[Signal, Needs]:
    return function.FunctionSignal(section.callable), {}


def _judge(section: JudgeSignalSection) -> tuple[Signal, Needs]:
    signal = judge.JudgeSignal(section.mode, section.template, section.min_label_mass)
    return signal, {"judge": section.model}


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


def identity(section: SignalSection) -> dict[str, Any]:
    """Everything about a signal, besides its models, that changes a score; for the fingerprint of a stage.

    Loads no model and imports no user code: a function is known by the digest of its file.

    Raises:
        UsageError: a judge's template is not there or faulty.
    """
    return IDENTITIES[section.type](section)


def remark(section: SignalSection, counts: Mapping[str, float]) -> str | None:
    """What a person should know about a finished rating; None when all is well."""
    return judge.short_of_room(dict(counts)) if isinstance(section, JudgeSignalSection) else None


def check(section: SignalSection, counts: Mapping[str, float]) -> None:
    """Stop when the summed counts of a rating say that its scores cannot be used.

    Raises:
        PrefloopError: a judge gave no verdict in more calls than `max_null_share` allows.
    """
    if isinstance(section, JudgeSignalSection):
        judge.check_nulls(dict(counts), section.max_null_share)
