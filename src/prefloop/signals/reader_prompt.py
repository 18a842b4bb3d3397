"""The reader's prompt: a question with or without documents, as a Jinja template.

Variables: `question`; `documents`, a list of texts, empty for an answer without any; `position`, the number from 1 of
the document that is asked about in the pre-aligned task, or None where the question itself is to be answered.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from prefloop.backends.base import Frozen
from prefloop.errors import UsageError

SHIPPED = {"default": "signals/templates/reader.j2", "sandbox": "sandbox/templates/reader.j2"}
NEEDED = ("question", "documents")
KNOWN = (*NEEDED, "position")


class ReaderPrompt:
    """A checked template.

    Attributes:
        sha: SHA-256 of its text: its identity in every record.
        asks_about: whether it can ask about one of the documents (uses `position`).
    """

    def __init__(self, source: str, where: str) -> None:
        """Compile and check the template.

        Raises:
            UsageError: it does not parse, uses a variable that there is not, or leaves out question or documents.
        """
        self.where, self.sha = where, hashlib.sha256(source.encode()).hexdigest()
        environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        try:
            used = meta.find_undeclared_variables(environment.parse(source))
            self._template = environment.from_string(source)
        except TemplateSyntaxError as error:
            raise UsageError(
                f"line {error.lineno}: {error.message}", where=where, fix="correct the Jinja template"
            ) from error
        if unknown := sorted(used - set(KNOWN)):
            raise UsageError(f"unknown variable {unknown[0]!r}", where=where, fix=f"use {', '.join(KNOWN)}")
        if missing := [name for name in NEEDED if name not in used]:
            raise UsageError(
                f"the reader would never see {missing[0]!r}", where=where, fix=f"show {missing[0]} in the template"
            )
        self.asks_about = "position" in used

    def render(self, question: str, documents: Sequence[str] = (), position: int | None = None) -> str:
        """The text of one user message."""
        try:
            return self._template.render(question=question, documents=list(documents), position=position).strip()
        except TemplateError as error:
            raise UsageError(f"{type(error).__name__}: {error}", where=self.where) from error

    def messages(self, question: str, documents: Sequence[str] = ()) -> Frozen:
        """As a request to a backend."""
        return (("user", self.render(question, documents)),)


def load(name: str | None) -> ReaderPrompt:
    """The reader's template: None or `default`, `sandbox`, or a file.

    Raises:
        UsageError: there is no such template or file, or it is faulty.
    """
    name = "default" if name is None else name
    if name in SHIPPED:
        file = resources.files("prefloop") / SHIPPED[name]
        return ReaderPrompt(file.read_text(encoding="utf-8"), f"reader template {name}")
    try:
        return ReaderPrompt(Path(name).read_text(encoding="utf-8"), name)
    except (OSError, UnicodeDecodeError) as error:
        fix = f"give a UTF-8 file, or one of the shipped templates: {', '.join(SHIPPED)}"
        raise UsageError(f"cannot read the reader's template: {error}", where=name, fix=fix) from error
