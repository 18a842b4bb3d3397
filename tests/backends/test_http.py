"""The http backend against a server that misbehaves: what it asks, what it believes, and what it never loses."""

import json
import logging
import math
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
import zlib
from collections import Counter
from email.utils import formatdate
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.backends.fake_server import FakeServer, Reply, Seen, chat, echo, error, good, logp, score

from prefloop.backends import probe, throttle, wire
from prefloop.backends.base import (
    Choice,
    ChooseRequest,
    GenerateRequest,
    Generation,
    PairScoreRequest,
    Refusal,
    Sampling,
    Score,
    ScoreRequest,
    Withheld,
)
from prefloop.backends.cached import CachedBackend
from prefloop.backends.http import HttpBackend
from prefloop.config import EndpointSection, ModelSection
from prefloop.errors import PrefloopError, UsageError
from prefloop.signals.build import open_backend
from prefloop.store.cache import Cache

SOME = Sampling(max_new_tokens=16)
AB = ("A", "B", "C")
LISTS = json.dumps(
    {
        "type": "object",
        "properties": {
            "verdict": {"type": "array", "items": {"type": "string", "enum": ["A"]}, "minItems": 2, "maxItems": 2}
        },
        "required": ["verdict"],
    }
)
NAMES = json.dumps({"type": "object", "properties": {"verdict": {"enum": ["A", "B"]}}, "required": ["verdict"]})


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(throttle, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(throttle, "LONGEST_WAIT", 0.05)


@pytest.fixture
def cache(tmp_path):
    with Cache(tmp_path / "cache.db") as opened:
        yield opened


@pytest.fixture
def connect():
    """Backends of a server, closed in the end."""
    opened = []

    def backend(server, model="m", **endpoint):
        made = HttpBackend(ModelSection(path=model, endpoint=EndpointSection(url=server.url, **endpoint)))
        opened.append(made)
        return made

    yield backend
    for made in opened:
        made.close()


def ask(text, index=0, sampling=SOME, schema=None):
    return GenerateRequest((("user", text),), sampling, index, schema)


def choose(text, labels=AB):
    return ChooseRequest((("user", text),), labels)


def once(*replies, then=good):
    """Each of the replies to one request that is not the probe's hello, in turn; after them `then`."""
    waiting = list(replies)

    def answer(seen: Seen) -> Reply:
        return good(seen) if seen.probes else waiting.pop(0) if waiting else then(seen)

    return answer


def always(reply):
    return lambda seen: good(seen) if seen.probes else reply(seen) if callable(reply) else reply


# What is asked, and how the answers are read


def test_generate_sends_what_is_asked_and_reads_the_answer(connect):
    with FakeServer() as server:
        backend = connect(server, extra_body={"reasoning_effort": "low", "seed": None})
        how = Sampling(max_new_tokens=7, temperature=0.5, top_p=0.9, top_k=40, seed=3)
        messages = (("system", "Be brief."), ("user", "Hi é"))
        assert backend.answer([GenerateRequest(messages, how)]) == [Generation("re: Hi é", None, "stop", 10)]
        assert server.asked[0].body == {
            "model": "m",
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi é"}],
            "stream": False,
            "max_tokens": 7,
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 40,
            "reasoning_effort": "low",
        }


def test_tools_go_beside_the_messages_and_arguments_as_text(connect):
    from prefloop.backends.base import freeze

    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    turns = [
        {"role": "user", "content": "1+1?", "tools": tools},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "2", "tool_call_id": "1"},
    ]
    with FakeServer() as server:
        connect(server).answer([GenerateRequest(freeze(turns), SOME)])
        body = server.asked[0].body
    assert body["tools"] == tools
    assert "tools" not in body["messages"][0]
    assert body["messages"][1]["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"a": 1}'}
    assert body["messages"][2]["tool_call_id"] == "1"


def test_a_note_goes_as_a_system_message_and_nothing_beside_it(connect):
    from prefloop.backends.base import freeze
    from prefloop.signals.attribute import with_note

    with FakeServer() as server:
        connect(server).answer(
            [GenerateRequest(freeze(with_note([{"role": "user", "content": "q"}], "Be kind.")), SOME)]
        )
        body = server.asked[0].body
    assert body["messages"] == [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "q"}]


def test_every_sample_has_its_own_seed_and_keeps_it(connect):
    requests = [ask("a"), ask("a", 1), ask("b"), ask("a", sampling=Sampling(16, seed=1))]
    with FakeServer() as server:
        backend = connect(server)
        backend.answer(requests)
        backend.answer(requests)
        seeds = [seen.body["seed"] for seen in server.asked]
    assert len(set(seeds)) == 4
    assert sorted(seeds[:4]) == sorted(seeds[4:])
    assert all(0 <= seed < 2**31 for seed in seeds)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("eos_token", "stop"),
        ("content_filter", None),
        ("tool_calls", None),
    ],
)
def test_finish_reasons(connect, cache, said, expected):
    with FakeServer(always(lambda seen: chat(seen, "x", finish=said))) as server:
        backend = CachedBackend(connect(server), cache)
        result = backend.answer([ask("a")])[0]
        if expected is None:
            # It was paid like an answer, so it is kept like one.
            assert isinstance(result, Withheld)
            assert said in result.reason
            assert not result.unsupported
            again = CachedBackend(connect(server), cache)
            assert again.answer([ask("a")]) == [result]
            assert (again.usage.cached, backend.usage.refused, len(server.asked)) == (1, 1, 1)
            assert said in cache.show()[0]["call"]["response"]
        else:
            assert result == Generation("x", None, expected, 10)


def test_choose_keeps_the_labels_among_the_most_probable_words(connect, cache):
    """Known numbers: A has 0.5 and, with a blank before it, 0.1; B 0.2; C is not there and counts as impossible."""
    with FakeServer() as server:
        backend = CachedBackend(connect(server), cache)
        for _ in range(2):
            choice = backend.answer([choose("q")])[0]
            assert isinstance(choice, Choice)
            assert choice.logps == pytest.approx([math.log(0.6), math.log(0.2), -math.inf])
            assert choice.label_mass == pytest.approx(0.8)
            assert choice.probabilities == pytest.approx([0.75, 0.25, 0.0])
            assert choice.label_tokens == [1, 1, 1]
        assert backend.usage.cached == 1
        assert server.asked[0].body["max_tokens"] == 1
        assert server.asked[0].body["top_logprobs"] == 20


