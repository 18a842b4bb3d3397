"""The signal of people's votes: joined by prompt and text, null where nobody voted."""

import json

import pytest

from prefloop.config import HumanSignalSection
from prefloop.errors import UsageError
from prefloop.signals import build
from prefloop.signals.driver import rate
from prefloop.signals.human import HumanSignal


def row(prompt, *texts):
    completions = [
        {"id": f"c{i}", "text": t, "token_ids": None, "finish_reason": "stop", "sample_index": i}
        for i, t in enumerate(texts)
    ]
    return {"id": prompt, "prompt": [{"role": "user", "content": prompt}], "completions": completions}


@pytest.fixture
def votes(tmp_path):
    path = tmp_path / "votes.jsonl"
    rows = [("x", "y", "a", "1"), ("y", "x", "b", "2"), ("x", "y", "b", "3"), ("x", "zzz", "tie", "1")]
    path.write_text(
        "".join(
            json.dumps({"prompt": "q", "answer_a": a, "answer_b": b, "vote": v, "voter": who}) + "\n"
            for a, b, v, who in rows
        )
    )
    return path


def test_a_score_is_the_mean_share_against_the_rows_other_answers(votes):
    signal = HumanSignal(str(votes))
    rated = rate(signal, [row("q", "x ", "y", "zzz", "never seen"), row("another", "x", "y")], {})
    first, second = (r["scores"] for r in rated.rows)
    # x: 2 of 3 against y, a tie with zzz. y: 1 of 3. zzz: the tie.
    assert first == [pytest.approx((2 / 3 + 0.5) / 2), pytest.approx(1 / 3), 0.5, None]
    assert second == [None, None]
    assert rated.counts["voted_pairs"] == 2
    assert rated.counts["unscored"] == 3
    assert signal.pairwise


def test_answers_of_one_text_are_not_compared(votes):
    rated = rate(HumanSignal(str(votes)), [row("q", "x", "x", "y")], {})
    assert rated.rows[0]["scores"] == pytest.approx([2 / 3, 2 / 3, 1 / 3])


def test_longer_wins(votes):
    path = votes.with_name("long.jsonl")
    path.write_text(json.dumps({"prompt": "q", "answer_a": "long one", "answer_b": "y", "vote": "a"}) + "\n")
    rated = rate(HumanSignal(str(path)), [row("q", "long one", "y")], {})
    assert (rated.counts["longer_decided"], rated.counts["longer_wins"]) == (1, 1)


def test_the_identity_is_the_content(votes):
    section = HumanSignalSection(type="human", path=str(votes))
    before = build.identity(section)
    copy = votes.with_name("copy.jsonl")
    copy.write_bytes(votes.read_bytes())
    assert build.identity(HumanSignalSection(type="human", path=str(copy))) == before
    copy.write_text(copy.read_text().replace('"tie"', '"a"'))
    assert build.identity(HumanSignalSection(type="human", path=str(copy))) != before
    signal, needs = build.build(section)
    assert (signal.name, needs) == ("human", {})


def test_a_file_that_is_not_there_or_broken_is_refused_before_the_work(votes):
    with pytest.raises(UsageError, match="no such file"):
        build.identity(HumanSignalSection(type="human", path="nowhere.csv"))
    votes.write_text(votes.read_text() + json.dumps({"prompt": "q", "answer_a": "x", "answer_b": "y", "vote": "?"}))
    with pytest.raises(UsageError, match="is '\\?'"):
        build.preflight(HumanSignalSection(type="human", path=str(votes)))
