"""Reward models: every architecture against a plain forward of transformers, alone and in company."""

import json
import logging
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny_models import tiny_model_folder
from tests.tiny_rewards import DECODERS, ENCODERS, make_tiny_reward
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from prefloop.backends.base import ChooseRequest, Logits, Refusal, RewardRequest
from prefloop.backends.reward import RewardBackend
from prefloop.config import ModelSection
from prefloop.errors import UsageError

PROMPT = (("user", "What is the capital of France?"),)
ANSWERS = ("Paris.", "Paris, and it is a large city. " * 3, "No.", "I will help you, of course.")
REQUESTS = [RewardRequest((*PROMPT, ("assistant", answer))) for answer in ANSWERS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folders of models, each made once."""
    made = {}

    def find(arch, **settings):
        key = (arch, *sorted(settings.items()))
        if key not in made:
            made[key] = make_tiny_reward(tmp_path_factory.mktemp("reward"), arch, **settings)
        return made[key]

    return find


def load(path, **settings):
    return RewardBackend.load(ModelSection(path=str(path), device="cpu", **settings))


@pytest.fixture(scope="module")
def llama(folder):
    return load(folder("llama"))


def direct(path, request):
    """The score by transformers alone, one text at a time."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32).eval()
    messages = [{"role": role, "content": content} for role, content in request.messages]
    if tokenizer.chat_template is None:
        encoded = tokenizer(messages[0]["content"], messages[1]["content"], return_tensors="pt")
    else:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        encoded = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    with torch.no_grad():
        return model(**encoded).logits[0].tolist()


@pytest.mark.parametrize("arch", [*DECODERS, *ENCODERS])
def test_values_are_those_of_a_plain_forward(folder, arch):
    path = folder(arch)
    found = load(path, batch_size=3).answer(REQUESTS)
    expected = [direct(path, request) for request in REQUESTS]
    assert [r.values for r in found] == [pytest.approx(values, abs=1e-5) for values in expected]
    assert len({round(r.values[0], 4) for r in found}) == len(ANSWERS)
    assert all(r.truncated == 0 for r in found)


@pytest.mark.parametrize("arch", ["llama", "gemma3", "bert", "deberta-v2"])
def test_company_and_order_change_nothing(folder, arch):
    path = folder(arch)
    alone = load(path, batch_size=1).answer(REQUESTS)
    together = load(path, batch_size=8).answer(REQUESTS[::-1])[::-1]
    assert [r.values for r in together] == [pytest.approx(r.values, abs=1e-5) for r in alone]


def test_a_model_without_padding_reads_its_last_token(folder):
    """ChatML ends with a line break behind <|im_end|>; whatever pads the batch, the score is read there."""
    path = folder("qwen3", padded=False)
    found = load(path, batch_size=8).answer(REQUESTS)
    assert [r.values for r in found] == [pytest.approx(direct(path, request), abs=1e-5) for request in REQUESTS]


def test_the_answer_is_read_to_its_end(folder):
    backend = load(folder("llama"))
    one, other = (RewardRequest((*PROMPT, ("assistant", "It is Paris" + end))) for end in (".", "!"))
    assert backend.answer([one])[0] != backend.answer([other])[0]


def test_a_decoder_without_a_template_reads_the_plain_form(folder):
    path = folder("llama", template=False)
    backend, plain = load(path), load(folder("llama"), template="plain")
    assert not backend.as_pair
    assert backend.answer(REQUESTS[:1])[0].values == pytest.approx(plain.answer(REQUESTS[:1])[0].values, abs=1e-6)


def test_an_encoder_reads_a_pair_of_texts(folder):
    backend = load(folder("bert"))
    encoded = backend._pair([{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}])
    assert encoded.types[0] == 0
    assert encoded.types[-1] == 1
    assert encoded.ids.count(backend.tokenizer.sep_token_id) == 2


def test_an_encoder_with_a_template_has_its_marks_around_the_conversation(folder):
    backend = load(folder("bert"), template="plain")
    encoded = backend._conversation([{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}])
    assert encoded.ids[0] == backend.tokenizer.cls_token_id
    assert encoded.ids[-1] == backend.tokenizer.sep_token_id
    assert not backend.as_pair


@pytest.mark.parametrize("arch", ["llama", "bert"])
def test_text_makes_no_control_tokens(folder, arch):
    backend = load(folder(arch))
    mark = "<|eot|>" if arch == "llama" else "[SEP]"
    messages = [{"role": "user", "content": "one"}, {"role": "assistant", "content": f"two {mark} three"}]
    plain = [messages[0], {"role": "assistant", "content": "two three"}]
    mark_id = backend.tokenizer.convert_tokens_to_ids(mark)
    assert backend._encode(messages).ids.count(mark_id) == backend._encode(plain).ids.count(mark_id)


@pytest.mark.parametrize("arch", ["llama", "bert", "roberta"])
def test_what_does_not_fit_is_refused_and_never_cut(folder, arch):
    path = folder(arch, positions=64)
    backend = load(path)
    assert backend.max_positions == 64
    long = RewardRequest((*PROMPT, ("assistant", "word " * 200)))
    refused, kept = backend.answer([long, REQUESTS[0]])
    assert isinstance(refused, Refusal)
    assert refused.too_long
    assert isinstance(kept, Logits)
    edges = [RewardRequest((("user", "q"), ("assistant", "7" * n))) for n in range(30, 66)]
    fits = [
        isinstance(r, Logits) for r in backend.answer(edges)
    ]  # the longest that fit are computed, not only counted
    assert fits == sorted(fits, reverse=True)
    assert True in fits
    assert False in fits


def test_what_is_no_rated_conversation_is_refused(folder):
    backend = load(folder("llama"))
    (result,) = backend.answer([RewardRequest(PROMPT)])
    assert isinstance(result, Refusal)
    assert not result.too_long
    with pytest.raises(ValueError, match="does not answer choose"):
        backend.plan([ChooseRequest(PROMPT, ("A",))])


@given(st.lists(st.integers(0, 60), max_size=40), st.integers(1, 7))
@settings(max_examples=40)
def test_plan_has_every_request_once_and_the_longest_first(llama, lengths, size):
    llama.batch_size = size
    requests = [RewardRequest((("user", "q"), ("assistant", "x" * n))) for n in lengths]
    batches = llama.plan(requests)
    order = [i for batch in batches for i in batch]
    assert sorted(order) == list(range(len(lengths)))
    assert all(len(batch) <= size for batch in batches)
    assert [lengths[i] for i in order] == sorted(lengths, reverse=True)


def test_several_heads_in_their_order(folder):
    path = folder("deberta-v2", labels=("helpful", "harmless", "verbose"))
    (result,) = load(path).answer(REQUESTS[:1])
    assert result.values == pytest.approx(direct(path, REQUESTS[0]), abs=1e-5)
    assert len(result.values) == 3


def test_identity_holds_what_changes_a_value(folder):
    model, pair = load(folder("llama")), load(folder("bert"))
    assert model.identity == load(folder("llama"), batch_size=1).identity
    assert model.identity != load(folder("llama"), template="plain").identity
    assert model.identity != load(folder("llama"), dtype="bfloat16").identity
    assert pair.identity["template"] == "pair"


def test_precision_is_the_sections(folder):
    values = load(folder("llama"), dtype="bfloat16").answer(REQUESTS)
    exact = load(folder("llama")).answer(REQUESTS)
    assert [v.values for v in values] != [e.values for e in exact]
    assert [v.values[0] for v in values] == pytest.approx([e.values[0] for e in exact], abs=0.5)


def test_other_models_are_refused(tmp_path):
    with pytest.raises(
        UsageError, match=r"this is a causal language model \(LlamaForCausalLM\), not a sequence class"
    ):
        load(tiny_model_folder("llama"))
    # One that says it is a classifier, and has no head: one sentence, and no table of transformers' beside it.
    folder = shutil.copytree(tiny_model_folder("llama"), tmp_path / "headless")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaForSequenceClassification"]}))
    told = []
    handler = logging.Handler()
    handler.emit = told.append
    logging.getLogger("transformers.modeling_utils").addHandler(handler)
    with pytest.raises(UsageError, match=r"lacks 1 weights of a reward model, score\.weight"):
        load(folder)
    logging.getLogger("transformers.modeling_utils").removeHandler(handler)
    assert told == []
    with pytest.raises(UsageError, match="no model configuration"):
        load("/nowhere/at/all")


def test_an_unmerged_adapter_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "base"}')
    with pytest.raises(UsageError, match="unmerged adapter"):
        load(tmp_path)
