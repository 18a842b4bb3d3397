"""A terminal chat with any model folder, unmerged adapter, run directory or hub id, streaming."""

from __future__ import annotations

import sys
from pathlib import Path

from prefloop.backends.base import Sampling
from prefloop.config import ModelSection
from prefloop.errors import UsageError
from prefloop.records import Message
from prefloop.ui.controls import without_controls

HELP = "/reset starts over, /system TEXT sets the system message, /quit (or Ctrl-D) leaves"


def converse(
    model: str, *, system: str | None, temperature: float, max_new_tokens: int, seed: int, template: str
) -> None:
    """Read lines from stdin, answer to stdout until end of input.

    Every turn draws from its own random stream, so a conversation with the same seed repeats.
    """
    from prefloop.backends.hf import HfBackend
    from prefloop.engine.load import quiet

    path = model
    if (Path(model) / "manifest.json").is_file():
        path = str(Path(model) / "model")
        if not Path(path).is_dir():
            raise UsageError(
                "this run has made no model yet",
                where=model,
                fix="go on with the run first; `prefloop status` says how far it is",
            )
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")
    quiet()
    backend = HfBackend.load(ModelSection.model_validate({"path": path, "template": template}))
    interactive = sys.stdin.isatty()
    print(f"{model}: {HELP}", file=sys.stderr)
    start: list[Message] = [{"role": "system", "content": system}] if system else []
    turns = list(start)
    while True:
        try:
            line = input("> " if interactive else "").strip()
        except EOFError:
            return
        if not line:
            continue
        if line == "/quit":
            return
        if line == "/reset":
            turns = list(start)
            print("the conversation starts over", file=sys.stderr)
        elif line.startswith("/system "):
            start = [{"role": "system", "content": line.removeprefix("/system ")}]
            turns = list(start)
            print("the conversation starts over, with this system message", file=sys.stderr)
        elif line.startswith("/"):
            unknown = "" if line == "/help" else f"there is no {without_controls(line.split()[0])}; "
            print(f"{unknown}{HELP}", file=sys.stderr)
        else:
            asked: list[Message] = [*turns, {"role": "user", "content": line}]
            try:
                answer = _answer(backend, asked, temperature, max_new_tokens, seed)
            except UsageError as error:  # too long, mostly: the conversation stays as it was
                print(f"{error.what}; /reset starts over", file=sys.stderr)
                continue
            turns = [*asked, {"role": "assistant", "content": answer}]


def _answer(backend: object, turns: list[Message], temperature: float, max_new_tokens: int, seed: int) -> str:
    from prefloop.backends.hf import HfBackend

    assert isinstance(backend, HfBackend)
    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    pieces = []
    try:
        for piece in backend.stream(turns, sampling):
            print(without_controls(piece), end="", flush=True)
            pieces.append(piece)
    except KeyboardInterrupt:
        # Ctrl-C cuts an answer short and keeps the conversation.
        pass
    print(flush=True)
    return "".join(pieces)
