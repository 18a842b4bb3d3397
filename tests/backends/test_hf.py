"""The embedded backend: three verbs against the naive computation, and refusals."""

import gc
import itertools
import math
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from tests.tiny_models import ARCHITECTURES, copy_tiny_model, load_tiny, tiny_model_folder
from transformers import GenerationConfig

from prefloop.backends.base import ChooseRequest, GenerateRequest, Generation, Refusal, Sampling, ScoreRequest
from prefloop.backends.hf import HfBackend
from prefloop.config import ModelSection
from prefloop.engine.tokens import encode_completion, encode_prompt
from prefloop.errors import UsageError

HELLO = (("user", "Hello"),)
FOX = (("system", "Be kind."), ("user", "Where does the quick brown fox jump, and over whom?"))
FREE = Sampling(max_new_tokens=10)


def backend_of(arch, *, batch_size=8, **config):
    folder = tiny_model_folder(arch, **config)
    return HfBackend.load(ModelSection(path=str(folder), device="cpu", batch_size=batch_size))


def generate(messages, *indices, sampling=FREE):
    return [GenerateRequest(messages, sampling, i) for i in indices]


# --- generate


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_samples_are_the_same_alone_and_in_company(arch):
    backend = backend_of(arch)
    together = backend.answer([*generate(HELLO, 0, 1, 2), *generate(FOX, 0, 1)])
    assert [backend.answer(generate(HELLO, i))[0] for i in range(3)] == together[:3]
    assert backend.answer([*generate(FOX, 1, 0)]) == together[:2:-1]
    assert len({tuple(g.token_ids) for g in together}) == 5


def test_more_samples_leave_the_first_ones():
    backend = backend_of("llama")
    assert backend.answer(generate(HELLO, *range(8)))[:4] == backend.answer(generate(HELLO, *range(4)))


def test_seeds_give_other_samples_and_the_same_again():
    backend = backend_of("llama")
    first, second = (generate(HELLO, 0, 1, sampling=Sampling(10, seed=seed)) for seed in (0, 1))
    assert backend.answer(first) == backend.answer(first)
    assert backend.answer(first) != backend.answer(second)


@pytest.mark.parametrize("arch", ["llama", "gemma3"])
def test_the_checkpoints_sampling_defaults_do_not_leak_in(arch, tmp_path):
    leaky = backend_of(arch)
    assert leaky.model.generation_config.repetition_penalty == 1.7
    folder = copy_tiny_model(tmp_path / "clean", arch)
    stops = GenerationConfig.from_pretrained(folder).eos_token_id
    GenerationConfig(eos_token_id=stops).save_pretrained(folder)
    clean = HfBackend.load(ModelSection(path=str(folder), device="cpu"))
    requests = [*generate(HELLO, 0, 1, 2), *generate(HELLO, 0, sampling=Sampling(10, temperature=0))]
    assert leaky.answer(requests) == clean.answer(requests)


def test_finish_reasons_and_ids():
    backend = backend_of("llama")
    free = backend.answer(generate(HELLO, 0))[0]
    assert free.finish_reason == "length"
    assert len(free.token_ids) == 10
    assert free.text == backend.tokenizer.decode(free.token_ids, skip_special_tokens=True)
    assert free.prompt_tokens == len(encode_prompt(backend.tokenizer, [{"role": "user", "content": "Hello"}]))

    # Let one of its tokens end turns: the same sample stops there, and the end is not among its ids.
    backend.stops = (backend.stops[0], free.token_ids[4])
    stopped = backend.answer(generate(HELLO, 0))[0]
    assert stopped.finish_reason == "stop"
    assert stopped.token_ids == free.token_ids[: free.token_ids.index(free.token_ids[4])]

    backend.stops = (free.token_ids[0],)
    empty = backend.answer(generate(HELLO, 0))[0]
    assert (empty.text, empty.token_ids, empty.finish_reason) == ("", [], "stop")

    # An end as the very last allowed token is an end.
    backend.stops = (free.token_ids[4],)
    at_end = backend.answer(generate(HELLO, 0, sampling=Sampling(max_new_tokens=5)))[0]
    assert at_end.finish_reason == "stop"


def test_any_of_the_models_ends_stops():
    backend = backend_of("llama")
    assert backend.tokenizer.convert_ids_to_tokens(list(backend.stops)) == ["<|eot|>", "<|eos|>"]


def test_truncated_sampling_stays_in_its_support():
    backend = backend_of("llama")
    prompt = encode_prompt(backend.tokenizer, [{"role": "user", "content": "Hello"}])
    with torch.no_grad():
        logits = backend.model(torch.tensor([prompt])).logits[0, -1]
    top = backend.answer(generate(HELLO, *range(64), sampling=Sampling(1, temperature=2.0, top_k=3)))
    first = {(*g.token_ids, *([backend.stops[0]] if g.finish_reason == "stop" else []))[0] for g in top}
    assert first == set(logits.topk(3).indices.tolist())


