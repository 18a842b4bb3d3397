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


def build(section: SignalSection) -> tuple[Signal, Needs]:
    """The signal, and the models that its backends need, by backend name.

    Raises:
        UsageError: the function or template that the section names is not there or faulty.
    """
    return BUILDERS[section.type](section)


def check(section: SignalSection, counts: Mapping[str, float]) -> None:
    """Stop when the summed counts of a rating say that its scores cannot be used.

    Raises:
        PrefloopError: a judge gave no verdict in more calls than `max_null_share` allows.
    """
    if isinstance(section, JudgeSignalSection):
        judge.check_nulls(dict(counts), section.max_null_share)
