"""The judge against scripted verdicts with scores computed by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefloop.backends.base import Backend, Choice, Refusal
from prefloop.config import FunctionSignalSection, JudgeSignalSection
from prefloop.errors import PrefloopError, UsageError
from prefloop.signals import rubric, template
from prefloop.signals.base import Need
from prefloop.signals.bias import rates
from prefloop.signals.build import build, card, check, identity, preflight, remark
from prefloop.signals.driver import rate
from prefloop.signals.judge import JudgeSignal


class Scripted(Backend):
    """A judge whose label probabilities are a function of the texts it is shown, in their order in the prompt."""

    def __init__(self, texts, verdict, mass=1.0):
        self.identity = {"model": "scripted"}
        self.texts, self.verdict, self.mass = texts, verdict, mass
        self.shown = []

    def plan(self, requests):
        return [list(range(len(requests)))]

    def run(self, requests):
        return [self._answer(r) for r in requests]

    def _answer(self, request):
        prompt = request.messages[0][1]
        places = {t: prompt.find(f"]\n{t}\n[") for t in self.texts}
        shown = tuple(sorted((t for t in self.texts if places[t] >= 0), key=places.__getitem__))
        self.shown.append(shown)
        chances = self.verdict(*shown)
        if chances is None:
            return Refusal("too long")
        return Choice([math.log(self.mass * p) if p > 0 else -math.inf for p in chances], [1] * len(chances))


def row(*texts):
    return {
        "id": "r",
        "prompt": [{"role": "user", "content": "the question"}],
        "completions": [
            {"id": str(i), "text": t, "token_ids": None, "finish_reason": "stop", "sample_index": i}
            for i, t in enumerate(texts)
        ],
    }


def judged(mode, texts, verdict, mass=1.0, min_label_mass=0.0):
    backend = Scripted(set(texts), verdict, mass)
    rated = rate(JudgeSignal(mode, None, min_label_mass), [row(*texts)], {"judge": backend})
    return rated.rows[0]["scores"], rated.counts, backend


def test_pointwise_is_the_expected_rating():
    chances = {"good": [0, 0, 0.1, 0.4, 0.5], "bad": [0.6, 0.3, 0.1, 0, 0]}
    scores, counts, _ = judged("pointwise", ["good", "bad"], lambda t: chances[t], mass=0.5)
    # 3*.1 + 4*.4 + 5*.5 and 1*.6 + 2*.3 + 3*.1; the mass outside the labels does not count.
    assert scores == pytest.approx([4.4, 1.5])
    assert (counts["verdicts"], counts["nulls"]) == (2, 0)
    assert rates(counts)["label_mass"] == pytest.approx(0.5)


def test_pointwise_asks_once_for_equal_texts():
    scores, counts, backend = judged("pointwise", ["same", "same", " same\n"], lambda t: [0, 0, 0, 0, 1])
    assert scores == [5.0, 5.0, 5.0]
    assert counts["verdicts"] == len(backend.shown) == 1


def test_pairwise_averages_both_orders():
    # P(first wins): x before y .9, y before x .4 -> q1 = .9, q2 = .6, p = .75.
    first = {("x", "y"): 0.9, ("y", "x"): 0.4}
    scores, counts, backend = judged("pairwise", ["x", "y"], lambda a, b: [first[a, b], 1 - first[a, b]])
    assert scores == pytest.approx([0.75, 0.25])
    assert sorted(backend.shown) == [("x", "y"), ("y", "x")]
    assert rates(counts) == pytest.approx(
        {"null_rate": 0, "label_mass": 1, "consistency": 1, "first_seat": 0.5, "tie_rate": 0}
    )


def test_a_score_is_the_mean_win_probability_against_the_others():
    strength = {"a": 2.0, "bb": 1.0, "ccc": 0.0}

    def verdict(x, y):
        p = 1 / (1 + math.exp(strength[y] - strength[x]))
        return [p, 1 - p]

    scores, counts, _ = judged("pairwise", ["a", "bb", "ccc"], verdict)
    s1, s2 = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-2))
    assert scores == pytest.approx([(s1 + s2) / 2, (1 - s1 + s1) / 2, (1 - s2 + 1 - s1) / 2])
    assert counts["pairs"] == 3
    assert rates(counts)["longer_wins"] == 0


@given(st.floats(0.01, 0.99))
@settings(max_examples=60)
def test_a_judge_that_prefers_a_seat_sees_a_tie(bias):
    scores, counts, _ = judged("pairwise", ["x", "yy", "zzz"], lambda a, b: [bias, 1 - bias])
    # Exactly: float noise here would become preference pairs, and wins of the longer answer.
    assert scores == [0.5, 0.5, 0.5]
    assert "longer_wins" not in rates(counts)
    if abs(bias - 0.5) > 1e-6:
        assert rates(counts)["first_seat"] == (1.0 if bias > 0.5 else 0.0)
        assert rates(counts)["consistency"] == 0


@given(st.lists(st.sampled_from(["a", "b", "cc", "ddd"]), min_size=2, max_size=6), st.randoms(use_true_random=False))
def test_win_probabilities_balance(texts, random):
    """The mean score of a row is 1/2 whatever the judge says: every win is somebody's loss."""
    table = {}
    scores, _, backend = judged(
        "pairwise", texts, lambda a, b: [p := table.setdefault((a, b), random.random() * 0.98 + 0.01), 1 - p]
    )
    assert sum(scores) / len(scores) == pytest.approx(0.5)
    assert all(a != b for a, b in backend.shown)
    # Equal texts have equal scores.
    assert len({s for s, t in zip(scores, texts, strict=True) if t == texts[0]}) == 1


