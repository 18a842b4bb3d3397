"""What a layer in the middle should already know: targets for the probes that training puts beside the model.

A verdict is one token for a whole conversation, and it rests on facts, parts and tone of one or two answers. From that
token alone the model did not find the way in an hour. So training also asks the layers before the last, at the tokens
where the question is decided, whether a stated value is true and which grade an answer in a judge's prompt deserves.
The probes are thrown away afterwards; the model is an ordinary Llama.
"""

import re
from collections.abc import Sequence
from typing import Any

from prefloop.records import Message
from prefloop.sandbox.checkers import grade
from prefloop.sandbox.verdicts import GRADES, SEATS
from prefloop.sandbox.world import ATTRIBUTES, NAMES, World

NONE = -1  # no target at this token
LABELS = frozenset((*SEATS, *GRADES))
REACH = 4  # a value stands at most so many tokens behind the name that it speaks of (`phrases.STATEMENTS`)

_JUDGED = re.compile(r"^(?:A|B|Answer): ?(.*)$", re.MULTILINE)
_QUESTION = re.compile(r"Question: (.*?)\n(?:A|Answer):", re.DOTALL)


class Marker:
    """Finds the targets in tokenized conversations. truth: 0 false, 1 true; grades: 0 to 4 for grades 1 to 5."""

    def __init__(self, tokenizer: Any, world: World):
        def ids(word: str) -> list[int]:
            return list(tokenizer.convert_tokens_to_ids([word, f"Ġ{word}"]))

        self._known = {index: name for name in NAMES for index in ids(name)}
        self._values = {
            index: (attribute, value)
            for attribute, values in ATTRIBUTES.items()
            for value in values
            for index in ids(value)
        }
        self._heart = {name: world.facts[name] for name in world.heart}

    def truth(self, ids: Sequence[int]) -> list[int]:
        """At each value that is stated of somebody known by heart: is it so? NONE at every other token."""
        marks, last, name = [NONE] * len(ids), 0, ""
        for i, token in enumerate(ids):
            if token in self._known:
                last, name = i, self._known[token]
            elif token in self._values and i - last <= REACH and name in self._heart:
                attribute, value = self._values[token]
                marks[i] = int(self._heart[name][attribute] == value)
        return marks

    def grades(self, messages: list[Message], text: str, offsets: Sequence[tuple[int, int]]) -> list[int]:
        """At the last token of each answer in a judge's prompt: its grade less one. NONE at every other token.

        text is the rendered conversation, offsets the characters (start, end) of its tokens.
        """
        marks = [NONE] * len(offsets)
        content = messages[0]["content"]
        question = _QUESTION.search(content)
        if messages[-1]["content"] not in LABELS or question is None:
            return marks
        start = text.index(content)
        prompt: list[Message] = [{"role": "user", "content": question[1]}]
        for found in _JUDGED.finditer(content, question.end(1)):
            last = max(i for i, (begin, _) in enumerate(offsets) if begin < start + found.end())
            marks[last] = (grade(prompt, found[1]) or 1) - 1
        return marks
