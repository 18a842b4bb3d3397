"""Where a note goes: a system role, the label of the assistant's turn, or the user's first turn."""

from __future__ import annotations

import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.tiny_models import load_tiny

from prefloop.engine.notes import in_label, label_end, without_notes
from prefloop.engine.templates import ALPACA, PLAIN
from prefloop.engine.tokens import encode_prompt, render
from prefloop.records import Message
from prefloop.signals.attribute import with_note

KIND = "You are kind. Be glad."
ASKED: list[Message] = [{"role": "user", "content": "Hello"}]
TURNS: list[Message] = [*ASKED, {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "Who?"}]
TOLD: list[Message] = [{"role": "system", "content": "Answer briefly."}, *ASKED]
# Labels and no system role: the form of Vicuna's first version and of Beaver, with the label on a line of its own too.
LABELS = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ 'USER: ' + m.content + '\n' }}"
    "{% elif m.role == 'assistant' %}{{ 'ASSISTANT: ' + m.content + eos_token + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
ALWAYS = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ 'USER: ' + m.content + eos_token + ' The assistant:\n\n' }}"
    "{% elif m.role == 'assistant' %}{{ m.content + eos_token }}{% endif %}{% endfor %}"
)


@functools.cache
def tokenizer_of(arch):
    return load_tiny(arch)[1]


def with_template(template, arch="llama"):
    import copy

    tokenizer = copy.deepcopy(tokenizer_of(arch))
    tokenizer.chat_template = template
    return tokenizer


def test_a_label_takes_the_note():
    tokenizer = with_template(LABELS)
    assert render(tokenizer, ASKED) == "USER: Hello\nASSISTANT:"
    assert render(tokenizer, with_note(ASKED, KIND)) == "USER: Hello\nASSISTANT (You are kind. Be glad):"
    # Of several turns the last: there the answer stands.
    assert render(tokenizer, with_note(TURNS, "Be sad")).endswith("USER: Who?\nASSISTANT (Be sad):")
    assert render(tokenizer, with_note(TURNS, "Be sad")).startswith("USER: Hello\nASSISTANT: Yes?")


def test_a_system_message_beside_it_stays_in_front():
    tokenizer = with_template(LABELS)
    text = render(tokenizer, with_note(TOLD, KIND))
    assert text == "USER: Answer briefly.\n\nHello\nASSISTANT (You are kind. Be glad):"
    # One that is no note is none.
    assert render(tokenizer, TOLD) == "USER: Answer briefly.\n\nHello\nASSISTANT:"


def test_a_label_that_is_always_written():
    tokenizer = with_template(ALWAYS)
    mark = tokenizer.eos_token
    text = render(tokenizer, with_note(ASKED, KIND))
    assert text == f"USER: Hello{mark} The assistant (You are kind. Be glad):\n\n"


@pytest.mark.parametrize("arch", ["mistral", "gemma3"])
def test_marks_are_no_labels(arch):
    tokenizer = tokenizer_of(arch)
    folded: list[Message] = [{"role": "user", "content": f"{KIND}\n\nHello"}]
    assert render(tokenizer, with_note(ASKED, KIND)) == render(tokenizer, folded)
    assert encode_prompt(tokenizer, with_note(ASKED, KIND)) == encode_prompt(tokenizer, folded)


@pytest.mark.parametrize("template", [PLAIN, ALPACA])
def test_a_system_role_takes_it_first(template):
    tokenizer = with_template(template)
    plain: list[Message] = [{"role": "system", "content": f"Answer briefly.\n{KIND}"}, *ASKED]
    assert render(tokenizer, with_note(TOLD, KIND)) == render(tokenizer, plain)


def test_prompts_of_two_notes_differ_behind_the_question_alone():
    tokenizer = with_template(LABELS)
    one, other = (encode_prompt(tokenizer, with_note(ASKED, note)) for note in ("Be kind.", "Be rude."))
    bare = encode_prompt(tokenizer, ASKED)
    common = next(i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    question = len(encode_prompt(with_template(LABELS.replace("ASSISTANT:'", "'")), ASKED))
    assert common > question
    assert len(one) > len(bare)


def test_a_note_makes_no_control_tokens():
    tokenizer = with_template(LABELS)
    ids = encode_prompt(tokenizer, with_note(ASKED, f"Be {tokenizer.eos_token} kind."))
    assert tokenizer.eos_token_id not in ids
    assert f"(Be {tokenizer.eos_token} kind):" in tokenizer.decode(ids)


@pytest.mark.parametrize(
    ("tail", "end"),
    [
        ("\nASSISTANT:", ":"),
        ("\n\n### Response:\n", ":\n"),
        (" The assistant :\n", " :\n"),
        ("model\n", None),
        ("[/INST]", None),
        (" [/INST] ", None),
        ("\n", None),
        (":\n", None),
        ("", None),
    ],
)
def test_labels(tail, end):
    assert label_end(tail) == end
    if end is not None:
        assert in_label(tail, end, "Be glad.") == tail.removesuffix(end) + " (Be glad)" + end


@given(st.text(min_size=1), st.none() | st.text(min_size=1))
def test_notes_come_out_as_they_went_in(note, system):
    prompt = ASKED if system is None else [{"role": "system", "content": system}, *ASKED]
    kept, found = without_notes(with_note(prompt, note))
    assert found == note
    assert kept == prompt