def test_identical_texts_are_never_asked():
    scores, counts, backend = judged("pairwise", ["x", " x", "x\n"], lambda *a: pytest.fail("asked"))
    assert scores == [0.5, 0.5, 0.5]
    assert backend.shown == []
    assert rates(counts) == {}


def test_a_single_answer_has_nobody_to_win_against():
    assert judged("pairwise", ["x"], lambda *a: pytest.fail("asked"))[0] == [None]


def test_nulls_are_neither_ties_nor_losses():
    # x beats y for certain; whoever meets z, one of the two orders is refused.
    def verdict(a, b):
        if "z" in (a, b):
            return None if a == "z" else [0.9, 0.1]
        return [1.0, 0.0] if a == "x" else [0.0, 1.0]

    scores, counts, _ = judged("pairwise", ["x", "y", "z"], verdict)
    assert scores == [1.0, 0.0, None]
    assert (counts["verdicts"], counts["nulls"], counts["pairs"], counts["null_pairs"]) == (6, 2, 3, 2)


def test_an_identical_twin_is_no_verdict():
    """x has a twin (0.5 unasked), but everything that was asked about it failed: no score, and none for y."""
    assert judged("pairwise", ["x", "x", "y"], lambda a, b: None)[0] == [None, None, None]


@pytest.mark.parametrize(("mass", "null"), [(0.29, True), (0.31, False)])
@pytest.mark.parametrize("mode", ["pointwise", "pairwise"])
def test_too_little_label_mass_is_null(mode, mass, null):
    labels = 5 if mode == "pointwise" else 2
    scores, counts, _ = judged(mode, ["x", "y"], lambda *a: [1 / labels] * labels, mass, min_label_mass=0.3)
    assert (scores == [None, None]) == null
    assert counts["nulls"] == (2 if null else 0)


def test_labels_without_any_mass_are_null():
    assert judged("pointwise", ["x"], lambda t: [0.0] * 5)[0] == [None]


def test_the_stage_stops_at_too_many_nulls():
    section = JudgeSignalSection(type="judge", max_null_share=0.05)
    check(section, {"verdicts": 100, "nulls": 5})
    check(section, {"rows": 0})
    with pytest.raises(PrefloopError, match="no verdict in 6 of 100 calls"):
        check(section, {"verdicts": 100, "nulls": 6, "label_mass": 12.0})


