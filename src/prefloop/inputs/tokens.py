"""The length of prompts in a model's tokens."""

from __future__ import annotations

from collections.abc import Sequence

from prefloop.errors import UsageError
from prefloop.inputs.prompts import TokenLimit
from prefloop.records import Message


def token_limit(model: str) -> TokenLimit:
    """A counter of a model's tokens, chat template included, and its context length.

    Args:
        model: hub id, folder, or `sandbox`.

    Raises:
        UsageError: there is no such tokenizer or configuration, or it names no context length.
    """
    from transformers import AutoConfig, AutoTokenizer

    path = _sandbox() if model == "sandbox" else model
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        config = AutoConfig.from_pretrained(path).get_text_config()
    except (OSError, ValueError) as error:
        raise UsageError(
            f"no tokenizer and configuration to be had: {str(error).splitlines()[0]}",
            where=model,
            fix="give a model folder, or the hub id ORG/NAME of a model",
        ) from error
    limit = getattr(config, "max_position_embeddings", None)
    if limit is None:
        raise UsageError("its configuration names no context length", where=model, fix="check without --model")

    def count(messages: Sequence[Message]) -> int:
        if tokenizer.chat_template is None:
            return len(tokenizer("\n".join(m["content"] for m in messages))["input_ids"])
        ids = tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=True)["input_ids"]
        return len(ids)

    # One token at least is the answer's.
    return TokenLimit(count, int(limit) - 1)


def _sandbox() -> str:
    from importlib.resources import files

    return str(files("prefloop.sandbox") / "weights")
