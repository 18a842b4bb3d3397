"""Prompts shared among their responses: the same scores and gradients as side by side, or a reason why not."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from tests.tiny_models import ARCHITECTURES, load_tiny
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    GPTNeoConfig,
    Lfm2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
)

from prefloop.engine import flops
from prefloop.engine.layout import Piece, concatenated, shared
from prefloop.engine.logprob import attach_scorer, naive_logprobs, scored_states, sequence_logprobs, token_logprobs
from prefloop.engine.sharing import Sharing, _difference, build, check_sharing, choose

LONG = list(range(40, 75))  # longer than the sliding windows
ROWS = [
    ([5, 6, 7], [[8, 9, 10, 11], [12], LONG, [13, 14], [15, 16, 17]]),  # K = 5, one of a single token
    (LONG, [[13, 14], [15, 16, 17]]),
    ([5], [[6, 7]]),
    (LONG[:4], [[9]]),
]


def scores_and_gradients(model, layout):
    logps = token_logprobs(model, layout)
    model.zero_grad()
    sequence_logprobs(logps, layout).square().sum().backward()
    return logps.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same(model, layout, oracle):
    (found, gradients), (expected, oracle_gradients) = scores_and_gradients(model, layout), oracle
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert gradients.keys() == oracle_gradients.keys()
    for name, gradient in gradients.items():
        assert (gradient - oracle_gradients[name]).norm() <= 1e-4 * oracle_gradients[name].norm() + 1e-7, name


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_layout_scores_like_the_concatenated_one(arch):
    model, _ = load_tiny(arch)
    sharing = check_sharing(attach_scorer(model))
    assert sharing.kinds == ("segments", "dense")
    assert (sharing.reason, sharing.longest) == (None, None)
    oracle = scores_and_gradients(model, concatenated(ROWS, pad_id=0))
    for kind in sharing.kinds:
        assert_same(model, shared(ROWS, pad_id=0, kind=kind), oracle)


@pytest.mark.parametrize("kind", ["segments", "dense"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_responses_do_not_see_each_other(arch, kind):
    model, _ = load_tiny(arch)
    attach_scorer(model)
    scores = []
    for chosen in ([8, 9, 10, 11], [21, 9, 30, 11]):
        layout = shared([([5, 6, 7], [chosen, [12, 13, 14]]), ([5, 6], [[3]])], pad_id=0, kind=kind)
        with torch.no_grad():
            scores.append(token_logprobs(model, layout))
    assert (scores[0][:4] - scores[1][:4]).abs().max() > 1e-2
    torch.testing.assert_close(scores[0][4:], scores[1][4:], rtol=0, atol=1e-6)


IDS = st.lists(st.integers(0, 50), min_size=1, max_size=14)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(IDS, st.lists(IDS, min_size=1, max_size=5)), min_size=1, max_size=3))
@pytest.mark.parametrize("arch", ["llama", "gemma3"])
def test_any_rows(arch, rows):
    model, _ = load_tiny(arch)
    attach_scorer(model)
    with torch.no_grad():
        expected = token_logprobs(model, concatenated(rows, pad_id=0))
        for kind in ("segments", "dense"):
            found = token_logprobs(model, shared(rows, pad_id=0, kind=kind))
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_eager_attention_takes_the_dense_mask():
    model, _ = load_tiny("gemma3")
    model.set_attn_implementation("eager")
    assert check_sharing(attach_scorer(model)).kinds == ("dense",)
    oracle = scores_and_gradients(model, concatenated(ROWS, pad_id=0))
    assert_same(model, shared(ROWS, pad_id=0, kind="dense"), oracle)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", ["segments", "dense"])
@pytest.mark.parametrize("arch", ["llama", "gemma3"])
def test_gradient_checkpointing(arch, kind, reentrant):
    model, _ = load_tiny(arch)
    attach_scorer(model).train()
    oracle = scores_and_gradients(model, concatenated(ROWS, pad_id=0))
    model.enable_input_require_grads()  # the reentrant kind needs an input with a gradient
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    assert_same(model, shared(ROWS, pad_id=0, kind=kind), oracle)


def test_lora():
    model, _ = load_tiny("qwen3")
    peft = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    sharing = check_sharing(attach_scorer(peft))
    oracle = scores_and_gradients(peft, concatenated(ROWS, pad_id=0))
    for kind in sharing.kinds:
        assert_same(peft, shared(ROWS, pad_id=0, kind=kind), oracle)


def test_autocast():
    model, _ = load_tiny("llama")
    attach_scorer(model)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = token_logprobs(model, concatenated(ROWS, pad_id=0))
        for kind in ("segments", "dense"):
            found = token_logprobs(model, shared(ROWS, pad_id=0, kind=kind))
            assert (found - expected).abs().max() < 0.05 * expected.abs().max()


def test_the_model_itself_is_untouched():
    model, _ = load_tiny("gemma3")
    ids = torch.tensor([[1, 5, 6, 7]])
    settings_before, logits = copy.deepcopy(model.config.to_dict()), model(input_ids=ids).logits
    generated = model.generate(ids, max_new_tokens=4, do_sample=False)
    attach_scorer(model).train()
    check_sharing(model)
    assert model.training
    token_logprobs(model, shared(ROWS, pad_id=0)).sum().backward()
    model.eval()
    assert model.config._attn_implementation == "sdpa"
    assert model.config.to_dict() == settings_before
    torch.testing.assert_close(model(input_ids=ids).logits, logits, rtol=0, atol=0)
    assert model.generate(ids, max_new_tokens=4, do_sample=False).tolist() == generated.tolist()


SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}


def made(config_class, **settings):
    torch.manual_seed(0)
    values = {name: value for name, value in {**SMALL, **settings}.items() if value is not None}
    return attach_scorer(AutoModelForCausalLM.from_config(config_class(**values)).eval())


@pytest.mark.parametrize(
    ("config_class", "settings", "reason"),
    [
        (BloomConfig, {}, "takes no position_ids"),
        (MambaConfig, {"num_attention_heads": None}, "takes no position_ids"),
        (Lfm2Config, {"full_attn_idxs": [1], "num_key_value_heads": 2}, "layers of type conv"),
        (
            GPTNeoConfig,
            {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "num_heads": 4},
            "window_size",
        ),
    ],
)
def test_families_that_cannot_share_say_why(config_class, settings, reason, caplog):
    caplog.set_level("INFO", logger="prefloop")
    model = made(config_class, **settings)
    sharing = check_sharing(model)
    assert sharing.kinds == ()
    assert reason in sharing.reason
    said = [r.getMessage() for r in caplog.records if r.name.startswith("prefloop")]
    assert len(said) == 1
    assert sharing.reason in said[0]
    assert build(ROWS, 0, sharing).kind == "concatenated"


def test_attention_of_another_kind_is_refused():
    model = made(LlamaConfig)
    model.set_attn_implementation("flex_attention")
    assert "flex_attention; prompts are shared with sdpa" in check_sharing(model).reason


def test_what_only_the_probe_can_find_is_found(monkeypatch):
    # A window that the configuration does not tell of: its mask is the model's own, so ours is wrong.
    model, _ = load_tiny("mistral")
    attach_scorer(model)
    monkeypatch.setattr("prefloop.engine.attention.layer_windows", lambda config: {"sliding_attention": 4})
    sharing = check_sharing(model)
    assert sharing.kinds == ()
    assert "hidden states differ" in sharing.reason


def test_the_probe_tells_wrong_from_right_at_random_weights():
    # Small random weights hardly show in log-probabilities what was read; hidden states show it.
    model = made(LlamaConfig)
    rows = [([5, 6, 7], [[8, 9, 10, 11], [12, 3]])]
    layout = shared(rows, pad_id=0)
    pieces = layout.pieces[0]
    wrong = [(Piece(sum(p.length for p in pieces)),), tuple(Piece(p.length) for p in pieces)]
    with torch.no_grad():
        expected = scored_states(model, concatenated(rows, pad_id=0))
        assert _difference(scored_states(model, layout), expected) < 1e-5
        for lie in wrong:
            assert _difference(scored_states(model, replace(layout, pieces=(lie,))), expected) > 0.05


def test_a_window_out_of_the_probes_reach_is_a_limit():
    sharing = check_sharing(made(MistralConfig, sliding_window=4096, num_key_value_heads=2))
    assert (sharing.kinds, sharing.longest) == (("segments", "dense"), 4096)
    assert choose([(3000, [1096, 1096])], sharing) == "segments"
    assert choose([(3000, [1097, 1096])], sharing) == "concatenated"
    gemma = check_sharing(made(Gemma2Config, head_dim=8, num_key_value_heads=2, attn_implementation="eager"))
    assert (gemma.kinds, gemma.longest) == (("dense",), 4096)


SHAPE = flops.ModelShape(trunk=3_000_000, attention=(256,) * 4, windows=(None,) * 4, head=8_000_000)


@pytest.mark.parametrize(
    ("lengths", "kinds", "expected"),
    [
        ([(512, [64, 64])], ("segments", "dense"), "segments"),
        ([(512, [64, 64])], ("dense",), "dense"),
        ([(16, [512, 512])], ("segments", "dense"), "concatenated"),  # hardly anything to share
        ([(256, [512, 512])], ("dense",), "concatenated"),  # the square of a dense mask costs more than is saved
        ([(64, [64])], ("segments", "dense"), "concatenated"),
        ([(400, [64]), (20, [20]), (20, [20])], ("segments",), "segments"),  # nothing shared, but no padding either
        ([(512, [64, 64])], (), "concatenated"),
    ],
)
def test_the_cheapest_layout_is_chosen(lengths, kinds, expected):
    assert choose(lengths, Sharing(SHAPE, kinds)) == expected
    rows = [([1] * p, [[1] * n for n in responses]) for p, responses in lengths]
    assert build(rows, 0, pickle.loads(pickle.dumps(Sharing(SHAPE, kinds)))).kind == expected


def test_empty_rows_are_named():
    with pytest.raises(ValueError, match="row 0: empty prompt"):
        build([([], [[1]])], 0, Sharing(SHAPE, ("segments",)))


def test_the_models_own_forward_is_no_oracle_for_shared_layouts():
    model, _ = load_tiny("llama")
    with pytest.raises(ValueError, match="concatenated"):
        naive_logprobs(model, shared(ROWS, pad_id=0))
