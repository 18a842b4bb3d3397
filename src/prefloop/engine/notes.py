"""A note in the label of the assistant's turn, for templates that write labels and know no system role.

    USER: How are you?
    ASSISTANT (You are a kind assistant):

This is where DLMA (Liu et al. 2024) has its notes: prompts of opposite notes then differ in their last few tokens
alone. A template that marks turns by control tokens (Gemma's `<start_of_turn>model`), or ends the user's turn with a
mark (Mistral's `[/INST]`), has no label: such a model never saw words in that place, and the note goes where its
makers put instructions, in front of the user's first turn.

This module imports neither torch nor transformers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import cast

from prefloop.records import Message

# A word or words and a colon, with whatever blanks the template puts behind.
_LABEL = re.compile(r"\w(?: ?\w)*(?P<end> ?:\s*)\Z")


def label_end(tail: str) -> str | None:
    """The end, from the colon on, of the label that a prompt ends with; None where it ends with none.

    Args:
        tail: what the template writes behind the user's turn and its last control token.
    """
    found = _LABEL.search(tail)
    return None if found is None else found["end"]


def in_label(text: str, end: str, note: str) -> str:
    """A prompt's text with the note in parentheses in front of `end`, which the text ends with."""
    return f"{text.removesuffix(end)} ({note.strip().removesuffix('.')}){end}"


def without_notes(messages: Sequence[Message]) -> tuple[list[Message], str]:
    """The messages with their notes taken out (`signals.attribute.with_note` put them in), and the notes.

    A system message that held a note and nothing else is left out.
    """
    kept: list[Message] = []
    notes: list[str] = []
    for message in messages:
        note = message.get("note")
        if note is None:
            kept.append(message)
            continue
        notes.append(note)
        if own := message["content"].removesuffix(note).removesuffix("\n"):
            kept.append(cast(Message, {**unmarked(message), "content": own}))
    return kept, " ".join(notes)


def unmarked(message: Message) -> Message:
    """A message without the mark that tells which part of it is a note."""
    return cast(Message, {name: value for name, value in message.items() if name != "note"})
