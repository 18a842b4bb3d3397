"""What a server can do, found out by asking it; one that cannot do what is needed is refused in one sentence.

Documentation and version numbers do not tell: servers that ignore a field, score nothing and say 0, or answer under
any model's name are common. So each ability is tried once on a fixed text and its answer checked.
"""

from __future__ import annotations

import difflib
import json
import logging
from dataclasses import replace
from typing import Any

from prefloop.backends.base import GenerateRequest, Generation, Refusal, Sampling, ScoreRequest
from prefloop.backends.exchange import Answer, Rejected, Trouble
from prefloop.backends.server import Absent, Server
from prefloop.backends.wire import TOP_LOGPROBS, Call, Dialect, Malformed, read_generation, top_words
from prefloop.config import ModelSection
from prefloop.errors import PrefloopError, UsageError

logger = logging.getLogger(__name__)

_HELLO = GenerateRequest((("user", "Say hello."),), Sampling(max_new_tokens=1))
# No model says this unless a schema makes it.
_WORD = "teal-17"
_ENUM = {"type": "string", "enum": [_WORD]}
_LIST = {"type": "array", "items": _ENUM, "minItems": 2, "maxItems": 2}
# Ids that every vocabulary has: below 128, no two neighbours alike, so that a shift by one shows.
_IDS = (40, 101, 77, 64, 115, 90, 53, 108, 71, 97)


def find_dialect(server: Server, section: ModelSection) -> Dialect:
    """Ask the server for its models and for one word of this one.

    Returns:
        How it wants to be asked, and how many alternatives to a word it gives (0 for none).

    Raises:
        UsageError: it cannot be reached, refuses the key, does not serve the model, or refuses a chat.
        PrefloopError: it does not answer a chat however often it is asked.
    """
    listed = _models(server)
    model = section.path
    assert section.endpoint is not None
    if listed is not None and model not in listed and len(listed) == 1:
        # llama.cpp answers by any name, with the model that it has.
        raise _not_served(server, model, listed)
    dialect = Dialect(model, section.endpoint.extra_body)
    answer = _say_hello(server, dialect, TOP_LOGPROBS[0])
    if isinstance(answer, Rejected) and "max_completion_tokens" in answer.message:
        dialect = replace(dialect, length_field="max_completion_tokens")
        answer = _say_hello(server, dialect, TOP_LOGPROBS[0])
    for top in (*TOP_LOGPROBS[1:], 0):
        if isinstance(answer, Rejected) and answer.status in (400, 403, 422):
            answer = _say_hello(server, dialect, top)
    if isinstance(answer, Rejected):
        if listed and model not in listed and answer.status in (400, 404, 422):
            raise _not_served(server, model, listed)
        error = server.client.refusal(dialect.generate(_HELLO), answer)
        if isinstance(error, Refusal):
            error = UsageError(
                f"does not answer a chat with {model}: {error.reason}",
                where=server.where,
                fix="see what the server is missing; endpoint.extra_body adds fields to every request",
            )
        raise error
    if listed and model not in listed:
        logger.warning("%s does not list %s among its models, but answers by that name", server.where, model)
    if answer.tokens is None and server.spending.most is not None:
        raise UsageError(
            "does not count its tokens, so endpoint.max_cost cannot be kept",
            where=server.where,
            fix="leave max_cost away, and set a limit at the vendor",
        )
    dialect = replace(dialect, top_logprobs=answer.result)
    said = f"the {dialect.top_logprobs} most probable words" if dialect.top_logprobs else "no log-probabilities"
    logger.info("%s serves %s: generates, gives %s", server.where, model, said)
    return dialect