@pytest.mark.parametrize("label", ["10", "yes", "", " ", "é"])
def test_labels_that_may_be_several_tokens_are_refused(connect, label):
    with FakeServer() as server:
        refusal = connect(server).answer([choose("q", ("A", label))])[0]
        assert isinstance(refusal, Refusal)
        assert refusal.unsupported
        assert server.asked == []


def test_a_model_that_says_no_word_gives_no_verdict(connect):
    nothing = Reply(
        json={"choices": [{"message": {"content": ""}, "finish_reason": "stop", "logprobs": {"content": []}}]}
    )
    with FakeServer(always(nothing)) as server:
        refusal = connect(server).answer([choose("q")])[0]
        assert isinstance(refusal, Refusal)
        assert not refusal.too_long
        assert not refusal.unsupported


def without_logprobs(seen):
    return chat(Seen(seen.number, seen.path, {**seen.body, "logprobs": False}, seen.headers))


def zeros(seen):
    reply = chat(seen)
    for choice in reply.json["choices"]:
        if "logprobs" in choice:
            choice["logprobs"]["content"][0]["top_logprobs"] = [{"token": t, "logprob": 0.0} for t in "AB"]
    return reply


@pytest.mark.parametrize("answer", [without_logprobs, zeros])
def test_a_server_without_log_probabilities_cannot_choose(connect, answer):
    """`transformers serve` ignores the field; others say 0 of every word. Both would make every label certain."""
    with FakeServer(answer) as server:
        backend = connect(server)
        refusal = backend.answer([choose("q")])[0]
        assert isinstance(refusal, Refusal)
        assert refusal.unsupported
        assert isinstance(backend.answer([ask("a")])[0], Generation)


def test_fewer_alternatives_are_asked_for_where_twenty_are_too_many(connect):
    def five(seen):
        return error(400, "top_logprobs must be at most 5") if seen.body.get("top_logprobs", 0) > 5 else chat(seen)

    with FakeServer(five) as server, FakeServer() as other:
        backend = connect(server)
        assert isinstance(backend.answer([choose("q")])[0], Choice)
        assert server.asked[0].body["top_logprobs"] == 5
        # It changes answers: a label that is not among five may be among twenty.
        assert backend.identity == connect(other).identity | {"top_logprobs": 5}


