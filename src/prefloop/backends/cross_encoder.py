"""Cross-encoders behind the seam of backends: `pair_score` of (query, passage), by sentence-transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch

from prefloop.backends.base import Backend, Logits, PairScoreRequest, Request, Result
from prefloop.backends.encoder import model_arguments
from prefloop.config import ModelSection, RetrieverSection
from prefloop.engine.load import (
    LOAD_ERRORS,
    choose_device,
    describe_device,
    free,
    load_config,
    load_fix,
    resolve_encoder_path,
)
from prefloop.errors import UsageError
from prefloop.store import fingerprint

VERSION = 1
"""Part of the identity: raise it when the same model and texts would give other values."""

_HEAD = "ForSequenceClassification"


class CrossEncoderBackend(Backend):
    """Answers `pair_score` with the head's logits, before any activation.

    Args:
        model: a `CrossEncoder`, on its device.
        weights: what identifies it (`store.fingerprint.model_digest`).
        settings: of the section, what changes a value.
        name: what people call it.
        batch_size: pairs in one forward pass; changes no value beyond rounding.
    """

    def __init__(
        self, model: Any, *, weights: str, settings: dict[str, Any], name: str = "cross-encoder", batch_size: int = 64
    ) -> None:
        self.model, self.name, self.batch_size = model, name, batch_size
        dtype = next(p.dtype for p in model.parameters())
        self.identity = {
            "backend": "cross_encoder",
            "version": VERSION,
            "weights": weights,
            "dtype": str(dtype).removeprefix("torch."),
            "settings": settings,
        }

    @classmethod
    def load(cls, section: RetrieverSection, memo: fingerprint.Memo | None = None) -> Self:
        """Load the section's cross-encoder.

        Args:
            memo: remembers file digests between runs (a `store.cache.Cache`).

        Raises:
            UsageError: there is no such model, or it has no classification head.
        """
        from sentence_transformers import CrossEncoder

        source = resolve_encoder_path(section.path)
        if not is_cross_encoder(section):
            raise UsageError(
                f"is no cross-encoder: no checkpoint of …{_HEAD}",
                where=section.path,
                fix="give one with a trained head, or kind encoder",
            )
        device = choose_device(section.device)
        try:
            model = CrossEncoder(
                source,
                revision=section.revision,
                device=str(device),
                max_length=section.max_length,
                trust_remote_code=section.trust_remote_code,
                model_kwargs=model_arguments(section, device),
            )
        except (*LOAD_ERRORS, RuntimeError, KeyError) as error:
            fix = (
                load_fix(error, source)
                or "give a hub id or the folder of a cross-encoder (config.json, *.safetensors)"
            )
            what = f"cannot be loaded as a cross-encoder: {error}"
            raise UsageError(what, where=section.path, fix=fix) from error
        # After loading: a hub branch is resolved to its commit by then.
        weights = fingerprint.model_digest(source, section.revision, memo)
        settings = section.model_dump(include={"max_length"})
        return cls(model.eval(), weights=weights, settings=settings, name=section.path, batch_size=section.batch_size)

    def plan(self, requests: Sequence[Request]) -> list[list[int]]:
        """Batches of about equal lengths, the longest first: what does not fit in memory fails early."""
        texts = _pairs(requests)
        order = sorted(range(len(texts)), key=lambda i: (-len(texts[i][0]) - len(texts[i][1]), texts[i]))
        return [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]

    def run(self, requests: Sequence[Request]) -> list[Result]:
        pairs = _pairs(requests)
        logits = self.model.predict(
            pairs,
            batch_size=self.batch_size,
            activation_fn=torch.nn.Identity(),
            show_progress_bar=False,
            convert_to_numpy=True,
        )
        logits_BH = logits.astype("float32").reshape(len(pairs), -1)
        cut = self._cut(pairs)
        return [Logits(values, truncated) for values, truncated in zip(logits_BH.tolist(), cut, strict=True)]

    def _cut(self, pairs: Sequence[tuple[str, str]]) -> list[int]:
        """Of each pair, 1 where it does not fit: the passage is cut then."""
        most = self.model.max_seq_length
        if most is None:
            return [0] * len(pairs)
        whole = self.model.tokenizer([q for q, _ in pairs], [p for _, p in pairs], truncation=False, verbose=False)
        return [int(len(ids) > most) for ids in whole["input_ids"]]

    def close(self) -> None:
        """Let go of the model; it is freed unless somebody else holds it. The backend is of no use afterwards."""
        del self.model
        free()

    @property
    def place(self) -> str:  # type: ignore[override]
        """The device, and for a processor its threads: rounding depends on both."""
        return describe_device(torch.device(self.model.device))


def is_cross_encoder(section: RetrieverSection) -> bool:
    """Whether a model has a classification head, by its configuration; no weights are read.

    Raises:
        UsageError: there is no such model.
    """
    path = resolve_encoder_path(section.path)
    found = load_config(
        ModelSection(path=path, revision=section.revision, trust_remote_code=section.trust_remote_code)
    )
    named = [str(name) for name in found.architectures or []]
    return bool(named) and all(name.endswith(_HEAD) for name in named)


def relevance(values: Sequence[float]) -> float:
    """One number of a head: its logit, or of two classes the second's (relevant) minus the first's.

    Raises:
        UsageError: it has more classes, of which none is known to be relevance.
    """
    if len(values) > 2:
        raise UsageError(
            f"the cross-encoder's head has {len(values)} classes, and which one is relevance is not known",
            fix="use a cross-encoder with one output, or with two (not relevant, relevant)",
        )
    return values[0] if len(values) == 1 else values[1] - values[0]


def _pairs(requests: Sequence[Request]) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for request in requests:
        if not isinstance(request, PairScoreRequest) or len(request.texts) != 2:
            raise ValueError("a cross-encoder answers pair_score of (query, passage) and nothing else")
        pairs.append((request.texts[0], request.texts[1]))
    return pairs
