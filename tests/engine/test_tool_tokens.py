"""Tools, calls and results through templates that know them, and through templates that do not."""

from __future__ import annotations

from typing import Any

import pytest
from tests.tiny_models import make_tiny_tokenizer
from tests.tool_templates import ASKED, JSONED, SCHEMA, TAGGED, TOLD, call

from prefloop.engine.templates import PLAIN
from prefloop.engine.tokens import PromptError, encode_call, encode_prompt, end_of_turn_ids, render

TEMPLATES = {"qwen3": TAGGED, "llama": JSONED}


def tokenizer_of(arch: str, template: str | None = None) -> Any:
    tokenizer = make_tiny_tokenizer(arch)
    tokenizer.chat_template = template or TEMPLATES[arch]
    return tokenizer


@pytest.mark.parametrize("arch", TEMPLATES)
def test_the_template_is_the_models_own(arch: str) -> None:
    tokenizer = tokenizer_of(arch)
    messages = [{k: v for k, v in m.items() if k != "tools"} for m in TOLD]
    own = tokenizer.apply_chat_template(messages, tools=[SCHEMA], tokenize=False, add_generation_prompt=True)
    assert render(tokenizer, TOLD) == own
    assert own.count("weather") == 2
    assert "rain" in own
    assert encode_prompt(tokenizer, TOLD) == tokenizer(own, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("arch", "text"),
    [
        ("qwen3", '<tool_call>{"name": "weather", "arguments": {"place": "Paris"}}</tool_call><|im_end|>'),
        ("llama", '{"name": "weather", "parameters": {"place": "Paris"}}<|eot|>'),
    ],
)
def test_a_call_is_what_the_template_writes_behind_the_prompt(arch: str, text: str) -> None:
    tokenizer = tokenizer_of(arch)
    end = end_of_turn_ids(tokenizer)[0]
    ids = encode_call(tokenizer, ASKED, call("Paris"), end)
    assert tokenizer.decode(ids) == text
    whole = encode_prompt(tokenizer, TOLD)
    assert whole[: len(encode_prompt(tokenizer, ASKED)) + len(ids)] == [*encode_prompt(tokenizer, ASKED), *ids]


@pytest.mark.parametrize("arch", TEMPLATES)
def test_text_in_tools_makes_no_control_tokens(arch: str) -> None:
    tokenizer = tokenizer_of(arch)
    end = end_of_turn_ids(tokenizer)[0]
    mark = tokenizer.convert_ids_to_tokens(end)
    prompt = [{**TOLD[0]}, call(f"Paris{mark}"), {"role": "tool", "content": f"{mark}rain"}]
    found, plain = (encode_prompt(tokenizer, messages) for messages in (prompt, TOLD))
    assert found.count(end) == plain.count(end)
    assert tokenizer.decode(found).count(mark) == plain.count(end) + 2
    ids = encode_call(tokenizer, ASKED, call(f"Paris{mark}"), end)
    assert ids.count(end) == 1
    assert tokenizer.decode(ids).count(mark) == 2


@pytest.mark.parametrize(
    ("messages", "lost"), [(ASKED, "tools"), ([{"role": "user", "content": "x"}, *TOLD[1:]], "tool_calls")]
)
def test_what_a_template_leaves_out_is_refused(messages: Any, lost: str) -> None:
    for arch, template in (("qwen3", make_tiny_tokenizer("qwen3").chat_template), ("gpt_neox", PLAIN)):
        with pytest.raises(PromptError, match=f"the chat template leaves out {lost}, which"):
            encode_prompt(tokenizer_of(arch, template), messages)


def test_a_call_that_the_template_cannot_write() -> None:
    tokenizer = tokenizer_of("llama")
    twice = {**call("Paris"), "tool_calls": call("Paris")["tool_calls"] * 2}
    with pytest.raises(PromptError, match="one call at a time"):
        encode_call(tokenizer, ASKED, twice, end_of_turn_ids(tokenizer)[0])
    thinking = TAGGED.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    tokenizer = tokenizer_of("qwen3", thinking)
    with pytest.raises(PromptError, match="writes the prompt otherwise"):
        encode_call(tokenizer, ASKED, call("Paris"), end_of_turn_ids(tokenizer)[0])
    with pytest.raises(PromptError, match="does not end a tool call"):
        encode_call(tokenizer_of("qwen3"), ASKED, call("Paris"), 0)


def test_tools_of_a_system_turn_survive_its_folding() -> None:
    folds = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}{% endfor %}"
    tokenizer = tokenizer_of("qwen3", folds + TAGGED)
    system = {"role": "system", "content": "Be kind.", "tools": [SCHEMA]}
    text = render(tokenizer, [system, {"role": "user", "content": "Hello"}])
    assert "weather" in text
    assert "Be kind.\n\nHello" in text
