"""Reward models: sequence classifiers that read a conversation with its answer and give a number for each head.

Any checkpoint of `AutoModelForSequenceClassification` with a decoder or an encoder inside. How a conversation becomes
token ids goes by what the model was trained on:

- a chat template (the tokenizer's, or the section's): the whole conversation through it, the answer included;
- an encoder without one (BERT, DeBERTa, …): the tokenizer's own pair of texts, the conversation and the answer;
- any other model without one: `engine.templates.PLAIN`.

Text never makes control tokens. A conversation that does not fit is refused and never cut: what a cut answer would
have scored is not what was asked.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import nn

from prefloop.backends.base import Backend, Logits, Refusal, Request, Result, RewardRequest, thaw
from prefloop.config import ModelSection
from prefloop.engine.load import (
    LOAD_ERRORS,
    adapter_base,
    choose_device,
    choose_dtype,
    describe_device,
    free,
    load_config,
    load_fix,
    resolve_model_path,
)
from prefloop.engine.templates import PLAIN
from prefloop.engine.tokens import VERSION as TOKENS_VERSION
from prefloop.engine.tokens import PromptError, encode_conversation, load_tokenizer
from prefloop.errors import UsageError
from prefloop.records import Message, message_text
from prefloop.store import fingerprint

VERSION = 1
"""Part of the identity: raise it when the same model and messages would give other values."""

# How architectures of language models end; those of classifiers end on SequenceClassification, or a name of theirs.
_LANGUAGE = ("ForCausalLM", "LMHeadModel", "ForMaskedLM")

_NO_LIMIT = 10**9  # tokenizers without a length of their own say 10^30


class _Encoded(NamedTuple):
    ids: list[int]
    types: list[int]  # which of the two texts a token is of; empty where the tokenizer makes no such ids


class RewardBackend(Backend):
    """A sequence-classification model that rates conversations; answers `reward` with `Logits`, one value a head.

    Args:
        model: in eval mode, on its device.
        tokenizer: with its chat template set (`engine.tokens.load_tokenizer`).
        weights: what identifies the weights (`store.fingerprint.model_digest`).
        as_pair: give the tokenizer conversation and answer as a pair of texts, in place of the chat template.
        name: what people call the model.
        batch_size: sequences in one forward pass; changes no value beyond rounding.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        weights: str,
        as_pair: bool = False,
        name: str = "model",
        batch_size: int = 64,
    ) -> None:
        self.model, self.tokenizer, self.as_pair = model, tokenizer, as_pair
        self.name, self.batch_size = name, batch_size
        self._config = model.config.get_text_config()
        # A negative one, as some checkpoints have, stands for none.
        own: int | None = self._config.pad_token_id
        self._own_pad = own if own is not None and own >= 0 else None
        self.max_positions = positions(model, tokenizer)
        self.identity = {
            "backend": "reward",
            "version": VERSION,
            "weights": weights,
            "template": "pair" if as_pair else fingerprint.digest(tokenizer.chat_template),
            "dtype": str(model.dtype).removeprefix("torch."),
            "tokens": TOKENS_VERSION,
        }

    @classmethod
    def load(cls, section: ModelSection, memo: fingerprint.Memo | None = None) -> Self:
        """Load a reward model.

        Args:
            memo: remembers file digests between runs (a `store.cache.Cache`).

        Raises:
            UsageError: there is no such model, it is no sequence classifier, or weights are missing from it.
        """
        path = resolve_model_path(section.path)
        model = load_classifier(section, path)
        tokenizer = load_tokenizer(section)
        has_template = section.template != "auto" or tokenizer.chat_template != PLAIN
        # After loading: a hub branch is resolved to its commit by then.
        weights = fingerprint.model_digest(path, section.revision, memo)
        return cls(
            model,
            tokenizer,
            weights=weights,
            as_pair=_is_encoder(tokenizer) and not has_template,
            name=section.path,
            batch_size=section.batch_size,
        )

    def plan(self, requests: Sequence[Request]) -> list[list[int]]:
        """Batches of about equal lengths, the longest first: what does not fit in memory fails early."""

        def key(index: int) -> tuple[Any, ...]:
            request = requests[index]
            if not isinstance(request, RewardRequest):
                raise ValueError(f"a reward model does not answer {request.verb}")
            return -sum(len(message[1]) for message in request.messages), request.messages

        order = sorted(range(len(requests)), key=key)
        return [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]

    def run(self, requests: Sequence[Request]) -> list[Result]:
        results: list[Result | None] = [None] * len(requests)
        batch: dict[int, _Encoded] = {}
        for i, request in enumerate(requests):
            assert isinstance(request, RewardRequest)
            found = self._encode(thaw(request.messages))
            if isinstance(found, Refusal):
                results[i] = found
            else:
                batch[i] = found
        for i, values in zip(batch, self._forward(list(batch.values())), strict=True):
            results[i] = Logits(values)
        return [r for r in results if r is not None]

    def close(self) -> None:
        """Let go of the model; it is freed unless somebody else holds it. The backend is of no use afterwards."""
        del self.model
        free()

    @property
    def place(self) -> str:  # type: ignore[override]
        return describe_device(self.device)

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device

    def _encode(self, messages: list[Message]) -> _Encoded | Refusal:
        try:
            encoded = self._pair(messages) if self.as_pair else self._conversation(messages)
        except PromptError as error:
            return Refusal(error.what)
        if self.max_positions is not None and len(encoded.ids) > self.max_positions:
            reason = f"prompt and answer take {len(encoded.ids)} tokens, the model has {self.max_positions} positions"
            return Refusal(reason, too_long=True)
        return encoded

    def _conversation(self, messages: list[Message]) -> _Encoded:
        """Through the chat template; between CLS and SEP where the tokenizer puts texts there."""
        ids = encode_conversation(self.tokenizer, messages)
        if _is_encoder(self.tokenizer):
            first, last = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
            ids = [*([first] if ids[0] != first else []), *ids, *([last] if ids[-1] != last else [])]
        return _Encoded(ids, [])

    def _pair(self, messages: list[Message]) -> _Encoded:
        """The question and the answer as two texts; a conversation before the answer is written out in plain form."""
        *prompt, answer = messages
        if not prompt or answer["role"] != "assistant":
            raise PromptError("a conversation to be rated is a prompt and an answer")
        if len(prompt) == 1:
            said = message_text(prompt[0])
        else:
            said = "\n\n".join(f"{m['role'].capitalize()}:\n{message_text(m)}" for m in prompt)
        encoded = self.tokenizer(
            said, message_text(answer), split_special_tokens=True, truncation=False, verbose=False
        )
        return _Encoded(list(encoded["input_ids"]), list(encoded.get("token_type_ids") or []))

    def _forward(self, batch: Sequence[_Encoded]) -> list[list[float]]:
        if not batch:
            return []
        pad, longest = self._pad_id(batch), max(len(encoded.ids) for encoded in batch)

        def padded(rows: Sequence[Sequence[int]], fill: int) -> torch.Tensor:
            return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows], device=self.device)

        ids_BT = padded([encoded.ids for encoded in batch], pad)
        mask_BT = padded([[1] * len(encoded.ids) for encoded in batch], 0)
        types = {"token_type_ids": padded([e.types for e in batch], 0)} if batch[0].types else {}
        with torch.inference_mode():
            logits_BH = self.model(input_ids=ids_BT, attention_mask=mask_BT, **types).logits
        values: list[list[float]] = logits_BH.float().cpu().tolist()
        return values

    def _pad_id(self, batch: Sequence[_Encoded]) -> int:
        """What to pad with.

        A decoder's score is read at the last token that is not the configuration's padding, wherever the mask ends.
        With a padding token of its own a model keeps it, so that it reads what it read in training. A model without
        one read the very last token; it gets a token for padding that occurs in no text of this batch
        (tests/backends/test_reward.py::test_a_model_without_padding_reads_its_last_token).
        """
        if self._own_pad is not None:
            return self._own_pad
        used = {token for encoded in batch for token in encoded.ids}
        pad = next(token for token in range(len(used) + 1) if token not in used)
        self._config.pad_token_id = pad
        return pad