def test_before_the_end_only_a_mute_judge_is_stopped():
    section = JudgeSignalSection(type="judge", max_null_share=0.05)
    check(section, {"verdicts": 99, "nulls": 99}, final=False)
    check(section, {"verdicts": 100, "nulls": 50}, final=False)
    with pytest.raises(PrefloopError, match="no verdict in 51 of 100"):
        check(section, {"verdicts": 100, "nulls": 51}, final=False)
    with pytest.raises(PrefloopError, match="no verdict in 6 of 50"):
        check(section, {"verdicts": 50, "nulls": 6})
    patient = JudgeSignalSection(type="judge", max_null_share=0.9)
    check(patient, {"verdicts": 100, "nulls": 80}, final=False)


def counted(consistent, longer_wins, label_mass, cases=100):
    return {
        **{"verdicts": 2 * cases, "nulls": 0, "pairs": cases, "null_pairs": 0, "consistent": consistent},
        **{"first_decided": 2 * cases, "first_wins": cases, "label_mass": label_mass * 2 * cases},
        **{"longer_decided": cases, "longer_wins": longer_wins},
    }


DEFAULT = {"rubric": rubric.load(None).values(), "reply": "Reply with one digit and nothing else."}
PAIRWISE = JudgeSignalSection(type="judge", mode="pairwise")


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        (counted(60, 80, 0.05), []),
        (counted(59, 50, 0.9), ["only 59% of the pairs alike in both orders: its verdicts are mostly noise"]),
        (counted(90, 81, 0.9), ["longer answer wins 81%", "noise"]),
        (counted(90, 50, 0.04), ["mean probability of 0.040: it wanted to say something else"]),
        (counted(50, 90, 0.01), ["alike", "longer", "something else"]),
        (counted(5, 19, 0.9, cases=19), []),  # too few to say
    ],
)
def test_doubtful_verdicts_are_warned_of(counts, words):
    said = remark(PAIRWISE, counts)
    assert (said is None) == (not words)
    for word in words:
        assert word in said
    assert remark(FunctionSignalSection(type="function", callable="m:f"), counts) is None


def test_the_card_of_a_pairwise_judge():
    # Wilson's interval of 100 in 200 is 43.1 % to 56.9 %.
    assert card(PAIRWISE, counted(93, 58, 0.9) | {"by_choose": 200, "nulls": 2}) == (
        "the judge: 200 verdicts (200 by log-probability), 2 null, the orders agree on 93% of 100 pairs, the answer "
        "shown first wins 50% (43% to 57%), the longer answer wins 58%"
    )
    assert card(PAIRWISE, {"verdicts": 0, "nulls": 0}) is None
    assert card(FunctionSignalSection(type="function", callable="m:f"), counted(93, 58, 0.9)) is None


def test_preflight_finds_faulty_templates(tmp_path):
    preflight(JudgeSignalSection(type="judge"))
    preflight(JudgeSignalSection(type="judge", mode="pairwise", template="sandbox"))
    own = tmp_path / "own.j2"
    own.write_text("{{ instruction.__class__.__mro__ }} {{ answer }}")
    for name, message in [(str(own), "SecurityError"), ("absent.j2", "cannot read"), ("absent", "no shipped set")]:
        with pytest.raises(UsageError, match=message):
            preflight(JudgeSignalSection(type="judge", template=name))


def test_the_identity_follows_the_brief_prompt_too(monkeypatch):
    """It gives verdicts as well, when the context is short."""
    before = identity(JudgeSignalSection(type="judge"))
    monkeypatch.setitem(template.SHIPPED, "brief", "sandbox/templates")
    assert identity(JudgeSignalSection(type="judge")) != before
    assert identity(JudgeSignalSection(type="judge", template="sandbox"))["brief_sha"] is None


