"""Chat templates: how a list of messages becomes the text that a model reads.

A model's own template is used as it is. Base models have none; they get `PLAIN`, which needs no special token but the
end of text:

    System:
    Answer briefly.

    User:
    What is the capital of France?

    Assistant:
    Paris.<end of text>

The generation prompt ends with a line break, so an answer starts with its first word and not with a space that a
tokenizer would glue to it. This module imports neither torch nor transformers.
"""

from __future__ import annotations

from pathlib import Path

from prefloop.errors import UsageError

PLAIN = (
    "{%- for message in messages -%}"
    "{{- message['role'] | capitalize + ':\\n' + message['content'] -}}"
    "{%- if message['role'] == 'assistant' -%}{{- eos_token -}}{%- endif -%}"
    "{{- '\\n\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'Assistant:\\n' -}}{%- endif -%}"
)


def choose_template(setting: str, own: str | None) -> str:
    """The template that a model section's `template` means.

    Args:
        setting: `auto` (the model's own, `PLAIN` where it has none), `plain`, or the path of a Jinja file.
        own: the template that comes with the tokenizer.

    Raises:
        UsageError: no such file.
    """
    if setting == "auto":
        return PLAIN if own is None else own
    if setting == "plain":
        return PLAIN
    path = Path(setting)
    if not path.is_file():
        raise UsageError("no such chat template", where=setting, fix="give auto, plain or the path of a Jinja file")
    return path.read_text(encoding="utf-8")
