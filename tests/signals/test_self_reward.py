"""Self-reward: the four log-probabilities against plain float64 forward passes, and what becomes of them."""

from __future__ import annotations

import pytest
import torch
from tests.tiny_models import tiny_model_folder
from transformers import AutoModelForCausalLM

from prefloop.backends.base import AnswerScoreRequest, Refusal, Score, ScoreRequest, freeze
from prefloop.backends.hf import HfBackend
from prefloop.config import ModelSection, SelfRewardSignalSection
from prefloop.engine.tokens import encode_completion, encode_prompt
from prefloop.errors import PrefloopError
from prefloop.records import PartScores
from prefloop.signals.attribute import Attribute, with_note
from prefloop.signals.build import build, identity
from prefloop.signals.driver import rate
from prefloop.signals.self_reward import SelfRewardSignal, by_token

MOOD = Attribute(name="mood", positive=("Be glad.",), negative=("Be sad and say as little as you can.",))
WORDY = Attribute(name="wordy", positive=("Say much.",), negative=("Say little.",))
TEXTS = ["Yes, of course I help you.", "No."]


def completion(text, index, side=None, token_ids=None):
    row = {"id": f"c{index}", "text": text, "token_ids": token_ids, "finish_reason": "stop", "sample_index": index}
    if side is not None:
        row["contrast"] = {
            "attribute": "mood",
            "side": side,
            "positive": MOOD.positive[0],
            "negative": MOOD.negative[0],
        }
    return row


def row(texts=TEXTS, noted=True):
    sides = ["positive", "negative"] if noted else [None, None]
    return {
        "id": "r",
        "prompt": [{"role": "user", "content": "What is the capital of France?"}],
        "completions": [completion(t, i, sides[i % 2]) for i, t in enumerate(texts)],
    }


class Scripted:
    """A backend that gives each answer under each note the log-probabilities of a table."""

    def __init__(self, table):
        self.table, self.asked = table, []

    def answer(self, requests):
        self.asked += requests
        return [self.table[r.text, r.messages[0][1]] for r in requests]


def scripted(**table):
    notes = {"p": MOOD.positive[0], "n": MOOD.negative[0]}
    return Scripted({(text, notes[note]): result for (text, note), result in table["table"].items()})


@pytest.fixture(scope="module", params=["llama", "mistral", "gpt_neox"])
def backend(request):
    folder = tiny_model_folder(request.param)
    held = HfBackend.load(ModelSection(path=str(folder), device="cpu", dtype="float32"))
    exact = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    return held, exact


def exact_scores(model, prompts, answers, pad, side):
    """The published way: one forward pass over each (style, answer) batch, padded on one side, logits in float64."""
    rows = [[*p, *a] for p, a in zip(prompts, answers, strict=True)]
    width = max(map(len, rows))
    ids, mask, positions = [], [], []
    for tokens in rows:
        gap = [0] * (width - len(tokens))
        place = list(range(len(tokens)))
        left = side == "left"
        ids.append([pad] * len(gap) + tokens if left else tokens + [pad] * len(gap))
        mask.append(gap + [1] * len(tokens) if left else [1] * len(tokens) + gap)
        positions.append(gap + place if left else place + gap)
    with torch.no_grad():
        logits = model(
            input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask), position_ids=torch.tensor(positions)
        ).logits
    logps = logits.double().log_softmax(-1)
    found = []
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        start = (width - len(rows[i]) if side == "left" else 0) + len(prompt)
        found.append([float(logps[i, start + k - 1, token]) for k, token in enumerate(answer)])
    return found


@pytest.mark.parametrize("side", ["left", "right"])
def test_rewards_are_those_of_four_float64_forward_passes(backend, side):
    held, exact = backend
    candidates = row()
    rated = rate(SelfRewardSignal(None, "negative", "sum"), [candidates], {"self": held})
    tokenizer = held.tokenizer
    expected = {}
    for sign, note in (("positive", MOOD.positive[0]), ("negative", MOOD.negative[0])):
        prompts = [encode_prompt(tokenizer, with_note(candidates["prompt"], note))] * 2
        answers = [encode_completion(tokenizer, text, None) for text in TEXTS]
        expected[sign] = exact_scores(exact, prompts, answers, held._pad_id, side)
    parts = {part["name"]: part["scores"] for part in rated.rows[0]["parts"]}
    for sign, by_answer in expected.items():
        assert parts[f"mood/{sign}"] == pytest.approx([sum(logps) for logps in by_answer], abs=1e-4)
    rewards = [sum(p) - sum(n) for p, n in zip(expected["positive"], expected["negative"], strict=True)]
    assert rated.rows[0]["scores"] == pytest.approx(rewards, abs=1e-4)
    assert parts["mood/tokens"] == [len(logps) for logps in expected["positive"]]
    per_token = [reward / count for reward, count in zip(rewards, parts["mood/tokens"], strict=True)]
    assert parts["mood/per_token"] == pytest.approx(per_token, abs=1e-4)


