"""Splits by prompt, and the leakage check."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.errors import UsageError
from prefloop.pairs.splits import holdout, overlap, round_chunk

IDS = st.sets(st.text(min_size=1, max_size=8), max_size=40)


@given(IDS, st.floats(0, 0.99), st.randoms(use_true_random=False))
def test_holdout_is_a_share_by_hash(ids, share, random):
    held = holdout(ids, share)
    assert held <= ids
    assert holdout(random.sample(sorted(ids), len(ids)), share) == held
    if share == 0 or len(ids) < 2:
        assert held == set()
    else:
        assert 1 <= len(held) < len(ids)
        assert abs(len(held) - share * len(ids)) <= 1


def test_a_new_prompt_moves_hardly_any_other():
    ids = [f"prompt {i}" for i in range(1000)]
    before, after = holdout(ids, 0.1), holdout([*ids, "new"], 0.1)
    assert len(before) == 100
    assert len((before ^ after) - {"new"}) <= 1


def test_salts_split_independently():
    ids = [f"prompt {i}" for i in range(1000)]
    assert len(holdout(ids, 0.5) & holdout(ids, 0.5, salt="other")) == pytest.approx(250, abs=60)


@given(IDS.filter(len), st.data())
def test_rounds_share_the_prompts_out(ids, data):
    rounds = data.draw(st.integers(1, len(ids)))
    chunks = [round_chunk(ids, rounds, r) for r in range(1, rounds + 1)]
    assert sum(map(len, chunks)) == len(ids)
    assert set().union(*chunks) == ids
    assert max(map(len, chunks)) - min(map(len, chunks)) <= 1


def test_more_rounds_than_prompts():
    with pytest.raises(UsageError, match="3 rounds need as many prompts, and there are 2"):
        round_chunk(["a", "b"], 3, 1)


def prompts(*texts, system=None, prefix="t"):
    before = [] if system is None else [{"role": "system", "content": system}]
    return [{"id": f"{prefix}{i}", "prompt": [*before, {"role": "user", "content": t}]} for i, t in enumerate(texts)]


WORDS = [f"w{i}" for i in range(60)]
LONG = " ".join(WORDS[:20])
CHINESE = "在中国的南方有一座古老的城市那里的人们每天早晨都喝茶"


@pytest.mark.parametrize(
    ("trained", "asked", "leaks"),
    [
        ("What is the capital of Peru?", "what  is the CAPITAL of Peru?\n", True),
        ("What is 2+3?", "What is 2-3?", False),
        ("Ｗｉｄｅ？", "wide?", True),
        (f"First. {LONG}", f"Other, {LONG}!", True),
        (" ".join(WORDS[:13]), " ".join(["other", *WORDS[:13]]), True),
        (" ".join(["x", *WORDS[:12], "y"]), " ".join(["z", *WORDS[:12], "v"]), False),
        ("Where does Ada live?", "Where does Ben live?", False),
        ("???", "!!!", False),
        ("Who is Mira?", "Who is Mira", True),
        ("Who is Mira?", "“Who is Mira!”", True),
        ("Who is Mira?", "Who is Miras", False),
        ("What is 12 * 3?", "What is 12 / 3?", False),
        ("What is 12*3", "what is 12 * 3?", True),
        (CHINESE, f"请回答：{CHINESE}", True),
        (f"{CHINESE}请简短回答。", f"问题：{CHINESE}", True),  # within one "word" of each
        (CHINESE[:19], f"问{CHINESE[:19]}", False),
        (CHINESE[:20], f"问{CHINESE[:20]}", True),
        (f"{CHINESE[:12]}2026{CHINESE[12:16]}", f"Say it in English: {CHINESE[:12]}2026{CHINESE[12:16]}", True),
        (
            "彼女はどこに住んでいますか、そして誰と一緒にいますか",
            "質問です。彼女はどこに住んでいますか、そして誰と一緒にいますか",
            True,
        ),
        # Latin letters around a few of the others are no passage without spaces.
        ("Please write the word 山 in a sentence", "Now write the word 山 in a sentence of", False),
    ],
)
def test_overlap(trained, asked, leaks):
    assert overlap(prompts(trained), prompts("fine", asked, prefix="e")) == (["e1"] if leaks else [])


def test_a_shared_system_message_is_no_leak():
    assert overlap(prompts("one", system=LONG), prompts("two", system=LONG)) == []
    assert overlap(prompts("one", system=LONG), prompts("One", prefix="e")) == ["e0"]


def test_boilerplate_is_no_leak_but_a_rare_passage_is():
    train = prompts(*(f"{LONG} question {i}" for i in range(11)))
    asked = prompts(f"{LONG} question 99", f"{LONG} question 3", prefix="e")
    assert overlap(train, asked) == ["e1"]
    assert overlap(train[:10], asked) == ["e0", "e1"]
    # The same prompt eleven times over is one prompt, not boilerplate.
    assert overlap(train[:1] * 11, asked) == ["e0", "e1"]
