"""The judge's prompt: a Jinja template into which the texts go as values.

A value is never expanded again, so an answer that contains `{{ first }}` or `{% raw %}` stays what it is. The texts
stand between marks that carry a tag which occurs in none of them, so that no answer can close its own mark.
tests/signals/test_judge_template.py guards both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from prefloop.errors import UsageError
from prefloop.records import Message, content_id

# What a template may show, by mode; all but the tag it has to show.
VARIABLES = {"pointwise": ("instruction", "answer", "tag"), "pairwise": ("instruction", "first", "second", "tag")}

# Shipped sets of templates: the folder inside the package that holds judge-<mode>.j2.
SHIPPED = {"default": "signals/templates", "brief": "signals/templates/brief", "sandbox": "sandbox/templates"}


class JudgeTemplate:
    """A checked template.

    Attributes:
        source: its text.
        sha: SHA-256 of the text: the template's identity in every record.
    """

    def __init__(self, source: str, mode: str, where: str) -> None:
        """Compile and check the template.

        Args:
            source: Jinja text.
            mode: pointwise or pairwise; says which variables there are.
            where: its file or name, for messages.

        Raises:
            UsageError: it does not parse, uses a variable that there is not, or leaves out a text to be judged.
        """
        self.source, self.where = source, where
        self.sha = hashlib.sha256(source.encode()).hexdigest()
        environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        try:
            used = meta.find_undeclared_variables(environment.parse(source))
            self._template = environment.from_string(source)
        except TemplateSyntaxError as error:
            raise UsageError(
                f"line {error.lineno}: {error.message}", where=where, fix="correct the Jinja template"
            ) from error
        known = VARIABLES[mode]
        if unknown := sorted(used - set(known)):
            raise UsageError(f"unknown variable {unknown[0]!r}", where=where, fix=f"use {', '.join(known)}")
        if missing := [name for name in known if name != "tag" and name not in used]:
            raise UsageError(
                f"a {mode} judge would never see {missing[0]!r}", where=where, fix=f"show {{{{ {missing[0]} }}}} in it"
            )

    def render(self, **values: str) -> str:
        """The prompt for these texts; `tag` is added, made from all of them."""
        try:
            return self._template.render(**values, tag=tag(list(values.values())))
        except TemplateError as error:
            raise UsageError(f"{type(error).__name__}: {error}", where=self.where) from error


def load(name: str | None, mode: str) -> JudgeTemplate:
    """The template of a judge.

    Args:
        name: None or `default` for the built-in one, another shipped set (`sandbox`), or a file. A name without a
            path separator and without a suffix is a shipped set; all else is a file.
        mode: pointwise or pairwise.

    Raises:
        UsageError: there is no such set or file, or the template is faulty.
    """
    name = "default" if name is None else name
    if is_shipped(name):
        if name not in SHIPPED:
            raise UsageError(
                f"no shipped set of judge templates is called {name!r}",
                where="template",
                fix=f"use {' or '.join(SHIPPED)}, or a file with its suffix, such as {name}.j2",
            )
        source = (resources.files("prefloop") / SHIPPED[name] / f"judge-{mode}.j2").read_text(encoding="utf-8")
        return JudgeTemplate(source, mode, f"template {name} ({mode})")
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
    return "\n\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in prompt)
