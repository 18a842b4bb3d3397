"""The prompt with a judgment in it, for chat templates and in the published Alpaca form."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefloop.config import ModelSection
from prefloop.engine.tokens import load_tokenizer, render
from prefloop.errors import UsageError
from prefloop.records import Message
from prefloop.sandbox.templates import render as render_sandbox
from prefloop.train.judged import JudgedPrompt
from tiny_models import tiny_model_folder

ASKED: list[Message] = [{"role": "user", "content": "Name a {{ city }}."}]


@pytest.mark.parametrize("arch", ["llama", "gpt_neox"])
def test_alpaca_as_published(arch: str) -> None:
    """Xu et al.'s two texts, to the letter; a multi-turn prompt and an own system message are kept."""
    section = ModelSection(path=str(tiny_model_folder(arch)), template="alpaca")
    tokenizer, form = load_tokenizer(section), JudgedPrompt("alpaca")
    task = "Below is an instruction that describes a task. "
    assert render(tokenizer, ASKED) == (
        f"{task}Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nName a {{ city }}.\n\n### Response:\n"
    )
    assert render(tokenizer, form(ASKED, "No {name}.")) == (
        f"{task}Write a response to the instruction and the response should match the corresponding judgment.\n\n"
        "### Instruction:\nName a {{ city }}.\n\n### Judgment:\nNo {name}.\n\n### Response:\n"
    )
    own: list[Message] = [{"role": "system", "content": "Be brief."}, *ASKED]
    assert form(own, "x")[0] == own[0]
    assert render(tokenizer, form(own, "x")).startswith("Be brief.\n\n### Instruction:\n")


def test_the_sandboxs_form_is_its_template() -> None:
    (turn,) = JudgedPrompt("sandbox")(ASKED, "The city is wrong.")
    assert turn["content"] == render_sandbox(
        "criticism.j2", instruction=ASKED[0]["content"], judgment="The city is wrong."
    )


def test_the_judgment_stands_in_the_last_turn_and_is_no_template() -> None:
    turns: list[Message] = [ASKED[0], {"role": "assistant", "content": "Oslo"}, {"role": "user", "content": "More."}]
    judged = JudgedPrompt()(turns, "{{ instruction }} {% raw %}")
    assert judged[:2] == turns[:2]
    assert judged[2]["content"].startswith("More.\n\n")
    assert judged[2]["content"].endswith("{{ instruction }} {% raw %}")
    assert turns[2]["content"] == "More."
    with pytest.raises(UsageError, match="of tool"):
        JudgedPrompt()([*turns[:1], {"role": "tool", "content": "3"}], "x")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{{ instruction }}", "'judgment' is not shown"),
        ("{{ instruction }} {{ judgment }} {{ answer }}", "'answer' is an unknown variable"),
        ("{{ instruction }} {{ judgment }", "line 1"),
        ("{{ instruction.first.line }} {{ judgment }}", "UndefinedError"),
    ],
)
def test_a_form_of_ones_own(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "own.j2"
    file.write_text("{{ judgment }}: {{ instruction }}")
    assert JudgedPrompt(str(file))(ASKED, "Bad")[0]["content"] == "Bad: Name a {{ city }}."
    before = JudgedPrompt(str(file)).sha
    file.write_text(text)
    with pytest.raises(UsageError, match=said):
        JudgedPrompt(str(file))
    assert before != JudgedPrompt().sha
    file.write_bytes("{{ instruction }} é {{ judgment }}".encode("latin-1"))
    with pytest.raises(UsageError, match="no UTF-8 text"):
        JudgedPrompt(str(file))
    with pytest.raises(UsageError, match="no form of a judged prompt is called 'nothing'"):
        JudgedPrompt("nothing")