@pytest.mark.parametrize("sampling", [FREE, Sampling(10, temperature=0), Sampling(10, top_p=0.8)], ids=str)
def test_stream_is_what_generate_gives(sampling):
    backend = backend_of("llama")
    messages = [{"role": role, "content": content} for role, content in FOX]
    for index in range(3):
        pieces = list(backend.stream(messages, sampling, index))
        assert "".join(pieces) == backend.answer(generate(FOX, index, sampling=sampling))[0].text
    assert len(pieces) > 1


def test_stream_refuses_what_does_not_fit():
    with pytest.raises(UsageError, match="the model has 256 positions"):
        next(backend_of("llama").stream([{"role": "user", "content": "x " * 300}], FREE))


# --- score


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_score_is_the_plain_forward(arch):
    backend = backend_of(arch, batch_size=3)
    prompts = [tuple(range(10, 15)), tuple(range(30, 70)), (7,)]
    completions = [(9,), tuple(range(80, 110)), (5, 6, 5)]
    requests = [ScoreRequest(p, c) for p, c in itertools.product(prompts, completions)]
    for request, score in zip(requests, backend.answer(requests), strict=True):
        ids = torch.tensor([[*request.prompt_ids, *request.completion_ids]])
        with torch.no_grad():
            logps = backend.model(input_ids=ids).logits[0].log_softmax(-1)[len(request.prompt_ids) - 1 : -1]
        expected = logps.gather(-1, torch.tensor(request.completion_ids)[:, None])[:, 0].tolist()
        assert score.token_logps == pytest.approx(expected, abs=1e-5)
        assert score.total == pytest.approx(sum(expected), abs=1e-4)


def test_score_of_a_sample_is_its_probability():
    """Sampled ids, scored behind the same prompt: the first token's share among many samples is exp(log-prob)."""
    backend = backend_of("llama", batch_size=512)
    one = Sampling(max_new_tokens=1)
    samples = backend.answer(generate(HELLO, *range(2000), sampling=one))
    prompt = tuple(encode_prompt(backend.tokenizer, [{"role": "user", "content": "Hello"}]))
    ids = [tuple(g.token_ids) for g in samples if g.token_ids]
    common = max(set(ids), key=ids.count)
    p = math.exp(backend.answer([ScoreRequest(prompt, common)])[0].total)
    assert abs(ids.count(common) / 2000 - p) < 4 * math.sqrt(p * (1 - p) / 2000)


def test_lora_model_scores_and_samples():
    model, tokenizer = load_tiny("llama")
    base = HfBackend(model, tokenizer, weights="base")
    request = [ScoreRequest((5, 6, 7), (8, 9))]
    before = base.answer(request)[0]
    model, tokenizer = load_tiny("llama")
    config = LoraConfig(r=2, lora_dropout=0.5, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM")
    peft = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.05)
    backend = HfBackend(peft.train(), tokenizer, weights="lora")
    after = backend.answer(request)[0]
    assert backend.answer(request)[0] == after  # no dropout, although the model came in train mode
    assert max(abs(a - b) for a, b in zip(before.token_logps, after.token_logps, strict=True)) > 1e-3
    assert peft.training  # left as it was found
    assert isinstance(backend.answer(generate(HELLO, 0))[0], Generation)


# --- choose


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("labels", [("A", "B"), ("A", "yes of course", "no"), ("1", "2", "3", "4", "5")], ids=str)
def test_choose_is_score_of_the_labels(arch, labels):
    backend = backend_of(arch)
    for messages in (HELLO, FOX):
        (choice,) = backend.answer([ChooseRequest(messages, labels)])
        turns = [{"role": role, "content": content} for role, content in messages]
        prompt = tuple(encode_prompt(backend.tokenizer, turns))
        ids = [tuple(encode_completion(backend.tokenizer, label, None)) for label in labels]
        scores = backend.answer([ScoreRequest(prompt, label) for label in ids])
        assert choice.logps == pytest.approx([s.total for s in scores], abs=1e-4)
        assert choice.label_tokens == [len(label) for label in ids]


def test_choices_in_one_batch_are_those_alone():
    backend = backend_of("gemma3", batch_size=4)
    labels = [("A", "B"), ("yes of course", "no", "maybe so", "never"), ("1",)]
    requests = [ChooseRequest(m, ls) for m in (HELLO, FOX) for ls in labels]
    for request, choice in zip(requests, backend.answer(requests), strict=True):
        assert choice.logps == pytest.approx(backend.answer([request])[0].logps, abs=1e-5)


def test_one_token_labels_take_one_forward_of_the_prompt():
    backend = backend_of("llama")
    shapes = []
    backend.model.model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    backend.answer([ChooseRequest(HELLO, ("A", "B", "C"))])
    assert shapes == [(1, len(encode_prompt(backend.tokenizer, [{"role": "user", "content": "Hello"}])))]


# --- refusals


