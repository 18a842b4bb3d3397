"""Requests as the OpenAI-compatible servers' JSON, and their JSON as results. No input or output here.

What a server says is believed only as far as it can be checked: an answer that lacks what was asked for is
`Malformed`, never a result with a made-up number in it.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Literal

from prefloop.backends.base import (
    Choice,
    ChooseRequest,
    Frozen,
    GenerateRequest,
    Generation,
    Result,
    Score,
    ScoreRequest,
    Withheld,
    request_json,
    thaw,
)
from prefloop.store.fingerprint import digest

CHAT, COMPLETIONS = "/chat/completions", "/completions"

# How many of the most probable words are asked for: the most that OpenAI and, as it comes, vLLM give, and what the
# others do.
TOP_LOGPROBS = (20, 5)

STOPPED = {"stop", "eos", "eos_token", "end_turn", "stop_sequence"}
WITHHELD = {"content_filter", "tool_calls", "function_call"}
# Above the logarithm of 1 by more than rounding.
TOO_LIKELY = 1e-3
# No call has so many tokens; a float holds every integer up to here.
TOO_MANY_TOKENS = 2**53


class Malformed(ValueError):
    """An answer that is not what was asked for."""


@dataclass(frozen=True)
class Call:
    """One call of a server.

    Attributes:
        path: behind the endpoint's address.
        body: sent as JSON; None is a GET.
        read: makes the result of the answer's JSON, or raises `Malformed`.
    """

    path: str
    body: dict[str, Any] | None
    read: Callable[[Any], Any]

    @cached_property
    def most_tokens(self) -> tuple[int, int]:
        """Bounds of prompt and generated tokens: a token has a byte at least, a template adds a few dozen. The whole
        body counts: a server may put any field of `extra_body` into the prompt."""
        if self.body is None:
            return 0, 0
        prompt = len(json.dumps(self.body, ensure_ascii=False).encode("utf-8", "surrogatepass")) + 256
        return prompt, int(self.body.get("max_tokens") or self.body.get("max_completion_tokens") or 0)


@dataclass(frozen=True)
class Dialect:
    """How one server wants to be asked.

    Attributes:
        model: the name under which the server runs the model.
        extra: further fields of every request; null removes a field.
        length_field: what the limit of generated tokens is called.
        top_logprobs: how many alternatives are asked for; 0 where the server gives none.
        scoring: the way in which the log-probabilities of a given text are asked for; None where there is no way.
    """

    model: str
    extra: Mapping[str, Any] = field(default_factory=dict)
    length_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    top_logprobs: int = 0
    scoring: Literal["prompt_logprobs", "echo"] | None = None

    def generate(self, request: GenerateRequest) -> Call:
        """One sample. Its seed is the hash of the whole request, the run's seed and the sample's index included."""
        how = request.sampling
        body: dict[str, Any] = {"temperature": how.temperature, "top_p": how.top_p, "seed": _seed(request)}
        if how.top_k:
            body["top_k"] = how.top_k
        if request.schema is not None:
            schema = {"name": "answer", "schema": json.loads(request.schema), "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return self._chat(request.messages, how.max_new_tokens, body, read_generation)

    def choose(self, request: ChooseRequest) -> Call:
        """One word with its alternatives. At temperature 1: some servers scale log-probabilities by it."""
        body = {"temperature": 1.0, "top_p": 1.0, "seed": _seed(request), "logprobs": True}
        body["top_logprobs"] = self.top_logprobs
        return self._chat(request.messages, 1, body, partial(read_choice, labels=request.labels))

    def score(self, request: ScoreRequest) -> Call:
        """The whole text goes in as ids; one token is generated, because not every server can generate none."""
        ids = [*request.prompt_ids, *request.completion_ids]
        body: dict[str, Any] = {"model": self.model, "prompt": ids, "max_tokens": 1, "temperature": 1.0}
        if self.scoring == "prompt_logprobs":
            body["prompt_logprobs"] = 1
        else:
            body |= {"echo": True, "logprobs": 1, "return_tokens_as_token_ids": True}
        read = partial(read_score, ids=ids, prompt=len(request.prompt_ids), way=self.scoring)
        return Call(COMPLETIONS, self._with_extra(body), read)

    def _chat(self, frozen: Frozen, most_new: int, more: Mapping[str, Any], read: Callable[[Any], Result]) -> Call:
        messages, tools = _messages(frozen)
        body = {"model": self.model, "messages": messages, "stream": False, self.length_field: most_new, **more}
        if tools:
            body["tools"] = tools
        return Call(CHAT, self._with_extra(body), read)

    def _with_extra(self, body: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in {**body, **self.extra}.items() if value is not None}


def _seed(request: GenerateRequest | ChooseRequest) -> int:
    """31 bits: every server's integers hold them."""
    return int(digest(request_json(request))[:8], 16) & 0x7FFFFFFF