def refuse_language_model(config: Any, where: str) -> None:
    """Refuse a model that its configuration calls a language model; no weights are read.

    Raises:
        UsageError: it is one. Its heads would be random, and their names are those of no training.
    """
    named = [str(name) for name in config.architectures or []]
    own_code = getattr(config, "auto_map", None) or {}
    if not any(name.endswith(_LANGUAGE) for name in named) or "AutoModelForSequenceClassification" in own_code:
        return
    kind = "masked" if named[0].endswith("ForMaskedLM") else "causal"
    raise UsageError(
        f"this is a {kind} language model ({', '.join(named)}), not a sequence classifier",
        where=where,
        fix="give a reward model, a checkpoint of …ForSequenceClassification with a trained head; a language model "
        "rates as a judge (rate.type=judge)",
    )


@contextlib.contextmanager
def _without_report() -> Iterator[None]:
    """Without transformers' table of missing weights: they are refused here, in one sentence."""
    logger = logging.getLogger("transformers.modeling_utils")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def load_classifier(section: ModelSection, path: str, what: str = "reward model") -> Any:
    """A sequence classifier, whole and on its device.

    Args:
        path: of the section, resolved.
        what: it is to be, for messages.

    Raises:
        UsageError: there is no such model, it is no sequence classifier, or weights are missing from it.
    """
    from transformers import AutoModelForSequenceClassification

    fix = "give a hub id or the folder of a sequence-classification model (config.json, *.safetensors)"
    if adapter_base(path) is not None:
        raise UsageError("is an unmerged adapter", where=section.path, fix="merge it into its base first")
    config = load_config(section)
    if config.is_encoder_decoder:
        raise UsageError("has an encoder and a decoder, which is not supported", where=section.path, fix=fix)
    refuse_language_model(config, section.path)
    device = choose_device(section.device)
    try:
        with _without_report():
            model, info = AutoModelForSequenceClassification.from_pretrained(
                path,
                revision=section.revision,
                dtype=choose_dtype(section, device),
                trust_remote_code=section.trust_remote_code,
                use_safetensors=True,
                output_loading_info=True,
            )
    except LOAD_ERRORS as error:
        reason = f"cannot be loaded as a {what}: {error}"
        raise UsageError(reason, where=section.path, fix=load_fix(error, path) or fix) from error
    missing = sorted(info["missing_keys"])
    if missing:  # transformers would go on with random weights in their place
        reason = f"the checkpoint lacks {len(missing)} weights of a {what}, {missing[0]} first"
        fix = "give a checkpoint with a trained head, and check that its download is complete"
        raise UsageError(reason, where=section.path, fix=fix)
    return model.to(device).eval()


def _is_encoder(tokenizer: Any) -> bool:
    """Whether the tokenizer puts texts between CLS and SEP."""
    return tokenizer.cls_token_id is not None and tokenizer.sep_token_id is not None


def positions(model: Any, tokenizer: Any) -> int | None:
    """The most tokens that the model takes; None where nothing bounds them."""
    config = model.config.get_text_config()
    most: int | None = getattr(config, "max_position_embeddings", None)
    if most is None or not _is_encoder(tokenizer):
        return most
    for name, module in model.named_modules():
        if (
            name.endswith("position_embeddings")
            and isinstance(module, nn.Embedding)
            and module.padding_idx is not None
        ):
            most -= module.padding_idx + 1  # RoBERTa counts its positions from behind the padding's
            break
    return min(most, tokenizer.model_max_length) if tokenizer.model_max_length < _NO_LIMIT else most