def holds_schema(server: Server, dialect: Dialect, *, lists: bool = False) -> str | None:
    """None where the server holds an answer to a JSON schema, else why not.

    Args:
        lists: to one with a list of a given length, which fewer servers do.
    """
    schema = {
        "type": "object",
        "properties": {"word": _LIST if lists else _ENUM},
        "required": ["word"],
        "additionalProperties": False,
    }
    request = GenerateRequest(_HELLO.messages, Sampling(max_new_tokens=256), 0, json.dumps(schema))
    answer = server.ask(dialect.generate(request))
    of_what = "a schema with lists" if lists else "a schema"
    if isinstance(answer, Rejected):
        return f"the server takes no {of_what.removeprefix('a ')}: {answer.message}"
    forced = {"word": [_WORD, _WORD] if lists else _WORD}
    try:
        held = isinstance(answer.result, Generation) and json.loads(answer.result.text) == forced
    except (ValueError, RecursionError):
        held = False
    return None if held else f"the server does not hold an answer to {of_what}"


def find_scoring(server: Server, dialect: Dialect) -> Dialect | str:
    """The dialect with the way of scoring a given text that stands the check of `wire.read_score`; else why none."""
    request = ScoreRequest(_IDS[:6], _IDS[6:])
    reasons = []
    for way in ("prompt_logprobs", "echo"):
        candidate = replace(dialect, scoring=way)  # type: ignore[arg-type]
        outcome = server.try_once(candidate.score(request))
        if isinstance(outcome, Trouble) and not outcome.reached:
            outcome = server.ask(candidate.score(request))
        if isinstance(outcome, Answer):
            return candidate
        reasons.append(f"{way}: {outcome.message if isinstance(outcome, Rejected) else outcome.what}")
    return f"the server gives no log-probabilities of a given text that stand a check ({'; '.join(reasons)})"


def _models(server: Server) -> list[str] | None:
    """The names that the server lists; None where it lists none."""
    outcome = server.try_once(_LIST_MODELS)
    if isinstance(outcome, Trouble) and not outcome.reached:
        raise Absent(
            f"cannot be reached: {outcome.what}",
            where=server.where,
            fix="start the server, or correct endpoint.url (up to and with the version, …/v1)",
        )
    if isinstance(outcome, Rejected) and outcome.status in (401, 403):
        error = server.client.refusal(_LIST_MODELS, outcome)
        assert isinstance(error, UsageError)
        raise error
    # Vendors without the list, and servers that are still loading (503): the chat will tell.
    return outcome.result if isinstance(outcome, Answer) else None


def _names(data: Any) -> list[str]:
    entries = data.get("data") if isinstance(data, dict) else None
    if not isinstance(entries, list):
        raise Malformed("no list of models")
    return [entry["id"] for entry in entries if isinstance(entry, dict) and isinstance(entry.get("id"), str)]


_LIST_MODELS = Call("/models", None, _names)


def _say_hello(server: Server, dialect: Dialect, top: int) -> Answer | Rejected:
    """A chat of one word; the result is how many alternatives to it came, 0 where they do not stand a check."""

    def read(data: Any) -> int:
        read_generation(data)
        if not top:
            return 0
        try:
            words = top_words(data)
        except Malformed:
            return 0
        # All alike, or one alone, is what a server says that does not know.
        return top if words and len({logp for _, logp in words}) > 1 else 0

    call = dialect.generate(_HELLO)
    assert call.body is not None
    # A model that thinks first is refused log-probabilities, and by OpenAI an answer that ends before its thoughts do.
    more = {"logprobs": True, "top_logprobs": top} if top else {dialect.length_field: 256}
    call = replace(call, body=call.body | more, read=read)
    server.afford(call)
    try:
        return server.ask(call)
    except PrefloopError as error:
        what = f"does not answer a chat with {dialect.model}: {error.what}"
        raise type(error)(what, where=error.where, fix=error.fix) from error


def _not_served(server: Server, model: str, listed: list[str]) -> UsageError:
    near = difflib.get_close_matches(model, listed, n=5, cutoff=0) or listed[:5]
    more = ", …" if len(listed) > len(near) else ""
    return UsageError(
        f"does not serve {model}; it serves {', '.join(near)}{more}",
        where=server.where,
        fix="name one of these as the model's path, or start the server with the model",
    )
