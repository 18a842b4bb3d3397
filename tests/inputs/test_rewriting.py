"""Requests for rewrites, the encoder and the tolerant decoder of answers, and what is no rewrite."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.config import RewriteSection
from prefloop.errors import UsageError
from prefloop.inputs.rewriting import asked, decode, encode, load, requests
from prefloop.inputs.rewritten import fault, length_ratio
from prefloop.sandbox.phrases import REWRITE_REQUESTS

JSON = {"document": "d", "variant": "v", "system": "", "request": "R\n{passage}", "key": "Rewritten Text"}
PASSAGE = "The drug may rarely cause a blistering rash, which a doctor should see within a day or two."


def row(name="p", text=PASSAGE, source="d1"):
    return {"id": name, "prompt": [{"role": "user", "content": text}], "source_id": source}


def test_the_shipped_wordings():
    bank = load(RewriteSection())
    assert len(bank.variants) == 7
    made = requests(bank, RewriteSection(), row())
    assert [r["variant"] for r in made] == [v.id for v in bank.variants]
    for request, variant in zip(made, bank.variants, strict=True):
        system, user = asked(row()["prompt"], request)
        assert system["role"] == "system"
        assert user["content"].startswith(variant.instruction)
        assert user["content"].count(PASSAGE) == 1
        assert '"Rewritten Text"' in user["content"]
        assert "{" not in user["content"].replace(PASSAGE, "")
    plain = requests(bank, RewriteSection(answer="text"), row())
    assert all(not r["key"] and "JSON" not in r["request"] for r in plain)


def test_the_embedded_models_wordings_are_those_that_it_was_taught():
    bank = load(RewriteSection(bank="sandbox", answer="text"))
    assert tuple(v.instruction for v in bank.variants) == REWRITE_REQUESTS
    (first, *_) = requests(bank, RewriteSection(bank="sandbox", answer="text"), row())
    assert asked(row()["prompt"], first) == [{"role": "user", "content": f"Rewrite this text.\nText: {PASSAGE}"}]


def test_a_system_message_of_the_prompts_own_stays_alone():
    request = requests(load(RewriteSection()), RewriteSection(), row())[0]
    prompt = [{"role": "system", "content": "Be brief."}, *row()["prompt"]]
    assert [m["role"] for m in asked(prompt, request)] == ["system", "user"]
    assert asked(prompt, request)[0]["content"] == "Be brief."


def test_by_turn_every_wording_has_its_passages():
    section = RewriteSection(assign="turn")
    bank = load(section)
    drawn = [requests(bank, section, row(str(i))) for i in range(200)]
    assert all(len(some) == 1 for some in drawn)
    assert {some[0]["variant"] for some in drawn} == {v.id for v in bank.variants}
    # By the passage's id, not by its place.
    assert requests(bank, section, row("7")) == drawn[7]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: x\nvariants: []", "variants"),
        ("name: x\nform: '{instruction}'\nvariants: [{id: a, instruction: b}]", r"needs \{passage\} once"),
        ("name: x\nvariants: [{id: a, instruction: b}, {id: a, instruction: c}]", "two are called a"),
        ("name: x\nkey: k\nvariants: [{id: a, instruction: b}]", "belong together"),
        ("name: x\nvariants: [{id: a, instruction: 'b {passage}'}]", "belongs into form alone"),
        ("name: [", "not readable as YAML"),
        ("name: \x80\nvariants: [{id: a, instruction: b}]", "not a bank"),
    ],
)
def test_a_faulty_bank_is_told(text, said, tmp_path):
    (tmp_path / "bank.yaml").write_text(text, encoding="latin-1")
    with pytest.raises(UsageError, match=said):
        load(RewriteSection(bank=str(tmp_path / "bank.yaml"), answer="text"))


def test_names_that_are_not_there():
    with pytest.raises(UsageError, match="no such bank"):
        load(RewriteSection(bank="nothing"))
    with pytest.raises(UsageError, match="no variant 'x'"):
        load(RewriteSection(variants=("rewrite", "x")))
    with pytest.raises(UsageError, match="does not say how to answer in JSON"):
        load(RewriteSection(bank="sandbox"))


@given(st.text(min_size=1).map(str.strip).filter(bool))
def test_what_is_encoded_is_decoded(text):
    target = encode(text, JSON)
    assert list(json.loads(target)) == ["Rewritten Text"]
    assert decode(target, JSON) == text
    assert decode(f"Sure, here it is:\n```json\n{target}\n```", JSON) == text
    assert encode(text, {**JSON, "key": ""}) == text


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ('{"Rewritten Text": "He said "hello" to me."}', 'He said "hello" to me.'),
        ('{"rewritten_text": "a b c"}', "a b c"),
        ("{'Rewritten Text': 'a b c'}", "a b c"),
        ('{"Rewritten Text": "a b c"', "a b c"),
        ('{"Rewritten Text": "a\nb"}', "a\nb"),
        ('{"Text": "a b c"}', "a b c"),
        ('{"Rewritten Text": ["a"]}', None),
        ('{"Rewritten Text": 3}', None),
        ('{"a": "x", "b": "y"}', None),
        ("{}", None),
        ("I rewrote it, and here it ends.", None),
        ("", None),
        ('{"a":' * 3000, None),
        ("{" * 3000, None),
        ('{"Rewritten Text": ' + "[" * 3000, None),
    ],
    ids=lambda given: str(given)[:20],
)
def test_what_models_write_in_place_of_json(answer, text):
    assert decode(answer, JSON) == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (PASSAGE, None),
        ("In rare cases this medicine brings on a rash with blisters; see a doctor in a day or two at most.", None),
        ("", "empty"),
        ("Here is the rewritten passage: the drug may rarely cause a rash that a doctor should see.", "label"),
        ("Rewritten Text: the drug may rarely cause a blistering rash, which a doctor should see.", "label"),
        ("Passage: the drug may rarely cause a blistering rash, which a doctor should see soon.", "label"),
        ("The drug may rarely cause a rash, which a doctor should see soon.\nNote: I kept it short for you.", "label"),
        ("The drug may rarely cause a rash with 水疱 which a doctor should see soon.", "language"),
        ("Препарат может вызвать сыпь, и врач должен увидеть её в течение одного или двух дней.", "language"),
        ("The drug may rarely cause a rash.", "too_short"),
        (f"{PASSAGE} {PASSAGE}", "too_long"),
    ],
)  # fmt: skip
def test_what_is_no_rewrite(text, reason):
    assert fault(text, PASSAGE, "Rewritten Text", RewriteSection()) == reason


def test_what_the_passage_itself_has_is_no_fault():
    passage = "Note: the word 水 is written so.\nText: it means water, and nothing else, in all of these books."
    assert fault(passage, passage, "Rewritten Text", RewriteSection()) is None


def test_lengths_are_words_and_characters_where_there_are_no_words():
    assert length_ratio("a b c", "a b c d") == 0.75
    chinese = "水是一种无色无味的液体在常温常压下存在于自然界中"
    assert length_ratio(chinese[:12], chinese) == pytest.approx(12 / len(chinese))
    assert fault("a", PASSAGE, "", RewriteSection(length_ratio=None)) is None
