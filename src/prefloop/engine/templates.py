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
tokenizer would glue to it. `ALPACA` is the same for models tuned on Stanford Alpaca's form.

Some models' templates print today's date (`strftime_now`). Here they always print `TEMPLATE_DATE`: otherwise the same
messages would be other token ids tomorrow, and cached answers, reference values and checkpoints of today would belong
to other prompts. The template that is saved with a merged model keeps its clock.

This module imports neither torch nor transformers.
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

ALPACA = (
    "{%- set own = messages | selectattr('role', 'equalto', 'system') | list -%}"
    "{{- own[0]['content'] if own else 'Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.' -}}"
    "{{- '\\n\\n' -}}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}{{- '### Instruction:\\n' + message['content'] + '\\n\\n' -}}{%- endif -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "{{- '### Response:\\n' + message['content'] + eos_token + '\\n\\n' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '### Response:\\n' -}}{%- endif -%}"
)
"""Stanford Alpaca's form without an input (Taori et al. 2023); a system message takes the place of its preamble."""

NAMED = {"plain": PLAIN, "alpaca": ALPACA}

TEMPLATE_DATE = "2024-07-26"
"""The day that templates are told: the one that Llama 3.2's own template prints where there is no clock."""

# strftime's directives at midnight of that day, in the C locale. A `-` leaves out leading zeros, as glibc has it.
_DIRECTIVES = {
    "%Y": "2024", "%y": "24", "%C": "20", "%G": "2024",
    "%m": "07", "%-m": "7", "%B": "July", "%b": "Jul", "%h": "Jul",
    "%d": "26", "%-d": "26", "%e": "26", "%j": "208", "%-j": "208",
    "%A": "Friday", "%a": "Fri", "%u": "5", "%w": "5", "%V": "30", "%U": "29", "%W": "30",
    "%H": "00", "%-H": "0", "%I": "12", "%-I": "12", "%M": "00", "%-M": "0", "%S": "00", "%-S": "0", "%f": "000000",
    "%p": "AM", "%z": "", "%Z": "", "%s": "1721952000", "%n": "\\n", "%t": "\\t",
    "%F": "2024-07-26", "%D": "07/26/24", "%x": "07/26/24", "%T": "00:00:00", "%X": "00:00:00", "%R": "00:00",
    "%c": "Fri Jul 26 00:00:00 2024",
}  # fmt: skip
_PERCENT = "\U000f0000"  # stands for a doubled % while directives are replaced
_CLOCK = "strftime_now"
_FIXED = (
    "{%- macro " + _CLOCK + "(format) -%}{{- format | replace('%%', '" + _PERCENT + "')"
    + "".join(f" | replace('{directive}', '{text}')" for directive, text in _DIRECTIVES.items())
    + " | replace('" + _PERCENT + "', '%') -}}{%- endmacro %}\n"
)  # fmt: skip


def fix_date(template: str) -> str:
    """The template with a clock that stands still at `TEMPLATE_DATE`; any other template as it is.

    A macro of the template hides the function of the same name that the renderer provides, whatever the template does
    with it (tests/engine/test_tokens.py::test_dated_templates_are_told_one_day). It stands on a line of its own, which
    the renderer takes away with its line break, so the template still begins at the beginning of a line.
    """
    return _FIXED + template if _CLOCK in template else template


def choose_template(setting: str, own: str | None) -> str:
    """The template that a model section's `template` means.

    Args:
        setting: `auto` (the model's own, `PLAIN` where it has none), one of `NAMED`, or the path of a Jinja file.
        own: the template that comes with the tokenizer.

    Raises:
        UsageError: no such file.
    """
    if setting == "auto":
        return PLAIN if own is None else own
    if setting in NAMED:
        return NAMED[setting]
    path = Path(setting)
    if not path.is_file():
        names = ", ".join(["auto", *NAMED])
        raise UsageError("no such chat template", where=setting, fix=f"give {names} or the path of a Jinja file")
    return path.read_text(encoding="utf-8")
