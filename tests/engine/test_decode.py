"""Sampling: the distribution that is sampled, the streams, and decoding against transformers' own."""

from collections import Counter

import pytest
import torch
from scipy import stats
from tests.tiny_models import ARCHITECTURES, load_tiny
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
)
from transformers.generation import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from prefloop.engine.decode import Stream, decode, distribution, pick, sampler
from prefloop.errors import PrefloopError, UsageError


def probabilities(logits, **how):
    return distribution(torch.tensor([logits]), **{"temperature": 1.0, "top_k": 0, "top_p": 1.0, **how})[0]


def test_distribution_by_hand():
    logits = torch.tensor([0.5, 0.25, 0.125, 0.125]).log().tolist()
    assert probabilities(logits).tolist() == pytest.approx([0.5, 0.25, 0.125, 0.125])
    assert probabilities(logits, temperature=0.5).tolist() == pytest.approx([x / 22 for x in (16, 4, 1, 1)])
    assert probabilities(logits, top_k=2).tolist() == pytest.approx([2 / 3, 1 / 3, 0, 0])
    assert probabilities(logits, top_p=0.5).tolist() == pytest.approx([1, 0, 0, 0])
    assert probabilities(logits, top_p=0.6).tolist() == pytest.approx([2 / 3, 1 / 3, 0, 0])
    assert probabilities(logits, top_p=1e-9).tolist() == pytest.approx([1, 0, 0, 0])  # never nothing
    assert probabilities(logits, top_k=9).tolist() == pytest.approx([0.5, 0.25, 0.125, 0.125])
    assert probabilities([0.0] * 4, top_p=0.5).tolist() == [0.5, 0.5, 0, 0]  # reached exactly: no third token
    # top-p counts what top-k left: 2/3 reaches 0.6
    assert probabilities(logits, top_k=2, top_p=0.6).tolist() == pytest.approx([1, 0, 0, 0])


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [(0.7, 5, 0.8), (1.3, 100, 0.3), (1.0, 3, 0.99)])
def test_distribution_is_that_of_transformers(temperature, top_k, top_p):
    logits = torch.randn(20, 50, generator=torch.Generator().manual_seed(0)).mul(3).double()
    warpers = LogitsProcessorList(
        [TemperatureLogitsWarper(temperature), TopKLogitsWarper(top_k), TopPLogitsWarper(top_p)]
    )
    expected = warpers(torch.zeros(20, 1, dtype=torch.long), logits).softmax(-1)
    torch.testing.assert_close(distribution(logits, temperature=temperature, top_k=top_k, top_p=top_p), expected)


def test_pick_by_hand():
    probs = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]], dtype=torch.float64).repeat(5, 1)
    # The ends must not land on a token of probability 0.
    assert pick(probs, [0.0, 0.2499, 0.25, 0.9, 1 - 2.0**-53]).tolist() == [1, 1, 3, 3, 3]


def test_streams_differ_in_every_part_and_are_uniform():
    base = Stream(0, "p", 0)
    others = [Stream(1, "p", 0), Stream(0, "q", 0), Stream(0, "p", 1)]
    assert len({s.uniform(t) for s in [base, *others] for t in (0, 1)}) == 8
    assert base.uniform(3) == Stream(0, "p", 0).uniform(3)
    numbers = [Stream(s, p, i).uniform(t) for s in range(3) for p in "ab" for i in range(10) for t in range(50)]
    assert all(0 <= x < 1 for x in numbers)
    assert stats.kstest(numbers, "uniform").pvalue > 0.001
    # Streams of neighbouring samples, and neighbouring steps, are independent.
    pairs = [(Stream(0, "p", i).uniform(0), Stream(0, "p", i + 1).uniform(0)) for i in range(0, 2000, 2)]
    assert abs(stats.pearsonr(*zip(*pairs, strict=True)).statistic) < 0.1


