"""What a careful reader of a run would point out: thresholds are in this file, with their reasons."""

from __future__ import annotations

import math
from typing import Any

from prefloop.evaluate.stats import says_nothing
from prefloop.report.figures import TRAIN, training_records
from prefloop.signals.bias import FEW_CASES

FEW_PROMPTS = 200  # a 95 % interval around 50 % is then about ±7 points wide
SEAT_BIAS = 0.1  # either way of one half
# Verdicts or pairs behind a judge's habit: of 20 tossed coins 15 fall alike in 4 of 100 trials, of 2 both in 50.
LEAST_CASES = FEW_CASES
LOW_CONSISTENCY = 0.7  # a judge that tosses coins in both orders reaches 0.5
NULL_SHARE = 0.05
LONGER_WINS = 0.65
REJECTED_SHARE = 0.2
CUT_OFF_SHARE = 0.1
HAPPENED = 12  # warnings of the run itself that are listed


def remarks(
    data: dict[str, Any], metrics: list[dict[str, Any]], warnings: list[str], recipe: dict[str, Any]
) -> list[str]:
    """Sentences, the gravest first; none is good news.

    Args:
        data: as `report.data.collect` gathers it.
        metrics, warnings: those of the run's current plan, in the order of the logs.
        recipe: as the manifest has it.
    """
    found = []
    if data["unfinished"] and data["win"]:  # without a win rate the page begins with this
        found.append(f"The run is not finished: {', '.join(data['unfinished'])} to come.")
    win = data["win"]
    if win and win["n"] < FEW_PROMPTS:
        found.append(f"Only {win['n']:,} held-out prompts were compared: the intervals are wide.")
    if win and says_nothing(win):
        found.append(f"All {win['n']} comparisons have the same value: the interval of the win rate says nothing.")
    found += [
        f"{m['name']}: all {m['n']} changes are equal; the interval says nothing."
        for m in data["measures"]
        if m["says_nothing"]
    ]
    found += [
        f"{m['name']} got worse: {100 * m['base']:.1f} % before, {100 * m['aligned']:.1f} % after."
        for m in data["measures"]
        if m["verdict"] == "worse"
    ]
    if data["no_win"]:
        found.append(
            "No win rate was measured, as nobody compared the answers (evaluate.judge). That the model fits its "
            "training data, or what was kept back of it, does not say that its answers are better."
        )
    if (
        win
        and len(candidates := {(m["round"], m["name"]) for m in data["models"] if "not merged" not in m["name"]}) > 1
    ):
        found.append(
            f"The best of {len(candidates)} models was chosen on the prompts that it is measured on, so its figures "
            "are a little too good: measure it again on prompts that chose nothing (prefloop compare)."
        )
    if win and _judges_itself(recipe):
        found.append(
            "The signal that made the pairs also measured the result. It may reward what it was trained to like: "
            "look at checkers or at another judge (evaluate.judge) before believing a gain."
        )
    for card in data["judges"]:
        found += _of_judge(card)
    found += _of_flow(data["flow"])
    found += _of_metrics(metrics)
    found += warnings[:HAPPENED]
    if len(warnings) > HAPPENED:
        found.append(f"{len(warnings) - HAPPENED} more warnings are in events.jsonl.")
    return found


def _judges_itself(recipe: dict[str, Any]) -> bool:
    """Whether the same model or function rated and measured; how it was asked makes no difference."""
    if recipe.get("preferences"):
        return False
    judge = (recipe.get("evaluate") or {}).get("judge")
    return bool(recipe) and (judge is None or _who(judge, recipe) == _who(recipe.get("rate") or {}, recipe))


def _who(signal: dict[str, Any], recipe: dict[str, Any]) -> tuple[Any, ...]:
    """Model or function behind a signal's section; without a model of its own, the recipe's first model judges."""
    if signal.get("type") != "judge":
        return signal.get("type"), signal.get("callable"), (signal.get("model") or {}).get("path")
    if panel := signal.get("panel"):
        return "panel", *sorted(str(model.get("path")) for model in panel)
    model = signal.get("model") or recipe.get("model") or {}
    return "judge", model.get("path"), model.get("revision")


def _of_judge(card: dict[str, Any]) -> list[str]:
    value = {
        rate["key"]: rate["value"]
        for rate in card["rates"]
        if rate["cases"] >= LEAST_CASES or rate["key"] == "null_rate"
    }
    who = f"{card['title']}: the judge"
    found = []
    if abs(value.get("first_seat", 0.5) - 0.5) > SEAT_BIAS:
        seat = "first" if value["first_seat"] > 0.5 else "second"
        found.append(f"{who} prefers the answer shown {seat}; averaging both orders takes this out of the mean.")
    if value.get("consistency", 1.0) < LOW_CONSISTENCY:
        found.append(f"{who} decides only {100 * value['consistency']:.0f} % of the pairs alike in both orders.")
    if value.get("null_rate", 0.0) > NULL_SHARE:
        found.append(f"{who} gave no verdict in {100 * value['null_rate']:.1f} % of the cases.")
    if value.get("longer_wins", 0.5) > LONGER_WINS:
        found.append(
            f"{who} prefers longer answers: they win {100 * value['longer_wins']:.0f} % of the decided pairs."
        )
    return found


def _of_flow(flow: list[dict[str, Any]]) -> list[str]:
    found = []
    for part in flow:
        where = f"Round {part['round']}" if part["round"] else "First stage"
        for step in part["steps"]:
            if step["state"] != "done" or not step["rejected"]:
                continue
            everything = step["rejected"] + step.get("kept", 0)
            if step["rejected"] > REJECTED_SHARE * everything:
                share = 100 * step["rejected"] / everything
                found.append(f"{where}, {step['name']}: {share:.0f} % of the rows were rejected.")
    for part in flow:
        for step in part["steps"]:
            if step.get("cut_off", 0.0) > CUT_OFF_SHARE:
                share = 100 * step["cut_off"]
                found.append(
                    f"Round {part['round']}: {share:.0f} % of the sampled answers were cut off; raise max_new_tokens."
                )
    return found


def _of_metrics(metrics: list[dict[str, Any]]) -> list[str]:
    found: list[str] = []
    first = last = None
    for record in training_records(metrics)[0]:
        if record["kind"] != TRAIN:
            continue
        loss, logps = record.get("loss"), record.get("logps/chosen")
        if isinstance(loss, str) and not found:
            found.append(f"The loss was {loss} at step {record.get('step')}.")
        if isinstance(logps, int | float) and math.isfinite(logps):
            first = logps if first is None else first
            last = logps
    if first is not None and last is not None and last < first - 10 and last < 1.5 * first:
        found.append(
            f"The log-probability of chosen answers fell from {first:.0f} to {last:.0f}: the loss drops also when "
            "both answers become unlikely. Fewer steps, a lower learning rate or a higher beta keep it up."
        )
    return found