def test_refusals():
    backend = backend_of("llama")
    requests = {
        "fits": GenerateRequest((("user", "Hello" + " x" * 100),), Sampling(8)),
        "too long": GenerateRequest((("user", "x " * 300),), FREE),
        "score fits": ScoreRequest((5,) * 200, (6,) * 56),
        "score too long": ScoreRequest((5,) * 200, (6,) * 57),
        "empty prompt": ScoreRequest((), (6,)),
        "empty completion": ScoreRequest((5,), ()),
        "choice too long": ChooseRequest((("user", "x " * 300),), ("A",)),
        "no labels": ChooseRequest(HELLO, ()),
        "empty label": ChooseRequest(HELLO, ("A", "")),
        "bad roles": GenerateRequest((("critic", "{}"),), FREE),
    }
    results = dict(zip(requests, backend.answer(list(requests.values())), strict=True))
    refused = {name: r.reason for name, r in results.items() if isinstance(r, Refusal)}
    assert set(refused) == set(requests) - {"fits", "score fits"}
    assert refused["score too long"] == "prompt and answer take 257 tokens, the model has 256 positions"
    assert "empty completion" in refused["empty completion"]
    assert "unknown role 'critic'" in refused["bad roles"]


def test_an_answer_ends_where_the_model_does():
    backend = backend_of("llama")
    length = len(encode_prompt(backend.tokenizer, [{"role": "user", "content": "Hello"}]))
    requests = [GenerateRequest(HELLO, Sampling(1000, seed=s), s) for s in range(4)]
    for answer in backend.answer([*requests, GenerateRequest((("user", "Hello there, you"),), Sampling(1000))]):
        assert len(answer.token_ids) <= 256 - answer.prompt_tokens
        assert (answer.finish_reason == "length") == (len(answer.token_ids) == 256 - answer.prompt_tokens)
    assert {a.prompt_tokens for a in backend.answer(requests)} == {length}


def test_a_refusal_leaves_its_batch_alone():
    backend = backend_of("llama")
    good = generate(HELLO, 0, 1)
    bad = GenerateRequest((("user", "x " * 300),), FREE)
    results = backend.run([good[0], bad, good[1]])
    assert [results[0], results[2]] == backend.run(good)
    assert isinstance(results[1], Refusal)


# --- plan and identity

REQUESTS = st.one_of(
    st.builds(
        GenerateRequest,
        st.tuples(st.tuples(st.just("user"), st.text(max_size=5))),
        st.builds(Sampling, st.sampled_from([4, 8]), seed=st.sampled_from([0, 1])),
        st.integers(0, 3),
    ),
    st.builds(ScoreRequest, st.tuples(st.integers(0, 9)), st.tuples(st.integers(0, 9))),
    st.builds(ChooseRequest, st.just(HELLO), st.just(("A", "B"))),
)


@settings(max_examples=50, deadline=None)
@given(st.lists(REQUESTS, max_size=30))
def test_plan_holds_every_request_once(requests):
    backend = backend_of_once()
    batches = backend.plan(requests)
    assert sorted(i for batch in batches for i in batch) == list(range(len(requests)))
    assert all(0 < len(batch) <= 4 for batch in batches)
    for batch in batches:
        assert len({(r.verb, getattr(r, "sampling", None)) for r in (requests[i] for i in batch)}) == 1
    assert backend.plan(requests) == batches


_planner = []


def backend_of_once():
    if not _planner:
        _planner.append(backend_of("llama", batch_size=4))
    return _planner[0]


def test_plan_keeps_prompts_together_and_puts_the_longest_first():
    requests = [*generate(HELLO, 0, 1, 2), *generate(FOX, 0, 1, 2)]
    assert backend_of("llama", batch_size=3).plan(requests[::2] + requests[1::2]) == [[4, 2, 5], [0, 3, 1]]


def test_run_takes_one_verb():
    with pytest.raises(ValueError, match="one verb"):
        backend_of("llama").run([*generate(HELLO, 0), ScoreRequest((5,), (6,))])


def test_identity_changes_with_what_changes_answers(tmp_path):
    base = ModelSection(path=str(tiny_model_folder("llama")), device="cpu")
    identities = [
        HfBackend.load(section).identity
        for section in (
            base,
            base.model_copy(update={"batch_size": 1}),
            base.model_copy(update={"dtype": "bfloat16"}),
            base.model_copy(update={"template": "plain"}),
            base.model_copy(update={"path": str(tiny_model_folder("llama", seed=1))}),
        )
    ]
    assert identities[0] == identities[1]
    assert all(a != b for a, b in itertools.combinations(identities[1:], 2))
    assert identities[0]["dtype"] == "float32"


def test_identity_holds_the_rules_of_decoding_and_of_tokens(monkeypatch):
    before = backend_of("llama").identity
    for version in ("decode.VERSION", "TOKENS_VERSION"):
        with monkeypatch.context() as patch:
            patch.setattr(f"prefloop.backends.hf.{version}", 99)
            assert backend_of("llama").identity != before


def test_close_frees_the_model():
    """The scorer's bound methods tie a model to itself: without a collection its memory would stay."""
    backend = backend_of("llama")
    weight = weakref.ref(backend.model.get_input_embeddings().weight)
    gc.disable()
    try:
        backend.close()
        assert weight() is None
    finally:
        gc.enable()
