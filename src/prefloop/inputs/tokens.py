"""The length of prompts in a model's tokens."""

from __future__ import annotations

from collections.abc import Sequence

from prefloop.config import ModelSection
from prefloop.engine.load import adapter_base, resolve_model_path
from prefloop.engine.tokens import encode_prompt, load_tokenizer
from prefloop.errors import UsageError
from prefloop.inputs.prompts import TokenLimit
from prefloop.records import Message


def token_limit(model: str) -> TokenLimit:
    """A counter of a model's tokens, chat template included, and its context length less one token of an answer.

    Args:
        model: hub id, folder of a model or an adapter, or `sandbox`.

    Raises:
        UsageError: there is no such model, or its configuration names no context length.
    """
    from transformers import AutoConfig

    tokenizer = load_tokenizer(ModelSection.model_validate({"path": model}))
    path = resolve_model_path(model)
    base = adapter_base(path)
    try:
        config = AutoConfig.from_pretrained(path if base is None else resolve_model_path(base[0])).get_text_config()
    except (OSError, ValueError) as error:
        fix = "give a hub id or the folder of a causal model"
        raise UsageError(f"no configuration: {error}", where=model, fix=fix) from error
    context = getattr(config, "max_position_embeddings", None)
    if context is None:
        raise UsageError("its configuration names no context length", where=model, fix="check without a model")

    def count(messages: Sequence[Message]) -> int:
        return len(encode_prompt(tokenizer, messages))

    return TokenLimit(count, int(context) - 1)
