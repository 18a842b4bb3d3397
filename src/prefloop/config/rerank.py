"""How a reranker learns which documents a reader needs."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from prefloop.config.base import Section

Task = Literal["pointwise", "pairwise", "contrastive"]


class RerankSection(Section):
    """Training of a reranker with one, two or three losses (DPA-RAG, Dong et al. 2024); docs/rerank.md."""

    model: str = Field(
        description="What training starts from: hub id or folder of an encoder or a cross-encoder, or `sandbox`."
    )
    revision: str | None = Field(None, description="Branch, tag or commit on the hub.")
    device: str = Field("auto", description="auto, cpu, cuda, mps; auto takes a GPU when there is one.")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Of the compute; weights are float32.")
    trust_remote_code: bool = Field(False, description="Run model code that comes with the checkpoint.")
    head: Literal["standard", "linear"] = Field(
        "standard",
        description="standard: the architecture's own classification head, with the checkpoint's weights where it has "
        "one; linear: one linear layer on the first token, as published, which sentence-transformers serves and other "
        "servers may not.",
    )
    max_length: int = Field(512, gt=0, description="Query and document together, tokens; the longer one is cut.")

    losses: tuple[Task, ...] = Field(("pointwise", "pairwise", "contrastive"), description="What is learned.")
    contrastive: Literal["group", "query"] = Field(
        "group",
        description="group: among one query's documents, as published; query: the query alone is the anchor, and "
        "other queries' documents are negatives too.",
    )
    temperature: float = Field(0.07, gt=0, description="Of the contrastive loss.")
    weighting: Literal["fixed", "mgda", "mgda_ub"] = Field(
        "mgda_ub",
        description="fixed; mgda: by the losses' gradients in all shared weights, a backward pass for each loss; "
        "mgda_ub: by their gradients in the encoder's output, one backward pass in all.",
    )
    normalize: Literal["none", "l2", "loss", "loss+"] = Field(
        "none",
        description="Of MGDA: what a loss's gradient is divided by before it is weighed: nothing, its length, the "
        "loss, or both. Without it the loss of the smallest gradient gets nearly all the weight.",
    )
    weights: tuple[float, ...] | None = Field(
        None, description="With fixed weighting, one for each of `losses` in their order; all 1 without it."
    )

    classify: Literal["all", "one"] = Field(
        "all", description="Labelled documents of a query that the point-wise loss sees: all, or one, as published."
    )
    list_length: int | None = Field(
        None,
        ge=2,
        description="Documents of a query that the pair-wise loss sees, at most; the published have 4.",
    )
    positives: int | None = Field(None, gt=0, description="Aligned documents of the contrastive loss, at most.")
    negatives: int | None = Field(None, gt=0, description="Unaligned documents of the contrastive loss, at most.")

    epochs: float = Field(10.0, gt=0, description="Passes over the queries.")
    batch_size: int = Field(4, gt=0, description="Queries in one optimiser step.")
    learning_rate: float = Field(1e-5, gt=0, description="Peak, behind the warm-up.")
    schedule: Literal["constant", "linear", "cosine"] = Field("constant", description="How it falls afterwards.")
    warmup_ratio: float = Field(0.0, ge=0, lt=1, description="Share of the steps in which it rises.")
    weight_decay: float = Field(0.0, ge=0, description="Of AdamW.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are clipped to this norm.")

    rank_by: Literal["difference", "logit1"] = Field(
        "difference",
        description="What the finished model ranks by: the log-odds of aligned, or its logit alone, which is all that "
        "the pair-wise loss sees.",
    )
    metric: Literal["f1", "precision", "recall", "ndcg@10", "mrr", "hit@1", "hit@3"] = Field(
        "f1", description="By which the best epoch is chosen on the validation queries."
    )
    validation_share: float = Field(
        0.1, ge=0, lt=1, description="Share of queries kept from training to choose the best epoch by."
    )
    test_share: float = Field(0.1, ge=0, lt=1, description="Share of queries that are measured on at the end, once.")
    logging_steps: int = Field(10, gt=0, description="Optimiser steps between records in metrics.jsonl.")
    save_steps: int = Field(200, gt=0, description="Optimiser steps between checkpoints; each epoch ends with one.")
    report_to: list[str] = Field(default_factory=list, description="Trackers of transformers, such as tensorboard.")

    @model_validator(mode="after")
    def _losses_and_weights(self) -> Self:
        if not self.losses or len(set(self.losses)) != len(self.losses):
            raise ValueError(f"losses must name one to three different losses, not {list(self.losses)}")
        if self.validation_share + self.test_share >= 1:
            raise ValueError("validation_share and test_share together leave nothing to train on: lower one of them")
        if self.normalize != "none" and self.weighting == "fixed":
            raise ValueError(f"normalize={self.normalize} without MGDA does nothing: set weighting, or take it out")
        if self.weights is None:
            return self
        if self.weighting != "fixed":
            raise ValueError(f"weights and weighting={self.weighting} exclude each other: set weighting=fixed")
        if len(self.weights) != len(self.losses):
            raise ValueError(f"{len(self.weights)} weights for {len(self.losses)} losses: give one for each")
        if min(self.weights) <= 0:
            raise ValueError("weights must be above 0; to leave a loss out, take it out of losses")
        return self


RERANK_COSMETIC = {"device", "logging_steps", "save_steps", "report_to"}
"""Settings of `RerankSection` that change no weight beyond rounding."""
