"""What finds and scores passages: BM25, encoders of sentence-transformers, cross-encoders."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from prefloop.config.base import Section

BM25 = "bm25"
LANGUAGES = (
    *("danish", "dutch", "english", "french", "german", "italian", "norwegian", "portuguese", "russian"),
    *("spanish", "swedish", "turkish"),
)
"""Languages that have a stemmer (Snowball) and a list of stop words (bm25s)."""

_MODEL_ONLY = (
    "candidates",
    *("passages", "revision", "passages_revision", "dtype", "device", "similarity", "pooling"),
    *("search", "query_prompt", "passage_prompt", "max_length", "trust_remote_code"),
)


class RetrieverSection(Section):
    """A retriever. A plain text in its place is its `path`."""

    endpoint: ClassVar[None] = None
    """Retrievers run in this process; the field is there because whoever opens models asks for it."""

    path: str = Field(
        min_length=1,
        description="`bm25`, a hub id or folder of a sentence-transformers encoder or cross-encoder, or `sandbox` for "
        "the embedded encoder.",
    )
    passages: str | None = Field(
        None,
        description="Hub id or folder of an encoder of its own for passages (DPR, DRAGON); `path` is for queries.",
    )
    kind: Literal["auto", "bm25", "encoder", "cross_encoder"] = Field(
        "auto",
        description="auto: bm25 by its name; cross_encoder where the checkpoint has a classification head; else "
        "encoder.",
    )
    revision: str | None = Field(None, description="Branch, tag or commit on the hub.")
    passages_revision: str | None = Field(None, description="The same of `passages`.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Precision of weights and compute; auto: float32 on a CPU, the checkpoint's on a GPU."
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps; auto takes a GPU when there is one.")
    batch_size: int = Field(64, gt=0, description="Texts or pairs in one forward pass.")
    similarity: Literal["auto", "cosine", "dot"] = Field(
        "auto", description="Of two embeddings; auto: what the encoder says of itself."
    )
    pooling: Literal["auto", "mean", "cls", "lasttoken"] = Field(
        "auto",
        description="How token vectors become one; auto: as the encoder's folder says, the mean where it says nothing "
        "(a plain transformer).",
    )
    search: Literal["numpy", "faiss"] = Field(
        "numpy",
        description="Encoder: what searches its vectors, exactly either way; faiss comes with prefloop[faiss], and is "
        "for many passages and processors.",
    )
    query_prompt: str | None = Field(None, description="Text before each query; the encoder's own without it.")
    passage_prompt: str | None = Field(None, description="Text before each passage; the encoder's own without it.")
    max_length: int | None = Field(None, gt=0, description="Tokens that are read; the model's own limit without it.")
    trust_remote_code: bool = Field(False, description="Run model code that comes with the checkpoint.")
    k1: float = Field(1.2, ge=0, description="BM25: how soon further occurrences of a word stop counting.")
    b: float = Field(0.75, ge=0, le=1, description="BM25: how much long passages are discounted.")
    language: str | None = Field(
        "english", description="BM25: language of stemmer and stop words; null for neither of them."
    )
    corpus: str | None = Field(
        None,
        description="BM25 that scores single pairs: the passages (BEIR folder, zip, JSONL, Parquet) whose words are "
        "counted. A search counts those that it searches.",
    )
    candidates: int = Field(
        100, gt=0, description="Cross-encoder that searches: passages a query that BM25 gives it to score."
    )

    @model_validator(mode="before")
    @classmethod
    def _text_is_a_path(cls, data: Any) -> Any:
        return {"path": data} if isinstance(data, str) else data

    @model_validator(mode="after")
    def _settings_are_of_its_kind(self) -> Self:
        if self.path == BM25 and self.kind not in ("auto", "bm25"):
            raise ValueError(f"path bm25 is no {self.kind}")
        given = [n for n in self.model_fields_set if getattr(self, n) != type(self).model_fields[n].default]
        is_bm25 = BM25 in (self.path, self.kind)
        stray = [name for name in (_MODEL_ONLY if is_bm25 else ("corpus",)) if name in given]
        if is_bm25 and self.path != BM25:
            raise ValueError("kind bm25 has no model: write path bm25")
        if stray:
            raise ValueError(f"{', '.join(stray)}: of no use to {'bm25' if is_bm25 else 'a model'}; leave it away")
        if self.kind == "cross_encoder" and self.search != "numpy":
            raise ValueError("search: a cross-encoder has no vectors to search; leave it away")
        if self.kind == "cross_encoder" and self.passages is not None:
            raise ValueError("passages: a cross-encoder reads query and passage together; leave it away")
        if self.language is not None and self.language not in LANGUAGES:
            raise ValueError(f"language: no stemmer for {self.language}; one of {', '.join(LANGUAGES)}, or null")
        return self

    @property
    def name(self) -> str:
        """What people call it."""
        return self.path if self.passages is None else f"{self.path}+{self.passages}"
