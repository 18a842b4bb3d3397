"""What a model's reply holds: the rewriting, without the words around it, or the reason why there is none."""

from __future__ import annotations

import json
import re
from typing import NamedTuple

_THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_FENCE = re.compile(r"```[\w-]*[ \t]*\n?(.*?)```", re.DOTALL)
_MARKER = re.compile(r"^\s*(?:[-*•]|\(?\d{1,2}[.):])\s+")
# `Rewritten question:` and the like before the text itself; the colon of a question's own words is further in.
_LABEL = re.compile(
    r"^\W*(?:[a-z-]+\s+){0,4}(?:question|query|rewriting|rewrite|version|answer|output)\s*\W{0,2}:\W*",
    re.IGNORECASE,
)
_QUERY = re.compile(
    # A declaration is spelt out: of `anything up to the next PREFIX` there are too many ways to read a line of many.
    r"(?:(?:PREFIX\s+[\w.-]*:|BASE)\s*<[^<>]*>\s*)*\b(?:SELECT|ASK|CONSTRUCT|DESCRIBE)\b.*\}"
    r"(?:\s*(?:ORDER\s+BY|GROUP\s+BY|HAVING|LIMIT|OFFSET)\b[^\n]*)*",
    re.DOTALL | re.IGNORECASE,
)
_QUOTES = "\"'“”‘’«»`*_ \t"


class Reply(NamedTuple):
    """Either a rewriting, or the reason why there is none."""

    text: str | None
    reason: str | None


def read(strategy: str, question: str, reply: str, *, cut: bool) -> Reply:
    """The rewriting in a reply.

    Args:
        question: the one that was to be rewritten.
        cut: whether the reply was cut off at the limit.
    """
    if cut:
        return Reply(None, "cut off")
    body = _THOUGHT.sub("", reply).strip()
    if not body:
        return Reply(None, "empty")
    text = _query(body) if strategy == "sparql" else _sentences(strategy, body)
    if text is None:
        return Reply(None, {"sparql": "no query in it", "decompose": "not several questions"}.get(strategy, "empty"))
    if same(text) == same(question):
        return Reply(None, "repeats the question")
    return Reply(text, None)


def same(text: str) -> str:
    """A text for comparison: small letters, words alone."""
    return " ".join(re.findall(r"\w+", text.lower()))


def _query(body: str) -> str | None:
    fenced = _FENCE.search(body)
    found = _QUERY.search(fenced.group(1) if fenced else body)
    return None if found is None else " ".join(found.group().split())


def _sentences(strategy: str, body: str) -> str | None:
    fenced = _FENCE.fullmatch(body)
    items = _items(_from_json(fenced.group(1) if fenced else body))
    if strategy == "decompose":
        whole = " ".join(items)
        return whole if len(items) > 1 or whole.count("?") > 1 else None
    return items[0] if items else None


def _from_json(body: str) -> str:
    """The texts of a JSON reply, one on a line; any other reply as it is."""
    if body.lstrip()[:1] not in ("{", "["):
        return body
    try:
        value = json.loads(body)
    except ValueError:
        return body
    values = list(value.values()) if isinstance(value, dict) else value
    flat = [item for v in values for item in (v if isinstance(v, list) else [v])]
    texts = [item for item in flat if isinstance(item, str)]
    return "\n\n".join(texts)


def _items(body: str) -> list[str]:
    """The questions in a reply: list items or paragraphs, without introductions, labels and quotes."""
    lines = body.splitlines()
    items: list[str] = []
    fresh = True
    for line in lines:
        text = _MARKER.sub("", line).strip()
        marked = text != line.strip()
        # An introduction ends in a colon, and something stands below it.
        if text.endswith(":") and not items:
            continue
        text = _LABEL.sub("", text).strip(_QUOTES)
        if not text:
            fresh = True
        elif fresh or marked or (items and items[-1].endswith("?")):
            items.append(text)
            fresh = False
        else:
            items[-1] += " " + text  # a question that goes on in the next line
    return items
