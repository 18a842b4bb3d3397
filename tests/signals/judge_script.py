"""A judge whose answer to each request is a function of it, and rows for it to judge."""

from __future__ import annotations

import math
import re

from prefloop.backends.base import Backend, Choice, ChooseRequest, GenerateRequest, Generation, Refusal
from prefloop.signals.driver import rate


class Script(Backend):
    """Replies by `say(request, prompt)`: a text, label chances, or a refusal; keeps what it was asked."""

    def __init__(self, say, finish="stop"):
        self.identity = {"model": "script"}
        self.say, self.finish = say, finish
        self.requests = []

    def plan(self, requests):
        return [list(range(len(requests)))]

    def run(self, requests):
        self.requests += requests
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        said = self.say(request, request.messages[0][1])
        if isinstance(said, Refusal):
            return said
        if isinstance(request, ChooseRequest):
            return Choice([math.log(p) if p > 0 else -math.inf for p in said], [1] * len(said))
        assert isinstance(request, GenerateRequest)
        return Generation(said, [0], self.finish, 1)

    @property
    def prompts(self):
        return [request.messages[0][1] for request in self.requests]


def only(*forms):
    """Refuses a request whose form is none of these: choose, json, text."""

    def refusal(request):
        form = "choose" if request.verb == "choose" else "text" if request.schema is None else "json"
        return None if form in forms else Refusal("cannot", unsupported=True)

    return refusal


def shown(prompt):
    """The answers in a prompt of the built-in templates, in their order."""
    tag = re.search(r"\[request (\w{12})\]", prompt).group(1)
    parts = re.split(rf"\[[^\[\]]* {tag}\]\n", prompt.partition(f"\n[end {tag}]")[0] + "\n")
    heads = re.findall(rf"\[([^\[\]]*) {tag}\]\n", prompt)
    return [part[:-1] for head, part in zip(heads, parts[1:], strict=False) if head.startswith("answer")]


def row(*texts, question="the question", name="r"):
    return {
        "id": name,
        "prompt": [{"role": "user", "content": question}],
        "completions": [
            {"id": str(i), "text": t, "token_ids": None, "finish_reason": "stop", "sample_index": i}
            for i, t in enumerate(texts)
        ],
    }


def judged(signal, texts, say, **options):
    """Scores, counts, the backend and the scored row."""
    backend = Script(say, **options)
    rated = rate(signal, [row(*texts)], {"judge": backend})
    return rated.rows[0]["scores"], rated.counts, backend, rated
