"""Several workers give the rows of one, to the bit; what ends one of them is said, and none is left behind."""

import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.tiny_models import tiny_model_folder
from tests.tiny_rewards import make_tiny_reward

from prefloop.backends.base import (
    AnswerScoreRequest,
    Choice,
    ChooseRequest,
    GenerateRequest,
    Generation,
    Logits,
    PairScoreRequest,
    Refusal,
    RewardRequest,
    Sampling,
    Score,
    ScoreRequest,
    Withheld,
)
from prefloop.backends.cached import CachedBackend
from prefloop.backends.pool import PoolBackend
from prefloop.backends.worker import read_requests, read_results, write_requests, write_results
from prefloop.config import ModelSection
from prefloop.errors import PrefloopError, UsageError
from prefloop.signals.build import open_backend
from prefloop.signals.worker import _device
from prefloop.store.cache import Cache

ROOT = Path(__file__).parents[2]
SOME = Sampling(max_new_tokens=6, temperature=0.9, top_p=0.9, seed=3)


@pytest.fixture(autouse=True)
def _alike(monkeypatch):
    """Workers find the tests' modules, and have as many threads as this process: rounding depends on them."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), str(ROOT)]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def pool():
    """Pools of scripted workers, closed in the end."""
    opened = []

    def make(workers=2, batch_size=2, **opening):
        opened.append(
            PoolBackend("tests.backends.scripted_worker", opening, workers, name="scripted", batch_size=batch_size)
        )
        return opened[-1]

    yield make
    for made in opened:
        made.close()


@pytest.fixture
def cache(tmp_path):
    with Cache(tmp_path / "cache.db") as opened:
        yield opened


def ask(text, index=0, sampling=SOME):
    return GenerateRequest((("user", text),), sampling, index)


def alive(pid):
    """Whether a process runs; one that has ended and was not yet collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pids, seconds=10.0):
    """Wait until all processes have ended."""
    deadline = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(map(alive, pids))


def test_a_models_results_are_those_of_one_worker_to_the_bit(cache, tmp_path):
    """All verbs of a language model, in batches of two that go to either worker, refusals included."""
    path = str(tiny_model_folder("llama"))
    requests = [ask(f"Hello {i % 3}" * (i % 4 + 1), i) for i in range(7)]
    requests += [ask("Hi", 0, Sampling(max_new_tokens=3, temperature=0.0))]
    requests += [ScoreRequest((5, 6, 7 + i), (7, 8, 9)) for i in range(5)]
    requests += [ScoreRequest((5,) * 300, (7,)), ScoreRequest((5,), ())]
    requests += [AnswerScoreRequest((("user", "Hi"),), "there " * i, ()) for i in range(1, 4)]
    requests += [ChooseRequest((("user", f"Hi {i}"),), ("A", "B", "longer")) for i in range(5)]
    one = open_backend(ModelSection(path=path, device="cpu", batch_size=2), "language", None)
    expected = one.answer(requests)
    section = ModelSection(path=path, device="cpu", batch_size=2, workers=2)
    several = CachedBackend(open_backend(section, "language", cache), cache)
    try:
        assert isinstance(several.inner, PoolBackend)
        assert several.inner.place == "2 workers on cpu, 1 threads"
        assert several.identity == one.identity
        assert several.plan(requests) == one.plan(requests)
        assert several.answer(requests) == expected
        # Another batch size, as a section of the same model may have it, makes other batches.
        one.batch_size = several.inner.batch_size = 3
        assert several.plan(requests) == one.plan(requests)
    finally:
        several.close()
    assert any(isinstance(result, Refusal) for result in expected)
    # One worker finds what several stored.
    again = CachedBackend(one, cache)
    one.batch_size = 2
    assert again.answer(requests) == expected
    assert again.usage.computed == 0


def test_an_encoder_has_workers_too(tmp_path):
    path = str(make_tiny_reward(tmp_path, "bert"))
    requests = [RewardRequest((("user", f"question {i}"), ("assistant", "an answer " * i))) for i in range(1, 6)]
    one, several = (
        open_backend(ModelSection(path=path, device="cpu", batch_size=2, workers=n), "reward", None) for n in (1, 2)
    )
    try:
        assert several.answer(requests) == one.answer(requests)
    finally:
        several.close()


def test_what_cannot_be_opened_is_said_as_by_one_worker():
    with pytest.raises(UsageError) as one:
        open_backend(ModelSection(path="/no/such/model"), "language", None)
    with pytest.raises(UsageError) as several:
        open_backend(ModelSection(path="/no/such/model", workers=2), "language", None)
    assert str(several.value) == str(one.value)


