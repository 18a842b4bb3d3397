"""One call of a server over the wire, once: what came back, sorted into answers, refusals and trouble.

The key is read from the environment and goes into one header and nowhere else: not into a body, a log or a repr. A
server may send it back: it is taken out of errors and of stored calls, never out of an answer
(tests/backends/test_http.py::test_the_key_is_nowhere).
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

try:
    import httpx2 as httpx  # what huggingface_hub brings at present
except ImportError:
    import httpx  # type: ignore[import-not-found,no-redef]

from prefloop.backends.base import Refusal
from prefloop.backends.wire import Call, Malformed, tokens
from prefloop.config import EndpointSection
from prefloop.errors import PrefloopError, UsageError

# Statuses that a further try may turn into an answer, beside 429 and 5xx; and those of 5xx that it may not.
AGAIN, NEVER = {408, 425}, {501, 505}
# Seconds to wait for a list of models.
LONGEST_LIST = 20.0
# A key of fewer characters is no secret but a local server's dummy, such as "test", and may stand in any text.
SHORTEST_SECRET = 16
# How servers say that a request does not fit the model: OpenAI, vLLM, SGLang, llama.cpp, TGI, Mistral, Gemini.
_TOO_LONG = re.compile(
    r"context[_ ](length|size|window)|maximum (context|model|allowed) |(too long|longer) (for|than)|is too long"
    r"|(token|length|input).{0,60}exceed|exceed.{0,60}(token|length)|max_new_tokens. must be",
    re.IGNORECASE,
)
# How they say that they will not answer this text, in whatever form it is asked: Azure, OpenAI.
_FILTERED = re.compile(r"content[_ ](filter|management|policy)|safety system", re.IGNORECASE)


@dataclass(frozen=True)
class Answer:
    """What came back and could be read; `text` is the body as it is stored, without the key."""

    result: Any
    text: str
    tokens: tuple[int, int] | None


@dataclass(frozen=True)
class Rejected:
    """What the server will say again however often it is asked; `tokens` where it counted some all the same."""

    status: int
    message: str
    tokens: tuple[int, int] | None = None


@dataclass(frozen=True)
class Trouble:
    """What a further try may mend. `full`: the server said 429; `wait`: and for how many seconds to leave it alone;
    `reached`: whether there was an answer at all; `tokens`: what it counted for an answer that is of no use."""

    what: str
    full: bool = False
    wait: float | None = None
    reached: bool = True
    tokens: tuple[int, int] | None = None


Outcome = Answer | Rejected | Trouble


class Client:
    """The connections to one server.

    Raises:
        UsageError: the environment variable of the key is not set, or holds no key.
    """

    def __init__(self, section: EndpointSection, url: str) -> None:
        self.section, self.url = section, url
        self.where = f"endpoint {url}"
        self._key = _read_key(section, self.where)
        self._encryption = httpx.create_ssl_context()
        # One client, and so one connection, a call under way: a client with many looks at all of them before each
        # call, which at 64 takes longer than the call.
        self._free: list[httpx.AsyncClient] = []

    async def exchange(self, call: Call) -> Outcome:
        """One call over the wire, once. Raises nothing that a server can cause."""
        url = self.url + call.path
        # Lists are there at once, or something else is listening.
        seconds = self.section.timeout if call.body is not None else min(self.section.timeout, LONGEST_LIST)
        client = self._free.pop() if self._free else self._connect()
        try:
            async with asyncio.timeout(seconds):
                if call.body is None:
                    response = await client.get(url)
                else:
                    # Lone surrogates, which a model may have written, are no UTF-8; as escapes they are JSON.
                    content = json.dumps(call.body)
                    response = await client.post(url, content=content, headers={"Content-Type": "application/json"})
        except TimeoutError:
            return Trouble(f"no answer within {seconds:g} s", reached=False)
        except httpx.RequestError as error:
            what = f"{type(error).__name__}: {self._clean(str(error))}".rstrip(": ")
            return Trouble(what, reached=False)
        finally:
            self._free.append(client)
        return self._sort(call, response.status_code, response.text, response.headers.get("Retry-After"))

    def _sort(self, call: Call, status: int, text: str, retry_after: str | None) -> Outcome:
        """What became of a call."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError):
            if status == 200:
                return Trouble(f"an answer that is no JSON: {self._clean(text)[:80]!r}")
            data = None
        counted = _counted(data)
        if status == 200:
            try:
                # What was answered is not touched: a key like "test" may stand in any answer.
                return Answer(call.read(data), self._without_key(text), tokens(data))
            except Malformed as error:
                return Trouble(self._clean(str(error)), tokens=counted)
            except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
                # No answer may end the calls beside it; test_any_json_is_read_or_malformed looks for what gets here.
                return Trouble(f"an answer that cannot be read ({type(error).__name__})", tokens=counted)
        code, message = _message(data, text)
        message = self._clean(message) or f"HTTP {status}"
        wait = _retry_after(retry_after)
        if status == 429 and code != "insufficient_quota":
            return Trouble(f"HTTP 429: {message}", full=True, wait=wait, tokens=counted)
        if status in AGAIN or (status >= 500 and status not in NEVER):
            return Trouble(f"HTTP {status}: {message}", wait=wait, tokens=counted)
        return Rejected(status, message, tokens=counted)

    def _connect(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            headers={} if self._key is None else {"Authorization": f"Bearer {self._key}"},
            # One limit of time for a whole call (`_exchange`): a read limit would begin anew with every byte.
            timeout=None,
            verify=self._encryption,
        )

    async def close(self) -> None:
        """Close the connections that are not in use."""
        for client in self._free:
            await client.aclose()

    def refusal(self, call: Call, rejected: Rejected) -> Refusal | PrefloopError:
        """A refused call as the result of its request alone, or as the error that stops everything."""
        status, message = rejected.status, rejected.message
        if status in (400, 413, 422):
            too_long = status == 413 or _TOO_LONG.search(message) is not None
            # A server that takes schemas may not take this one, such as one of a list; a judge then asks without.
            schema = "response_format" in (call.body or {}) and not too_long and not _FILTERED.search(message)
            return Refusal(f"the server refused it (HTTP {status}): {message}", too_long=too_long, unsupported=schema)
        if status in (401, 403):
            name = self.section.key_variable
            fix = (
                f"put a valid key into the environment variable {name}"
                if name
                else "name the environment variable that holds the key: endpoint.key_variable"
            )
            return UsageError(f"refuses the key (HTTP {status}): {message}", where=self.where, fix=fix)
        if status == 404:
            return UsageError(
                f"does not know the model or the address (HTTP 404): {message}",
                where=self.where,
                fix="the address goes up to and with the version (…/v1); the model is called as the server calls it",
            )
        fix = "the account is used up; " if status in (402, 429) else ""
        return PrefloopError(
            f"refuses (HTTP {status}): {message}",
            where=self.where,
            fix=f"{fix}start the same command again when it is mended: what was answered is kept",
        )

    def _clean(self, text: str) -> str:
        """A text for people: short, on one line, without the key."""
        return " ".join(self._without_key(text).split())[:400]

    def _without_key(self, text: str) -> str:
        if self._key is None or len(self._key) < SHORTEST_SECRET:
            return text
        return text.replace(self._key, "[key]")


def _read_key(section: EndpointSection, where: str) -> str | None:
    name = section.key_variable
    if name is None:
        return None
    fix = f"set it before the start, for example: read -s {name}; export {name}"
    key = os.environ.get(name, "").strip()
    if not key:
        raise UsageError(
            f"the environment variable {name}, which is to hold the key, is not set", where=where, fix=fix
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UsageError(f"the environment variable {name} holds something that is no key", where=where, fix=fix)
    return key


def _counted(data: Any) -> tuple[int, int] | None:
    """Tokens of an answer that may be of no use."""
    try:
        return tokens(data)
    except Malformed:
        return None


def _message(data: Any, text: str) -> tuple[str | None, str]:
    """Code and message of an error's body, of whatever shape: its JSON, None where it is none, and its text."""
    while isinstance(data, dict) and isinstance(inner := data.get("error", data.get("detail")), dict):
        data = inner
    if not isinstance(data, dict):
        return None, text
    said = data.get("message") or data.get("error") or data.get("detail") or text
    code = data.get("code")
    return code if isinstance(code, str) else None, said if isinstance(said, str) else text


def _retry_after(value: str | None) -> float | None:
    """Seconds from a Retry-After header: a number, or a date."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
