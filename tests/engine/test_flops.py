"""Counted operations: by hand, and against the operations that torch counts."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.tiny_models import load_tiny
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig

from prefloop.engine.chunked import kept_tokens
from prefloop.engine.flops import SCORE, TRAIN, Flops, ModelShape, _triangle, count

SHAPE = ModelShape(trunk=10, attention=(3, 3), windows=(None, 2), head=100)


def test_by_hand():
    lengths = [(3, [2, 3])]
    # read tokens 3 + 1 + 2; pairs 6 + 4 + (4 + 5) in the full layer, 5 + 2 + 4 with a window of 2; scored tokens 5
    assert count(lengths, SHAPE, "segments", SCORE) == Flops(2 * 10 * 6, 4 * 3 * (19 + 11), 2 * 100 * 5)
    # 2 sequences of 6 tokens; pairs 21 and 11 each
    assert count(lengths, SHAPE, "concatenated", SCORE) == Flops(2 * 10 * 12, 4 * 3 * 2 * (21 + 11), 2 * 100 * 5)
    assert count(lengths, SHAPE, "dense", SCORE) == Flops(2 * 10 * 6, 4 * 3 * 2 * 36, 2 * 100 * 5)
    assert count(lengths, SHAPE, "segments", TRAIN).total == 3 * 120 + 3.5 * 360 + 4 * 1000
    # Of five scored tokens two are kept for backward, and three computed again.
    keeping = replace(SHAPE, kept=2)
    assert count(lengths, keeping, "segments", TRAIN).head == 3 * 1000 + 3 * 2 * 100
    assert count(lengths, replace(SHAPE, kept=9), "segments", TRAIN).head == 3 * 1000


@given(st.integers(0, 20), st.integers(0, 20), st.none() | st.integers(1, 25))
def test_pairs_of_causal_attention(start, length, window):
    expected = sum(min(p + 1, window or p + 1) for p in range(start, start + length))
    assert _triangle(start, length, window) == expected


def meta(config):
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def test_the_limit_of_long_prompts_is_the_number_of_responses():
    shape = ModelShape(trunk=10**9, attention=(), windows=(), head=0)
    ratio = (
        count([(100_000, [2] * 5)], shape, "concatenated").total / count([(100_000, [2] * 5)], shape, "segments").total
    )
    assert ratio == pytest.approx(5, rel=1e-3)


@pytest.mark.parametrize("arch", ["llama", "phi", "gpt_neox"])
def test_torch_counts_the_same(arch):
    model, _ = load_tiny(arch)
    model.set_attn_implementation("eager")  # whose products are the whole square, as of a dense mask
    shape = ModelShape.of(model.get_decoder(), model.get_output_embeddings())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.ones(1, 16, dtype=torch.int64))
    ours = count([(15, [2])], shape, "dense", SCORE)
    rotary = counter.get_total_flops() - ours.trunk - ours.attention - 16 * 2 * shape.head
    assert 0 <= rotary < 0.02 * ours.total  # angles are a product, too


def test_experts_count_as_far_as_they_are_used():
    sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4}
    plain = meta(LlamaConfig(**sizes, **heads))
    mixed = meta(MixtralConfig(**sizes, **heads, num_local_experts=4, num_experts_per_tok=2))
    attention = 4 * 32 * 32
    plain_shape, mixed_shape = (ModelShape.of(m.model, m.lm_head) for m in (plain, mixed))
    assert plain_shape == ModelShape(attention + 3 * 32 * 64, (32,), (None,), 97 * 32, kept_tokens(97))
    assert mixed_shape.trunk == attention + 2 * 3 * 32 * 64 + 4 * 32  # two of four experts, and the router
