"""From messages and texts to token ids, for training and for backends alike.

A prompt is encoded through the chat template up to the point where the assistant speaks; a completion is encoded on
its own and stands behind it. So the prompt's ids are a prefix of prompt and completion by construction, and training
and scoring see the very prompt that was sampled from. An answer is kept as text and encoded again: where a model
sampled tokens that are not the tokenizer's own cut of that text, training sees the tokenizer's ids, not the sampled.

Text never makes control tokens. `<|im_end|>` in a user's message or in an answer is encoded as those ten characters;
only the template and `end_of_turn` put control tokens in. (Control tokens are those that the tokenizer marks as
special. Marks such as `<think>`, which tokenizers add without that flag, stay what they are.)

Tools, calls and results go through the model's own template, which must know them: what it leaves out is refused. An
answer that calls tools is what the template writes behind the prompt, up to the end of turn.

Templates that print today's date are given one fixed day (`engine/templates.py`).

This module imports neither torch nor transformers at the top.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from prefloop.config import ModelSection
from prefloop.engine.load import LOAD_ERRORS, adapter_base, load_fix, resolve_model_path
from prefloop.engine.notes import in_label, label_end, unmarked, without_notes
from prefloop.engine.templates import TEMPLATE_DATE, choose_template, fix_date
from prefloop.errors import UsageError
from prefloop.records import Message, extras

logger = logging.getLogger(__name__)

VERSION = 1
"""Goes into the cache key: raise it when the same messages and template would give other ids."""

ROLES = ("system", "user", "assistant", "tool")


class PromptError(UsageError):
    """These messages cannot be put through this template; others may."""


def load_tokenizer(section: ModelSection) -> Any:
    """The section's tokenizer with the section's chat template set.

    Raises:
        UsageError: there is no tokenizer, or no such template.
    """
    from transformers import AutoTokenizer

    path, revision = resolve_model_path(section.path), section.revision
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=section.trust_remote_code)
    except LOAD_ERRORS as error:
        base = adapter_base(path)  # an adapter's folder need not hold the tokenizer
        if base is None:
            fix = load_fix(error, path) or "give a hub id or the folder of a causal model"
            raise UsageError(f"no tokenizer: {error}", where=section.path, fix=fix) from error
        return load_tokenizer(section.model_copy(update={"path": base[0], "revision": base[1]}))
    own = None if tokenizer.chat_template is None else tokenizer.get_chat_template()
    tokenizer.chat_template = choose_template(section.template, own)
    if fix_date(tokenizer.chat_template) != tokenizer.chat_template:
        _say_date(section.path)
    return tokenizer


@functools.cache
def _say_date(name: str) -> None:
    """Once for each model: people who compare with a deployed model will find another date there."""
    logger.info("the chat template of %s asks for today's date; here it is always told %s", name, TEMPLATE_DATE)


def encode_prompt(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Ids of a conversation up to where the assistant answers, generation prompt included.

    Nothing is cut, however long it is. A tokenizer that begins every text with BOS begins the prompt with it too,
    whether the template says so or not.

    Raises:
        PromptError: these messages do not fit the template.
        UsageError: the template begins with BOS twice.
    """
    if not messages or messages[-1]["role"] == "assistant":
        raise PromptError(
            "a prompt ends with the user's turn" if messages else "a prompt has at least one message",
            fix="leave the assistant's last message out of the prompt",
        )
    return _encode(tokenizer, messages, answered=False)


