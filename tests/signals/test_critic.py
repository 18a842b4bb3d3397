"""The critic: what it asks, how replies are read, and what is done about those that cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from judge_script import Script, row

from prefloop.backends.base import Refusal
from prefloop.config import Recipe
from prefloop.errors import PrefloopError, UsageError
from prefloop.pairs.judgments import judgment_rows
from prefloop.signals import critic
from prefloop.signals.build import build, card, check, identity
from prefloop.signals.critic import CriticSignal, FunctionCritic, read
from prefloop.signals.driver import rate


@pytest.mark.parametrize(
    ("text", "judgment"),
    [
        ("Verdict: fine", (None,)),
        ("**Verdict:** `fine`.", (None,)),
        ("Let me see.\nVERDICT - FINE", (None,)),
        ("Verdict: flawed\nThe city is wrong.", ("The city is wrong.",)),
        ("Verdict: flawed. The city is wrong.", ("The city is wrong.",)),
        ("`Verdict: flawed`\n\nIt names\nno pet.\n", ("It names\nno pet.",)),
        ("Verdict: flawed", None),
        ("Verdict: flawed\nThe answer is perfect.", None),
        ("The city is wrong.", None),
        ("", None),
        ("x" * 300 + " Verdict: fine", None),
    ],
)
def test_replies(text: str, judgment: tuple[str | None] | None) -> None:
    assert read(text) == judgment


def test_a_judgment_that_was_cut_off_is_none() -> None:
    assert read("Verdict: flawed\nThe city is", cut=True) is None
    assert read("Verdict: fine", cut=True) == (None,)


def test_judgments_and_scores() -> None:
    script = Script(lambda request, prompt: "Verdict: fine" if "right" in prompt else "Verdict: flawed\nIt is bad.")
    found = rate(CriticSignal(None, 64, 2), [row("right", "bad"), row("worse")], {"critic": script})
    assert [r["scores"] for r in found.rows] == [[1.0, 0.0], [0.0]]
    assert [r["judgments"] for r in found.rows] == [[None, "It is bad."], ["It is bad."]]
    assert found.counts["criticised"] == 2
    assert (found.counts["satisfactory"], found.counts["unscored"], len(found.calls)) == (1, 0, 3)
    assert "the question" in script.prompts[0]
    assert critic.REPLY in script.prompts[0]
    assert script.requests[0].sampling.temperature == 0


def test_an_unreadable_reply_is_answered_and_asked_for_again() -> None:
    """Up to `retries` times, in the same conversation, and both are recorded."""

    def say(request, prompt):
        if "stubborn" in prompt:
            return "no idea"
        return "Hm." if len(request.messages) == 1 else "Verdict: flawed\nToo short."

    script = Script(say)
    found = rate(CriticSignal(None, 64, 2), [row("once", "stubborn")], {"critic": script})
    assert found.rows[0]["scores"] == [0.0, None]
    assert found.rows[0]["judgments"] == ["Too short.", None]
    assert found.counts["asked_again"] == 3
    assert found.counts["unparsed"] == 4
    assert script.requests[2].messages[1:] == (("assistant", "Hm."), ("user", critic.AGAIN))
    assert len(found.calls) == len(script.requests) == 5
    assert "no idea" in json.dumps([call["result"] for call in found.calls])


def test_a_refusal_has_no_judgment() -> None:
    script = Script(lambda request, prompt: Refusal("too long", too_long=True))
    found = rate(CriticSignal(None, 64, 2), [row("a")], {"critic": script})
    assert (found.rows[0]["scores"], found.counts["refused"], len(script.requests)) == ([None], 1, 1)
    made = judgment_rows(found.rows, "critic")
    assert not made.rows
    assert [r["reason"] for r in made.rejects] == ["no judgment"]


def test_rows_of_answers() -> None:
    script = Script(lambda request, prompt: "Verdict: fine" if "right" in prompt else "Verdict: flawed\nIt is bad.")
    given = row("right", "bad", "bad")
    found = rate(CriticSignal(None, 64, 0), [given], {"critic": script})
    made = judgment_rows(found.rows, "critic")
    assert [(r["completion"][0]["content"], r["judgment"], r["score"]) for r in made.rows] == [
        ("right", None, 1.0),
        ("bad", "It is bad.", 0.0),
    ]
    assert {r["prompt_id"] for r in made.rows} == {given["id"]}
    assert [r["reason"] for r in made.rejects] == ["the same answer twice"]
    assert dict(made.counts) == {"satisfactory": 1, "criticised": 1}


def test_a_function_criticises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_critic.py").write_text(
        "def short(prompt, completion):\n    return None if len(completion) > 3 else 'Too short.'\n"
        "def number(prompt, completion):\n    return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    found = rate(FunctionCritic("my_critic:short"), [row("a", "long enough")], {})
    assert found.rows[0]["judgments"] == ["Too short.", None]
    assert found.rows[0]["scores"] == [0.0, 1.0]
    with pytest.raises(UsageError, match="returned 3"):
        rate(FunctionCritic("my_critic:number"), [row("a")], {})


def test_a_critic_without_judgments_stops_the_run() -> None:
    section = critic_section(max_null_share=0.1)
    check(section, {"answers": 100, "unscored": 10})
    with pytest.raises(PrefloopError, match="no judgment on 11 of 100"):
        check(section, {"answers": 100, "unscored": 11})
    check(section, {"answers": 40, "unscored": 11}, final=False)
    with pytest.raises(PrefloopError, match="no judgment on 21 of 40"):
        check(section, {"answers": 40, "unscored": 21}, final=False)
    line = card(section, {"answers": 10, "criticised": 4, "asked_again": 1, "unscored": 2})
    assert line == "critic: 4 of 10 answers criticised, 1 asked again, 2 without"


def critic_section(**settings: object):
    values = {"name": "t", "model": "m", "prompts": "p.jsonl", "rate": {"type": "critic", **settings}}
    return Recipe.model_validate({**values, "train": {"objective": "cut"}}).rate


def test_what_identifies_it(tmp_path: Path) -> None:
    assert identity(critic_section()) == build(critic_section())[0].identity
    assert identity(critic_section()) != identity(critic_section(retries=1))
    own = tmp_path / "own.j2"
    own.write_text("{{ instruction }} {{ answer }} {{ reply }}")
    assert identity(critic_section(template=str(own))) != identity(critic_section())
    own.write_text("{{ answer }}")
    with pytest.raises(UsageError, match="would never see 'instruction'"):
        build(critic_section(template=str(own)))


def test_the_fix_for_a_missing_function_says_what_a_critic_returns(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "crit_without.py").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"completion: str\) -> what is wrong as a text, or None"):
        FunctionCritic("crit_without:nope")


def test_recipes_that_cannot_be_meant() -> None:
    base = {"name": "t", "model": "m", "prompts": "p.jsonl", "train": {"objective": "cut"}}
    assert Recipe.model_validate({**base, "rate": {"type": "critic"}, "sample": {"n": 1}}).ways[""].judged
    for changes, message in (
        ({"rate": {"type": "judge"}}, "set rate.type=critic"),
        ({"rate": {"type": "critic"}, "pair": {"min_gap": 1}}, "take the section out"),
        ({"rate": {"type": "critic", "callable": "a:b", "model": "m"}}, r"exclude each other.*rate\.model=null"),
        ({"rate": {"type": "critic"}, "train": {"objective": "dpo"}, "sample": {"n": 1}}, "a pair needs two answers"),
        ({"rate": {"type": "critic"}, "train": {"objective": {"type": "cut", "threshold": 1.0}}}, "greater than 1"),
    ):
        with pytest.raises(ValueError, match=message):
            Recipe.model_validate({**base, **changes})
