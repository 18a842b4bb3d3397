"""The table of systems of retrieval-augmented answering: the whole, plain retrieval, and the whole without a part."""

from __future__ import annotations

from typing import Any

WORDS = {
    "plain": "plain retrieval, first reader",
    "aligned": "reranker and aligned reader",
    "without_self_alignment": "reranker, first reader",
    "without_reranker": "retriever's order, aligned reader",
    "without_prealign": "reader that never learned the pre-aligned task",
    "without_pointwise": "reranker without the point-wise loss",
    "without_pairwise": "reranker without the pair-wise loss",
    "without_contrastive": "reranker without the contrastive loss",
}


def systems(found: dict[str, Any] | None) -> dict[str, Any] | None:
    """One line a system, `aligned` first; None where none was measured.

    Returns:
        measures (names of the columns), rows (name, words, cells with value, ci_low and ci_high; change: what the
        whole has over it, with its test), n, accuracy (which measure), top_k.
    """
    if not found:
        return None
    against = {c["a"]: c for c in found["ablations"]}
    names = ["aligned", *(name for name in found["systems"] if name != "aligned")]
    columns: dict[str, None] = {}
    for system in found["systems"].values():
        columns |= dict.fromkeys((*system["answers"], *system["retrieval"]))
    columns.pop("n", None)
    rows = []
    for name in names:
        system = found["systems"][name]
        values = system["answers"] | system["retrieval"]
        cells = [values.get(column) for column in columns]
        rows.append({"name": name, "words": WORDS.get(name, ""), "cells": cells, "change": against.get(name)})
    return {
        "measures": [column.replace("_", " ") for column in columns],
        "rows": rows,
        "n": found["accuracy"]["n"],
        "accuracy": found["accuracy"]["measure"].replace("_", " "),
        "top_k": found["top_k"],
    }