@pytest.mark.parametrize("how", [{}, {"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.7}], ids=str)
def test_samples_follow_the_distribution(how):
    how = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, **how}
    logits = torch.tensor([[0.1, 1.3, -0.4, 2.0, 0.9, -1.1]])
    n = 4000
    choose = sampler([Stream(7, "p", i) for i in range(n)], **how)
    counts = Counter(choose(logits.repeat(n, 1), range(n), 0))
    probs = distribution(logits, **how)[0]
    support = [i for i, p in enumerate(probs.tolist()) if p > 0]
    assert set(counts) <= set(support)
    assert stats.chisquare([counts[i] for i in support], [n * float(probs[i]) for i in support]).pvalue > 0.001


def test_nan_is_an_error_not_a_sample():
    for temperature in (0.0, 1.0):
        choose = sampler([Stream(0, "p", 0)], temperature=temperature, top_k=0, top_p=1.0)
        with pytest.raises(PrefloopError, match="NaN"):
            choose(torch.tensor([[0.0, float("nan")]]), [0], 0)


PROMPTS = [[5, 6, 7, 8, 9], list(range(20, 60)), [7]]


def run(model, prompts, rows, choose, *, stops=(), new=12):
    made = [[] for _ in rows]
    for tokens in decode(model, prompts, rows, choose, stops=stops, limits=[new] * len(rows), pad_id=0):
        for row, token in tokens.items():
            made[row].append(token)
    return made


def greedy(rows):
    return sampler([Stream(0, "", i) for i in range(rows)], temperature=0, top_k=0, top_p=1.0)


def transformers_greedy(model, prompt, new):
    config = GenerationConfig(max_new_tokens=new, do_sample=False, pad_token_id=0)
    model.generation_config = GenerationConfig()
    ids = torch.tensor([prompt])
    return model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)[
        0, len(prompt) :
    ].tolist()


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_greedy_is_that_of_transformers(arch):
    """In one left-padded batch, prompts computed once for several rows, beyond the sliding windows."""
    model, _ = load_tiny(arch)
    rows = [0, 0, 2, 1]
    expected = [transformers_greedy(model, PROMPTS[r], 12) for r in rows]
    assert run(model, PROMPTS, rows, greedy(4)) == expected
    assert len({tuple(e) for e in expected}) == 3


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_rows_that_stop_leave_the_others_as_they_were(arch):
    model, _ = load_tiny(arch)
    free = run(model, PROMPTS, [0, 1, 2], greedy(3))
    stop = free[1][2]  # ends row 1 in the middle
    stopped = run(model, PROMPTS, [0, 1, 2], greedy(3), stops=[stop])
    for row, ids in enumerate(free):
        end = ids.index(stop) + 1 if stop in ids else len(ids)
        assert stopped[row] == ids[:end]
    assert len(stopped[1]) <= 3


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_sample_does_not_depend_on_its_companions(arch):
    model, _ = load_tiny(arch)

    def sample(prompts, rows, streams):
        return run(model, prompts, rows, sampler(streams, temperature=1.0, top_k=0, top_p=0.95))

    streams = [Stream(0, "a", 0), Stream(0, "a", 1), Stream(0, "b", 0)]
    together = sample(PROMPTS, [0, 0, 1], streams)
    torch.manual_seed(123)  # torch's own random state plays no part
    assert sample([PROMPTS[1]], [0], [streams[2]]) == [together[2]]
    assert sample([PROMPTS[0]], [0], [streams[1]]) == [together[1]]
    assert together[0] != together[1]


def test_a_sample_keeps_its_stream_when_others_stop():
    model, _ = load_tiny("llama")
    choose = sampler([Stream(0, "p", i) for i in range(6)], temperature=1.0, top_k=0, top_p=1.0)
    free = run(model, PROMPTS, [0] * 6, choose)
    stop = free[0][1]
    stopped = run(model, PROMPTS, [0] * 6, choose, stops=[stop])
    assert stopped == [ids[: ids.index(stop) + 1] if stop in ids else ids for ids in free]
    assert len({len(ids) for ids in stopped}) > 1


ABSOLUTE = {
    "learned positions": (GPT2LMHeadModel, GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4)),
    "no position ids": (BloomForCausalLM, BloomConfig(vocab_size=97, hidden_size=32, n_layer=2, n_head=4)),
}


@pytest.mark.parametrize("kind", ABSOLUTE)
def test_positions_other_than_rotary(kind):
    """Rotary positions are relative and would forgive counting the padding."""
    torch.manual_seed(0)
    model_class, config = ABSOLUTE[kind]
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.dim() > 1 else 1)
    expected = [transformers_greedy(model, p, 12) for p in PROMPTS]
    assert run(model, PROMPTS, [0, 1, 2], greedy(3)) == expected


def test_refuses_models_without_a_key_value_cache():
    model = MambaForCausalLM(MambaConfig(vocab_size=97, hidden_size=16, state_size=4, num_hidden_layers=1)).eval()
    with pytest.raises(UsageError, match="keeps no key-value cache"):
        run(model, [[5]], [0], greedy(1))