def _messages(frozen: Frozen) -> tuple[list[dict[str, Any]], list[Any]]:
    """Messages and tools as the API has them: tools beside the messages, a tool call's arguments as text."""
    messages: list[dict[str, Any]] = [dict(message) for message in thaw(frozen)]
    tools = messages[0].pop("tools", []) if messages else []
    for message in messages:
        message.pop("note", None)  # it is in the content too, and where a server puts that is its own business
        if "tool_calls" in message:
            message["tool_calls"] = [_api_tool_call(call) for call in message["tool_calls"]]
    return messages, tools


def _api_tool_call(call: dict[str, Any]) -> dict[str, Any]:
    function = dict(call.get("function", {}))
    if not isinstance(function.get("arguments", ""), str):
        function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
    return {**call, "function": function}


def tokens(data: Any) -> tuple[int, int] | None:
    """Prompt and generated tokens as the server counted them; None where it does not tell.

    Raises:
        Malformed: what it tells is no count; a limit of cost would rest on it.
    """
    usage = data.get("usage") if isinstance(data, dict) else None
    if not isinstance(usage, dict) or usage.get("prompt_tokens") is None:
        return None
    return _count(usage["prompt_tokens"]), _count(usage.get("completion_tokens") or 0)


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < TOO_MANY_TOKENS:
        raise Malformed(f"{_short(value)} in place of a number of tokens")
    return int(value)


def read_generation(data: Any) -> Generation | Withheld:
    """An answer of `chat/completions`."""
    choice = _choice(data)
    message = choice.get("message")
    if not isinstance(message, dict):
        raise Malformed("an answer without a message")
    # A model that declines to fill a schema says so in a field of its own at OpenAI.
    text = message.get("content") or message.get("refusal") or ""
    if not isinstance(text, str):
        raise Malformed("an answer whose content is no text")
    finish = choice.get("finish_reason")
    if not isinstance(finish, str) or finish not in STOPPED | WITHHELD | {"length"}:
        raise Malformed(f"an answer with finish reason {_short(finish)}")
    if finish in WITHHELD:
        return Withheld(f"the server gave no text: it ended with {finish}")
    counted = tokens(data)
    return Generation(text, None, "length" if finish == "length" else "stop", counted[0] if counted else 0)


def read_choice(data: Any, labels: tuple[str, ...]) -> Choice | Withheld:
    """Label log-probabilities from the alternatives to the first word; a label that is not among them has -inf.

    A word counts for its label with and without the blank that tokenizers put before words, and two tokens that read
    alike both count.
    """
    top = top_words(data)
    if top is None:
        return Withheld("the model ended its turn without a word")
    mass = [sum(math.exp(logp) for word, logp in top if _bare(word) == label) for label in labels]
    return Choice([math.log(p) if p else -math.inf for p in mass], [1] * len(labels))


def top_words(data: Any) -> list[tuple[str, float]] | None:
    """The most probable first words with their log-probabilities; None where there is no word at all."""
    logprobs = _choice(data).get("logprobs")
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(content, list):
        raise Malformed("an answer without log-probabilities")
    if not content:
        return None
    top = content[0].get("top_logprobs") if isinstance(content[0], dict) else None
    if not isinstance(top, list) or not top:
        raise Malformed("an answer without alternatives to its first word")
    words = []
    for entry in top:
        if not isinstance(entry, dict) or not isinstance(entry.get("token"), str):
            raise Malformed("an alternative without its word")
        words.append((entry["token"], _logp(entry.get("logprob"))))
    if sum(math.exp(logp) for _, logp in words) > 1 + TOO_LIKELY:
        raise Malformed("alternatives whose probabilities add up to more than 1")
    return words