def test_build_names_models_and_templates():
    signal, needs = build(JudgeSignalSection(type="judge", mode="pairwise", model="folder"))
    assert needs["judge"].model.path == "folder"
    assert signal.pairwise
    assert signal.name == f"judge-pairwise@{signal.identity['template_sha'][:8]}"
    _, needs = build(JudgeSignalSection(type="judge"))
    assert needs == {"judge": Need(None, "language")}
    _, needs = build(FunctionSignalSection(type="function", callable="operator:add"))
    assert needs == {}


def test_the_identity_is_what_changes_a_score():
    base = JudgeSignalSection(type="judge")
    changes = {"mode": "pairwise", "template": "sandbox", "min_label_mass": 0.5}
    assert identity(base) == build(base)[0].identity
    for field, value in changes.items():
        assert identity(base.model_copy(update={field: value})) != identity(base), field
    assert identity(base.model_copy(update={"max_null_share": 0.5})) == identity(base)


class Narrow(Backend):
    """A judge with room for so many characters; rates by how many x it is shown."""

    def __init__(self, room):
        self.identity = {"model": "narrow"}
        self.room = room
        self.prompts = []

    def plan(self, requests):
        return [list(range(len(requests)))]

    def run(self, requests):
        return [self._answer(r) for r in requests]

    def _answer(self, request):
        prompt = request.messages[0][1]
        if len(prompt) > self.room:
            return Refusal("too long", too_long=True)
        self.prompts.append(prompt)
        share = [1.0 + prompt.count("x" * 10), *[1.0] * (len(request.labels) - 1)]
        return Choice([math.log(s / sum(share)) for s in share], [1] * len(share))


def narrow(mode, room, *texts):
    backend = Narrow(room)
    rated = rate(JudgeSignal(mode, None, 0.0), [row(*texts)], {"judge": backend})
    return rated.rows[0]["scores"], rated.counts, backend


def test_an_answer_that_does_not_fit_is_cut_and_counted():
    whole = len(
        JudgeSignal("pointwise", None, 0.0).template.render({"instruction": "the question", "answer": ""}, **DEFAULT)
    )
    scores, counts, backend = narrow("pointwise", whole + 300, "x" * 1000, "short")
    assert None not in scores
    assert (counts["verdicts"], counts["nulls"], counts["shortened"], counts["brief"]) == (2, 0, 1, 0)
    cut = next(p for p in backend.prompts if "x" * 250 in p)
    assert "x" * 251 not in cut
    assert "x […]" in cut


def test_both_answers_of_a_pair_are_cut_at_one_length():
    whole = len(
        JudgeSignal("pairwise", None, 0.0).template.render(
            {"instruction": "the question", "first": "", "second": ""}, **DEFAULT
        )
    )
    _, counts, backend = narrow("pairwise", whole + 700, "x" * 1000, "y" * 400)
    assert counts["shortened"] == counts["verdicts"] == 2
    for prompt in backend.prompts:
        assert (prompt.count("x" * 250), prompt.count("y" * 250)) == (1, 1)
        assert prompt.count(" […]") == 2


def test_the_brief_prompt_is_the_last_resort():
    _, counts, backend = narrow("pointwise", 150, "x" * 20)
    assert (counts["nulls"], counts["shortened"], counts["brief"]) == (0, 0, 1)
    assert len(backend.prompts[0]) <= 150
    scores, counts, _ = narrow("pointwise", 20, "x" * 20)
    assert scores == [None]
    assert counts["nulls"] == 1
    assert "context is short" in remark(JudgeSignalSection(type="judge"), {"verdicts": 3, "brief": 1})
    assert remark(JudgeSignalSection(type="judge"), {"verdicts": 3, "shortened": 0}) is None


def test_a_prompt_of_the_users_own_is_not_replaced(tmp_path):
    own = tmp_path / "own.j2"
    own.write_text("A prompt of some length for the judge: {{ instruction }} / {{ answer }}")
    backend = Narrow(40)
    rated = rate(JudgeSignal("pointwise", str(own), 0.0), [row("x" * 20)], {"judge": backend})
    assert rated.rows[0]["scores"] == [None]
