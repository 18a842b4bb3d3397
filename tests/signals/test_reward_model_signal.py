"""The signal of reward models: which head is the score, what is counted, and the whole way with a real model."""

import pytest
from pydantic import ValidationError
from tests.tiny_rewards import make_tiny_reward

from prefloop.backends.base import Logits, Refusal
from prefloop.config import ModelSection, RewardModelSignalSection
from prefloop.errors import PrefloopError, UsageError
from prefloop.signals import build
from prefloop.signals.driver import rate
from prefloop.signals.reward_model import RewardModelSignal, choose_head

LABELS = {0: "helpful", 1: "harmless", 2: "1"}


def row(*texts):
    completions = [
        {"id": f"c{i}", "text": t, "token_ids": None, "finish_reason": "stop", "sample_index": i}
        for i, t in enumerate(texts)
    ]
    return {"id": "r", "prompt": [{"role": "user", "content": "Which?"}], "completions": completions}


def rating(the_row, results, head=0):
    generator = RewardModelSignal("ORG/rm", head, {"type": "reward_model", "head": None}).rate(the_row)
    calls = next(generator)
    with pytest.raises(StopIteration) as end:
        generator.send(results)
    return calls, end.value.value


def test_one_call_an_answer_and_the_chosen_head_is_the_score():
    calls, found = rating(row("a", "b"), [Logits([0.5, 7.0]), Logits([-1.0, 3.0])], head=1)
    assert [call.request.messages[-1] for call in calls] == [("assistant", "a"), ("assistant", "b")]
    assert all(call.backend == "reward" and call.request.messages[0] == ("user", "Which?") for call in calls)
    assert found.scores == [7.0, 3.0]


def test_a_refusal_is_no_score_and_is_counted():
    results = [Logits([1.0]), Refusal("long", too_long=True), Refusal("no")]
    _, found = rating(row("a", "bb", "c"), results)
    assert found.scores == [1.0, None, None]
    assert (found.counts["refused"], found.counts["too_long"]) == (2, 1)


def test_longer_wins_counts_pairs_of_different_lengths_and_scores():
    # Of six pairs one is of equal lengths (1, 3) and one of equal scores (0, 1); the longer wins 2 of the other 4.
    _, found = rating(row("a", "bb", "ccc", "dd"), [Logits([x]) for x in (1.0, 1.0, 0.0, 5.0)])
    assert (found.counts["longer_decided"], found.counts["longer_wins"]) == (4, 1)


def test_a_model_with_fewer_heads_than_its_configuration_says():
    generator = RewardModelSignal("m", 3, {"type": "reward_model", "head": "3"}).rate(row("a"))
    next(generator)
    with pytest.raises(PrefloopError, match="gave 1 values"):
        generator.send([Logits([1.0])])


@pytest.mark.parametrize(("wanted", "head"), [("helpful", 0), ("1", 2), ("0", 0), ("2", 2)])
def test_a_head_is_named_by_its_label_first_and_then_by_its_number(wanted, head):
    assert choose_head(LABELS, wanted) == head


def test_the_only_head_needs_no_name():
    assert choose_head({0: "LABEL_0"}, None) == 0


@pytest.mark.parametrize(
    ("labels", "wanted", "words"),
    [
        (LABELS, None, "3 outputs, and nothing says which is the score: 0 helpful, 1 harmless, 2 1"),
        (LABELS, "helpfull", "no output 'helpfull'"),
        (LABELS, "7", "no output '7'"),
        ({0: "x", 1: "x"}, "x", "2 outputs are called 'x'"),
    ],
)
def test_a_head_that_is_not_there_is_refused(labels, wanted, words):
    with pytest.raises(UsageError, match=words):
        choose_head(labels, wanted)


def test_a_wrong_name_is_corrected():
    with pytest.raises(UsageError, match="did you mean 'helpful'"):
        choose_head(LABELS, "helpfull")


def test_names_tell_models_and_heads_apart():
    of = {head: RewardModelSignal("ORG/rm", 0, {"head": head}).name for head in (None, "helpful")}
    assert of == {None: "reward_model-rm", "helpful": "reward_model-rm[helpful]"}


def test_a_server_is_no_reward_model():
    with pytest.raises(ValidationError, match="loaded here"):
        RewardModelSignalSection(
            type="reward_model", model=ModelSection(path="rm", endpoint={"url": "http://localhost/v1"})
        )


def test_a_number_is_a_head():
    assert RewardModelSignalSection(type="reward_model", model={"path": "rm"}, head=1).head == "1"


def test_a_language_model_is_found_out_before_anything_is_sampled():
    section = RewardModelSignalSection(type="reward_model", model={"path": "sandbox"})
    with pytest.raises(UsageError, match="sandbox: this is a causal language model") as error:
        build.preflight(section)
    assert "LABEL_0" not in str(error.value)


def test_the_whole_way_from_a_recipes_section(tmp_path):
    folder = make_tiny_reward(tmp_path / "rm", "bert", labels=("helpful", "harmless"))
    model = {"path": str(folder), "device": "cpu"}
    section = RewardModelSignalSection(type="reward_model", model=model, head="harmless")
    assert build.identity(section) == {"type": "reward_model", "head": "harmless"}
    build.preflight(section)
    signal, needs = build.build(section)
    assert needs["reward"].kind == "reward"
    backend = build.open_backend(needs["reward"].model, needs["reward"].kind, None)
    rated = rate(signal, [row("Paris.", "No idea at all.")], {"reward": backend})
    second = [call["result"] for call in rated.calls]
    assert len(second) == 2
    assert rated.rows[0]["scores"][0] != rated.rows[0]["scores"][1]
    assert not signal.pairwise
    unnamed = RewardModelSignalSection(type="reward_model", model=model)
    with pytest.raises(UsageError, match="2 outputs"):
        build.preflight(unnamed)