def test_batches_are_spread_and_stay_whole(pool):
    backend = pool()
    requests = [ask(f"{name} sleep 0.05") for name in "abcdefgh"]
    texts = [result.text.split() for result in backend.answer(requests)]
    assert [mark for mark, _ in texts] == [pair for pair in ("a+b", "c+d", "e+f", "g+h") for _ in range(2)]
    assert len({pid for _, pid in texts}) == 2
    assert backend.run([ask("x"), ask("y no")])[1] == Refusal("no")
    assert backend.answer([]) == []
    assert backend.place == "2 workers on place 0 of 2, place 1 of 2"


def test_each_batch_is_stored_as_it_comes(pool, cache, tmp_path):
    """What one worker has answered is in the cache while the other computes; nothing is computed twice."""
    mark = tmp_path / "mark"
    seen = []

    def on_batch(done):
        seen.append((done, sum(group["count"] for group in cache.ls())))
        if done == 3:
            mark.touch()

    backend = CachedBackend(pool(batch_size=1), cache, on_batch=on_batch)
    backend.answer([ask(f"a until {mark}"), ask("b"), ask("c"), ask("d")])
    assert seen == [(1, 1), (2, 2), (3, 3), (4, 4)]
    again = CachedBackend(backend.inner, cache)
    again.answer([ask("b"), ask("e")])
    assert (again.usage.cached, again.usage.computed) == (1, 1)


@pytest.mark.parametrize(
    ("what", "said"),
    [("die", r"worker [12] \(process \d+\) was ended by SIGKILL"), ("exit", "ended with exit code 3")],
)
def test_a_worker_that_ends_is_said_after_all_that_the_other_answered_is_stored(pool, cache, tmp_path, what, said):
    backend = CachedBackend(pool(batch_size=1, folder=str(tmp_path)), cache)
    requests = [ask("a sleep 0.5"), ask(f"b {what}"), ask("c"), ask("d")]
    with pytest.raises(PrefloopError, match=said) as death:
        backend.answer(requests)
    assert "start the same command again" in str(death.value)
    assert ("memory may be full" in str(death.value)) == (what == "die")
    assert [key in cache.get_many([backend.key(r) for r in requests]) for key in map(backend.key, requests)] == [
        True,
        False,
        False,
        False,
    ]
    with pytest.raises(PrefloopError, match=said):
        backend.answer([ask("e")])
    backend.close()
    assert gone([int(file.read_text()) for file in tmp_path.glob("*.pid")])


@pytest.mark.parametrize(
    ("what", "kind", "said"),
    [
        ("wrong", UsageError, "row 3: a bad prompt\nfix: mend it"),
        ("fails", PrefloopError, "m: NaN instead of probabilities"),
        ("full", RuntimeError, "CUDA out of memory. Tried to allocate 1 GiB"),
        ("bug", RuntimeError, "scripted_worker.py"),
    ],
)
def test_an_error_comes_back_with_its_message(pool, what, kind, said):
    backend = pool(batch_size=1)
    with pytest.raises(kind) as error:
        backend.answer([ask("a"), ask(f"b {what}"), *(ask(str(i)) for i in range(20))])
    assert said in str(error.value)
    assert isinstance(error.value, UsageError) == (kind is UsageError)
    # By this name the loop says what to do.
    assert (type(error.value).__name__ == "OutOfMemoryError") == (what == "full")
    assert backend.answer([ask("c")])[0].text.startswith("c ")


def test_a_call_that_is_broken_off_leaves_the_next_one_alone(pool):
    backend = pool(batch_size=1)
    broken = backend.run_all([[ask("a")], [ask("b sleep 0.3")], [ask("c sleep 0.3")], [ask("d")]])
    assert next(broken)[1][0].result.text.startswith("a ")
    assert [result.text.split()[0] for result in backend.answer([ask(name) for name in "wxyz"])] == list("wxyz")
    with pytest.raises(RuntimeError, match="another call was begun"):
        next(broken)


def test_what_libraries_print_stands_between_no_messages(pool):
    assert pool().answer([ask("a prints")])[0].text.startswith("a ")


def test_log_lines_of_one_worker_come_back(pool, caplog):
    with caplog.at_level(logging.INFO, logger="prefloop"):
        pool(3)
    assert [(r.name, r.levelname, r.message) for r in caplog.records] == [
        ("prefloop.backends.pool", "INFO", "starting 3 workers of scripted"),
        ("prefloop.scripted", "WARNING", "opened by 0"),
    ]


def test_workers_that_cannot_start_leave_none_behind(pool, tmp_path):
    with pytest.raises(UsageError, match="there is no such model"):
        pool(3, fail=1, folder=str(tmp_path))
    assert gone([int(file.read_text()) for file in tmp_path.glob("*.pid")])
    with pytest.raises(PrefloopError, match="changed while it was loaded"):
        pool(2, fail="identity")


