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
        raise UsageError(f"no stage {name!r} with its rating", where=str(run), fix="see prefloop status")
    pairs = sorted(folders[name].rows(), key=lambda pair: -_gap(pair))
    if not pairs or pairs[0]["source"] != "self_reward":
        raise UsageError("its pairs are not by self-reward", where=str(folders[name].path), fix="leave out --margins")
    chosen = _places(pairs, limit)
    ids = {pair["prompt_id"] for _, pair in chosen}
    rows = {row["id"]: row for row in folders[rating].rows() if row["id"] in ids}
    calls = _calls(folders[rating], ids)
    tokenizer = load_tokenizer(ModelSection.model_validate(manifest["recipe"]["model"]))
    shown = [{"place": place, **_pair(pair, rows[pair["prompt_id"]], calls, tokenizer)} for place, pair in chosen]
    found = {"stage": name, "of": len(pairs), "pairs": shown}
    out.mkdir(parents=True, exist_ok=True)
    atomic.write_text(out / "margins.json", json.dumps(found, ensure_ascii=False))
    atomic.write_text(out / "margins.html", render({**found, "title": manifest["name"]}, "margins.html.j2"))
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


def _pair(pair: Mapping[str, Any], row: Mapping[str, Any], calls: Any, tokenizer: Any) -> dict[str, Any]:
    """id, margin, prompt, and `chosen` and `rejected`: text, reward, notes, tokens (text, gain in nats, colour)."""
    completions = {c["id"]: c for c in row["completions"]}
    return {
        "id": pair["id"],
        "margin": _gap(pair),
        "prompt": [dict(message) for message in pair["prompt"]],
        **{
            side: _answer(row, completions[pair[f"{side}_id"]], pair[f"score_{side}"], calls, tokenizer)
            for side in ("chosen", "rejected")
        },
    }


def _texts(messages: Any) -> list[list[str]]:
    """Roles and contents alone."""
    return [[role, content] for role, content, *_ in messages]


def _answer(
    row: Mapping[str, Any], completion: Mapping[str, Any], reward: float, calls: Any, tokenizer: Any
) -> dict[str, Any]:
    ids = list(completion["token_ids"] or ())
    asked = calls[row["id"], json.dumps([completion["text"], ids])]
    if (contrast := completion.get("contrast")) is not None:
        prompts = [_texts(freeze(with_note(row["prompt"], contrast[side]))) for side in SIDES]
        asked = [next(call for call in asked if _texts(call[0]) == prompt) for prompt in prompts]
    # Positive and negative notes by turns, of one attribute after the other; a score is the mean over attributes.
    count = len(asked[0][1])
    gains = [
        sum(logps[i] * (-1 if k % 2 else 1) for k, (_, logps) in enumerate(asked)) / (len(asked) / 2)
        for i in range(count)
    ]
    if len(ids) != count:
        ids = encode_completion(tokenizer, completion["text"], None)
    texts = [tokenizer.decode(ids[:i], clean_up_tokenization_spaces=False) for i in range(len(ids) + 1)]
    tokens = [
        {"text": after[len(before) :], "gain": gain, "colour": _colour(gain)}
        for before, after, gain in zip(texts, texts[1:], gains, strict=False)
    ]
    return {"text": completion["text"], "reward": reward, "notes": contrast, "tokens": tokens}


def _colour(gain: float) -> str:
    """Blue for the positive note, orange for the negative one: people who see no red from green tell them apart."""
    strength = min(abs(gain) / STRONGEST, 1.0)
    return f"rgba({'30, 110, 220' if gain > 0 else '225, 120, 20'}, {0.65 * strength:.2f})"
