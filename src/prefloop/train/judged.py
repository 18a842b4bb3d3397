"""The prompt with a judgment in it, behind which CUT scores a criticised answer a second time.

The judgment stands in the user's last turn, so it goes through any chat template. The Alpaca form of the published
code also words its preamble differently, which a system message does (`engine.templates.ALPACA`).

This module imports no torch: planning a run reads it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from prefloop.errors import UsageError
from prefloop.records import Message


@dataclass(frozen=True)
class _Shipped:
    """The user's last turn as a Jinja text of `instruction` and `judgment`, and a system message for prompts without
    one."""

    turn: str
    system: str | None = None


SHIPPED = {
    "default": _Shipped(
        "{{ instruction }}\n\nWrite the response that this judgment speaks of.\nJudgment: {{ judgment }}"
    ),
    # What its criticism tasks look like (sandbox/templates/criticism.j2).
    "sandbox": _Shipped("{{ instruction }}\nJudgment: {{ judgment }}"),
    # Xu et al. 2024, templates/alpaca.json: the words that published checkpoints were trained with.
    "alpaca": _Shipped(
        "{{ instruction }}\n\n### Judgment:\n{{ judgment }}",
        "Below is an instruction that describes a task. Write a response to the instruction and the response should "
        "match the corresponding judgment.",
    ),
}


class JudgedPrompt:
    """How a judgment is put into a prompt.

    Attributes:
        sha: SHA-256 of its texts, which determine the ids of a judged prompt.
    """

    def __init__(self, name: str = "default") -> None:
        """Load and check a form.

        Args:
            name: one of `SHIPPED`, or a Jinja file of the user's last turn with `instruction` and `judgment`.

        Raises:
            UsageError: no such form or file, or one that leaves out what was asked or the judgment.
        """
        shipped = SHIPPED.get(name) or _Shipped(_read(name))
        self.name, self._system = name, shipped.system
        self.sha = hashlib.sha256(repr((shipped.turn, shipped.system)).encode()).hexdigest()
        environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
        try:
            used = meta.find_undeclared_variables(environment.parse(shipped.turn))
            self._turn = environment.from_string(shipped.turn)
        except TemplateSyntaxError as error:
            what = f"line {error.lineno}: {error.message}"
            raise UsageError(what, where=name, fix="correct the Jinja template") from error
        if used != {"instruction", "judgment"}:
            wrong = sorted(used ^ {"instruction", "judgment"})[0]
            what = f"{wrong!r} is {'not shown' if wrong in ('instruction', 'judgment') else 'an unknown variable'}"
            raise UsageError(what, where=name, fix="show {{ instruction }} and {{ judgment }} in it, and nothing else")
        # Found now: a form that cannot be rendered would reject every criticised answer.
        self([{"role": "user", "content": "a question"}], "a judgment")

    def __call__(self, prompt: Sequence[Message], judgment: str) -> list[Message]:
        """The prompt with the judgment in its last turn. Texts go in as values: what is in them is never expanded.

        Raises:
            UsageError: the last turn is not the user's.
        """
        last = prompt[-1]
        if last["role"] != "user":
            raise UsageError(f"a judgment goes into the user's last turn, and the last one is of {last['role']}")
        try:
            content = self._turn.render(instruction=last["content"], judgment=judgment)
        except TemplateError as error:
            fix = "correct the Jinja template; both variables are texts"
            raise UsageError(f"{type(error).__name__}: {error}", where=self.name, fix=fix) from error
        turns = [*prompt[:-1], cast(Message, {**cast(Mapping[str, object], last), "content": content})]
        if self._system is not None and all(turn["role"] != "system" for turn in turns):
            turns = [{"role": "system", "content": self._system}, *turns]
        return turns


def judged_prompt(objective: Any) -> JudgedPrompt | None:
    """The form that an objective's section names; None of one that takes no judgments."""
    name = getattr(objective, "judged_prompt", None)
    return None if name is None else JudgedPrompt(name)


def _read(name: str) -> str:
    file = Path(name)
    if not file.suffix or not file.is_file():
        known = ", ".join(SHIPPED)
        raise UsageError(f"no form of a judged prompt is called {name!r}", fix=f"use {known}, or a Jinja file")
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"is no UTF-8 text: {error}", where=name, fix="save it as UTF-8") from error
