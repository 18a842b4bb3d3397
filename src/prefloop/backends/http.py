"""Models behind any server that speaks the OpenAI API: vLLM, SGLang, llama.cpp, `transformers serve`, vendors.

What a server can do is found out when it is opened and when a kind of request first comes (`probe`). What it cannot do
is refused with `unsupported`, so that a judge may ask in another way; it is never made up. Results do not depend on
each other and are handed out, and stored, one by one.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from prefloop.backends import probe
from prefloop.backends.base import (
    Arrival,
    Backend,
    ChooseRequest,
    GenerateRequest,
    Refusal,
    Request,
    Result,
    ScoreRequest,
)
from prefloop.backends.endpoint import Endpoint
from prefloop.backends.wire import TOP_LOGPROBS, Call, Dialect
from prefloop.config import ModelSection
from prefloop.errors import UsageError

_UNLIKE = "the servers give log-probabilities of a given text in different ways"

VERSION = 2
"""Part of the identity: raise it when the same request would be asked or read differently."""


class HttpBackend(Backend):
    """A language model on a server, or on several that run it alike.

    The identity is the model's name there, its revision if the recipe gives one, and the further fields of every
    request; not the address, the number of calls at one time, prices or time-outs.

    Args:
        section: with its `endpoint`.

    Raises:
        UsageError: no server can be reached, or one refuses the key, does not serve the model, does not chat, or
            does not answer as the others do.
    """

    def __init__(self, section: ModelSection) -> None:
        assert section.endpoint is not None
        self.name = section.path
        self.endpoint = Endpoint(section.endpoint)
        self._told = 0, 0
        self._schemas: dict[bool, str | None] = {}
        try:
            self.dialect = self._one_dialect(self.endpoint.each(lambda server: probe.find_dialect(server, section)))
        except BaseException:
            self.endpoint.close()
            raise
        self.identity: dict[str, Any] = {
            "backend": "http",
            "version": VERSION,
            "model": section.path,
            "revision": section.revision,
            "body": section.endpoint.extra_body,
        }
        # A label that is not among the alternatives counts as impossible, so their number changes answers.
        if self.dialect.top_logprobs not in (0, TOP_LOGPROBS[0]):
            self.identity["top_logprobs"] = self.dialect.top_logprobs

    def plan(self, requests: Sequence[Request]) -> list[list[int]]:
        """One batch a verb: the server makes its own."""
        verbs: defaultdict[str, list[int]] = defaultdict(list)
        for index, request in enumerate(requests):
            verbs[request.verb].append(index)
        return list(verbs.values())

    def run(self, requests: Sequence[Request]) -> list[Result]:
        results = {arrival.index: arrival.result for group in self.arrivals(requests) for arrival in group}
        return [results[i] for i in range(len(requests))]

    def arrivals(self, requests: Sequence[Request]) -> Iterator[list[Arrival]]:
        """Results as they come in, each with the texts of its call.

        Raises:
            PrefloopError: a call failed for good, or the limit of cost is reached; after all that was answered.
        """
        self.endpoint.spending.earlier = self.earlier_cost
        calls: list[Call] = []
        places: list[int] = []
        refused: list[Arrival] = []
        for index, request in enumerate(requests):
            call = self._call(request)
            if isinstance(call, Refusal):
                refused.append(Arrival(index, call))
            else:
                calls.append(call)
                places.append(index)
        if refused:
            yield refused
        for group in self.endpoint.stream(calls):
            yield [Arrival(places[arrival.index], arrival.result, arrival.call) for arrival in group]

    def spent(self) -> dict[str, float]:
        """Tokens as the server counted them, the probe's included. May be asked while calls are under way."""
        spending = self.endpoint.spending
        # The endpoint's thread goes on counting: nothing is reset here.
        now = spending.prompt_tokens, spending.generated_tokens
        new = now[0] - self._told[0], now[1] - self._told[1]
        self._told = now
        found: dict[str, float] = {"prompt_tokens": new[0], "generated_tokens": new[1]}
        if spending.priced:
            found["cost"] = spending.price(new)
        return found

    def close(self) -> None:
        """Close the connections. The backend is of no use afterwards."""
        self.endpoint.close()

    def _one_dialect(self, found: Sequence[Dialect]) -> Dialect:
        """That of all servers: whichever answers, the answer has to be the same."""
        if any(other != found[0] for other in found):
            said = [
                f"{server.where} gives {dialect.top_logprobs} alternatives to a word and takes {dialect.length_field}"
                for server, dialect in zip(self.endpoint.servers, found, strict=True)
            ]
            raise UsageError(
                f"the servers do not run it alike: {'; '.join(said)}",
                where=self.name,
                fix="start them in the same way, or ask one of them",
            )
        return found[0]

    def _call(self, request: Request) -> Call | Refusal:
        """How the request is asked, or why it is not."""
        match request:
            case GenerateRequest():
                reason = None if request.schema is None else self._no_schema(request.schema)
                return self.dialect.generate(request) if reason is None else Refusal(reason, unsupported=True)
            case ChooseRequest():
                reason = self._no_choice(request)
                return self.dialect.choose(request) if reason is None else Refusal(reason, unsupported=True)
            case ScoreRequest():
                if not request.prompt_ids or not request.completion_ids:
                    empty = "completion" if request.prompt_ids else "prompt"
                    return Refusal(f"empty {empty}: there is nothing to score")
                scoring = self._scoring
                return scoring.score(request) if isinstance(scoring, Dialect) else Refusal(scoring, unsupported=True)
            case _:
                raise ValueError(f"a language model does not answer {request.verb}")

    def _no_choice(self, request: ChooseRequest) -> str | None:
        """Why labels cannot be chosen. No server tells how it would cut a label, but a character of ASCII is one
        token everywhere."""
        if not self.dialect.top_logprobs:
            return "the server gives no log-probabilities"
        if not request.labels:
            return "a choice needs labels"
        for label in request.labels:
            if len(label) != 1 or not label.isascii() or label.isspace():
                return f"a server's label must be one letter or digit, not {label!r}: others may be several tokens"
        return None

    def _no_schema(self, schema: str) -> str | None:
        """Why the server cannot hold an answer to a schema; asked when the first one with or without lists comes."""
        lists = '"array"' in schema
        if lists not in self._schemas:
            reasons = self.endpoint.each(lambda server: probe.holds_schema(server, self.dialect, lists=lists))
            self._schemas[lists] = next((reason for reason in reasons if reason is not None), None)
        return self._schemas[lists]

    @functools.cached_property
    def _scoring(self) -> Dialect | str:
        """The dialect that can score, or why there is none; asked when the first such request comes."""
        found = self.endpoint.each(lambda server: probe.find_scoring(server, self.dialect))
        for said in found:
            if isinstance(said, str):
                return said
        return found[0] if len({said.scoring for said in found if isinstance(said, Dialect)}) == 1 else _UNLIKE
