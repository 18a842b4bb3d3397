"""Scoring inside a model's forward: exact for every family, alone or in company, with and without adapters."""

import copy
import inspect

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from tests.tiny_models import ARCHITECTURES, load_tiny
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config, GraniteConfig, HyperCLOVAXConfig

from prefloop.engine.layout import concatenated, next_tokens
from prefloop.engine.logprob import (
    LogitTransform,
    attach_scorer,
    check_exact,
    naive_logprobs,
    response_lengths,
    sequence_logprobs,
    token_logprobs,
)
from prefloop.errors import UsageError

LONG = list(range(40, 75))  # longer than the sliding windows
ROWS = [([5, 6, 7], [[8, 9, 10, 11], [12], LONG]), (LONG, [[13, 14], [15, 16, 17]]), ([5], [[6, 7]])]


def alone(model, prompt, completion):
    """Token log-probabilities of one response by the plain full forward, no batch."""
    ids = torch.tensor([[*prompt, *completion]])
    with torch.no_grad():
        logps = model(input_ids=ids).logits[0].float().log_softmax(-1)
    return [float(logps[len(prompt) - 1 + i, token]) for i, token in enumerate(completion)]


@pytest.mark.parametrize("build", [concatenated, next_tokens])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_equals_each_response_alone(arch, build):
    model, _ = load_tiny(arch)
    expected = [value for prompt, completions in ROWS for c in completions for value in alone(model, prompt, c)]
    attach_scorer(model)
    layout = build(ROWS, pad_id=0)
    with torch.no_grad():
        found = token_logprobs(model, layout)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_gradients_equal_the_full_logits_forward(arch):
    model, _ = load_tiny(arch)
    model.double()
    attach_scorer(model)
    layout = concatenated(ROWS, pad_id=0)
    sequence_logprobs(token_logprobs(model, layout), layout).square().sum().backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    logits = model(input_ids=layout.input_ids_BT, attention_mask=layout.attention_mask_BT).logits.flatten(0, 1)
    logps = logits[layout.source_N].log_softmax(-1).gather(-1, layout.targets_N[:, None]).squeeze(-1)
    sequence_logprobs(logps, layout).square().sum().backward()
    for name, parameter in model.named_parameters():
        # Families that upcast to float32 inside (norms, rotary) are exact to float32 only.
        assert (ours[name] - parameter.grad).norm() <= 1e-5 * (1 + parameter.grad.norm()), name


def test_bfloat16_scores_like_its_own_logits():
    model, _ = load_tiny("llama")
    attach_scorer(model.to(torch.bfloat16))
    assert check_exact(model, concatenated(ROWS, pad_id=0)) < 1e-2


FAMILIES = {
    "gemma2": (Gemma2Config, {"final_logit_softcapping": 0.5, "head_dim": 8}, LogitTransform(1.0, 0.5)),
    "cohere": (CohereConfig, {"logit_scale": 0.25}, LogitTransform(0.25, None)),
    "granite": (GraniteConfig, {"logits_scaling": 8.0}, LogitTransform(0.125, None)),
}


def from_config(config_class, **settings):
    torch.manual_seed(0)
    config = config_class(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        **settings,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_changed_logits_are_known(family):
    config_class, settings, transform = FAMILIES[family]
    model = attach_scorer(from_config(config_class, **settings))
    assert model._logit_transform == transform
    assert check_exact(model, concatenated(ROWS, pad_id=0)) < 1e-5


def test_refuses_a_model_that_it_would_score_wrongly():
    # This family multiplies by a setting that others divide by.
    model = from_config(HyperCLOVAXConfig, logits_scaling=8.0)
    with pytest.raises(UsageError, match=r"HyperCLOVAXForCausalLM: .* differ from the model's own logits"):
        attach_scorer(model)
    assert "forward" not in vars(model)  # left as it was


def lora(model, **settings):
    peft = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_B" in name:  # zero at the start, which would hide a forgotten adapter
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    return peft.eval()


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ],
    ids=["body", "head", "head saved whole"],
)
def test_adapters(settings):
    model, _ = load_tiny("llama")
    base = naive_logprobs(model, layout := concatenated(ROWS, pad_id=0))
    peft = attach_scorer(lora(model, **settings))
    logps = token_logprobs(peft, layout)
    torch.testing.assert_close(logps, naive_logprobs(peft, layout), rtol=0, atol=1e-5)
    assert (logps - base).abs().max() > 1e-2
    logps.sum().backward()
    for name, parameter in peft.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name
    with torch.no_grad(), peft.disable_adapter():
        torch.testing.assert_close(token_logprobs(peft, layout), base, rtol=0, atol=1e-5)


def test_an_adapter_around_a_model_that_scores_already():
    model, _ = load_tiny("llama")
    peft = attach_scorer(lora(attach_scorer(model), target_modules=["q_proj"]))
    layout = concatenated(ROWS, pad_id=0)
    assert "forward" in vars(peft)
    with torch.no_grad():
        torch.testing.assert_close(token_logprobs(peft, layout), naive_logprobs(peft, layout), rtol=0, atol=1e-5)


def test_refuses_virtual_tokens():
    model, _ = load_tiny("llama")
    peft = get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(UsageError, match="virtual tokens"):
        attach_scorer(peft)


def test_refuses_a_model_without_a_head():
    model, _ = load_tiny("llama")
    with pytest.raises(UsageError, match="no decoder with an output head"):
        attach_scorer(model.model)


def test_the_model_is_otherwise_what_it_was():
    model, _ = load_tiny("llama")
    names, signature = list(model.state_dict()), inspect.signature(model.forward)
    ids = torch.tensor([[1, 5, 6]])
    before = model(input_ids=ids).logits
    assert attach_scorer(attach_scorer(model)) is model
    assert list(model.state_dict()) == names
    assert inspect.signature(model.forward) == signature
    torch.testing.assert_close(model(input_ids=ids).logits, before, rtol=0, atol=0)
    model.train()
    check_exact(model, concatenated(ROWS, pad_id=0))
    assert model.training


def test_a_copy_scores_with_its_own_weights():
    model, _ = load_tiny("llama")
    layout = concatenated(ROWS, pad_id=0)
    twin = copy.deepcopy(attach_scorer(model))
    with torch.no_grad():
        before = token_logprobs(twin, layout)
        for parameter in model.parameters():
            parameter.zero_()
        torch.testing.assert_close(token_logprobs(twin, layout), before, rtol=0, atol=0)
        assert (token_logprobs(model, layout) - before).abs().max() > 0.1


def test_gradient_checkpointing_changes_nothing():
    model, _ = load_tiny("llama")
    attach_scorer(model).train()
    layout = concatenated(ROWS, pad_id=0)
    token_logprobs(model, layout).sum().backward()
    plain = model.model.layers[0].mlp.up_proj.weight.grad.clone()
    model.zero_grad()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    token_logprobs(model, layout).sum().backward()
    torch.testing.assert_close(model.model.layers[0].mlp.up_proj.weight.grad, plain)


def test_sums_and_lengths_by_hand():
    layout = concatenated([([1], [[2, 3], [4]])], pad_id=0)
    assert sequence_logprobs(torch.tensor([-1.0, -2.0, -4.0]), layout).tolist() == [-3.0, -4.0]
    assert response_lengths(layout).tolist() == [2, 1]
