"""The signal and its backend: calls, scores by hand, counts, cache, and the way through a recipe's section."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from tests.tiny_pairrm import tiny_pairrm

from prefloop.backends.base import Backend, Logits, PairScoreRequest, Refusal, ScoreRequest
from prefloop.backends.cached import CachedBackend
from prefloop.config import PairRmSignalSection, Recipe, SignalSection
from prefloop.errors import UsageError
from prefloop.evaluate.win_rate import compare
from prefloop.loop.plan import evaluation_signals
from prefloop.signals.build import build, card, identity, open_backend, preflight, remark
from prefloop.signals.driver import rate
from prefloop.signals.pairrm import matrix
from prefloop.signals.pairrm.backend import PairRmBackend
from prefloop.signals.pairrm.signal import PairRmSignal
from prefloop.store.cache import Cache

SECTION = TypeAdapter(SignalSection)


class Scripted(Backend):
    """A PairRM whose logit is a function of the two answers; None refuses."""

    def __init__(self, logit, cut=0):
        self.identity = {"model": "scripted"}
        self.logit, self.cut, self.asked = logit, cut, []

    def plan(self, requests):
        return [list(range(len(requests)))]

    def run(self, requests):
        self.asked += [r.texts for r in requests]
        found = [self.logit(*r.texts[1:]) for r in requests]
        return [Refusal("no") if x is None else Logits([x], self.cut) for x in found]


def row(*texts, id="r", prompt=({"role": "user", "content": "the question"},)):
    return {
        "id": id,
        "prompt": list(prompt),
        "completions": [
            {"id": str(i), "text": t, "token_ids": None, "finish_reason": "stop", "sample_index": i}
            for i, t in enumerate(texts)
        ],
    }


def scored(texts, logit, score="logit", cut=0):
    backend = Scripted(logit, cut)
    rated = rate(PairRmSignal(score), [row(*texts)], {"pairrm": backend})
    return rated.rows[0]["scores"], rated.counts, backend


def by_length(a, b):
    """Prefers the longer answer by one a letter, and the first seat by a half."""
    return len(a) - len(b) + 0.5


def test_scores_by_hand():
    scores, counts, backend = scored(["a", "bb", "dddd"], by_length)
    # d = 2 * difference in length; (1/3) of d(0,1) + d(0,2) = -2 - 6, 2 - 4, 6 + 4
    assert scores == pytest.approx([-8 / 3, -2 / 3, 10 / 3])
    assert len(backend.asked) == 6
    assert set(backend.asked) == {
        ("the question", x, y) for x in ("a", "bb", "dddd") for y in ("a", "bb", "dddd") if x != y
    }
    assert counts["pairs"] == counts["consistent"] == counts["longer_wins"] == counts["longer_decided"] == 3
    assert (counts["first_decided"], counts["first_wins"]) == (6, 3)
    assert (counts["verdicts"], counts["nulls"], counts["texts"], counts["truncated"]) == (6, 0, 18, 0)


def test_a_seat_decides_where_answers_are_close():
    _, counts, _ = scored(["aa", "bb"], lambda a, b: 1.0 if a == "aa" else 0.25)
    assert (counts["pairs"], counts["consistent"], counts["first_wins"]) == (1, 0, 2)
    assert "longer_decided" not in counts


def test_win_probabilities_by_hand():
    scores, _, _ = scored(["a", "bb", "dddd"], by_length, "win")
    p = matrix.logistic
    assert scores == pytest.approx([(p(-2) + p(-6)) / 2, (p(2) + p(-4)) / 2, (p(6) + p(4)) / 2])
    assert math.fsum(scores) == pytest.approx(1.5)
    assert PairRmSignal("win").pairwise
    assert not PairRmSignal("logit").pairwise


def test_equal_answers_are_read_once_and_tie():
    scores, counts, backend = scored(["a", "bb", " a\n"], by_length)
    assert scores == pytest.approx([-2 / 3, 4 / 3, -2 / 3])
    assert len(backend.asked) == 2
    assert counts["pairs"] == 1
    scores, counts, backend = scored(["a", "a "], by_length)
    assert scores == [0, 0]
    assert backend.asked == []
    assert scored(["a", "a "], by_length, "win")[0] == [0.5, 0.5]
    assert scored(["a"], by_length)[0] == [0]
    assert scored(["a"], by_length, "win")[0] == [None]


def test_a_refused_call_leaves_the_row_without_scores():
    scores, counts, _ = scored(["a", "bb", "ccc"], lambda a, b: None if (a, b) == ("a", "bb") else 1.0)
    assert scores == [None] * 3
    assert (counts["verdicts"], counts["nulls"], counts["null_pairs"]) == (6, 1, 1)


@settings(max_examples=60)
@given(st.lists(st.text("ab ", max_size=3), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_the_matrix_stands_in_the_stored_calls(texts, rng):
    logits: dict[tuple[str, str], float] = {}
    backend = Scripted(lambda a, b: logits.setdefault((a, b), rng.uniform(-3, 3)))
    rated = rate(PairRmSignal(), [row(*texts)], {"pairrm": backend})
    stored = {}
    for call in rated.calls:
        request, result = json.loads(call["request"]), json.loads(call["result"])
        stored[tuple(text.strip() for text in request["texts"][1:])] = result["values"][0]
    kinds = [text.strip() for text in texts]
    m = [[0.0 if a == b else stored[a, b] for b in kinds] for a in kinds]
    assert rated.rows[0]["scores"] == matrix.scores(m)
    assert math.fsum(rated.rows[0]["scores"]) == pytest.approx(0, abs=1e-9)


def test_a_conversation_is_read_with_its_roles():
    backend = Scripted(by_length)
    prompt = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello?"}]
    rate(PairRmSignal(), [row("a", "bb", prompt=prompt)], {"pairrm": backend})
    assert backend.asked[0][0] == "System: Be kind.\n\nUser: Hello?"


def test_a_win_rate_is_the_probability_of_both_orders():
    rows = [row("a", "bb", id="1"), row("same", "same", id="2"), row("ccc", "c", id="3")]
    found = compare(rows, PairRmSignal("win"), {"pairrm": Scripted(by_length)}, resamples=100)
    assert found.preferences == pytest.approx([matrix.logistic(2), 0.5, matrix.logistic(-4)])
    assert found.summary["consistency"] == 1
    assert (found.summary["wins"], found.summary["losses"], found.summary["ties"]) == (1, 1, 1)


# ---- through a recipe


def test_a_section_becomes_signal_and_need():
    section = SECTION.validate_python({"type": "pairrm", "model": "some/PairRM"})
    signal, needs = build(section)
    assert signal.name == "pairrm-logit"
    assert needs["pairrm"].kind == "pairrm"
    assert needs["pairrm"].model.path == "some/PairRM"
    assert identity(section) == signal.identity
    assert SECTION.validate_python({"type": "pairrm"}).model.path == "llm-blender/PairRM"


def test_an_evaluation_asks_for_win_probabilities():
    section = PairRmSignalSection(type="pairrm")
    assert build(section.comparing())[0].pairwise
    assert identity(section.comparing()) != identity(section)
    recipe = Recipe.model_validate(
        {
            "name": "r",
            "model": {"path": "sandbox"},
            "prompts": {"path": "sandbox:questions/train"},
            "rate": {"type": "pairrm"},
            "evaluate": {"also": [{"type": "pairrm", "model": "sandbox"}]},
        }
    )
    assert [section.score for section in evaluation_signals(recipe)] == ["win", "win"]
    assert recipe.rate.score == "logit"


def test_the_sandbox_has_a_pairrm_of_its_own():
    section = SECTION.validate_python({"type": "pairrm", "model": "sandbox"})
    assert section.model.path == "sandbox:pairrm"
    preflight(section)


def test_a_server_is_refused():
    with pytest.raises(ValidationError, match="not asked of a server"):
        SECTION.validate_python(
            {"type": "pairrm", "model": {"path": "x", "endpoint": {"url": "http://localhost:1/v1"}}}
        )


def test_preflight_looks_into_a_folder(tmp_path):
    section = SECTION.validate_python({"type": "pairrm", "model": str(tmp_path)})
    with pytest.raises(UsageError, match="no configuration"):
        preflight(section)
    tiny_pairrm().save_pretrained(tmp_path)
    preflight(section)
    preflight(SECTION.validate_python({"type": "pairrm"}))  # a hub model is looked at when it is opened


def test_card_and_remarks():
    section = PairRmSignalSection(type="pairrm")
    _, counts, _ = scored(["a", "bb", "dddd"], by_length)
    assert card(section, counts) == (
        "PairRM: both orders agree on 100% of 3 pairs, the answer shown first wins 50%, the longer answer wins 100%, "
        "0 of 18 texts were cut"
    )
    assert remark(section, counts) is None  # few cases say little
    assert "longer answer wins 100%" in remark(section, {k: 10 * v for k, v in counts.items()})
    assert card(section, {}) is None
    assert remark(section, {}) is None
    _, counts, _ = scored(["aa", "bb"], lambda a, b: 1.0 + (a == "aa"))
    assert "only 0% of the pairs" in remark(section, {k: 20 * v for k, v in counts.items()})
    _, counts, _ = scored(["aa", "bb"], lambda a, b: 1.0 if a == "aa" else -1.0, cut=2)
    assert "beginning of 4 of 6 texts" in remark(section, counts)


# ---- the backend


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("pairrm")
    tiny_pairrm().save_pretrained(place)
    return place


def opened(folder, **settings):
    return open_backend(
        PairRmSignalSection(type="pairrm", model={"path": str(folder), **settings}).model, "pairrm", None
    )


def test_the_backend_gives_what_the_model_gives(folder):
    backend = opened(folder, device="cpu")
    assert isinstance(backend, PairRmBackend)
    texts = ["hello the", "Paris is the capital", "no" * 30]
    rated = rate(PairRmSignal(), [row(*texts)], {"pairrm": backend})
    assert rated.rows[0]["scores"] == pytest.approx(tiny_pairrm().scores("the question", texts).tolist(), abs=1e-5)
    assert rated.counts["truncated"] == 4
    assert backend.place.startswith("cpu")


def test_the_identity_holds_what_changes_a_logit(folder, tmp_path):
    known = opened(folder, device="cpu").identity
    assert opened(folder, device="cpu", batch_size=3).identity == known
    assert opened(folder, device="cpu", dtype="bfloat16").identity != known
    tiny_pairrm(seed=1).save_pretrained(tmp_path)
    assert opened(tmp_path, device="cpu").identity != known
    assert known["limits"] == [24, 12]


def test_answers_are_cached(folder, tmp_path):
    requests = [PairScoreRequest(("q", a, b)) for a in ("x", "yy", "z" * 40) for b in ("x", "the")]
    cache = Cache(tmp_path / "cache.db")
    one = CachedBackend(opened(folder, device="cpu"), cache)
    first = one.answer(requests)
    again = CachedBackend(opened(folder, device="cpu"), cache)
    assert again.answer(requests) == first
    assert (again.usage.cached, again.usage.computed) == (len(requests), 0)


def test_long_pairs_come_first(folder):
    backend = opened(folder, device="cpu", batch_size=2)
    requests = [PairScoreRequest(("q", "a" * n, "b")) for n in (1, 9, 3, 6)]
    assert backend.plan(requests) == [[1, 3], [2, 0]]


@pytest.mark.parametrize("request_", [ScoreRequest((1,), (2,)), PairScoreRequest(("query", "document"))])
def test_other_requests_are_refused(request_, folder):
    with pytest.raises(ValueError, match="nothing else"):
        opened(folder, device="cpu").run([request_])
