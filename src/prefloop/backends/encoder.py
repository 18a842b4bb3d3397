"""Encoders behind the seam of backends: `embed` of queries and passages, by any model of sentence-transformers.

Pooling, normalisation, prompts and the length limit are the model's own, unless the section says otherwise. A plain
transformer, which says nothing of pooling, is averaged. Queries and passages may have an encoder each (DPR, DRAGON).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch

from prefloop.backends.base import Backend, Embedding, EmbedRequest, Request, Result
from prefloop.config import RetrieverSection
from prefloop.engine.load import LOAD_ERRORS, choose_device, describe_device, free, load_fix, resolve_encoder_path
from prefloop.errors import UsageError
from prefloop.store import fingerprint

VERSION = 1
"""Part of the identity: raise it when the same model and text would give another vector."""

_CPU_TEXTS = 16

FIX = "give a hub id or the folder of a sentence-transformers model (modules.json, *.safetensors)"


class EncoderBackend(Backend):
    """Answers `embed`.

    Args:
        query: the encoder of queries (a `SentenceTransformer`), on its device.
        passage: that of passages; the same object where one encoder does both.
        weights: what identifies them (`store.fingerprint.model_digest`), one of each encoder.
        settings: of the section, what changes a vector.
        name: what people call the encoder.
        batch_size: texts in one forward pass; changes no vector beyond rounding.

    Attributes:
        similarity: how the encoder compares its vectors: cosine, dot, …
    """

    def __init__(
        self,
        query: Any,
        passage: Any,
        *,
        weights: Sequence[str],
        settings: dict[str, Any],
        name: str = "encoder",
        batch_size: int = 64,
    ) -> None:
        self.models = {"query": query, "passage": passage}
        self.prompts = {role: settings[f"{role}_prompt"] for role in self.models}
        self.name, self.batch_size = name, batch_size
        self.similarity = str(query.similarity_fn_name)
        # Of two encoders one may be there in half precision and the other not.
        dtypes = dict.fromkeys(next((p.dtype for p in m.parameters()), torch.float32) for m in (passage, query))
        self.identity = {
            "backend": "encoder",
            "version": VERSION,
            "weights": list(weights),
            "dtype": "+".join(str(dtype).removeprefix("torch.") for dtype in dtypes),
            "settings": settings,
        }

    @classmethod
    def load(cls, section: RetrieverSection, memo: fingerprint.Memo | None = None) -> Self:
        """Load the section's encoder, or both of them.

        Args:
            memo: remembers file digests between runs (a `store.cache.Cache`).

        Raises:
            UsageError: there is no such model, it is no encoder, or it cannot be fetched.
        """
        query = load_encoder(section, section.path, section.revision)
        passage = query
        sources = [(section.path, section.revision)]
        if section.passages is not None:
            passage = load_encoder(section, section.passages, section.passages_revision)
            sources.append((section.passages, section.passages_revision))
        # After loading: a hub branch is resolved to its commit by then.
        weights = [fingerprint.model_digest(resolve_encoder_path(p), revision, memo) for p, revision in sources]
        settings = section.model_dump(include={"query_prompt", "passage_prompt", "max_length", "pooling"})
        return cls(
            query, passage, weights=weights, settings=settings, name=section.name, batch_size=section.batch_size
        )

    def plan(self, requests: Sequence[Request]) -> list[list[int]]:
        """Batches of one role and about equal lengths, the longest first: what does not fit in memory fails early."""

        def key(index: int) -> tuple[Any, ...]:
            request = requests[index]
            if not isinstance(request, EmbedRequest):
                raise ValueError(f"an encoder does not answer {request.verb}")
            return request.role, -len(request.text), request.text

        batches: list[list[int]] = []
        for index in sorted(range(len(requests)), key=key):
            role = requests[index].role  # type: ignore[union-attr]  # `key` has refused the others
            if (
                not batches or len(batches[-1]) == self.batch_size or requests[batches[-1][0]].role != role  # type: ignore[union-attr]
            ):
                batches.append([])
            batches[-1].append(index)
        return batches

    def run(self, requests: Sequence[Request]) -> list[Result]:
        """Vectors in the order of the requests; a batch may mix roles, though `plan` makes none that does."""
        results: list[Result | None] = [None] * len(requests)
        for role, model in self.models.items():
            places = [i for i, r in enumerate(requests) if isinstance(r, EmbedRequest) and r.role == role]
            if not places:
                continue
            encode = model.encode_query if role == "query" else model.encode_document
            vectors_BD = encode(
                [requests[i].text for i in places],  # type: ignore[union-attr]
                prompt=self.prompts[role],
                batch_size=self._forward_size(model),
                show_progress_bar=False,
                convert_to_numpy=True,
            )
            for i, vector_D in zip(places, vectors_BD.astype("float32", copy=False), strict=True):
                results[i] = Embedding(vector_D)
        return [r for r in results if r is not None]

    def _forward_size(self, model: Any) -> int:
        """Texts in one forward pass: on a processor few, whose activations stay in its cache (1.4 times as fast)."""
        return min(self.batch_size, _CPU_TEXTS) if torch.device(model.device).type == "cpu" else self.batch_size

    def close(self) -> None:
        """Let go of the models, which are freed unless somebody holds them. The backend is of no use afterwards."""
        self.models = {}
        free()

    @property
    def place(self) -> str:  # type: ignore[override]
        """The device, and for a processor its threads: rounding depends on both."""
        return describe_device(torch.device(self.models["passage"].device))


def load_encoder(section: RetrieverSection, path: str, revision: str | None) -> Any:
    """One `SentenceTransformer` of the section, on its device, in eval mode; weights from safetensors only.

    Raises:
        UsageError: as for `EncoderBackend.load`.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    device = choose_device(section.device)
    source = resolve_encoder_path(path)
    loading = model_arguments(section, device)
    try:
        if section.pooling == "auto":
            model = SentenceTransformer(
                source,
                revision=revision,
                device=str(device),
                trust_remote_code=section.trust_remote_code,
                model_kwargs=loading,
            )
        else:
            shared = {"revision": revision, "trust_remote_code": section.trust_remote_code}
            base = Transformer(
                source, model_kwargs=shared | loading, processor_kwargs=dict(shared), config_kwargs=dict(shared)
            )
            pooling = Pooling(base.get_embedding_dimension(), section.pooling)
            model = SentenceTransformer(modules=[base, pooling], device=str(device))
    except (*LOAD_ERRORS, RuntimeError, KeyError) as error:
        fix = load_fix(error, source, ("sandbox", "bm25")) or FIX
        raise UsageError(f"cannot be loaded as an encoder: {error}", where=path, fix=fix) from error
    if section.max_length is not None:
        model.max_seq_length = section.max_length
    return model.eval()


def model_arguments(section: RetrieverSection, device: torch.device) -> dict[str, Any]:
    """Arguments of `from_pretrained`: safetensors only, and the precision that the section asks for."""
    dtype: Any = "auto" if section.dtype == "auto" else getattr(torch, section.dtype)
    return {"use_safetensors": True, "dtype": torch.float32 if dtype == "auto" and device.type == "cpu" else dtype}
