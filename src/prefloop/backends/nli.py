"""Classifiers of natural language inference: does a premise entail a hypothesis, contradict it, or neither?

Any checkpoint of `AutoModelForSequenceClassification` whose configuration names its classes. The order of the classes
differs from one checkpoint to the next, so they are known by name and never by place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch

from prefloop.backends.base import Backend, Logits, PairScoreRequest, Request, Result
from prefloop.backends.reward import load_classifier, positions
from prefloop.config import ModelSection
from prefloop.engine.load import free, resolve_model_path
from prefloop.errors import UsageError
from prefloop.store import fingerprint

VERSION = 1
"""Part of the identity: raise it when the same model and texts would give other values."""

CLASSES = ("entailment", "neutral", "contradiction")
# How the names of the classes begin in published checkpoints, small letters.
_BEGINNINGS = {"entailment": "entail", "neutral": "neutral", "contradiction": "contradict"}


def class_places(id2label: dict[int, str], where: str) -> dict[str, int]:
    """Where each of the classes stands among a classifier's outputs; `neutral` may be missing.

    Raises:
        UsageError: the configuration does not name entailment and contradiction, once each.
    """
    found: dict[str, int] = {}
    for place, label in id2label.items():
        name = next((n for n, start in _BEGINNINGS.items() if label.lower().startswith(start)), None)
        if name is not None and name in found:
            raise UsageError(f"two of its classes are called {name}", where=where, fix="give a classifier of NLI")
        if name is not None:
            found[name] = int(place)
    if missing := [name for name in ("entailment", "contradiction") if name not in found]:
        raise UsageError(
            f"none of its classes is called {missing[0]} (there: {', '.join(id2label.values())})",
            where=where,
            fix="give a classifier of natural language inference, or name its classes in config.json (id2label)",
        )
    return found


class NliBackend(Backend):
    """Answers `pair_score` of (premise, hypothesis) with a probability for each of `CLASSES`, in that order.

    A class that the classifier does not know has probability 0. Texts that do not fit are cut, the longer one first.

    Args:
        model: in eval mode, on its device.
        weights: what identifies the weights (`store.fingerprint.model_digest`).
        name: what people call the model.
        batch_size: pairs in one forward pass; changes no value beyond rounding.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, weights: str, name: str = "model", batch_size: int = 256
    ) -> None:
        self.model, self.tokenizer, self.name, self.batch_size = model, tokenizer, name, batch_size
        self.places = class_places(model.config.id2label, name)
        self.max_positions = positions(model, tokenizer)
        self.identity = {
            "backend": "nli",
            "version": VERSION,
            "weights": weights,
            "classes": self.places,
            "dtype": str(model.dtype).removeprefix("torch."),
        }

    @classmethod
    def load(cls, section: ModelSection, memo: fingerprint.Memo | None = None) -> Self:
        """Load a classifier.

        Args:
            memo: remembers file digests between runs (a `store.cache.Cache`).

        Raises:
            UsageError: there is no such model, it is no classifier, or its classes have other names.
        """
        from transformers import AutoTokenizer

        path = resolve_model_path(section.path)
        model = load_classifier(section, path, "classifier")
        tokenizer = AutoTokenizer.from_pretrained(
            path, revision=section.revision, trust_remote_code=section.trust_remote_code
        )
        weights = fingerprint.model_digest(path, section.revision, memo)
        return cls(model, tokenizer, weights=weights, name=section.path, batch_size=section.batch_size)

    def plan(self, requests: Sequence[Request]) -> list[list[int]]:
        """Batches of about equal lengths, the longest first: what does not fit in memory fails early."""

        def key(index: int) -> tuple[Any, ...]:
            request = requests[index]
            if not isinstance(request, PairScoreRequest) or len(request.texts) != 2:
                raise ValueError("a classifier of inference reads a premise and a hypothesis")
            return -sum(map(len, request.texts)), request.texts

        order = sorted(range(len(requests)), key=key)
        return [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]

    def run(self, requests: Sequence[Request]) -> list[Result]:
        pairs = [r.texts for r in requests if isinstance(r, PairScoreRequest)]
        premises, hypotheses = zip(*pairs, strict=True)
        batch = self.tokenizer(
            list(premises),
            list(hypotheses),
            truncation="longest_first",
            max_length=self.max_positions,
            padding=True,
            split_special_tokens=True,
            return_tensors="pt",
        ).to(self.model.device)
        with torch.inference_mode():
            probabilities_BC = self.model(**batch).logits.double().softmax(-1).cpu()
        columns = [self.places.get(name) for name in CLASSES]
        return [Logits([0.0 if c is None else float(row_C[c]) for c in columns]) for row_C in probabilities_BC]

    def close(self) -> None:
        """Let go of the model; the backend is of no use afterwards."""
        del self.model
        free()

    @property
    def place(self) -> str:  # type: ignore[override]
        """The device, and for a processor its threads: rounding depends on both."""
        device = self.model.device
        return f"cpu, {torch.get_num_threads()} threads" if device.type == "cpu" else str(device)