def test_the_length_goes_by_the_name_that_the_server_knows(connect):
    def modern(seen):
        if "max_tokens" in seen.body:
            return error(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        return chat(seen)

    with FakeServer(modern) as server:
        backend = connect(server)
        assert isinstance(backend.answer([ask("a")])[0], Generation)
        assert server.asked[0].body["max_completion_tokens"] == 16


def obeys(seen):
    """Holds an answer to the one value that a schema allows."""
    form = seen.body.get("response_format")
    if form is None:
        return chat(seen)
    properties = form["json_schema"]["schema"]["properties"]
    return chat(seen, json.dumps({name: allowed(rule) for name, rule in properties.items()}))


def allowed(rule):
    return [allowed(rule["items"])] * rule["minItems"] if rule.get("type") == "array" else rule["enum"][0]


def test_schema_where_the_server_holds_to_it(connect):
    with FakeServer(obeys) as server:
        backend = connect(server)
        answers = backend.answer([ask("a", schema=NAMES), ask("b", schema=NAMES)])
        assert [json.loads(answer.text) for answer in answers] == [{"verdict": "A"}] * 2
        # Two probes, of the chat and of the schema, then the two.
        assert (len(server.seen), len(server.asked)) == (4, 2)
        form = server.asked[-1].body["response_format"]
        assert form["type"] == "json_schema"
        assert form["json_schema"]["schema"] == json.loads(NAMES)


@pytest.mark.parametrize(
    "answer", [good, always(lambda seen: error(400, "response_format is not supported"))], ids=["ignores", "refuses"]
)
def test_schema_where_the_server_does_not_hold_to_it(connect, answer):
    with FakeServer(answer) as server:
        refusal = connect(server).answer([ask("a", schema=NAMES)])[0]
        assert isinstance(refusal, Refusal)
        assert refusal.unsupported


def refuses_lists(seen):
    """As Anthropic and older OpenAI models: a schema is taken, one with a list of a given length is an error."""
    if "minItems" in json.dumps(seen.body):
        return error(400, "Invalid schema for response_format: 'minItems' is not permitted")
    return obeys(seen)


def ignores_lists(seen):
    return chat(seen) if "minItems" in json.dumps(seen.body) else obeys(seen)


@pytest.mark.parametrize("answer", [obeys, refuses_lists, ignores_lists])
def test_schemas_with_lists_are_tried_by_themselves(connect, answer):
    with FakeServer(answer) as server:
        backend = connect(server)
        plain, *lists = backend.answer([ask("a", schema=NAMES), ask("b", schema=LISTS), ask("c", schema=LISTS)])
        assert json.loads(plain.text) == {"verdict": "A"}
        if answer is obeys:
            assert [json.loads(answer.text) for answer in lists] == [{"verdict": ["A", "A"]}] * 2
        else:
            assert all(isinstance(refusal, Refusal) and refusal.unsupported for refusal in lists)
            assert {seen.text for seen in server.asked} == {"a"}


@pytest.mark.parametrize(
    ("message", "unsupported", "too_long"),
    [
        ("Invalid schema for response_format: 'enum' is not permitted", True, False),
        ("This model's maximum context length is 8 tokens", False, True),
        ("The response was filtered due to the content management policy", False, False),
    ],
)
def test_a_schema_that_the_server_does_not_take_makes_way_for_another_form(connect, message, unsupported, too_long):
    """It took that of the probe. What has to do with the text would be refused in any form."""

    def answer(seen):
        return error(400, message) if "verdict" in json.dumps(seen.body) else obeys(seen)

    with FakeServer(answer) as server:
        refusal = connect(server).answer([ask("a", schema=NAMES)])[0]
        assert (refusal.unsupported, refusal.too_long) == (unsupported, too_long)
        assert message in refusal.reason
        assert len(server.asked) == 1


# Scoring


def refuse_prompt_logprobs(seen):
    if seen.path == "/v1/completions":
        return error(400, "prompt_logprobs: extra fields") if "prompt_logprobs" in seen.body else echo(seen)
    return chat(seen)


@pytest.mark.parametrize("answer", [good, refuse_prompt_logprobs], ids=["prompt_logprobs", "echo"])
def test_scores_are_those_of_the_completion(connect, answer):
    with FakeServer(answer) as server:
        backend = connect(server)
        result, empty = backend.answer([ScoreRequest((5, 6, 7), (8, 9)), ScoreRequest((5,), ())])
        assert isinstance(result, Score)
        assert result.token_logps == pytest.approx([logp(8), logp(9)])
        assert server.asked[-1].body["prompt"] == [5, 6, 7, 8, 9]
        assert isinstance(empty, Refusal)


def shifted(seen):
    reply = score(seen)
    entries = reply.json["choices"][0]["prompt_logprobs"]
    entries[1:] = [*entries[2:], entries[1]]
    return reply


def one_more(seen):
    reply = score(seen)
    reply.json["choices"][0]["prompt_logprobs"].insert(1, {"1": {"logprob": -1.0}})
    return reply


def one_missing(seen):
    reply = score(seen)
    reply.json["choices"][0]["prompt_logprobs"][3] = None
    return reply


def all_zero(seen):
    reply = score(seen)
    for entry in reply.json["choices"][0]["prompt_logprobs"][1:]:
        entry.update({token: {"logprob": 0.0} for token in entry})
    return reply


def generated_only(seen):
    """llama.cpp: log-probabilities of the generated token alone."""
    logprobs = {"tokens": ["token_id:7"], "token_logprobs": [-0.5]}
    return Reply(json={"choices": [{"text": "x", "finish_reason": "length", "logprobs": logprobs}]})


def echo_shifted(seen):
    reply = echo(seen)
    logprobs = reply.json["choices"][0]["logprobs"]
    logprobs["tokens"].insert(0, "token_id:1")
    logprobs["token_logprobs"].insert(0, None)
    return reply


def echo_of_texts(seen):
    reply = echo(seen)
    logprobs = reply.json["choices"][0]["logprobs"]
    logprobs["tokens"] = [f"word{i}" for i in range(len(logprobs["tokens"]))]
    return reply


@pytest.mark.parametrize(
    "wrong", [shifted, one_more, one_missing, all_zero, generated_only, echo_shifted, echo_of_texts, chat]
)
def test_a_server_that_scores_wrongly_is_found_out_and_not_asked(connect, wrong):
    def answer(seen):
        if seen.path != "/v1/completions":
            return chat(seen)
        if wrong is chat:
            return error(404, "no such route")
        by_echo = wrong in (generated_only, echo_shifted, echo_of_texts)
        return wrong(seen) if by_echo == ("echo" in seen.body) else error(400, "unknown field")

    with FakeServer(answer) as server:
        backend = connect(server)
        refusals = backend.answer([ScoreRequest((5, 6), (7,)), ScoreRequest((5, 6), (8,))])
        assert all(isinstance(r, Refusal) and r.unsupported for r in refusals)
        assert len(server.asked) == 2  # one probe each way, and no request


def test_scores_that_go_missing_later_are_asked_for_again(connect):
    """vLLM drops them when its cache reaches into the scored part."""
    with FakeServer() as server:
        backend = connect(server, concurrency=1)
        backend.answer([ScoreRequest((5, 6), (7, 8))])
        server.answer = lambda seen: one_missing(seen) if len(server.asked) == 3 else score(seen)
        assert backend.answer([ScoreRequest((5, 6), (7, 9))]) == [Score([logp(7), logp(9)])]
        assert len(server.asked) == 4


def test_a_language_model_on_a_server_is_no_encoder(connect):
    with FakeServer() as server:
        with pytest.raises(ValueError, match="pair_score"):
            connect(server).answer([PairScoreRequest(("a", "b"))])
        section = ModelSection(path="m", endpoint=EndpointSection(url=server.url))
        with pytest.raises(UsageError, match="language model"):
            open_backend(section, "reward", None)


# Who is refused at the start


def test_a_server_that_is_not_there_is_refused(connect):
    with FakeServer() as server:
        pass
    with pytest.raises(UsageError, match=r"(?s)/v1: cannot be reached.*fix: start the server"):
        connect(server)


def test_a_server_that_says_nothing_is_refused(connect):
    with FakeServer(models=Reply(delay=30)) as server, pytest.raises(UsageError, match="no answer within"):
        connect(server, timeout=0.2)


def test_a_wrong_or_missing_key_is_refused(connect, monkeypatch):
    with FakeServer(key="sk-right") as server:
        with pytest.raises(UsageError, match=r"(?s)refuses the key \(HTTP 401\).*endpoint.key_variable"):
            connect(server)
        monkeypatch.setenv("A_KEY", "sk-wrong-0123456789")
        with pytest.raises(UsageError, match=r"(?s)refuses the key.*environment variable A_KEY") as caught:
            connect(server, key_variable="A_KEY")
        assert "sk-wrong" not in str(caught.value)
        for value in ("", "sk with blanks", "sk-é"):
            monkeypatch.setenv("A_KEY", value)
            with pytest.raises(UsageError, match="A_KEY"):
                connect(server, key_variable="A_KEY")
        monkeypatch.setenv("A_KEY", "sk-right\n")
        connect(server, key_variable="A_KEY")


def test_a_model_that_is_not_served_is_refused(connect):
    def strict(seen):
        return chat(seen) if seen.body["model"] in server.models else error(404, "The model does not exist.")

    with FakeServer(strict, models=("big-model", "small-model")) as server:
        with pytest.raises(UsageError, match=r"does not serve big-modell; it serves big-model, small-model"):
            connect(server, "big-modell")
        connect(server, "big-model")


def test_a_server_of_one_model_is_not_asked_by_another_name(connect):
    """llama.cpp answers by any name, with the model that it has."""
    with FakeServer(models=("llama",)) as server, pytest.raises(UsageError, match="does not serve m; it serves llama"):
        connect(server)


@pytest.mark.parametrize("models", [(), Reply(404, {}), Reply(500, {}), Reply(raw="<html>"), ("a", "b")])
def test_a_list_that_says_little_is_no_reason_to_refuse(connect, models, caplog):
    with FakeServer(models=models) as server:
        assert isinstance(connect(server).answer([ask("a")])[0], Generation)
    assert ("does not list m" in caplog.text) == (models == ("a", "b"))


def test_a_server_that_does_not_chat_is_refused(connect):
    with FakeServer(lambda seen: error(400, "chat template is missing")) as server:
        said = r"does not answer a chat with m.*chat template is missing"
        with pytest.raises(UsageError, match=said):
            connect(server)
        server.answer = lambda seen: Reply(307, {}, headers={"Location": "/elsewhere"})
        with pytest.raises(PrefloopError, match="HTTP 307"):
            connect(server)


# Faults

STOPPED = {"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}]}


def shrunk(backend):
    return backend.endpoint.servers[0].limit.now < backend.endpoint.servers[0].limit.most


@pytest.mark.parametrize(
    "fault",
    [
        error(500, "oops"),
        error(503, "loading", Retry_After="0.01"),
        Reply(408, {}),
        Reply(cut=True),
        Reply(json={"choices": []}, torn=True),
        Reply(raw='{"choices": [{'),
        Reply(raw="<html>Bad gateway</html>"),
        Reply(json={"choices": []}),
        Reply(json={"error": {"message": "overloaded"}}),
        Reply(json=[1]),
        Reply(json={"choices": [{"message": None}]}),
        Reply(json={"choices": [{"message": {"content": "x"}, "finish_reason": None}]}),
        Reply(json={"choices": [{"message": {"content": "x"}, "finish_reason": ["stop"]}]}),
        Reply(json={**STOPPED, "usage": {"prompt_tokens": 1, "completion_tokens": [1]}}),
        Reply(json={**STOPPED, "usage": {"prompt_tokens": -1, "completion_tokens": 1}}),
        Reply(json={**STOPPED, "usage": {"prompt_tokens": 10**400}}),
        Reply(raw="[" * 100_000),
        Reply(500, raw='{"error":' * 100_000),
        Reply(raw='{"choices": [], "error": ' + "[" * 900 + "]" * 900 + "}"),
        Reply(delay=30),
    ],
    ids=lambda r: (
        "cut" if r.cut else "torn" if r.torn else f"{r.status}-{json.dumps(r.raw or r.json)[:24]}-{r.delay:.0f}"
    ),
)
def test_a_fault_is_tried_again_and_shrinks_nothing(connect, fault):
    with FakeServer(once(fault, fault)) as server:
        backend = connect(server, timeout=0.3, concurrency=4)
        assert backend.answer([ask("a")]) == [Generation("re: a", None, "stop", 10)]
        assert len(server.asked) == 3
        assert not shrunk(backend)


@pytest.mark.parametrize("wrong", [{"finish_reason": ["stop"]}, {"message": [1]}, {"finish_reason": {"a": 1}}])
def test_what_a_server_always_says_wrongly_is_a_clear_failure(connect, cache, wrong):
    reply = Reply(json={"choices": [{**STOPPED["choices"][0], **wrong}]})
    with FakeServer(lambda seen: reply if seen.text == "bad" else chat(seen)) as server:
        backend = CachedBackend(connect(server, retries=1), cache)
        with pytest.raises(PrefloopError, match="a call failed 2 times, at last with: an answer with"):
            backend.answer([ask("good"), ask("bad")])
        assert cache.ls()[0]["count"] == 1


ANY_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=9)
    | st.sampled_from(["stop", "A", 10**400]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
PROMPT = Seen(0, "/v1/completions", {"prompt": [5, 6, 7]}, {})
CHAT = Seen(
    0, "/v1/chat/completions", {"model": "m", "logprobs": True, "top_logprobs": 4, "messages": [{"content": "q"}]}, {}
)
READERS = {
    "generation": (lambda: chat(CHAT), wire.read_generation),
    "choice": (lambda: chat(CHAT), lambda data: wire.read_choice(data, AB)),
    "prompt_logprobs": (lambda: score(PROMPT), lambda data: wire.read_score(data, [5, 6, 7], 2, "prompt_logprobs")),
    "echo": (lambda: echo(PROMPT), lambda data: wire.read_score(data, [5, 6, 7], 2, "echo")),
    "tokens": (lambda: chat(CHAT), wire.tokens),
    "names": (lambda: Reply(json={"data": [{"id": "m"}]}), probe._names),
}


def _is_score(found):
    """Of the one id behind the prompt's two: a number that may be its log-probability."""
    return isinstance(found, Score) and len(found.token_logps) == 1 and found.total <= wire.TOO_LIKELY


def _is_choice(found):
    """Of every label, and all of them together no likelier than certain."""
    return isinstance(found, Withheld) or (len(found.logps) == len(AB) and found.label_mass <= 1 + wire.TOO_LIKELY)


# What each reader may make of JSON, besides `Malformed`.
SHAPES = {
    "generation": lambda found: isinstance(found, Withheld) or found.finish_reason in ("stop", "length"),
    "choice": _is_choice,
    "prompt_logprobs": _is_score,
    "echo": _is_score,
    "tokens": lambda found: found is None or (len(found) == 2 and min(found) >= 0),
    "names": lambda found: all(isinstance(name, str) for name in found),
}


def places(data, path=()):
    """The paths to all values in JSON."""
    yield path
    for key, value in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
        yield from places(value, (*path, key))


@pytest.mark.parametrize("reader", READERS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_json_is_read_or_malformed(reader, data):
    """A good answer with something else in any one place of it: a result, or `Malformed`, and no other error."""
    reply, read = READERS[reader]
    whole = {"": reply().json}
    *path, last = data.draw(st.sampled_from([("", *path) for path in places(whole[""])]))
    node = whole
    for key in path:
        node = node[key]
    node[last] = data.draw(ANY_JSON)
    try:
        found = read(whole[""])
    except wire.Malformed:
        return
    assert SHAPES[reader](found)


def test_a_choice_without_log_probabilities_is_tried_again(connect):
    with FakeServer(once(Reply(json={"choices": [{"message": {"content": "A"}, "finish_reason": "stop"}]}))) as server:
        assert isinstance(connect(server).answer([choose("q")])[0], Choice)
        assert len(server.asked) == 2


def test_a_call_that_fails_for_good_stops_the_run_after_all_that_was_answered_is_stored(connect, cache):
    def answer(seen):
        return error(500, "this one never works") if seen.text == "bad" else chat(seen)

    requests = [ask(f"q{i}") for i in range(20)]
    requests.insert(7, ask("bad"))
    with FakeServer(answer, latency=0.01) as server:
        backend = CachedBackend(connect(server, retries=2, concurrency=4), cache)
        with pytest.raises(PrefloopError, match=r"a call failed 3 times.*HTTP 500: this one never works") as caught:
            backend.answer(requests)
        assert caught.value.exit_code == 1
        assert server.url in str(caught.value)
        assert sum(seen.text == "bad" for seen in server.asked) == 3
        # Everything that the server answered is there, and is not asked again.
        assert backend.usage.computed == sum(server.answered.values()) > 7
        server.answer = good
        again = CachedBackend(connect(server), cache)
        assert [r.text for r in again.answer(requests)] == [f"re: {r.messages[0][1]}" for r in requests]
        assert again.usage.cached == backend.usage.computed
        assert set(server.answered.values()) == {1}


@pytest.mark.parametrize(
    ("status", "message", "too_long"),
    [
        (400, "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens.", True),
        (400, "The decoder prompt (length 9) is longer than the maximum model length of 8.", True),
        (400, "The input (9 tokens) is longer than the model's context length (8 tokens).", True),
        (400, "the request exceeds the available context size, try increasing it", True),
        (422, "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096", True),
        (400, "The input token count (9) exceeds the maximum number of tokens allowed (8).", True),
        (413, "too large", True),
        (400, "prompt is too long: 9 tokens > 8 maximum", True),
        (400, "Invalid value for 'temperature'", False),
        (400, "The response was filtered due to the content management policy", False),
    ],
)
def test_a_refused_request_is_a_refusal_of_it_alone(connect, cache, status, message, too_long):
    with FakeServer(once(error(status, message))) as server:
        backend = CachedBackend(connect(server, concurrency=1), cache)
        refusal, answer = backend.answer([ask("a"), ask("b")])
        assert isinstance(refusal, Refusal)
        assert refusal.too_long is too_long
        assert message in refusal.reason
        assert not refusal.unsupported
        assert isinstance(answer, Generation)
        assert (backend.usage.refused, backend.usage.computed, len(server.asked)) == (1, 1, 2)


@pytest.mark.parametrize(
    ("reply", "kind", "said"),
    [
        (error(401, "expired"), UsageError, "refuses the key"),
        (error(404, "gone"), UsageError, "does not know the model"),
        (error(402, "no credit"), PrefloopError, "used up"),
        (Reply(429, {"error": {"code": "insufficient_quota", "message": "no quota"}}), PrefloopError, "used up"),
        (error(429, "come tomorrow", Retry_After="86400"), PrefloopError, "left alone for 86400 s"),
    ],
)
def test_what_no_further_try_mends_stops_at_once(connect, reply, kind, said):
    with FakeServer(always(reply)) as server:
        backend = connect(server, concurrency=1)
        with pytest.raises(kind, match=f"(?s){said}"):
            backend.answer([ask("a"), ask("b")])
        assert len(server.asked) == 1


# 429


def test_a_burst_of_429_is_one_cut_and_loses_nothing(connect):
    busy = error(429, "slow down")
    with FakeServer(once(*[busy] * 8), latency=0.02) as server:
        backend = connect(server, concurrency=8)
        limits = []
        full = backend.endpoint.servers[0].limit.full

        def noted(*args):
            full(*args)
            limits.append(backend.endpoint.servers[0].limit.now)

        backend.endpoint.servers[0].limit.full = noted
        assert len(backend.answer([ask(f"q{i}") for i in range(40)])) == 40
        assert limits == [6.0] * 8
        assert set(server.answered.values()) == {1}
        assert len(server.asked) == 48


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_honoured_by_all_calls(connect, form):
    times = []

    def answer(seen):
        times.append(time.time())
        if seen.probes or len(times) > 2:
            return chat(seen)
        after = "0.5" if form == "seconds" else formatdate(time.time() + 2, usegmt=True)
        return error(429, "slow down", Retry_After=after)

    with FakeServer(answer) as server:
        backend = connect(server, concurrency=2)
        backend.answer([ask(f"q{i}") for i in range(6)])
    # The date has whole seconds: two ahead are more than one. Others may be under way when the first 429 comes.
    assert sum(t - times[1] < (0.45 if form == "seconds" else 0.9) for t in times[1:]) <= 2


def test_a_full_server_that_answers_others_is_waited_for(connect):
    """It takes two at a time and answers 429 to more: one call may meet that more often than `retries` allows."""

    def answer(seen):
        return error(429, "slow down") if server.in_flight > 2 else chat(seen)

    with FakeServer(answer, latency=0.005) as server:
        backend = connect(server, concurrency=32, retries=1)
        assert len(backend.answer([ask(f"q{i}") for i in range(60)])) == 60
        assert set(server.answered.values()) == {1}


def test_a_server_that_stays_full_is_given_up(connect):
    with FakeServer(always(error(429, "slow down"))) as server:
        with pytest.raises(PrefloopError, match=r"HTTP 429: slow down"):
            connect(server, retries=2).answer([ask("a")])
        assert len(server.asked) == 4  # the first, which may be chance, and three in a row without an answer


# Many calls


SERVE = """
import sys
from tests.backends.fake_server import FakeServer
with FakeServer(latency=float(sys.argv[1])) as server:
    print(server.port, flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("latency", [0.2, pytest.param(0.05, marks=pytest.mark.slow)])
def test_a_thousand_calls_take_a_twentieth_of_the_time_one_by_one(connect, tmp_path, latency):
    """One by one they take a thousand latencies at least. The server is a process of its own, as servers are. A call
    needs a millisecond of a processor here: of 50 ms that is a lot on a machine that is busy with other things, so the
    best of five counts."""
    command = [sys.executable, "-c", SERVE, str(latency)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as work:
        server = FakeServer()
        server.port = int(work.stdout.readline())
        shares = []
        for attempt in range(5):
            with Cache(tmp_path / f"{attempt}.db") as cache:
                backend = CachedBackend(connect(server, concurrency=128), cache)
                started = time.monotonic()
                assert len(backend.answer([choose(f"q{i}") for i in range(1000)])) == 1000
                shares.append((time.monotonic() - started) / (1000 * latency))
                assert cache.ls()[0]["count"] == 1000
            if shares[-1] <= 1 / 20:
                break
        work.stdin.close()
    assert min(shares) <= 1 / 20, shares


def test_no_more_calls_at_one_time_than_allowed(connect):
    with FakeServer(latency=0.01) as server:
        connect(server, concurrency=3).answer([ask(f"q{i}") for i in range(30)])
        assert server.most_in_flight == 3


def test_with_one_fault_in_twenty_nothing_is_lost_and_nothing_answered_is_asked_again(connect, cache):
    rng = random.Random(0)
    faults = Counter()

    def answer(seen):
        if seen.probes or rng.random() >= 0.05:
            return good(seen)
        kind = rng.choice(["429", "500", "cut", "torn", "malformed", "empty"])
        faults[kind] += 1
        return {
            "429": error(429, "slow down", Retry_After="0.01"),
            "500": error(500, "oops"),
            "cut": Reply(cut=True),
            "torn": Reply(json=chat(seen).json, torn=True),
            "malformed": Reply(raw="{"),
            "empty": Reply(json={"choices": []}, raw='{"choices": []}'),
        }[kind]

    requests = [ask(f"q{i}") for i in range(1000)]
    with FakeServer(answer) as server:
        progress = []
        backend = CachedBackend(connect(server), cache, on_batch=progress.append)
        results = backend.answer(requests)
        assert [r.text for r in results] == [f"re: q{i}" for i in range(1000)]
        assert server.answered == Counter({f"q{i}": 1 for i in range(1000)})
        assert len(server.asked) == 1000 + faults.total()
    assert len(faults) == 6
    assert 25 <= faults.total() <= 90
    usage = backend.usage
    assert (usage.asked, usage.computed, usage.cached, usage.refused, usage.detail) == (1000, 1000, 0, 0, {})
    assert sum(group["count"] for group in cache.ls()) == 1000
    assert progress == sorted(set(progress))
    assert progress[-1] == 1000
    assert len(progress) > 50


WORK = """
import sys
from prefloop.backends.base import GenerateRequest, Sampling
from prefloop.backends.cached import CachedBackend
from prefloop.backends.http import HttpBackend
from prefloop.config import EndpointSection, ModelSection
from prefloop.store.cache import Cache
url, path = sys.argv[1:]
with Cache(path) as cache:
    section = ModelSection(path="m", endpoint=EndpointSection(url=url, concurrency=8))
    requests = [GenerateRequest((("user", f"q{i}"),), Sampling(max_new_tokens=16)) for i in range(300)]
    CachedBackend(HttpBackend(section), cache).answer(requests)
"""


def test_killed_and_restarted_only_unanswered_calls_are_made(connect, tmp_path):
    path = tmp_path / "cache.db"
    requests = [ask(f"q{i}") for i in range(300)]
    with FakeServer(latency=0.02) as server:
        work = subprocess.Popen([sys.executable, "-c", WORK, server.url, str(path)])
        deadline = time.monotonic() + 60
        while server.answered.total() < 100 and time.monotonic() < deadline:
            time.sleep(0.005)
        work.send_signal(signal.SIGKILL)
        work.wait()
        time.sleep(0.1)  # what was under way is answered into the void
        before = Counter(server.answered)
        with Cache(path) as cache:
            stored = cache.ls()[0]["count"]
            # The last answers may have been on the wire, or just in and not stored: a few times the calls at one time.
            assert stored <= before.total() <= stored + 4 * 8 < 300
            backend = CachedBackend(connect(server, concurrency=8), cache)
            results = backend.answer(requests)
            assert (backend.usage.cached, backend.usage.computed) == (stored, 300 - stored)
        assert [r.text for r in results] == [f"re: q{i}" for i in range(300)]
        assert (server.answered - before).total() == 300 - stored


# The cache


def test_identity_holds_what_changes_answers_alone(connect):
    with FakeServer() as server, FakeServer() as other:
        first = connect(server).identity
        assert connect(other, concurrency=2, timeout=9, retries=1, price_input=1).identity == first
        assert connect(server, extra_body={"reasoning_effort": "low"}).identity != first
        assert server.url not in json.dumps(first)
    with FakeServer(models=("n",)) as third:
        assert connect(third, "n").identity != first


def test_the_exact_text_of_every_call_is_in_the_cache(connect, cache):
    answer = ask('A "quoted" question\n\ud800 é')
    with FakeServer() as server:
        CachedBackend(connect(server), cache).answer([answer, choose("q")])
        sent = {json.dumps(seen.body) for seen in server.asked}
    entries = cache.show(limit=9)
    assert {json.dumps(entry["call"]["request"]) for entry in entries} == sent
    for entry in entries:
        assert entry["call"]["path"] == "/chat/completions"
        message = json.loads(entry["call"]["response"])["choices"][0]["message"]["content"]
        assert message == "re: " + entry["call"]["request"]["messages"][-1]["content"]
    found = cache.show(entries[0]["key"][:12])
    assert found == entries[:1]
    assert cache.show("0" * 64) == []
    assert [e["kind"] for e in cache.show(kind="choose", limit=9)] == ["choose"]


def test_results_are_stored_as_they_arrive(connect, cache):
    """While one call is under way the answers of the others are in the cache already."""
    with FakeServer(
        lambda seen: (
            Reply(delay=1.0, json=chat(seen).json) if "slow" in seen.body["messages"][0]["content"] else chat(seen)
        )
    ) as server:
        counts = []
        backend = CachedBackend(
            connect(server), cache, on_batch=lambda done: counts.append((done, cache.ls()[0]["count"]))
        )
        backend.answer([ask("slow"), *(ask(f"q{i}") for i in range(5))])
    assert counts[-1] == (6, 6)
    assert (5, 5) in counts


# Cost


def test_usage_and_cost_are_counted(connect):
    with FakeServer() as server:
        backend = connect(server, price_input=2.0, price_output=10.0)
        backend.spent()
        backend.answer([ask("a"), ask("b")])
        assert backend.spent() == {"prompt_tokens": 20, "generated_tokens": 10, "cost": pytest.approx(140e-6)}
        assert backend.spent() == {"prompt_tokens": 0, "generated_tokens": 0, "cost": 0.0}
        unpriced = connect(server)
        assert set(unpriced.spent()) == {"prompt_tokens", "generated_tokens"}


def test_a_limit_of_cost_stops_the_run_before_it_is_exceeded(connect, cache):
    """Each call costs 10 prompt and 16 generated tokens, at a price of 1 a token: 26."""
    requests = [ask(f"q{i}") for i in range(50)]
    prices = {"price_input": 1e6, "price_output": 1e6}
    with FakeServer(lambda seen: chat(seen, tokens=(10, 16))) as server:
        limited = connect(server, **prices, max_cost=1000)
        backend = CachedBackend(limited, cache)
        with pytest.raises(PrefloopError, match=r"(?s)max_cost=1000.*not paid twice") as caught:
            backend.answer(requests)
        assert caught.value.exit_code == 1
        cost = limited.endpoint.spending.cost
        assert cost == 26 * len(server.seen)
        # A further call is bounded by its bytes, not known before: it might have cost a few hundred.
        assert 500 <= cost <= 1000
        assert backend.usage.computed == len(server.asked) == sum(server.answered.values())
        # Started again with what was paid before: nothing more is asked.
        again = connect(server, **prices, max_cost=1000)
        again.earlier_cost = cost
        with pytest.raises(PrefloopError, match=f"{cost:.6g} before"):
            CachedBackend(again, cache).answer(requests)
        free = CachedBackend(connect(server), cache)
        assert len(free.answer(requests)) == 50
        assert set(server.answered.values()) == {1}


def test_a_limit_of_cost_needs_prices_and_a_server_that_counts(connect):
    with pytest.raises(ValidationError, match="max_cost needs price_input and price_output"):
        EndpointSection(url="http://x/v1", max_cost=1)

    def uncounted(seen):
        reply = chat(seen)
        del reply.json["usage"]
        return reply

    with FakeServer(uncounted) as server:
        assert connect(server).answer([ask("a")]) == [Generation("re: a", None, "stop", 0)]
        with pytest.raises(UsageError, match="does not count its tokens"):
            connect(server, price_input=1, price_output=1, max_cost=1)


def test_what_was_of_no_use_is_counted_where_the_server_counted_it(connect):
    """Three answers are billed for one that can be read: malformed, an error with usage, and the good one."""
    billed = {"usage": {"prompt_tokens": 100, "completion_tokens": 20}}
    replies = [
        Reply(json={"choices": [], **billed}),
        Reply(json={"choices": [{"message": {}, "finish_reason": "error"}], **billed}),
        Reply(500, {"error": {"message": "oops"}, **billed}),
        Reply(json={"choices": [], "usage": {"prompt_tokens": "many"}}),
    ]
    with FakeServer(once(*replies)) as server:
        backend = connect(server)
        backend.spent()
        backend.answer([ask("a")])
        assert backend.spent() == {"prompt_tokens": 310, "generated_tokens": 65}
    with FakeServer(always(Reply(400, {"error": {"message": "no"}, **billed}))) as server:
        backend = connect(server)
        backend.spent()
        assert isinstance(backend.answer([ask("a")])[0], Refusal)
        assert backend.spent()["prompt_tokens"] == 100


def test_a_server_that_bills_answers_of_no_use_meets_the_limit(connect):
    wrong = Reply(json={"choices": [], "usage": {"prompt_tokens": 100, "completion_tokens": 16}})
    with FakeServer(always(wrong)) as server:
        backend = connect(server, price_input=1e6, price_output=1e6, max_cost=2000, retries=1000)
        with pytest.raises(PrefloopError, match="max_cost=2000"):
            backend.answer([ask("a")])
        assert backend.endpoint.spending.cost == 15 + 116 * len(server.asked)
        assert 1000 < backend.endpoint.spending.cost <= 2000


def test_an_answer_that_is_not_counted_is_charged_its_bound_where_there_is_a_limit(connect):
    def uncounted(seen):
        reply = chat(seen)
        if not seen.probes:
            del reply.json["usage"]
        return reply

    with FakeServer(uncounted) as server:
        limited, free = connect(server, price_input=1, price_output=1, max_cost=1), connect(server)
        for backend in (limited, free):
            backend.spent()
            backend.answer([ask("a")])
        assert limited.spent()["generated_tokens"] == 16
        assert free.spent()["generated_tokens"] == 0


def test_the_probe_of_schemas_is_held_to_the_limit_too(connect):
    with FakeServer(obeys) as server:
        backend = connect(server, price_input=1e6, price_output=1e6, max_cost=1000)
        backend.earlier_cost = 900
        with pytest.raises(PrefloopError, match="900 before"):
            backend.answer([ask("a", schema=NAMES)])
        assert server.asked == []


def test_what_was_spent_can_be_asked_while_calls_are_under_way(connect):
    """As the loop does every second; nothing is lost or told twice between two threads."""
    with FakeServer() as server:
        backend = connect(server)
        told = []
        for _ in backend.arrivals([ask(f"q{i}") for i in range(200)]):
            told.append(backend.spent())
        told.append(backend.spent())
        assert len(told) > 5
        assert sum(t["prompt_tokens"] for t in told) == 10 * len(server.seen)
        assert sum(t["generated_tokens"] for t in told) == 5 * len(server.seen)


def test_calls_that_are_broken_off_hold_back_nothing_of_the_limit(connect):
    slow = always(lambda seen: Reply(json=chat(seen).json, delay=0.0 if seen.text == "q0" else 30.0))
    with FakeServer(slow) as server:
        backend = connect(server, price_input=1, price_output=1, max_cost=1)
        arrivals = backend.arrivals([ask(f"q{i}") for i in range(9)])
        next(arrivals)
        assert backend.endpoint.spending.reserved > 1e-6
        arrivals.close()
        deadline = time.monotonic() + 10
        while backend.endpoint.spending.reserved > 1e-9 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert backend.endpoint.spending.reserved == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("n", 8), ("best_of", 4), ("stream", True), ("max_tokens", None), ("max_completion_tokens", 9), ("seed", 1)),
        *(("model", "x"), ("messages", []), ("response_format", {}), ("logprobs", True), ("top_logprobs", 2)),
    ],
)
def test_extra_fields_leave_the_request_as_it_is(field, value):
    with pytest.raises(ValidationError, match=f"cannot set {field}: "):
        EndpointSection(url="http://x/v1", extra_body={field: value, "reasoning_effort": "low"})
    assert EndpointSection(url="http://x/v1", extra_body={"seed": None, "top_k": None}).extra_body


# Keys


@pytest.mark.parametrize(
    "url",
    [
        *("http://localhost:8000/v1", "http://127.0.0.1/v1", "http://[::1]:8000/v1", "http://10.1.2.3/v1"),
        *("http://192.168.0.9:8000/v1", "http://gpu1:8000/v1", "http://gpu1.local/v1", "https://api.example.com/v1"),
    ],
)
def test_a_key_goes_over_plain_http_in_private_networks_only(url):
    section = EndpointSection(url=url, key_variable="A_KEY")
    assert (section.urls, section.key_variable) == ((url,), "A_KEY")


@pytest.mark.parametrize(
    "host", ["api.example.com", "8.8.8.8", "134744072", "0x08080808", "[2606:4700::1111]", "local.com"]
)
def test_a_key_does_not_leave_unencrypted(host):
    with pytest.raises(ValidationError, match=r"(?s)A_KEY unencrypted to .*https://"):
        EndpointSection(url=f"http://{host}/v1", key_variable="A_KEY")
    assert EndpointSection(url=f"http://{host}/v1").key_variable is None


def test_a_dummy_key_changes_no_answer(connect, cache, monkeypatch):
    monkeypatch.setenv("A_KEY", "test")
    with FakeServer(lambda seen: chat(seen, "the latest test"), key="test") as server:
        backend = CachedBackend(connect(server, key_variable="A_KEY"), cache)
        assert backend.answer([ask("a")])[0].text == "the latest test"
        assert "the latest test" in cache.show()[0]["call"]["response"]


@pytest.mark.parametrize("url", ["localhost:8000/v1", "ftp://x/v1", "http://me:secret@x/v1", "http://x/v1?key=secret"])
def test_an_address_is_an_address_and_holds_no_key(url):
    with pytest.raises(ValidationError, match="address"):
        EndpointSection(url=url)


@pytest.mark.parametrize("setting", [{"template": "plain"}, {"dtype": "float32"}, {"device": "cpu"}])
def test_what_the_server_decides_is_not_set_here(setting):
    endpoint = EndpointSection(url="http://x/v1")
    with pytest.raises(ValidationError, match="exclude each other"):
        ModelSection(path="m", endpoint=endpoint, **setting)
    again = ModelSection(path="m", endpoint=endpoint).model_dump()
    assert ModelSection.model_validate(again).endpoint == endpoint


def test_the_key_is_nowhere(connect, tmp_path, monkeypatch, caplog, capfd):
    key = "sk-0123456789abcdef"
    monkeypatch.setenv("A_KEY", key)
    caplog.set_level(logging.DEBUG)

    def tells(seen):
        if seen.probes or seen.text == "good":
            reply = chat(seen)
            reply.json["debug"] = f"you sent {seen.headers['authorization']}"
            return reply
        return {
            "fault": error(500, f"cannot serve Bearer {key}"),
            "malformed": Reply(raw=f"<{'x' * 70}{key}>"),  # what is shown of it ends within the key
            "refused": error(400, f"no {key} here"),
            "finish": chat(seen, finish=key),
        }[seen.text]

    path = tmp_path / "cache.db"
    told = []
    with FakeServer(tells, key=key) as server, Cache(path) as cache:
        inner = connect(server, key_variable="A_KEY", retries=1)
        backend = CachedBackend(inner, cache)
        assert backend.answer([ask("good")]) == backend.answer([ask("good")])
        told.append(backend.answer([ask("refused")])[0].reason)
        for text in ("fault", "malformed", "finish"):
            with pytest.raises(PrefloopError) as caught:
                backend.answer([ask(text)])
            told.append(str(caught.value))
        held = (
            inner,
            inner.endpoint,
            inner.identity,
            inner.dialect,
            [s.client for s in inner.endpoint.servers],
            cache.show(limit=99),
        )
        told += [repr(thing) for thing in held]
    rows = sqlite3.connect(path).execute("SELECT value, call FROM entries").fetchall()
    stored = b"".join(zlib.decompress(blob) for row in rows for blob in row)
    assert b"you sent Bearer [key]" in stored
    captured = capfd.readouterr()
    assert len(told) == 10
    for text in (*told, stored.decode(), caplog.text, captured.out, captured.err):
        assert key[:8] not in text
    assert all(key.encode() not in file.read_bytes() for file in tmp_path.iterdir())


# Around it


def test_no_network_code_is_loaded_by_planning():
    code = (
        "import sys, prefloop.config, prefloop.signals.build, prefloop.backends.base, prefloop.backends.cached; "
        "assert not {'httpx', 'httpx2', 'torch', 'asyncio'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ})


def test_the_cache_shows_calls_on_the_command_line(tmp_path, connect):
    path = tmp_path / "cache.db"
    with FakeServer() as server, Cache(path) as cache:
        CachedBackend(connect(server), cache).answer([ask("What is [b] 2?")])
        key = cache.show()[0]["key"]
    run = [sys.executable, "-m", "prefloop", "cache", "show"]
    env = {**os.environ, "PREFLOOP_CACHE": str(path)}
    shown = subprocess.run([*run, key[:8], "--json"], env=env, capture_output=True, text=True, check=True)
    assert "What is [b] 2?" in shown.stderr
    assert json.loads(shown.stdout)["entries"][0]["call"]["request"]["model"] == "m"
    missing = subprocess.run([*run, "f" * 64], env=env, capture_output=True, text=True)
    assert missing.returncode == 2
    assert "no such entry" in missing.stderr
