"""Several servers of one model: the rows of one, whichever answers; what one cannot do, another does."""

import logging
import time

import pytest
from pydantic import ValidationError
from tests.backends.fake_server import FakeServer, Reply, chat, echo, error, good

from prefloop.backends import throttle
from prefloop.backends.base import ChooseRequest, GenerateRequest, Refusal, Sampling, ScoreRequest
from prefloop.backends.cached import CachedBackend
from prefloop.backends.http import HttpBackend
from prefloop.config import EndpointSection, ModelSection
from prefloop.errors import PrefloopError, UsageError
from prefloop.store.cache import Cache

SOME = Sampling(max_new_tokens=16, seed=5)
NOWHERE = "http://127.0.0.1:9/v1"
SCHEMA = '{"type": "object", "properties": {"verdict": {"enum": ["A", "B"]}}, "required": ["verdict"]}'


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(throttle, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(throttle, "LONGEST_WAIT", 0.05)


@pytest.fixture
def connect():
    """Backends of several servers, closed in the end."""
    opened = []

    def backend(*servers, **endpoint):
        urls = [server if isinstance(server, str) else server.url for server in servers]
        section = EndpointSection(url=urls if len(urls) > 1 else urls[0], **endpoint)
        opened.append(HttpBackend(ModelSection(path="m", endpoint=section)))
        return opened[-1]

    yield backend
    for made in opened:
        made.close()


def ask(text, index=0, schema=None):
    return GenerateRequest((("user", text),), SOME, index, schema)


def seeded(seen):
    """What a model would say: it goes by the message and the seed alone."""
    if seen.path != "/v1/chat/completions" or seen.probes:
        return good(seen)
    return chat(seen, f"{seen.text} {seen.body['seed']}")


def slow(seen):
    reply = seeded(seen)
    reply.delay = 0.005
    return reply


def test_calls_are_shared_out_and_rows_are_those_of_one_server(connect, tmp_path):
    requests = [ask(f"q{i}", k) for i in range(60) for k in range(2)]
    requests += [ChooseRequest((("user", f"c{i}"),), ("A", "B")) for i in range(40)]
    requests += [ScoreRequest((5, 6), (7, i)) for i in range(40)]
    with FakeServer(seeded) as alone, FakeServer(slow) as first, FakeServer(slow) as second:
        expected = connect(alone).answer(requests)
        with Cache(tmp_path / "cache.db") as cache:
            backend = CachedBackend(connect(first, second), cache)
            assert backend.identity == connect(alone).identity
            assert backend.answer(requests) == expected
            # The address is in no key.
            assert CachedBackend(connect(alone), cache).answer(requests) == expected
        made = [server.asked for server in (first, second)]
    # Beside the probes of scoring: every call once, and neither server has far more of them.
    assert sum(map(len, made)) == len(requests) + 2
    assert min(map(len, made)) > 0.3 * len(requests)
    assert len({str(seen.body) for calls in made for seen in calls}) == len(requests) + 1


def test_a_server_that_dies_is_replaced_by_the_others(connect):
    """Every call is answered; the dead one is asked now and then whether it is back, not with every call."""
    requests = [ask(f"q{i}") for i in range(300)]

    def dies(seen):
        return slow(seen) if seen.number < 30 else Reply(cut=True)

    with FakeServer(seeded) as alone, FakeServer(dies) as first, FakeServer(slow) as second:
        expected = connect(alone).answer(requests)
        assert connect(first, second, retries=2).answer(requests) == expected
        assert first.answered.keys() | second.answered.keys() == {f"q{i}" for i in range(300)}
        assert 0 < len(first.asked) < 150
        assert len(second.asked) > 200


def test_a_server_that_comes_back_is_asked_again(connect):
    def comes_back(seen):
        return Reply(503) if 5 <= seen.number < 10 else slow(seen)

    with FakeServer(comes_back) as first, FakeServer(slow) as second:
        connect(first, second, retries=9).answer([ask(f"q{i}") for i in range(300)])
        assert sum(first.answered.values()) > 60


def test_a_full_server_leaves_its_calls_to_the_others(connect):
    with (
        FakeServer(lambda seen: seeded(seen) if seen.probes else error(429, "slow down")) as full,
        FakeServer(slow) as free,
    ):
        backend = connect(full, free, retries=2)
        answers = backend.answer([ask(f"q{i}") for i in range(100)])
        assert not any(isinstance(answer, Refusal) for answer in answers)
        assert sum(free.answered.values()) == 100
        assert backend.endpoint.servers[0].limit.now < 8


def test_a_long_retry_after_stops_nothing_where_another_server_answers(connect):
    busy = lambda seen: seeded(seen) if seen.probes else error(429, "come back", Retry_After="3600")  # noqa: E731
    with FakeServer(busy) as first, FakeServer(slow) as second:
        started = time.monotonic()
        assert len(connect(first, second).answer([ask(f"q{i}") for i in range(50)])) == 50
        assert time.monotonic() - started < 60
    with FakeServer(busy) as first, pytest.raises(PrefloopError, match="left alone for 3600 s"):
        connect(first).answer([ask("q")])


def test_when_all_fail_it_is_said_as_of_one(connect, tmp_path):
    fails = lambda seen: seeded(seen) if seen.probes or seen.text < "q20" else Reply(500)  # noqa: E731
    requests = [ask(f"q{i}") for i in range(10, 30)]
    with FakeServer(fails) as first, FakeServer(fails) as second, Cache(tmp_path / "cache.db") as cache:
        backend = CachedBackend(connect(first, second, retries=3), cache)
        with pytest.raises(PrefloopError, match="a call failed 4 times"):
            backend.answer(requests)
        # What was answered by either is stored.
        assert backend.usage.computed == sum(first.answered.values()) + sum(second.answered.values()) > 0


def test_a_server_that_is_not_there_is_left_out(connect, caplog):
    with FakeServer(seeded) as server, caplog.at_level(logging.WARNING):
        assert len(connect(NOWHERE, server).answer([ask("q")])) == 1
        assert "127.0.0.1:9/v1: cannot be reached" in caplog.text
    with pytest.raises(UsageError, match="cannot be reached"):
        connect(NOWHERE, "http://127.0.0.1:10/v1")


def test_a_server_that_is_gone_before_scores_are_asked_is_left_out(connect, caplog):
    """Whether scores can be had is tried when the first is asked for."""
    with FakeServer() as stays:
        with FakeServer() as goes:
            backend = connect(goes, stays, retries=1)
        with caplog.at_level(logging.WARNING):
            (score,) = backend.answer([ScoreRequest((5, 6), (7, 8))])
        assert not isinstance(score, Refusal)
        assert goes.url in caplog.text
        assert len(backend.endpoint.servers) == 1


def test_servers_that_answer_differently_are_refused(connect):
    def five(seen):
        return error(400, "top_logprobs") if seen.body.get("top_logprobs", 0) > 5 else good(seen)

    with FakeServer() as twenty, FakeServer(five) as other, pytest.raises(UsageError, match="do not run it alike"):
        connect(twenty, other)
    with FakeServer(models=["other", "another"]) as other, FakeServer() as server:
        other.answer = lambda seen: error(404, "no such model")
        with pytest.raises(UsageError, match="does not serve m"):
            connect(server, other)


def test_what_one_server_cannot_do_is_asked_of_none(connect):
    def by_echo(seen):
        return error(400, "no prompt_logprobs") if "prompt_logprobs" in seen.body else echo(seen)

    def unlike(seen):
        return by_echo(seen) if seen.path == "/v1/completions" else good(seen)

    with FakeServer() as server, FakeServer(unlike) as other:
        (refusal,) = connect(server, other).answer([ScoreRequest((5, 6), (7, 8))])
        assert isinstance(refusal, Refusal)
        assert "different ways" in refusal.reason

    def obeys(seen):
        return chat(seen, '{"word": "teal-17"}') if "response_format" in seen.body else good(seen)

    with FakeServer(obeys) as server, FakeServer() as other:
        assert not isinstance(connect(server).answer([ask("q", schema=SCHEMA)])[0], Refusal)
        (refusal,) = connect(server, other).answer([ask("q", schema=SCHEMA)])
        assert refusal.unsupported


def test_the_limit_of_cost_is_of_all_servers_together(connect):
    prices = {"price_input": 1_000_000, "price_output": 1_000_000, "max_cost": 3000}
    with FakeServer() as first, FakeServer() as second:
        backend = connect(first, second, **prices)
        with pytest.raises(PrefloopError, match="max_cost=3000"):
            backend.answer([ask(f"q{i}") for i in range(400)])
        assert backend.endpoint.spending.cost == 15 * (len(first.seen) + len(second.seen)) <= 3000
        spent = backend.spent()
        assert spent["cost"] == backend.endpoint.spending.cost


@pytest.mark.parametrize(
    ("endpoint", "said"),
    [
        ({"url": []}, "each once"),
        ({"url": ["http://a/v1", "http://a/v1/"]}, "each once"),
        ({"url": ["http://a/v1", "b"]}, "must be an address"),
        ({"url": ["https://a.org/v1", "http://b.org/v1"], "key_variable": "KEY"}, "unencrypted to b.org"),
    ],
)
def test_a_list_of_addresses_is_one(endpoint, said):
    with pytest.raises(ValidationError, match=said):
        EndpointSection.model_validate(endpoint)


def test_one_address_or_several():
    assert EndpointSection(url="http://a/v1/").urls == ("http://a/v1",)
    assert EndpointSection(url=["http://a/v1", "http://b/v1/"]).urls == ("http://a/v1", "http://b/v1")
