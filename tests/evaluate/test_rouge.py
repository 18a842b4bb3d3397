"""ROUGE against reference answers: known overlaps by hand, and references from OpenAI's critiques."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from prefloop.config import parse_recipe
from prefloop.errors import UsageError
from prefloop.evaluate.rouge import rouge
from prefloop.loop.plan import plan
from prefloop.signals.references import load


def row(name: str, base: str, aligned: str) -> Any:
    prompt = [{"role": "user", "content": name}]
    return {"id": name, "prompt": prompt, "completions": [{"text": base}, {"text": aligned}]}


def written(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return str(path)


def test_overlaps_by_hand(tmp_path: Path) -> None:
    given = [{"prompt": "a", "reference": "the cat sat down"}, {"prompt": "b", "reference": "yes"}]
    references = load(written(tmp_path / "r.jsonl", given))
    rows = [row("a", "down sat the dog", "the cats sat"), row("b", "no", "yes"), row("c", "x", "y")]
    found = rouge(rows, references, resamples=100)
    # a, base: 3 of 4 words each way, of which 1 in order, or 2 ("the dog" has one); aligned: 3 of 3 and of 4, stemmed.
    assert found["rouge1"]["base"] == pytest.approx((0.75 + 0) / 2)
    assert found["rouge1"]["aligned"] == pytest.approx((2 * 1 * 0.75 / 1.75 + 1) / 2)
    assert found["rouge_l"]["base"] == pytest.approx((0.25 + 0) / 2)
    assert found["rouge2"]["aligned"] == pytest.approx((2 * 1 * (2 / 3) / (5 / 3) + 0) / 2)
    for figure in found.values():
        assert (figure["n"], figure["excluded"]) == (2, 1)
        assert figure["difference"]["value"] == pytest.approx(figure["aligned"] - figure["base"])
    with pytest.raises(UsageError, match="holds a reference answer to none of the 1 prompts"):
        rouge(rows[2:], references)


def test_refinements_of_critiques_are_references(tmp_path: Path) -> None:
    def answer(text: str, critiques: list[Any] | None, rating: int) -> dict[str, Any]:
        return {"answer": text, "feedback": {"critiques": critiques, "rating": rating, "skip": False}}

    said = [{"text": "Too long.", "refinement": "x"}, {"text": "No names.", "refinement": "Short."}]
    questions = [
        {"question": "Q1", "rankings": [1, 3], "answers": [answer("a", [], 3), answer("b", said, 3)]},
        {"question": "Q2", "rankings": [2, 1], "answers": [answer("good", None, 7), answer("d", said, 3)]},
        {"question": "Q3", "rankings": [1], "answers": [answer("e", [], 5)]},
    ]
    path = tmp_path / "critiques.test.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps({"data": {"passage": {"text": "P."}, "questions": questions}}).encode()))
    references = load(str(path))
    of = {q: references.of(row(f"P.\n{q}", "", "")) for q in ("Q1", "Q2", "Q3")}
    assert of == {"Q1": "Short.", "Q2": "good", "Q3": None}


def test_a_missing_file_is_told_before_anything_runs(tmp_path: Path) -> None:
    data = {"name": "r", "model": "sandbox", "preferences": written(tmp_path / "p.jsonl", [])}
    recipe = parse_recipe({**data, "evaluate": {"references": str(tmp_path / "none.jsonl")}}, where="here")
    with pytest.raises(UsageError, match="there is no such file"):
        plan(recipe, None)
