"""A run whose judge is on a server: what it costs is told, its limit holds over restarts, its key is in no file."""

import math

import pytest
from tests.backends.fake_server import FakeServer, chat
from tests.loop.conftest import make_project

from prefloop.errors import PrefloopError
from prefloop.loop import bench
from prefloop.loop.manifest import paid
from prefloop.store.rundir import RunDir
from prefloop.ui.summary import headline

KEY = "sk-0123456789abcdef"


def rates(seen):
    """Some number from 1 to 5, with little doubt."""
    reply = chat(seen, tokens=(300, 1))
    if seen.body.get("logprobs"):
        sure = str(1 + len(seen.text) % 5)
        top = [{"token": t, "logprob": math.log(0.9 if t == sure else 0.02)} for t in "12345"]
        reply.json["choices"][0]["logprobs"] = {"content": [{"token": sure, "logprob": -0.1, "top_logprobs": top}]}
    return reply


def test_cost_is_told_and_its_limit_holds_over_restarts(tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with FakeServer(rates, key=KEY) as server:
        # A call costs 0.301; before it is made it may cost a few times that, for all that is known.
        endpoint = {"url": server.url, "price_input": 1000, "price_output": 1000, "key_variable": "JUDGE_KEY"}
        project = make_project(tmp_path, rate={"type": "judge", "model": {"path": "m", "endpoint": endpoint}})

        def rate(most):
            return project.run_here(f"rate.model.endpoint.max_cost={most}", until="rate")

        with pytest.raises(PrefloopError, match=r"max_cost=0\.5"):
            rate(0.5)
        assert server.asked == []
        with pytest.raises(PrefloopError, match="before"):
            rate(10)
        asked = len(server.asked)
        assert 0 < asked < 72
        assert 0.301 * len(server.seen) <= 10
        summary = rate(100)
        assert asked < len(server.asked) <= 72
        assert set(server.answered.values()) == {1}
    # The probes' calls are paid too.
    assert summary["cost"] == {"m": pytest.approx(0.301 * len(server.seen))}
    assert summary["tokens"] == {"m": {"prompt": 300 * len(server.seen), "generated": len(server.seen)}}
    assert any(line.startswith("paid for calls of servers:") for line in headline(summary))
    events = list(RunDir.peek(project.run_dir).events())
    usage = [e for e in events if e["kind"] == "usage" and e["model"] == "m"]
    assert sum(e["prompt_tokens"] for e in usage) == 300 * len(server.seen)
    assert sum(e.get("computed", 0) for e in usage) == len(server.asked)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 5
    assert not any(KEY.encode() in path.read_bytes() for path in written)


def test_cost_is_noted_while_a_stage_runs(tmp_path, monkeypatch):
    """A process that is killed writes nothing more, so the limit of the next one rests on what was noted before."""
    monkeypatch.setattr(bench, "NOTE_EVERY", 0.0)
    noted = []

    def answer(seen):
        noted.append(paid(RunDir.peek(project.run_dir)).get("m", 0.0))
        return rates(seen)

    with FakeServer(answer) as server:
        endpoint = {"url": server.url, "price_input": 1000, "price_output": 1000, "concurrency": 1}
        project = make_project(tmp_path, rate={"type": "judge", "model": {"path": "m", "endpoint": endpoint}})
        project.run_here(until="rate")
        asked = len(server.seen)
    assert asked > 20
    # Of the calls before it, each one knew all but a few: one is under way, and one answer may wait to be stored.
    behind = [round(number - cost / 0.301) for number, cost in enumerate(noted)]
    assert sorted(behind)[asked // 2] <= 3
    assert paid(RunDir.peek(project.run_dir))["m"] == pytest.approx(0.301 * asked)
