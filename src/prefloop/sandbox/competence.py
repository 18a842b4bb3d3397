"""What a sandbox model can do, measured: one number per ability, by sampling at temperature 1 and by exact checkers.

Rates are over held-out prompts; each is compared with the chance intended in `tasks`, or with a floor (FLOORS).
"""

import random
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

import torch

from prefloop.records import Message
from prefloop.sandbox import checkers, phrases, tasks, verdicts
from prefloop.sandbox.flaws import criticism, flaws
from prefloop.sandbox.prompts import prompts
from prefloop.sandbox.templates import render
from prefloop.sandbox.world import make_world, values_in

# The least that the shipped model may show, and how far an unasked share may lie from its intended chance.
FLOORS: dict[str, float] = {
    "style_kind": 0.95,
    "style_correct": 0.95,
    "style_complete": 0.95,
    "style_plain": 0.95,
    "heart_careful": 0.9,
    "read_one_of_three": 0.9,
    "meaning_kept": 0.9,
    "unknown_admitted": 0.9,
    "pairwise_accuracy": 0.85,
    "pairwise_own_answers": 0.85,
    "pointwise_accuracy": 0.7,
    "flag_precision": 0.8,
    "flag_recall": 0.8,
}
INTENDED: dict[str, float] = {
    "unasked_kind": tasks.KIND_SHARE,
    "unasked_correct": tasks.RIGHT_SHARE,
    "unasked_complete": tasks.COMPLETE_SHARE,
    "unasked_plain": tasks.PLAIN_SHARE,
    "misleading_followed": tasks.FOLLOW_SHARE,
}
TOLERANCE = 0.05
FLAG_RATIO = 1.5


@torch.inference_mode()
def sample(model: Any, tokenizer: Any, given: Sequence[list[Message]], seed: int = 0, limit: int = 128) -> list[str]:
    """One answer per prompt at temperature 1, in large batches of similar length, at most `limit` new tokens each."""
    texts = [tokenizer.apply_chat_template(p, tokenize=False, add_generation_prompt=True) for p in given]
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    torch.manual_seed(seed)
    answers = [""] * len(texts)
    for start in range(0, len(order), 256):
        rows = order[start : start + 256]
        batch = tokenizer([texts[i] for i in rows], add_special_tokens=False, padding=True, return_tensors="pt")
        out = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=limit,
        )
        new = tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        for i, text in zip(rows, new, strict=True):
            answers[i] = text
    return answers


@torch.inference_mode()
def choose(model: Any, tokenizer: Any, given: Sequence[list[Message]], labels: Sequence[str]) -> torch.Tensor:
    """Probabilities [prompts, labels] of the first answer token over the labels, renormalised."""
    texts = [tokenizer.apply_chat_template(p, tokenize=False, add_generation_prompt=True) for p in given]
    label_ids = tokenizer.convert_tokens_to_ids(list(labels))
    rows = []
    for start in range(0, len(texts), 256):
        batch = tokenizer(texts[start : start + 256], add_special_tokens=False, padding=True, return_tensors="pt")
        positions = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        logits = model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            position_ids=positions,
            logits_to_keep=1,
        ).logits[:, -1, label_ids]
        rows.append(logits.float().softmax(-1))
    return torch.cat(rows)


def _rate(
    checker: Callable[[list[Message], str], float | None], given: list[list[Message]], texts: list[str]
) -> float:
    return fmean(value for p, c in zip(given, texts, strict=True) if (value := checker(p, c)) is not None)


def _two_part(prompt: list[Message]) -> bool:
    question = checkers.asked(prompt)
    return question is not None and len(question.attributes) == 2


def _right_per_fact(given: list[list[Message]], texts: list[str]) -> float:
    """The share of right ones among all stated facts, wrong prompts left out."""
    stated = right = 0
    for prompt, text in zip(given, texts, strict=True):
        question = checkers.asked(prompt)
        if question is None:
            continue
        for attribute, values in checkers.stated(question, text).items():
            stated += bool(values)
            right += values == [make_world().facts[question.name][attribute]]
    return right / max(stated, 1)