def test_the_samplers_ids_count_where_they_are_this_text(backend):
    held, _ = backend
    messages = freeze([{"role": "user", "content": "hello"}])
    own = encode_completion(held.tokenizer, "hello world", None)
    # Letter by letter: another way to write the same text, as a sampler may.
    spelled = [i for letter in "hello world" for i in encode_completion(held.tokenizer, letter, None)]
    assert len(spelled) > len(own)
    asked = [
        AnswerScoreRequest(messages, "hello world", tuple(spelled)),
        AnswerScoreRequest(messages, "hello world", (1, 2, 3)),
        AnswerScoreRequest(messages, "hello world", (10**6,)),
        AnswerScoreRequest(messages, "hello world"),
    ]
    lengths = [len(result.token_logps) for result in held.answer(asked)]
    assert lengths == [len(spelled), len(own), len(own), len(own)]


def test_an_answer_is_scored_as_its_ids_are(backend):
    held, _ = backend
    prompt = [{"role": "user", "content": "hello"}]
    prompt_ids = tuple(encode_prompt(held.tokenizer, prompt))
    answer_ids = tuple(encode_completion(held.tokenizer, "the lazy dog", None))
    (by_ids,) = held.answer([ScoreRequest(prompt_ids, answer_ids)])
    (by_text,) = held.answer([AnswerScoreRequest(freeze(prompt), "the lazy dog")])
    assert by_text.token_logps == pytest.approx(by_ids.token_logps, abs=1e-5)


def test_sums_and_means_by_hand():
    table = {
        ("a b", "p"): Score([-1.0, -2.0]),
        ("a b", "n"): Score([-3.0, -4.0]),
        ("c", "p"): Score([-5.0]),
        ("c", "n"): Score([-0.5]),
    }
    candidates = row(["a b", "c"])
    summed = rate(SelfRewardSignal(None, "negative", "sum"), [candidates], {"self": scripted(table=table)})
    assert summed.rows[0]["scores"] == [4.0, -4.5]
    assert summed.counts["tokens"] == 3
    mean = rate(SelfRewardSignal(None, "negative", "tokens"), [candidates], {"self": scripted(table=table)})
    assert mean.rows[0]["scores"] == [2.0, -4.5]
    assert by_token(table["a b", "p"], table["a b", "n"]) == [2.0, 2.0]


def test_an_empty_answer_is_not_asked_about_and_a_refused_one_has_no_score():
    table = {("a b", "p"): Score([-1.0]), ("a b", "n"): Refusal("too long", too_long=True)}
    backend = scripted(table=table)
    rated = rate(SelfRewardSignal(None, "negative", "sum"), [row(["a b", ""])], {"self": backend})
    assert rated.rows[0]["scores"] == [None, None]
    assert (rated.counts["refused"], rated.counts["empty"]) == (1, 1)
    assert len(backend.asked) == 2


def test_given_attributes_score_every_answer_and_are_averaged():
    signal = SelfRewardSignal([MOOD, WORDY], "negative", "sum")
    logps = {"Be glad.": -1.0, MOOD.negative[0]: -4.0, "Say much.": -2.0, "Say little.": -1.0}
    table = {(text, note): Score([value]) for text in TEXTS for note, value in logps.items()}
    rated = rate(signal, [row(noted=False)], {"self": Scripted(table)})
    assert rated.rows[0]["scores"] == [(3 - 1) / 2] * 2
    names = [part["name"] for part in rated.rows[0]["parts"]]
    assert names == [f"{a}/{k}" for a in ("mood", "wordy") for k in ("positive", "negative", "tokens", "per_token")]
    assert rated.rows[0]["parts"][4] == PartScores(name="wordy/positive", scores=[-2.0, -2.0])


def test_answers_without_notes_need_attributes():
    with pytest.raises(PrefloopError, match=r"set rate\.attributes, or sample with sample\.contrast"):
        rate(SelfRewardSignal(None, "negative", "sum"), [row(noted=False)], {"self": Scripted({})})


def test_identity_has_the_notes_themselves(tmp_path):
    file = tmp_path / "mood.yaml"
    file.write_text("name: mood\npositive: [Be glad.]\nnegative: [Be sad.]\n")
    section = SelfRewardSignalSection(type="self_reward", attributes=str(file))
    before = identity(section)
    file.write_text("name: mood\npositive: [Be merry.]\nnegative: [Be sad.]\n")
    assert identity(section) != before
    signal, needs = build(section)
    assert signal.name == "self_reward:mood"
    assert needs["self"].policy
