"""Chat templates that know tools, written in the manner of two families, and a conversation that uses them."""

from __future__ import annotations

from typing import Any

TAGGED = (
    "{%- if tools %}<|im_start|>system\n"
    "{{ messages[0].content ~ '\n\n' if messages[0].role == 'system' else '' }}Functions you may call:\n"
    "{%- for tool in tools %}\n{{ tool | tojson }}{% endfor %}<|im_end|>\n"
    "{%- elif messages[0].role == 'system' %}<|im_start|>system\n{{ messages[0].content }}<|im_end|>\n{%- endif %}"
    "{%- for m in messages if m.role != 'system' %}"
    "{%- if m.role == 'tool' %}<|im_start|>user\n<tool_response>{{ m.content }}</tool_response><|im_end|>\n"
    "{%- else %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{%- for call in m.tool_calls or [] %}<tool_call>"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}</tool_call>'
    "{%- endfor %}<|im_end|>\n{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""As Qwen's: schemas in the system turn, calls and results between tags."""

JSONED = (
    "{{- bos_token }}{%- for m in messages %}"
    "{%- if m.tool_calls is defined and m.tool_calls %}"
    "{%- if m.tool_calls | length > 1 %}{{- raise_exception('one call at a time') }}{%- endif %}"
    "<|start|>assistant<|end|>\n\n"
    '{"name": "{{ m.tool_calls[0].function.name }}", "parameters": {{ m.tool_calls[0].function.arguments | tojson }}}'
    "<|eot|>"
    "{%- elif m.role == 'tool' %}<|start|>ipython<|end|>\n\n{{ m.content | tojson }}<|eot|>"
    "{%- else %}<|start|>{{ m.role }}<|end|>\n\n"
    "{%- if tools and loop.first %}Functions: {{ tools | tojson }}\n\n{% endif %}{{ m.content | trim }}<|eot|>"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}<|start|>assistant<|end|>\n\n{% endif %}"
)
"""As Llama 3.1's: schemas in the first turn, one call as bare JSON."""

SCHEMA: dict[str, Any] = {
    "type": "function",
    "function": {"name": "weather", "description": "of a place", "parameters": {"type": "object", "properties": {}}},
}


def call(place: str) -> dict[str, Any]:
    """An answer of the assistant that asks for a place's weather."""
    asked = {"type": "function", "function": {"name": "weather", "arguments": {"place": place}}}
    return {"role": "assistant", "content": "", "tool_calls": [asked]}


ASKED: list[Any] = [{"role": "user", "content": "How is Paris?", "tools": [SCHEMA]}]
TOLD: list[Any] = [*ASKED, call("Paris"), {"role": "tool", "content": "rain", "name": "weather"}]
