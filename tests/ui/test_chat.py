"""The terminal chat, by its command, with lines on stdin."""

from __future__ import annotations

import pytest
from tests.tiny_models import tiny_model_folder
from typer.testing import CliRunner

from prefloop.backends.hf import HfBackend
from prefloop.cli.commands import app
from prefloop.engine.tokens import encode_prompt
from prefloop.ui import chat


@pytest.fixture
def answers(monkeypatch):
    """The conversations that the model was asked to continue."""
    seen = []

    def answer(backend, turns, temperature, max_new_tokens, seed):
        seen.append([(m["role"], m["content"]) for m in turns])
        return f"answer {len(seen)}"

    monkeypatch.setattr(chat, "_answer", answer)
    return seen


def talk(lines, *arguments):
    return CliRunner().invoke(
        app, ["chat", str(tiny_model_folder("llama")), *arguments], input="\n".join(lines) + "\n"
    )


def test_the_conversation_grows_and_resets(answers):
    done = talk(["Hello", "", "And then?", "/reset", "Again", "/quit", "never read"], "--system", "Be brief.")
    assert done.exit_code == 0
    assert done.stderr.count("the conversation starts over") == 1
    system = ("system", "Be brief.")
    assert answers == [
        [system, ("user", "Hello")],
        [system, ("user", "Hello"), ("assistant", "answer 1"), ("user", "And then?")],
        [system, ("user", "Again")],
    ]


def test_a_system_message_starts_over(answers):
    done = talk(["Hello", "/system Be kind.", "Hello", "/what"])
    assert "there is no /what; /reset starts over" in done.stderr
    assert "Loading weights" not in done.stderr
    assert answers == [[("user", "Hello")], [("system", "Be kind."), ("user", "Hello")]]


def test_a_real_answer_is_streamed_and_repeats_with_the_seed():
    first, second = (talk(["Hello"], "--max-new-tokens", "8", "--seed", "3") for _ in range(2))
    assert first.exit_code == 0
    assert first.stdout.strip()
    assert first.stdout == second.stdout


def test_an_answer_cannot_drive_the_terminal(monkeypatch, capsys):
    backend = HfBackend.__new__(HfBackend)
    monkeypatch.setattr(HfBackend, "stream", lambda self, turns, sampling: iter(["one\x1b", "[2J\n", "two\r\x9b"]))
    said = chat._answer(backend, [{"role": "user", "content": "Hello"}], 0.0, 8, 0)
    assert capsys.readouterr().out == "one[2J\ntwo\n"
    # The conversation goes on with what the model said.
    assert said == "one\x1b[2J\ntwo\r\x9b"


def test_a_missing_model_is_one_message(tmp_path):
    done = CliRunner().invoke(app, ["chat", str(tmp_path / "nosuch")], input="Hello\n")
    assert done.exit_code != 0
    assert type(done.exception).__name__ == "UsageError"


def test_a_turn_too_long_does_not_end_the_conversation():
    done = talk(["word " * 3000, "Hello"], "--max-new-tokens", "4")
    assert done.exit_code == 0
    assert "/reset starts over" in done.stderr
    assert len(done.stdout.splitlines()) == 1, "the second line is answered"


def test_a_run_without_a_model_yet(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    done = CliRunner().invoke(app, ["chat", str(tmp_path)], input="Hello\n")
    assert "has made no model yet" in str(done.exception)


def test_bytes_that_are_no_text_are_read_as_best_they_can(answers):
    done = CliRunner().invoke(app, ["chat", str(tiny_model_folder("llama"))], input=b"hi\xff\xfe\n")
    assert done.exit_code == 0
    assert answers == [[("user", "hi\ufffd\ufffd")]]


def test_the_alpaca_form(monkeypatch):
    """The model is given the published text, as in training by that template."""
    given = []

    def stream(self, messages, sampling):
        given.append(self.tokenizer.decode(encode_prompt(self.tokenizer, messages), skip_special_tokens=True))
        yield "yes"

    monkeypatch.setattr(HfBackend, "stream", stream)
    assert talk(["Name a city."], "--template", "alpaca").exit_code == 0
    assert given == [
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nName a city.\n\n### Response:\n"
    ]
