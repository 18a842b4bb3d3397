"""The driver: waves, grouping, records and errors."""

from __future__ import annotations

import json
import math

import pytest

from prefloop.backends.base import Backend, Choice, ChooseRequest, Refusal, Score, ScoreRequest
from prefloop.errors import PrefloopError, UsageError
from prefloop.signals.base import Call, Rating
from prefloop.signals.driver import rate


def row(name, *texts):
    return {
        "id": name,
        "prompt": [{"role": "user", "content": f"question {name}"}],
        "completions": [
            {"id": f"{name}-{i}", "text": t, "token_ids": None, "finish_reason": "stop", "sample_index": i}
            for i, t in enumerate(texts)
        ],
    }


class Recorder(Backend):
    """Answers every request with a value made from it and remembers what it was asked together."""

    def __init__(self):
        self.identity = {"model": "recorder"}
        self.waves = []

    def plan(self, requests):
        return [list(range(len(requests)))]

    def run(self, requests):
        self.waves.append(requests)
        return [
            Score([float(r.completion_ids[0])]) if r.verb == "score" else Choice([math.log(0.5), -math.inf], [1, 1])
            for r in requests
        ]


class Deep:
    """Asks as many times as the row has completions; every time one `score` and one `choose`."""

    name, pairwise, identity = "deep", False, {}

    def rate(self, row):
        heard = []
        for depth, completion in enumerate(row["completions"]):
            score, choice = yield [
                Call("m", ScoreRequest((1,), (int(completion["text"]),))),
                Call("m", ChooseRequest((("user", f"{row['id']} {depth}"),), ("A", "B"))),
            ]
            assert isinstance(choice, Choice)
            heard.append(score.total)
        return Rating(heard, {"asked": len(heard)})


def test_rows_of_different_depth_share_their_waves():
    rows = [row("a", "3"), row("b", "5", "7", "9"), row("none"), row("c", "2", "4")]
    backend, seen = Recorder(), []
    rated = rate(Deep(), rows, {"m": backend}, lambda done, total: seen.append((done, total)))
    # Three waves, two verbs each; every wave holds all rows that are still alive.
    assert [(w[0].verb, len(w)) for w in backend.waves] == [
        ("score", 3),
        ("choose", 3),
        ("score", 2),
        ("choose", 2),
        ("score", 1),
        ("choose", 1),
    ]
    assert [r["id"] for r in rated.rows] == ["a", "b", "none", "c"]
    assert [r["scores"] for r in rated.rows] == [[3.0], [5.0, 7.0, 9.0], [], [2.0, 4.0]]
    assert rated.counts == {"rows": 4, "answers": 6, "unscored": 0, "asked": 6}
    assert seen[-1] == (4, 4)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_evidence_lists_the_calls_and_ids_hash_their_content():
    rows = [row("a", "3", "4"), row("b", "3")]
    first, second = (rate(Deep(), rows, {"m": Recorder()}) for _ in range(2))
    assert first.calls == second.calls
    by_id = {call["id"]: call for call in first.calls}
    assert len(by_id) == 6
    for scored in first.rows:
        assert {by_id[e]["row_id"] for e in scored["evidence"]} == {scored["id"]}
    assert sorted(e for r in first.rows for e in r["evidence"]) == sorted(by_id)
    choose = next(call for call in first.calls if call["verb"] == "choose")
    assert json.loads(choose["request"])["messages"] == [["user", "a 0"]]
    # JSON has no infinity; the record of a log-probability of -inf must still be valid JSON.
    assert json.loads(choose["result"]) == {"kind": "choice", "logps": [math.log(0.5), "-inf"], "label_tokens": [1, 1]}


def test_refusals_reach_the_signal_and_the_record():
    class Refuser(Recorder):
        def run(self, requests):
            return [Refusal("too long") for _ in requests]

    class Asks:
        name, pairwise, identity = "asks", False, {}

        def rate(self, row):
            results = yield [Call("m", ChooseRequest((("user", "x"),), ("A",)))]
            assert results == [Refusal("too long")]
            return Rating([None], {})

    rated = rate(Asks(), [row("a", "x")], {"m": Refuser()})
    assert rated.rows[0]["scores"] == [None]
    assert rated.counts["unscored"] == 1
    assert json.loads(rated.calls[0]["result"]) == {
        **{"kind": "refusal", "reason": "too long", "too_long": False, "unsupported": False}
    }


def failing(error):
    class Fails:
        name, pairwise, identity = "fails", False, {}

        def rate(self, row):
            if row["id"] == "bad":
                raise error
            return Rating([None] * len(row["completions"]))
            yield []

    return Fails()


def test_an_error_names_the_signal_and_the_row():
    with pytest.raises(PrefloopError, match=r"signal fails, row bad: KeyError: 'x'") as caught:
        rate(failing(KeyError("x")), [row("good", "t"), row("bad", "t")], {})
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_usage_error_stays_one_and_keeps_its_fix():
    with pytest.raises(UsageError, match=r"signal fails, row bad, field x: no\nfix: do") as caught:
        rate(failing(UsageError("no", where="field x", fix="do")), [row("bad", "t")], {})
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(("scores", "message"), [([1.0], "1 scores for 2 answers"), ([1.0, math.nan], "not finite")])
def test_faulty_scores_are_errors(scores, message):
    class Faulty:
        name, pairwise, identity = "faulty", False, {}

        def rate(self, row):
            return Rating(scores)
            yield []

    with pytest.raises(PrefloopError, match=f"signal faulty, row a: .*{message}"):
        rate(Faulty(), [row("a", "x", "y")], {})


def test_a_missing_backend_is_named():
    with pytest.raises(PrefloopError, match=r"'m'.*'judge'"):
        rate(Deep(), [row("a", "1")], {"judge": Recorder()})


def test_no_rows_ask_nothing():
    backend = Recorder()
    assert rate(Deep(), [], {"m": backend}).rows == []
    assert backend.waves == []
