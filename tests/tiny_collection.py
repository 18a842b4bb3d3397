"""Collections in BEIR's layout, written for a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write(folder: Path, sources: Any, queries: Any = (), qrels: Any = (), header: bool = True) -> Path:
    """Write a collection.

    Args:
        sources: source -> (id, title, text) rows.
        queries: (id, text) rows.
        qrels: (query, passage, grade) rows.
        header: whether qrels begin with one.
    """
    (folder / "corpus").mkdir(parents=True, exist_ok=True)
    (folder / "qrels").mkdir(exist_ok=True)
    for source, rows in sources.items():
        lines = [json.dumps({"_id": i, "title": t, "text": x}) for i, t, x in rows]
        (folder / "corpus" / f"{source}.jsonl").write_text("\n".join(lines) + "\n")
    lines = [json.dumps({"_id": i, "text": t, "metadata": {"a": 1}}) for i, t in queries]
    (folder / "queries.jsonl").write_text("\n".join(lines))
    head = ["query-id\tcorpus-id\tscore"] if header else []
    (folder / "qrels" / "test.tsv").write_text("\n".join([*head, *("\t".join(map(str, r)) for r in qrels)]) + "\n")
    return folder
