"""Pairs by self-reward with what each token adds to its answer's reward: surest, middling and most doubtful ones.

A token's part is its log-probability under the positive note minus that under the negative one; the parts of an answer
add up to its reward. They come from the calls that the rating kept, so no model is loaded, only its tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefloop.backends.base import freeze
from prefloop.config import ModelSection
from prefloop.engine.tokens import encode_completion, load_tokenizer
from prefloop.errors import UsageError
from prefloop.report.render import render
from prefloop.signals.attribute import SIDES, with_note
from prefloop.store import atomic
from prefloop.store.rundir import RunDir
from prefloop.store.stagedir import StageDir

STRONGEST = 3.0
"""Nats at which a token's colour is full."""


def write_margins(run: Path, stage: str | None, limit: int, out: Path) -> dict[str, Any]:
    """Write margins.html and margins.json of a run whose pairs are by self-reward.

    Args:
        run: its directory.
        stage: a pair stage; the first without it.
        limit: pairs from the top, from the middle and from the bottom, each.
        out: the folder; made when it is not there.

    Returns:
        `stage`, `pairs` (see `_pair`; `place` says top, middle or bottom) and `of`, how many there are in all.

    Raises:
        UsageError: the run has no such stage, or its pairs are not by self-reward.
    """
    opened = RunDir.peek(run)
    manifest = opened.read_manifest() or {}
    folders = {folder.name: folder for folder in opened.stages()}
    name = stage or next((name for name in folders if name.endswith("pair")), "pair")
    rating = name.removesuffix("pair") + "rate"
    if name not in folders or rating not in folders:
        there = [n for n in folders if n.endswith("pair")]
        fix = f"--stage with {' or '.join(there)}" if there else "make its pairs first (prefloop pair)"
        raise UsageError(f"no pairs {name!r} with their rating", where=str(run), fix=fix)
    pairs = sorted(folders[name].rows(), key=lambda pair: -_gap(pair))
    if not pairs or pairs[0]["source"] != "self_reward":
        raise UsageError("its pairs are not by self-reward", where=str(folders[name].path), fix="leave out --margins")
    chosen = _places(pairs, limit)
    ids = {pair["prompt_id"] for _, pair in chosen}
    rows = {row["id"]: row for row in folders[rating].rows() if row["id"] in ids}
    calls = _calls(folders[rating], ids)
    rate = _rate(manifest, rating)
    tokenizer = load_tokenizer(ModelSection.model_validate(rate["model"] or manifest["recipe"]["model"]))
    shown = [{"place": at, **_pair(pair, rows[pair["prompt_id"]], calls, rate, tokenizer)} for at, pair in chosen]
    found = {"stage": name, "of": len(pairs), "pairs": shown}
    out.mkdir(parents=True, exist_ok=True)
    atomic.write_text(out / "margins.json", json.dumps(found, ensure_ascii=False))
    atomic.write_text(out / "margins.html", render({**found, "title": manifest["name"]}, "margins.html.j2"))
    return found


def _rate(manifest: Mapping[str, Any], stage: str) -> Mapping[str, Any]:
    """The section of a rating: the recipe's, or its branch's."""
    recipe = manifest["recipe"]
    branch = next((one["branch"] for one in manifest["stages"] if one["name"] == stage), "")
    found: Mapping[str, Any] = recipe["branches"][branch]["rate"] if branch else recipe["rate"]
    return found


def _gap(pair: Mapping[str, Any]) -> float:
    return float(pair["score_chosen"] - pair["score_rejected"])