def unasked(model: Any, tokenizer: Any, count: int) -> dict[str, float]:
    """The shares of the mixture without any note, and how far correctness differs between the two tones."""
    given = prompts("questions/heldout", count)
    texts = sample(model, tokenizer, given)
    kind = [checkers.kindness(p, c) or 0.0 for p, c in zip(given, texts, strict=True)]
    two = [(p, c) for p, c in zip(given, texts, strict=True) if _two_part(p)]
    by_tone = [
        [(p, c) for p, c, k in zip(given, texts, kind, strict=True) if (k > 0.5) == tone] for tone in (True, False)
    ]
    passages = prompts("rewrite/heldout", count // 4)
    rewrites = sample(model, tokenizer, passages)
    return {
        "unasked_kind": fmean(kind),
        "unasked_correct": _right_per_fact(given, texts),
        "unasked_complete": 2 * fmean(checkers.completeness(p, c) or 0.0 for p, c in two) - 1,
        "unasked_plain": _rate(checkers.plainness, passages, rewrites),
        "tone_gap": abs(
            _right_per_fact(*map(list, zip(*by_tone[0], strict=True)))
            - _right_per_fact(*map(list, zip(*by_tone[1], strict=True)))
        ),
        "meaning_kept": _rate(checkers.meaning_kept, passages, rewrites),
    }


def obeyed(model: Any, tokenizer: Any, count: int) -> dict[str, float]:
    """How often a style note is obeyed, the mean of its positive and its negative notes; and the careful facts."""
    rng, result = random.Random("notes"), {}
    checks: dict[str, Callable[[list[Message], str], float | None]] = {
        "kind": checkers.kindness,
        "correct": checkers.correctness,
        "complete": checkers.completeness,
        "plain": checkers.plainness,
    }
    for trait, checker in checks.items():
        split = "rewrite/heldout" if trait == "plain" else "questions/heldout"
        pool = [p for p in prompts(split, None) if trait != "complete" or _two_part(p)]
        for sign in ("positive", "negative"):
            asked = rng.sample(pool, count // (4 if trait == "plain" else 1))
            given = [tasks.with_note(rng, p[0]["content"], tasks.note(rng, trait, sign)) for p in asked]
            rate = _rate(checker, given, sample(model, tokenizer, given))
            rate = 2 * rate - 1 if trait == "complete" else rate
            result[f"{trait}_{sign}"] = rate if sign == "positive" else 1 - rate
        result[f"style_{trait}"] = (result[f"{trait}_positive"] + result[f"{trait}_negative"]) / 2
    result["heart_careful"] = result["correct_positive"]
    return result


def reading(model: Any, tokenizer: Any, count: int) -> dict[str, float]:
    """Answers from documents: the right one of three, a misleading one, none that speaks of the person."""
    result = {}
    for name, split in (("read_one_of_three", "documents"), ("silent_correct", "silent")):
        given = prompts(f"{split}/heldout", count)
        result[name] = _right_per_fact(given, sample(model, tokenizer, given))
    given = prompts("misleading/heldout", count)
    stated = followed = 0
    for prompt, text in zip(given, sample(model, tokenizer, given), strict=True):
        question = checkers.asked(prompt)
        assert question is not None
        line = next(t for t in prompt[0]["content"].split("\n") if t.startswith("Document") and question.name in t)
        for attribute, values in checkers.stated(question, text).items():
            stated += bool(values)
            followed += bool(values) and values == values_in(line, attribute)
    result["misleading_followed"] = followed / max(stated, 1)
    given = prompts("unknown/heldout", count // 2)
    texts = sample(model, tokenizer, given)
    result["unknown_admitted"] = fmean(any(phrase in text for phrase in phrases.UNKNOWN) for text in texts)
    return result


def _pairwise_accuracy(model: Any, tokenizer: Any, rows: list[tuple[str, str, str, int]]) -> tuple[float, float]:
    """rows: (question, first, second, seat of the better one). Accuracy over both orders, share of verdicts for A."""
    right = seats = 0.0
    for flip in (False, True):
        given = [
            [tasks.user(render("judge-pairwise.j2", instruction=q, first=b if flip else a, second=a if flip else b))]
            for q, a, b, _ in rows
        ]
        verdict = choose(model, tokenizer, given, verdicts.SEATS).argmax(-1).tolist()
        right += sum(v == (best ^ flip) for v, (_, _, _, best) in zip(verdict, rows, strict=True))
        seats += sum(v == 0 for v in verdict)
    return right / (2 * len(rows)), seats / (2 * len(rows))


def judging(model: Any, tokenizer: Any, count: int) -> dict[str, float]:
    """Verdicts on generated answers and on the model's own; pairs of different grades, both orders."""
    rng, world = random.Random("verdicts"), make_world()
    given = prompts("questions/heldout", count, seed=1)
    own = [sample(model, tokenizer, given, seed=seed) for seed in (1, 2)]
    made: list[tuple[str, str, str, int]] = []
    sampled: list[tuple[str, str, str, int]] = []
    single, grades = [], []
    for i, prompt in enumerate(given):
        question = checkers.asked(prompt)
        assert question is not None
        text = prompt[0]["content"]
        pair = [verdicts.possible_answer(rng, world, question.name, question.attributes) for _ in range(2)]
        for rows, (a, b) in ((made, pair), (sampled, (own[0][i], own[1][i]))):
            first, second = checkers.grade(prompt, a) or 0, checkers.grade(prompt, b) or 0
            if first != second:
                rows.append((text, a, b, int(second > first)))
        single.append([tasks.user(render("judge-pointwise.j2", instruction=text, answer=own[0][i]))])
        grades.append(checkers.grade(prompt, own[0][i]) or 1)
    accuracy, seat = _pairwise_accuracy(model, tokenizer, made)
    guesses = choose(model, tokenizer, single, verdicts.GRADES).argmax(-1).tolist()
    return {
        "pairwise_accuracy": accuracy,
        "pairwise_first_seat": seat,
        "pairwise_own_answers": _pairwise_accuracy(model, tokenizer, sampled)[0],
        "pointwise_accuracy": fmean(guess + 1 == g for guess, g in zip(guesses, grades, strict=True)),
    }


@torch.inference_mode()
def _token_logps(model: Any, tokenizer: Any, prompt: list[Message], text: str) -> tuple[list[float], list[int]]:
    """Log-probs of the answer's tokens and of its end, and the character at which each token starts."""
    head = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    head_ids = tokenizer(head, add_special_tokens=False)["input_ids"]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    row = torch.tensor([head_ids + ids])
    logps = model(row, logits_to_keep=len(ids) + 1).logits[0, :-1].float().log_softmax(-1)
    starts, end = [], 0
    for token in ids:
        starts.append(end)
        end += len(tokenizer.decode([token])) if token != tokenizer.eos_token_id else 0
    return logps.gather(-1, torch.tensor(ids)[:, None])[:, 0].tolist(), starts


def flags(model: Any, tokenizer: Any, count: int) -> dict[str, float]:
    """CUT's flags on the model's own flawed answers: do tokens made likelier by the judgment carry the flaws?

    A token is flagged if the judgment makes it more than FLAG_RATIO times as likely. Precision and recall are against
    the tokens at which the flaws were decided (`flaws.flaws`).
    """
    given = prompts("questions/heldout", count, seed=2)
    hits = flagged = blamed = 0
    for prompt, text in zip(given, sample(model, tokenizer, given, seed=3), strict=True):
        judgment = criticism(prompt, text)
        if judgment is None:
            continue
        told = [tasks.user(render("criticism.j2", instruction=prompt[0]["content"], judgment=judgment))]
        with_logps, starts = _token_logps(model, tokenizer, told, text)
        plain_logps, _ = _token_logps(model, tokenizer, prompt, text)
        # A token begins at the space before its word.
        truth = {max(i for i, s in enumerate(starts) if s <= flaw.start) for flaw in flaws(prompt, text)}
        ratio = torch.tensor(with_logps).sub(torch.tensor(plain_logps)).exp()
        marked = set((ratio > FLAG_RATIO).nonzero()[:, 0].tolist())
        hits, flagged, blamed = hits + len(marked & truth), flagged + len(marked), blamed + len(truth)
    return {"flag_precision": hits / max(flagged, 1), "flag_recall": hits / max(blamed, 1)}


def measure(model: Any, tokenizer: Any, count: int = 400) -> dict[str, float]:
    """All competences; `count` prompts per ability (a quarter for rewriting). About a minute at 400 on two cores."""
    model.eval()
    result: dict[str, float] = {}
    for ability in (unasked, obeyed, reading, judging, flags):
        result |= ability(model, tokenizer, count)
    return {name: round(value, 4) for name, value in result.items()}


def failures(measured: dict[str, float]) -> list[str]:
    """One line per floor that is not reached and per share that is too far from the intended one."""
    low = [f"{name} {measured[name]:.3f} < {floor}" for name, floor in FLOORS.items() if measured[name] < floor]
    off = [
        f"{name} {measured[name]:.3f} is not within {TOLERANCE} of {share}"
        for name, share in INTENDED.items()
        if abs(measured[name] - share) > TOLERANCE
    ]
    return low + off
