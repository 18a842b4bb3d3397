"""The caching backend: nothing is computed twice, killed runs go on bit-equal, refusals are not kept."""

import subprocess
import sys

import pytest
from tests.tiny_models import tiny_model_folder

from prefloop.backends.base import (
    Backend,
    ChooseRequest,
    GenerateRequest,
    Generation,
    Refusal,
    Sampling,
    ScoreRequest,
    Withheld,
)
from prefloop.backends.cached import CachedBackend
from prefloop.backends.hf import HfBackend
from prefloop.config import ModelSection
from prefloop.store.cache import Cache

ONE = Sampling(max_new_tokens=4)


def ask(text, index=0, sampling=ONE):
    return GenerateRequest((("user", text),), sampling, index)


class Scripted(Backend):
    """Answers from the batch it was asked in, so a batch of another composition shows; refuses "bad"."""

    def __init__(self, identity="scripted", size=3):
        self.identity, self.name = {"weights": identity}, identity
        self.size, self.batches, self.fail_at, self.closed = size, [], None, False

    def plan(self, requests):
        order = sorted(range(len(requests)), key=lambda i: repr(requests[i]))
        return [order[i : i + self.size] for i in range(0, len(order), self.size)]

    def run(self, requests):
        if self.fail_at == len(self.batches):
            raise KeyboardInterrupt
        self.batches.append(list(requests))
        mark = "+".join(r.messages[0][1] for r in requests)
        return [
            Refusal("no") if r.messages[0][1] == "bad" else Generation(f"{r.sample_index}:{mark}", [1, 2], "stop", 3)
            for r in requests
        ]

    def close(self):
        self.closed = True


@pytest.fixture
def cache(tmp_path):
    with Cache(tmp_path / "cache.db") as opened:
        yield opened


def test_nothing_is_computed_twice(cache):
    requests = [ask(t, i) for t in "abcd" for i in range(2)]
    first = CachedBackend(Scripted(), cache)
    results = first.answer(requests)
    assert sum(map(len, first.inner.batches)) == 8
    again = CachedBackend(Scripted(), cache)
    assert again.answer(requests) == results
    assert again.inner.batches == []
    assert (again.usage.asked, again.usage.cached, again.usage.computed) == (8, 8, 0)
    assert (first.usage.asked, first.usage.cached, first.usage.computed) == (8, 0, 8)
    assert first.usage.generated_tokens == 16
    assert again.usage.generated_tokens == 0


def test_only_the_missing_of_a_batch_are_computed(cache):
    CachedBackend(Scripted(), cache).answer([ask("a"), ask("c")])
    backend = CachedBackend(Scripted(), cache)
    results = backend.answer([ask(t) for t in "abcd"])
    assert backend.inner.batches == [[ask("b")], [ask("d")]]
    assert [r.text for r in results] == ["0:a+c", "0:b", "0:a+c", "0:d"]
    assert (backend.usage.cached, backend.usage.computed) == (2, 2)


@pytest.mark.parametrize("killed_at", [0, 1, 2])
def test_killed_between_batches_goes_on_bit_equal(cache, killed_at):
    requests = [ask(t) for t in "abcdefgh"]
    expected = CachedBackend(Scripted(), None).answer(requests)
    killed = CachedBackend(Scripted(), cache)
    killed.inner.fail_at = killed_at
    with pytest.raises(KeyboardInterrupt):
        killed.answer(requests)
    resumed = CachedBackend(Scripted(), cache)
    assert resumed.answer(requests) == expected
    assert len(resumed.inner.batches) == 3 - killed_at


def test_refusals_are_counted_and_not_kept(cache):
    for _ in range(2):
        backend = CachedBackend(Scripted(), cache)
        results = backend.answer([ask("a"), ask("bad")])
        assert results[1] == Refusal("no")
        assert backend.usage.refused == 1
        assert ask("bad") in backend.inner.batches[0]
    assert backend.usage.cached == 1


class Withholding(Scripted):
    """Gives no text for "bad", and is paid for it."""

    def run(self, requests):
        return [Withheld("filtered") if isinstance(r, Refusal) else r for r in super().run(requests)]


def test_refusals_that_were_paid_are_kept(cache):
    first, again = (CachedBackend(Withholding(), cache) for _ in range(2))
    results = first.answer([ask("a"), ask("bad")])
    assert results[1] == Withheld("filtered")
    assert (first.usage.computed, first.usage.refused) == (1, 1)
    assert again.answer([ask("a"), ask("bad")]) == results
    assert again.inner.batches == []
    assert (again.usage.asked, again.usage.cached, again.usage.refused) == (2, 2, 0)


@pytest.mark.parametrize("cached", [True, False])
def test_equal_requests_of_one_call_are_computed_once(cache, cached):
    backend = CachedBackend(Scripted(), cache if cached else None)
    results = backend.answer([ask("a"), ask("b"), ask("a"), ask("a")])
    assert backend.inner.batches == [[ask("a"), ask("b")]]
    assert results == [Generation("0:a+b", [1, 2], "stop", 3)] * 4
    usage = backend.usage
    assert (usage.asked, usage.computed, usage.detail) == (4, 2, {"duplicates": 2})
    assert usage.asked == usage.cached + usage.computed + usage.refused + usage.detail["duplicates"]


def test_other_models_and_requests_have_other_keys(cache):
    requests = [
        ask("a"),
        ask("a", 1),
        ask("b"),
        ask("a", sampling=Sampling(4, seed=1)),
        ask("a", sampling=Sampling(5)),
    ]
    requests += [ScoreRequest((1,), (2,)), ScoreRequest((1, 2), ()), ChooseRequest((("user", "a"),), ("x",))]
    keys = [CachedBackend(Scripted(name), cache).key(r) for name in ("m", "n") for r in requests]
    assert len(set(keys)) == len(keys)


def test_progress_counts_requests(cache):
    done = []
    CachedBackend(Scripted(), cache).answer([ask("b"), ask("c")])
    CachedBackend(Scripted(), cache, on_batch=done.append).answer([ask(t) for t in "abcdd"])
    assert done == [2, 3, 5]


def test_close_is_passed_on_and_the_cache_stays_open(cache):
    backend = CachedBackend(Scripted(), cache)
    backend.close()
    assert backend.inner.closed
    assert cache.get_many(["x"]) == {}


def test_no_torch_is_imported():
    code = "import sys, prefloop.backends.cached; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_real_results_come_back_exactly(cache):
    """All verbs of a real model through SQLite: floats bit-equal, types as they were."""
    section = ModelSection(path=str(tiny_model_folder("llama")), device="cpu", batch_size=2)
    requests = [ask("Hello", i) for i in range(3)]
    requests += [
        ScoreRequest((5, 6), (7, 8)),
        ScoreRequest((5,) * 300, (7,)),
        ChooseRequest((("user", "Hi"),), ("A", "B")),
    ]
    first = CachedBackend(HfBackend.load(section, cache), cache)
    second = CachedBackend(HfBackend.load(section, cache), cache)
    results = first.answer(requests)
    assert second.answer(requests) == results
    assert (second.usage.cached, second.usage.computed, second.usage.refused) == (5, 0, 1)
    assert {(group["kind"], group["model"]) for group in cache.ls()} == {
        (verb, section.path) for verb in ("generate", "score", "choose")
    }