def _places(pairs: Sequence[dict[str, Any]], limit: int) -> list[tuple[str, dict[str, Any]]]:
    """The first, the middle and the last `limit` pairs, none twice."""
    n = len(pairs)
    middle = max((n - limit) // 2, 0)
    ranges = {"top": range(limit), "bottom": range(max(n - limit, 0), n), "middle": range(middle, middle + limit)}
    taken: dict[int, str] = {}
    for place, indices in ranges.items():
        for i in indices:
            if i < n:
                taken.setdefault(i, place)
    return [(taken[i], pairs[i]) for i in sorted(taken)]


def _calls(rating: StageDir, ids: set[str]) -> dict[tuple[str, str], list[tuple[list[Any], list[float]]]]:
    """(row, answer's text and ids as JSON) -> messages and token log-probabilities, in the order they were asked."""
    found: dict[tuple[str, str], list[tuple[list[Any], list[float]]]] = {}
    for call in rating.rows("calls"):
        if call["row_id"] in ids:
            request, result = json.loads(call["request"]), json.loads(call["result"])
            if result["kind"] == "score":
                key = (call["row_id"], json.dumps([request["text"], request["token_ids"]]))
                found.setdefault(key, []).append((request["messages"], result["token_logps"]))
    return found


def _pair(
    pair: Mapping[str, Any], row: Mapping[str, Any], calls: Any, rate: Mapping[str, Any], tokenizer: Any
) -> dict[str, Any]:
    """id, margin, prompt, and `chosen` and `rejected`: text, reward, notes, tokens (text, gain in nats, colour)."""
    completions = {c["id"]: c for c in row["completions"]}
    return {
        "id": pair["id"],
        "margin": _gap(pair),
        "prompt": [dict(message) for message in pair["prompt"]],
        **{
            side: _answer(row, completions[pair[f"{side}_id"]], pair[f"score_{side}"], calls, rate, tokenizer)
            for side in ("chosen", "rejected")
        },
    }


def _texts(messages: Any) -> list[list[str]]:
    """Roles and contents alone."""
    return [[role, content] for role, content, *_ in messages]


def _answer(
    row: Mapping[str, Any],
    completion: Mapping[str, Any],
    reward: float,
    calls: Any,
    rate: Mapping[str, Any],
    tokenizer: Any,
) -> dict[str, Any]:
    ids = list(completion["token_ids"] or ())
    asked = calls[row["id"], json.dumps([completion["text"], ids])]
    # Who names attributes scores by their notes, whatever the answer was sampled with.
    notes = completion["contrast"] if rate["attributes"] is None else None
    if notes is not None:
        prompts = [_texts(freeze(with_note(row["prompt"], notes[side]))) for side in SIDES]
        asked = [next(call for call in asked if _texts(call[0]) == prompt) for prompt in prompts]
    # Positive and negative notes by turns, of one attribute after the other; a score is the mean over attributes.
    count = len(asked[0][1])
    parts = len(asked) / 2 * (count if rate["average"] == "tokens" else 1)
    gains = [sum(logps[i] * (-1 if k % 2 else 1) for k, (_, logps) in enumerate(asked)) / parts for i in range(count)]
    if len(ids) != count or not _are_of(ids, completion["text"], tokenizer):
        ids = encode_completion(tokenizer, completion["text"], None)
    texts = [tokenizer.decode(ids[:i], clean_up_tokenization_spaces=False) for i in range(len(ids) + 1)]
    tokens = [
        {"text": after[len(before) :], "gain": gain, "colour": _colour(gain)}
        for before, after, gain in zip(texts[:-1], texts[1:], gains, strict=True)
    ]
    return {"text": completion["text"], "reward": reward, "notes": notes, "tokens": tokens}


def _are_of(ids: Sequence[int], text: str, tokenizer: Any) -> bool:
    """Whether ids are this tokenizer's: another model may have sampled them."""
    if max(ids) >= len(tokenizer):
        return False
    return bool(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) == text)


def _colour(gain: float) -> str:
    """Blue for the positive note, orange for the negative one: people who see no red from green tell them apart."""
    strength = min(abs(gain) / STRONGEST, 1.0)
    return f"rgba({'30, 110, 220' if gain > 0 else '225, 120, 20'}, {0.65 * strength:.2f})"
