"""Attributes: the shipped ones, notes drawn by seed and id, and where a note goes."""

from __future__ import annotations

from collections import Counter
from importlib import resources

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.backends.base import freeze, thaw
from prefloop.errors import UsageError
from prefloop.records import prompt_id
from prefloop.sandbox.phrases import NOTES
from prefloop.signals.attribute import FOLDER, Attribute, contrasts, load, load_all, with_note

SHIPPED = sorted(f.name.removesuffix(".yaml") for f in (resources.files("prefloop") / FOLDER).iterdir())
MOOD = Attribute(name="mood", positive=("Be glad.", "Be merry."), negative=("Be sad.",), neutral=())


def test_shipped_attributes_have_banks():
    assert SHIPPED == ["concise", "harmless", "helpful", "honest", "kind"]
    for name in SHIPPED:
        attribute = load(name)
        assert attribute.name == name
        assert len(set(attribute.positive)) >= 5
        assert len(set(attribute.negative)) >= 5
        assert not set(attribute.positive) & set(attribute.negative)


def test_kindness_speaks_the_embedded_models_words():
    kind = load("kind")
    assert (kind.positive, kind.negative) == (NOTES["kind"]["positive"], NOTES["kind"]["negative"])


def test_a_note_follows_from_its_key_alone():
    keys = [[7, f"row{i}"] for i in range(400)]
    drawn = [MOOD.draw(key, "negative") for key in keys]
    assert drawn == [MOOD.draw(key, "negative") for key in keys]
    assert drawn != [MOOD.draw([8, key[1]], "negative") for key in keys]
    # Both notes come up about equally often: 4 standard deviations of a fair coin in 400 throws are 40.
    assert Counter(positive for positive, _ in drawn)["Be glad."] == pytest.approx(200, abs=40)


def test_against_neutral_is_no_note_where_there_is_none():
    assert MOOD.draw(["x"], "neutral")[1] == ""
    assert load("honest").draw(["x"], "neutral")[1] in load("honest").neutral


def test_contrasts_name_both_sides():
    ((one, other),) = contrasts([MOOD], ["x"], "negative")
    assert (one["side"], other["side"]) == ("positive", "negative")
    assert {k: v for k, v in one.items() if k != "side"} == {k: v for k, v in other.items() if k != "side"}


MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": st.text()}), min_size=1
)


@given(MESSAGES, st.text(min_size=1), st.none() | st.text())
def test_a_note_changes_the_system_message_alone(turns, note, system):
    prompt = turns if system is None else [{"role": "system", "content": system}, *turns]
    noted = with_note(prompt, note)
    assert noted[1:] == turns
    assert noted[0]["role"] == "system"
    assert noted[0]["content"].endswith(note)
    assert noted[0]["content"].startswith(system or "")
    assert noted[0]["note"] == note
    assert with_note(prompt, "") == prompt
    # The mark is a matter of rendering: ids and the sampler's draws go by the texts.
    assert prompt_id(noted) == prompt_id([{**noted[0], "note": "other"}, *turns])
    assert thaw(freeze(noted)) == noted


def test_a_file_of_ones_own(tmp_path):
    file = tmp_path / "mood.yaml"
    file.write_text("name: mood\npositive: [Be glad.]\nnegative: [Be sad.]\n")
    assert load(str(file)).draw(["x"], "negative") == ("Be glad.", "Be sad.")
    with pytest.raises(UsageError, match="two attributes are called mood"):
        load_all([str(file), str(file)])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: mood\npositive: [a]", "negative: is missing"),
        ("name: mood\npositive: []\nnegative: [b]", "positive: has no text"),
        ("name: mood\npositive: a\nnegative: [1]", r"positive: is no list of texts; negative.0: is no text\nfix"),
        ("name: my mood\npositive: [a]\nnegative: [b]", "name: holds more than letters"),
        ("- a", "file: is no mapping"),
        ("name: mood\npositiv: [a]\nnegative: [b]", "positiv: unknown setting; did you mean positive"),
        ("name: mood\npositive: [a]\nnegative: [b]\nneutrale: [c]", "neutrale: unknown setting; did you mean neutral"),
        ("name: mood\npositive: [c, a]\nnegative: [b, 'a ']", "the note 'a' is in positive and in negative"),
        ("name: mood\npositive: [a]\nnegative: [b]\nneutral: [a]", "the note 'a' is in positive and in neutral"),
        ("[a, b", r"not readable as YAML[\s\S]*fix: mend it"),
        ("name: m\udcff", "not readable as UTF-8"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path, text, said):
    (tmp_path / "a.yaml").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UsageError, match=said):
        load(str(tmp_path / "a.yaml"))


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UsageError, match="concise, harmless, helpful, honest, kind"):
        load("harmles")
    with pytest.raises(UsageError, match="no such attribute file"):
        load("nowhere/harmless.yaml")