def encode_conversation(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Ids of a conversation with its last answer and whatever the template puts behind it, as a reward model reads it.

    Otherwise as `encode_prompt`.

    Raises:
        PromptError: these messages do not fit the template, or do not end with an answer.
        UsageError: the template begins with BOS twice.
    """
    if not messages or messages[-1]["role"] != "assistant":
        raise PromptError("a conversation to be rated ends with the assistant's turn")
    return _encode(tokenizer, messages, answered=True)


def _encode(tokenizer: Any, messages: Sequence[Message], *, answered: bool) -> list[int]:
    swapped, stand_ins = _without_marks(tokenizer, messages)
    ids = _rendered_ids(tokenizer, render(tokenizer, swapped, answered=answered), stand_ins)
    bos = tokenizer.bos_token_id
    if bos is not None and _adds_bos(tokenizer) and ids[:1] != [bos]:
        ids = [bos, *ids]
    if bos is not None and ids[:2] == [bos, bos]:
        raise UsageError(
            "the chat template begins with the BOS token twice",
            fix="take one of them out of the template, or set `template` to a corrected file",
        )
    if not ids:
        raise PromptError("the chat template makes nothing of this prompt")
    return ids


def encode_completion(tokenizer: Any, text: str, end_of_turn: int | None) -> list[int]:
    """Ids of an answer's text, followed by `end_of_turn` unless it is None (an answer that was cut off)."""
    ids = _ids(tokenizer, text, marks_as_text=True)
    return ids if end_of_turn is None else [*ids, end_of_turn]


def encode_call(tokenizer: Any, prompt: Sequence[Message], answer: Message, end_of_turn: int) -> list[int]:
    """Ids of an answer that calls tools, behind those of its prompt, `end_of_turn` included.

    Raises:
        PromptError: the template leaves calls out, writes the prompt otherwise when an answer follows it, or ends a
            call otherwise than any answer.
    """
    swapped, stand_ins = _without_marks(tokenizer, [*prompt, answer])
    before = render(tokenizer, swapped[:-1])
    whole = render(tokenizer, swapped, answered=True)
    if not whole.startswith(before):
        raise PromptError("the chat template writes the prompt otherwise when a tool call follows it")
    ids = _rendered_ids(tokenizer, whole[len(before) :], stand_ins)
    if end_of_turn not in ids:
        raise PromptError("the chat template does not end a tool call as it ends an answer")
    return ids[: ids.index(end_of_turn) + 1]


def end_of_turn_ids(tokenizer: Any, generation_config: Any = None) -> tuple[int, ...]:
    """The ids that end an assistant's turn. Sampling stops on any of them; training appends the first.

    The first is the control token that the chat template puts behind an assistant's message. Then come those of the
    model's generation config, and the tokenizer's EOS.

    Raises:
        UsageError: there is none, so no answer could ever end.
    """
    found: list[int] = []
    answer = "an answer"
    turns: list[Message] = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": answer}]
    try:
        _, behind, tail = _apply_template(tokenizer, turns, add_generation_prompt=False).rpartition(answer)
    except PromptError:  # a template for prompts alone
        behind, tail = "", ""
    marks = _special_pattern(tokenizer).findall(tail) if behind else []
    found += [int(tokenizer.convert_tokens_to_ids(mark)) for mark in marks[:1]]
    configured = getattr(generation_config, "eos_token_id", None)
    found += [configured] if isinstance(configured, int) else list(configured or [])
    found += [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    if not found:
        raise UsageError(
            "nothing ends an assistant's turn: neither the template, nor the generation config, nor the tokenizer",
            fix="give the tokenizer an eos_token",
        )
    return tuple(dict.fromkeys(found))


def render(tokenizer: Any, messages: Sequence[Message], *, answered: bool = False) -> str:
    """The text that the template makes, generation prompt included.

    One rule for templates that have no system role (they raise, or leave the message out): the system message goes
    in front of the first user message, with an empty line between. An attribute's note goes into the label of the
    assistant's turn, where the template writes one (`engine/notes.py`).

    Args:
        answered: the last message is the answer, so no generation prompt follows.

    Raises:
        PromptError: the template refuses these messages, or would leave out something of theirs.
    """
    for message in messages:
        if message["role"] not in ROLES:
            raise PromptError(f"unknown role {message['role']!r}", fix=f"roles are {', '.join(ROLES)}")
    needed = {name for message in messages for name in extras(message) if name in ("tools", "tool_calls")}
    if needed:
        lost = sorted(needed - _tools_written(tokenizer, tokenizer.chat_template))
        if lost:
            raise PromptError(
                f"the chat template leaves out {' and '.join(lost)}, which these messages have",
                fix="take a model whose template knows tools, or set `template` to a file that does",
            )
    note, end = "", None
    if any(m["role"] == "system" for m in messages) and not _takes_system(tokenizer, tokenizer.chat_template):
        if not answered and any("note" in m for m in messages):
            end = _label_end(tokenizer, tokenizer.chat_template)
        if end is not None:
            messages, note = without_notes(messages)
        messages = fold_system(messages)
    text = _apply_template(tokenizer, [unmarked(m) for m in messages], add_generation_prompt=not answered)
    return text if end is None else in_label(text, end, note)


def fold_system(messages: Sequence[Message]) -> list[Message]:
    """System messages moved into the first user message that follows them."""
    folded: list[Message] = []
    waiting: list[Message] = []
    for message in messages:
        if message["role"] == "system":
            waiting.append(message)
        elif message["role"] == "user" and waiting:
            texts = [m["content"] for m in (*waiting, message)]
            offered = {name: value for m in (*waiting, message) for name, value in extras(m).items()}
            folded.append(cast(Message, {"role": "user", "content": "\n\n".join(texts), **offered}))
            waiting = []
        else:
            folded.append(message)
    if waiting:
        raise PromptError("a system message without a user message behind it, for a template without a system role")
    return folded


def _apply_template(tokenizer: Any, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
    import jinja2

    own: str = tokenizer.chat_template
    template = fix_date(own)
    tools = next((m["tools"] for m in messages if "tools" in m), None)
    try:
        return str(
            tokenizer.apply_chat_template(
                [{name: value for name, value in m.items() if name != "tools"} for m in messages],
                tools=tools,
                chat_template=template,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        )
    except jinja2.TemplateSyntaxError as error:
        line = error.lineno - (template.count("\n") - own.count("\n"))
        raise UsageError(f"the chat template has an error in line {line}: {error.message}") from error
    except (jinja2.TemplateError, TypeError) as error:  # TypeError: it writes as JSON what is not there
        roles = ", ".join(m["role"] for m in messages)
        raise PromptError(f"the chat template refuses a conversation of {roles}: {error}") from error


@functools.lru_cache(maxsize=32)
def _takes_system(tokenizer: Any, template: str) -> bool:
    """Whether a system message's text comes out of the template. `template` is there to renew the answer with it."""
    mark = "prefloop system probe"
    turns: list[Message] = [{"role": "system", "content": mark}, {"role": "user", "content": "a question"}]
    try:
        return mark in _apply_template(tokenizer, turns, add_generation_prompt=True)
    except PromptError:
        return False


@functools.lru_cache(maxsize=32)
def _label_end(tokenizer: Any, template: str) -> str | None:
    """How the label ends that a prompt ends with, see `notes.label_end`; `template` as for `_takes_system`."""
    question = "a question"
    text = _apply_template(tokenizer, [{"role": "user", "content": question}], add_generation_prompt=True)
    _, there, tail = text.rpartition(question)
    return label_end(_special_pattern(tokenizer).split(tail)[-1]) if there else None


@functools.lru_cache(maxsize=32)
def _tools_written(tokenizer: Any, template: str) -> frozenset[str]:
    """Which of `tools` and `tool_calls` (with their results) come out of the template."""
    schema = {"name": "probe_tool", "description": "probe text", "parameters": {"type": "object", "properties": {}}}
    call = {"name": "probe_call", "arguments": {"probe_key": "probe value"}}
    asked: list[Message] = [{"role": "user", "content": "a question"}]
    told: list[Message] = [
        *asked,
        # Mistral's templates want ids of nine letters and digits.
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "probe0001", "type": "function", "function": call}],
        },
        {"role": "tool", "content": "probe result", "tool_call_id": "probe0001", "name": "probe_call"},
    ]
    offered: list[Message] = [{**asked[0], "tools": [{"type": "function", "function": schema}]}]
    probes = {
        "tools": (offered, ("probe_tool", "probe text")),
        "tool_calls": (told, ("probe_call", "probe_key", "probe value", "probe result")),
    }
    written = set()
    for name, (messages, marks) in probes.items():
        try:
            text = _apply_template(tokenizer, messages, add_generation_prompt=True)
        except PromptError:
            continue
        if all(mark in text for mark in marks):
            written.add(name)
    return frozenset(written)


@functools.lru_cache(maxsize=32)
def _special_pattern(tokenizer: Any) -> re.Pattern[str]:
    """Matches the text of any control token, the longest first."""
    added: Mapping[int, Any] = tokenizer.added_tokens_decoder
    marks = {token.content for token in added.values() if token.special} | set(tokenizer.all_special_tokens)
    longest_first = sorted(filter(None, marks), key=lambda mark: (-len(mark), mark))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


@functools.lru_cache(maxsize=32)
def _adds_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer itself begins a text with BOS."""
    ids = tokenizer("a")["input_ids"]
    return bool(ids) and ids[0] == tokenizer.bos_token_id


def _ids(tokenizer: Any, text: str, *, marks_as_text: bool) -> list[int]:
    """The text's ids and nothing added; control tokens' text becomes control tokens, or stays text."""
    encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=marks_as_text)
    return [int(i) for i in encoded["input_ids"]]


def _without_marks(tokenizer: Any, messages: Sequence[Message]) -> tuple[Sequence[Message], dict[str, str]]:
    """The messages with each control token's text swapped for a private-use character, and which stands for which.

    Done before the template runs, so what then looks like a control token in the result is the template's.
    """
    pattern = _special_pattern(tokenizer)
    texts = [text for message in messages for text in _texts({"": message["content"], **extras(message)})]
    injected = sorted({mark for text in texts for mark in pattern.findall(text)})
    if not injected:
        return messages, {}
    everything = "".join(texts)
    free = (chr(code) for code in range(0xF0000, 0xFFFFE) if chr(code) not in everything)
    stand_ins = dict(zip(injected, free, strict=False))

    def swap(text: str) -> str:
        return pattern.sub(lambda match: stand_ins[match.group()], text)

    return [_mapped(message, swap) for message in messages], stand_ins


def _texts(value: Any) -> list[str]:
    """All texts in a nest of lists and objects, keys included."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for key, other in value.items() for text in (key, *_texts(other))]
    return [text for other in value for text in _texts(other)] if isinstance(value, list) else []


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """The same nest with every text changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(key): _mapped(other, change) for key, other in value.items()}
    return [_mapped(other, change) for other in value] if isinstance(value, list) else value


def _rendered_ids(tokenizer: Any, rendered: str, stand_ins: Mapping[str, str]) -> list[int]:
    """Ids of what the template made of `_without_marks`.

    The stretches between the template's control tokens are encoded with the texts put back, as plain text. A tokenizer
    cuts at control tokens anyway, so the stretches come out as they would in one piece.
    """
    if not stand_ins:
        return _ids(tokenizer, rendered, marks_as_text=False)
    ids: list[int] = []
    position = 0
    for match in [*_special_pattern(tokenizer).finditer(rendered), None]:
        stretch = rendered[position : match.start() if match else len(rendered)]
        for text, stand_in in stand_ins.items():
            stretch = stretch.replace(stand_in, text)
        ids += _ids(tokenizer, stretch, marks_as_text=True) if stretch else []
        if match:
            ids.append(int(tokenizer.convert_tokens_to_ids(match.group())))
            position = match.end()
    return ids
