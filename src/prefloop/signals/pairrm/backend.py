"""PairRM behind the seam of backends: `pair_score` of (source, first answer, second answer)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from prefloop.backends.base import Backend, PairScoreRequest, Request, Result
from prefloop.config import ModelSection
from prefloop.engine.load import describe_device, free, resolve_model_path
from prefloop.signals.pairrm.model import PairRM, batches
from prefloop.signals.pairrm.text import VERSION, Pair
from prefloop.store import fingerprint


class PairRmBackend(Backend):
    """One logit per request, > 0 where the first answer is the better one.

    Args:
        model: on its device.
        weights: what identifies them (`store.fingerprint.model_digest`); part of the cache key.
        name: what people call the model.
    """

    def __init__(self, model: PairRM, *, weights: str, name: str = "pairrm") -> None:
        self.model, self.name, self.batch_size = model, name, model.batch_size
        config = model.network.config.to_diff_dict()
        limits = model.encoder.limits
        self.identity = {
            "backend": "pairrm",
            "weights": weights,
            # A ranker's folder does not say all of its backbone's shape.
            "backbone": fingerprint.digest({k: v for k, v in config.items() if k not in _NO_SHAPE}),
            "dtype": str(model.dtype).removeprefix("torch."),
            "limits": [limits.source, limits.candidate],
            "text": VERSION,
        }

    @classmethod
    def load(cls, section: ModelSection, memo: fingerprint.Memo | None = None) -> Self:
        """Load a section's model.

        Args:
            memo: remembers file digests between runs (a `store.cache.Cache`).

        Raises:
            UsageError: there is no such checkpoint, or it is no PairRM.
        """
        model = PairRM.from_pretrained(
            section.path, section.revision, device=section.device, dtype=section.dtype, batch_size=section.batch_size
        )
        # After loading: a hub branch is resolved to its commit by then.
        weights = fingerprint.model_digest(resolve_model_path(section.path), section.revision, memo)
        return cls(model, weights=weights, name=section.path)

    def plan(self, requests: Sequence[Request]) -> list[list[int]]:
        """Batches of similar length in tokens, the longest first."""
        return batches([len(row.ids) for row in self.model.encode(_pairs(requests))], self.batch_size)

    def run(self, requests: Sequence[Request]) -> list[Result]:
        return list(self.model.logits(_pairs(requests)))

    def close(self) -> None:
        """Let go of the model; it is freed unless somebody else holds it. The backend is of no use afterwards."""
        del self.model
        free()

    @property
    def place(self) -> str:  # type: ignore[override]
        return describe_device(self.model.device)


_NO_SHAPE = {"architectures", "dtype", "transformers_version", "_name_or_path"}


def _pairs(requests: Sequence[Request]) -> list[Pair]:
    pairs: list[Pair] = []
    for request in requests:
        if not isinstance(request, PairScoreRequest) or len(request.texts) != 3:
            raise ValueError("PairRM answers pair_score of (source, first answer, second answer) and nothing else")
        source, first, second = request.texts
        pairs.append((source, first, second))
    return pairs