def _bare(word: str) -> str:
    """A word without the blank before it, as text or in the spelling of SentencePiece or of byte-level BPE."""
    return word[1:] if word[:1] in (" ", "▁", "Ġ") else word


def read_score(data: Any, ids: list[int], prompt: int, way: str | None) -> Score:
    """Log-probabilities of the ids behind the first `prompt` ones, checked against what was sent.

    Raises:
        Malformed: their number differs from the ids', the server read other ids, one beyond the first is missing, or
            all are zero: the silent ways in which servers fail to score.
    """
    choice = _choice(data)
    found = _prompt_logprobs(choice, ids) if way == "prompt_logprobs" else _echoed(choice, ids)
    if len(found) != len(ids):
        raise Malformed(f"{len(found)} log-probabilities for {len(ids)} tokens")
    logps = [_logp(value) for value in found[1:]]
    if not any(logps):
        raise Malformed("log-probabilities that are all zero")
    return Score(logps[prompt - 1 :])


def _prompt_logprobs(choice: dict[str, Any], ids: list[int]) -> list[Any]:
    """vLLM: for each id a dict from ids to what is known of them, the id that was read among them."""
    entries = choice.get("prompt_logprobs")
    if not isinstance(entries, list):
        raise Malformed("an answer without log-probabilities of the prompt")
    if len(entries) != len(ids):
        raise Malformed(f"{len(entries)} log-probabilities for {len(ids)} tokens")
    found: list[Any] = [None]
    for position, (token, entry) in enumerate(zip(ids[1:], entries[1:], strict=True), 1):
        if not isinstance(entry, dict):
            raise Malformed(f"no log-probability of token {position}")
        if str(token) not in entry:
            raise Malformed(f"token {position} is not the one that was sent: the server read other token ids")
        value = entry[str(token)]
        found.append(value.get("logprob") if isinstance(value, dict) else value)
    return found


def _echoed(choice: dict[str, Any], ids: list[int]) -> list[Any]:
    """`echo`: lists over the prompt's and the generated tokens; the ids in a list, or written into the token texts."""
    logprobs = choice.get("logprobs")
    values = logprobs.get("token_logprobs") if isinstance(logprobs, dict) else None
    if not isinstance(logprobs, dict) or not isinstance(values, list):
        raise Malformed("an answer without log-probabilities")
    read, texts = logprobs.get("token_ids"), logprobs.get("tokens")
    if not read and isinstance(texts, list):
        read = [_token_id(text) for text in texts]
    if not isinstance(read, list) or len(values) < len(ids) or len(read) != len(values):
        raise Malformed("an echo that does not hold the whole text")
    if None in read:
        raise Malformed("an echo without token ids, so that nothing shows what was scored")
    if read[: len(ids)] != ids:
        raise Malformed("an echo of other token ids than were sent")
    return values[: len(ids)]


def _token_id(text: Any) -> int | None:
    """vLLM's `token_id:123`."""
    digits = text.removeprefix("token_id:") if isinstance(text, str) else ""
    return int(digits) if digits != text and digits.isdecimal() and len(digits) < 20 else None


def _choice(data: Any) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise Malformed("JSON that is no object")
    choices = data.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        error = data.get("error")
        raise Malformed(f"no answer but the error {_short(error)}" if error else "no answer (no choices)")
    return choices[0]


def _logp(value: Any) -> float:
    """A log-probability: a number of at most 0, but for rounding."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value <= TOO_LIKELY:
        raise Malformed(f"{_short(value)} in place of a log-probability")
    # An integer may be too large for a float; nothing so improbable differs from the impossible.
    return float(value) if value >= -sys.float_info.max else -math.inf


def _short(value: Any) -> str:
    """A value that a server sent, for a message."""
    try:
        return json.dumps(value, ensure_ascii=False)[:200]
    except RecursionError:
        return f"a {type(value).__name__} that cannot be shown"
