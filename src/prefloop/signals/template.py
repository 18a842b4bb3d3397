"""The judge's prompt: a Jinja template into which the texts go as values.

A value is never expanded again, so an answer that contains `{{ first }}` or `{% raw %}` stays what it is. The texts
stand between marks that carry a tag which occurs in none of them, so that no answer can close its own mark.
tests/signals/test_judge_template.py guards both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from prefloop.errors import UsageError
from prefloop.records import Message, content_id, message_text

# What a template has to show, by mode. `answers` is the list of all of them.
SHOWN = {
    "pointwise": ("instruction", "answer"),
    "pairwise": ("instruction", "first", "second"),
    "listwise": ("instruction", "answers"),
    "ranking": ("instruction", "answers"),
    "critic": ("instruction", "answer"),
}
# What it may show besides: the mark's code, criteria and scale (`rubric.Rubric.values`), the reference answer or None,
# and how the judge is to reply, which depends on how its verdict will be read. A template without `reply` says
# itself how, and has to ask for the bare verdict.
OPTIONAL = ("tag", "rubric", "reference", "reply")

# Shipped sets of templates: the folder inside the package that holds judge-<mode>.j2.
SHIPPED = {"default": "signals/templates", "brief": "signals/templates/brief", "sandbox": "sandbox/templates"}


class JudgeTemplate:
    """A checked template.

    Attributes:
        source: its text.
        sha: SHA-256 of the text: the template's identity in every record.
        used: the variables in it.
    """

    def __init__(self, source: str, mode: str, where: str) -> None:
        """Compile and check the template.

        Args:
            source: Jinja text.
            mode: one of `SHOWN`; says which variables there are.
            where: its file or name, for messages.

        Raises:
            UsageError: it does not parse, uses a variable that there is not, or leaves out a text to be judged.
        """
        self.source, self.where = source, where
        self.sha = hashlib.sha256(source.encode()).hexdigest()
        environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        try:
            self.used = frozenset(meta.find_undeclared_variables(environment.parse(source)))
            self._template = environment.from_string(source)
        except TemplateSyntaxError as error:
            raise UsageError(
                f"line {error.lineno}: {error.message}", where=where, fix="correct the Jinja template"
            ) from error
        known = (*SHOWN[mode], *OPTIONAL)
        if unknown := sorted(self.used - set(known)):
            raise UsageError(f"unknown variable {unknown[0]!r}", where=where, fix=f"use {', '.join(known)}")
        if missing := [name for name in SHOWN[mode] if name not in self.used]:
            raise UsageError(
                f"a {mode} judge would never see {missing[0]!r}", where=where, fix=f"show {{{{ {missing[0]} }}}} in it"
            )

    def render(
        self,
        texts: Mapping[str, str | Sequence[str]],
        *,
        rubric: Mapping[str, Any] | None = None,
        reference: str | None = None,
        reply: str = "",
    ) -> str:
        """The prompt.

        Args:
            texts: what was asked and what was answered, by the names of `SHOWN`.
            rubric: as `Rubric.values` gives it; None for templates that do not use it.
            reference: a right answer, if there is one.
            reply: how to reply.

        `tag` is added, made from all texts that are not ours.
        """
        strange = [text for value in texts.values() for text in ([value] if isinstance(value, str) else value)]
        strange += [] if reference is None else [reference]
        values: dict[str, Any] = {**texts, "reference": reference, "reply": reply, "tag": tag(strange)}
        values |= {} if rubric is None else {"rubric": rubric}
        try:
            return self._template.render(values)
        except TemplateError as error:
            raise UsageError(f"{type(error).__name__}: {error}", where=self.where) from error


def load(name: str | None, mode: str) -> JudgeTemplate:
    """The template of a judge.

    Args:
        name: None or `default` for the built-in one, another shipped set (`sandbox`), or a file. A name without a
            path separator and without a suffix is a shipped set; all else is a file.
        mode: one of `SHOWN`.

    Raises:
        UsageError: there is no such set or file, the set has no template for this mode, or it is faulty.
    """
    name = "default" if name is None else name
    if is_shipped(name):
        if name not in SHIPPED:
            raise UsageError(
                f"no shipped set of judge templates is called {name!r}",
                where="template",
                fix=f"use {' or '.join(SHIPPED)}, or a file with its suffix, such as {name}.j2",
            )
        file = resources.files("prefloop") / SHIPPED[name] / f"judge-{mode}.j2"
        if not file.is_file():
            raise UsageError(
                f"the shipped set {name} has no template for a {mode} judge",
                where="template",
                fix="use the default one, or a file of your own",
            )
        return JudgeTemplate(file.read_text(encoding="utf-8"), mode, f"template {name} ({mode})")
    try:
        source = Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the judge's template: {error}", where=name, fix="give a UTF-8 file") from error
    return JudgeTemplate(source, mode, name)


def is_shipped(name: str | None) -> bool:
    """Whether a configured template is the name of a shipped set (None is the default one), not a file.

    A name without a suffix and without a path separator is one, also where there is no such set: `load` refuses it.
    """
    return name is None or (not Path(name).suffix and "/" not in name and "\\" not in name)


def tag(texts: Sequence[str]) -> str:
    """A code of 12 hex digits that occurs in none of the texts.

    It depends on which texts there are, not on their order: both orders of a comparison read the same but for the
    seats. It is made from their content, so that a call repeated is a call cached.
    """
    attempt = 0
    while True:
        code = content_id("tag", sorted(texts), attempt)[:12]
        if not any(code in text for text in texts):
            return code
        attempt += 1


def conversation(prompt: Sequence[Message]) -> str:
    """A prompt as the judge reads it: the bare text of a single user turn, else a transcript with roles."""
    if len(prompt) == 1 and prompt[0]["role"] == "user":
        return prompt[0]["content"]
    return "\n\n".join(f"{message['role'].capitalize()}: {message_text(message)}" for message in prompt)