def test_close_ends_the_workers_and_may_come_twice(pool, tmp_path):
    backend = pool(folder=str(tmp_path))
    pids = [int(file.read_text()) for file in tmp_path.glob("*.pid")]
    assert len(pids) == 2
    assert all(map(alive, pids))
    backend.close()
    backend.close()
    assert not any(map(alive, pids))
    with pytest.raises(RuntimeError, match="closed"):
        backend.answer([ask("a")])


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_parent_that_is_gone_leaves_no_worker(tmp_path, how):
    """In the middle of a batch that would take minutes."""
    script = (
        "from prefloop.backends.pool import PoolBackend\n"
        "from prefloop.backends.base import GenerateRequest, Sampling\n"
        f"pool = PoolBackend('tests.backends.scripted_worker', {{'folder': {str(tmp_path)!r}}}, 2, name='m')\n"
        "print('ready', flush=True)\n"
        "pool.run([GenerateRequest((('user', 'a sleep 300'),), Sampling(4))])\n"
    )
    # A shell's children in the background ignore SIGINT, and theirs do.
    parent = subprocess.Popen(
        [sys.executable, "-c", f"import signal; signal.signal(2, signal.default_int_handler)\n{script}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert parent.stdout.readline() == "ready\n"
    pids = [int(file.read_text()) for file in tmp_path.glob("*.pid")]
    assert len(pids) == 2
    assert all(map(alive, pids))
    parent.send_signal(how)
    parent.wait(20)
    parent.stdout.close()
    assert gone(pids)


def test_a_parent_that_is_killed_in_the_middle_of_a_message_leaves_no_worker():
    """A task may be longer than a pipe holds."""
    worker = subprocess.Popen(
        [sys.executable, "-m", "tests.backends.scripted_worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    worker.stdin.write(b'{"number": 0, "of": 1, "logs": false}\n{"task": 0, "do": "ru')
    worker.stdin.close()
    try:
        assert worker.wait(20) == 0
    finally:
        worker.kill()
        worker.stdout.close()


def test_workers_take_the_gpus_in_turn_and_share_the_threads(monkeypatch):
    threads, taken = [], []
    monkeypatch.setattr("prefloop.engine.load.choose_device", lambda name: torch.device(name.replace("auto", "cuda")))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    assert [_device("auto", number, 3) for number in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert [_device("cuda:1", number, 2) for number in range(2)] == ["cuda:1", "cuda:1"]
    assert taken == [0, 1, 0]
    assert threads == []
    assert [_device("cpu", number, of) for number, of in ((0, 3), (2, 3), (0, 16))] == ["cpu"] * 3
    assert threads == [2, 2, 1]


def test_planning_loads_no_torch():
    code = "import sys, prefloop.backends.pool; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_servers_have_no_workers():
    with pytest.raises(ValueError, match="workers and endpoint exclude each other"):
        ModelSection(path="m", workers=2, endpoint={"url": "http://localhost:8000/v1"})


TEXTS = st.text(st.characters(codec=None))  # lone surrogates too, which a model may have written
FLOATS = st.floats(allow_nan=False)
MESSAGES = st.lists(st.tuples(st.just("user"), TEXTS), min_size=1, max_size=3).map(tuple)
IDS = st.lists(st.integers(0, 300_000), max_size=5).map(tuple)
SAMPLING = st.builds(Sampling, st.integers(1, 9), FLOATS, FLOATS, st.integers(0, 9), st.integers())
REQUESTS = st.one_of(
    st.builds(GenerateRequest, MESSAGES, SAMPLING, st.integers(0, 9), st.none() | TEXTS),
    st.builds(ScoreRequest, IDS, IDS),
    st.builds(AnswerScoreRequest, MESSAGES, TEXTS, IDS),
    st.builds(ChooseRequest, MESSAGES, st.lists(TEXTS, max_size=3).map(tuple)),
    st.builds(PairScoreRequest, st.lists(TEXTS, max_size=3).map(tuple)),
    st.builds(RewardRequest, MESSAGES),
)
RESULTS = st.one_of(
    st.builds(
        Generation,
        TEXTS,
        st.none() | st.lists(st.integers(0, 9)),
        st.sampled_from(["stop", "length"]),
        st.integers(0, 9),
    ),
    st.builds(Score, st.lists(FLOATS)),
    st.builds(Choice, st.lists(FLOATS), st.lists(st.integers(1, 3))),
    st.builds(Logits, st.lists(FLOATS), st.integers(0, 3)),
    st.builds(Refusal, TEXTS, st.booleans(), st.booleans()),
    st.builds(Withheld, TEXTS),
)


@given(st.lists(REQUESTS))
def test_requests_come_over_as_they_are(requests):
    assert read_requests(json.loads(json.dumps(write_requests(requests)))) == requests


@given(st.lists(RESULTS))
def test_results_come_back_as_they_are(results):
    assert repr(read_results(json.loads(json.dumps(write_results(results))))) == repr(results)
    assert read_results(write_results([Score([-math.inf])])) == [Score([-math.inf])]
