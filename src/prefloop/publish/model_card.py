"""The card of a trained model or adapter: base, method, data, results with intervals, limits, how to load.

It is written from what the run directory says and can be written again at any time: before the measurement it says
that there is none.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from prefloop.errors import UsageError
from prefloop.publish import facts as of_run
from prefloop.publish.facts import Facts, hub_id, public
from prefloop.store import atomic

What = Literal["model", "adapter"]
CARD = "README.md"


def model_card(run_dir: Path, what: What = "model", round_number: int | None = None, branch: str | None = None) -> str:
    """README.md of a run's merged model, or of its adapter.

    Args:
        run_dir: a run directory, trained at least.
        what: the merged model, or the adapter.
        round_number, branch: whose; without them those of the model that the run ends with.

    Raises:
        UsageError: the run has not trained it.
    """
    facts = of_run.read(run_dir)
    branch = of_run.check_branch(facts, branch)
    number = facts.chosen()[0] if round_number is None else round_number
    if not facts.done("train", number, branch):
        raise UsageError("the run has not trained yet", where=str(run_dir), fix="run it at least up to train")
    rounds = f", round {number}" if (facts.recipe.get("rounds") or 1) > 1 else ""
    sections = [
        _front_matter(facts, what, number, branch),
        f"# {facts.name}" + (f", {branch}" if branch else "") + rounds,
        _summary(facts, what, number, branch),
        _method(facts, number, branch),
        _rounds(facts, number, branch),
        _results(facts, what, number, branch),
        _load(facts, what, number),
        _again(facts),
        _limits(),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def write_model_cards(run_dir: Path) -> list[Path]:
    """Write the cards of all merged models and adapters that a run has finished, and of the one that it ends with.

    A card that a stage counts among its own files is left as it is: with another one, the stage would be no longer
    done (tests/publish/test_model_card.py::test_a_card_undoes_no_stage).

    Returns:
        The files written.
    """
    facts = of_run.read(run_dir)
    cards: dict[Path, str] = {}
    for part in facts.done("train"):
        kinds: tuple[What, ...] = ("adapter", "model")
        for what in kinds:
            folder = folder_of(facts, what, part.round, part.branch)
            if folder is not None and folder.is_dir():
                cards[folder / CARD] = model_card(run_dir, what, part.round, part.branch)
    if facts.done("select"):
        cards[facts.run.path / "model" / CARD] = model_card(run_dir)
    counted = {
        os.path.normpath(part.folder.path / name)
        for part in facts.parts
        for name in (part.success or {}).get("files") or {}
    }
    free = {path: text for path, text in cards.items() if os.path.normpath(path) not in counted}
    for path, text in free.items():
        atomic.write_text(path, text)
    return list(free)


def folder_of(facts: Facts, what: What, round_number: int, branch: str) -> Path | None:
    """Where a round's model or adapter is; None where the stage that makes it is not done.

    Of several models each lies in its merge stage's folder; one alone is the run's `model`.
    """
    done = facts.done("train" if what == "adapter" else "merge", round_number, branch)
    if not done:
        return None
    own = done[-1].folder.path / what
    return facts.run.path / "model" if what == "model" and not own.is_dir() else own


def _front_matter(facts: Facts, what: What, number: int, branch: str) -> str:
    import yaml

    train = facts.way(branch)["train"]
    objective = (train.get("objective") or {}).get("type")
    head: dict[str, Any] = {
        "library_name": "peft" if what == "adapter" else "transformers",
        "pipeline_tag": "text-generation",
        "tags": [tag for tag in ("prefloop", objective, "lora" if train.get("lora") else None) if tag],
    }
    base = hub_id((facts.recipe.get("model") or {}).get("path"))
    if base is not None and not own_base(facts, what, number):
        head = {"base_model": base, "base_model_relation": "adapter" if what == "adapter" else "finetune"} | head
    lines = ["---", "# license: not stated; the base model's terms apply, and whoever publishes this says it here"]
    return "\n".join([*lines, yaml.safe_dump(head, sort_keys=False, allow_unicode=True).rstrip(), "---"])


def own_base(facts: Facts, what: What, number: int) -> str:
    """Which of the run's own models an adapter goes upon; empty where it is the recipe's, and of a whole model."""
    if what == "adapter" and number > 1:
        return f"the merged model of round {number - 1}"
    return "the model of the first stage" if what == "adapter" and facts.recipe.get("first") else ""


def _base(facts: Facts, what: What, number: int) -> str:
    if own := own_base(facts, what, number):
        handed = facts.winner(number - 1)
        return own + (f" (branch `{handed}`)" if handed and number > 1 else "") + " of this run"
    model = public(facts.recipe.get("model") or {})
    revision = f" at {model['revision']}" if model.get("revision") else ""
    return f"`{model.get('path')}`{revision}"


def _summary(facts: Facts, what: What, number: int, branch: str) -> str:
    objective = (facts.way(branch)["train"].get("objective") or {}).get("type")
    kind = "A LoRA adapter for" if what == "adapter" else "A model made from"
    trained = "trained" if what == "adapter" else "by training"
    learned = "questions and their documents" if facts.recipe.get("questions") else "preferences"
    times = f" in {number} rounds" if what == "model" and number > 1 else ""
    text = f"{kind} {_base(facts, what, number)}, {trained} on {learned} ({objective}){times} with prefloop."
    if own_base(facts, what, number):
        text += f" That model was made from {_base(facts, 'model', number)}, upon which this adapter does not fit."
    return text


def _method(facts: Facts, number: int, branch: str) -> str:
    train = public(facts.way(branch)["train"])
    extra = facts.success("train", number, branch).get("extra") or {}
    settings = dict(train.get("objective") or {})
    kind = settings.pop("type", None)
    objective = ", ".join([str(kind), *(f"{key} {value}" for key, value in settings.items() if value is not None)])
    lora = train.get("lora")
    weights = "all weights" if not lora else f"LoRA of rank {lora.get('r')}, alpha {lora.get('alpha')}"
    lines = [
        "## Method",
        "",
        f"- Objective: {objective}.",
        f"- Trained: {weights}; learning rate {train.get('learning_rate')}, batch {train.get('batch_size')}, "
        f"{train.get('epochs')} epochs, {extra.get('steps')} steps, seed {facts.recipe.get('seed')}.",
        f"- Data: {extra.get('pairs') or 0:,} rows trained on{_rows_left(extra)}; {_data(facts, branch)}.",
        *_first(facts),
    ]
    return "\n".join(lines)


def _first(facts: Facts) -> list[str]:
    """What the model was trained on before the loop, if on anything."""
    first = public(facts.recipe.get("first") or {})
    if not first:
        return []
    extra = facts.success("first-train").get("extra") or {}
    return [
        f"- Before that: {extra.get('pairs') or 0:,} rows of `{first['preferences'].get('path')}` by objective "
        f"{first['train']['objective'].get('type')}{_rows_left(extra)}. The results below compare with the model that "
        "this made."
    ]


def _rounds(facts: Facts, number: int, branch: str) -> str:
    """What each round up to this one did; empty for the first."""
    if number == 1:
        return ""
    lines = ["## Rounds", ""]
    for n in range(1, number + 1):
        handed = branch if n == number else facts.winner(n)
        extra = facts.success("train", n, handed).get("extra") or {}
        chosen = f"branch `{handed}`" + (" chosen by its win rate, " if n < number else ", ") if handed else ""
        lines.append(
            f"- Round {n}: {chosen}{extra.get('pairs') or 0:,} rows trained on{_rows_left(extra)}, "
            f"{extra.get('steps')} steps{_round_result(facts, n, handed)}."
        )
    return "\n".join(lines)


def _round_result(facts: Facts, number: int, branch: str) -> str:
    win = _measured(facts, "model", number, branch).get("win_rate")
    return f"; win rate against the first model {_interval(win)}" if win else ""


def _rows_left(extra: Mapping[str, Any]) -> str:
    lost = extra.get("rejected") or {}
    parts = [f"{n:,} {reason}" for reason, n in sorted(lost.items())]
    held = extra.get("held_out_rows")
    parts += [f"{held:,} of prompts that were measured on"] if held else []
    return f" (left out: {', '.join(parts)})" if parts else ""


def _data(facts: Facts, branch: str) -> str:
    recipe = public(facts.recipe)
    if recipe.get("preferences"):
        return f"preferences from `{recipe['preferences'].get('path')}`"
    if recipe.get("questions"):
        return f"questions of `{recipe['questions'].get('path')}` with documents of `{recipe['corpus'].get('path')}`"
    sample, rate = recipe.get("sample") or {}, public(facts.way(branch)["rate"])
    prompts = (recipe.get("prompts") or {}).get("path")
    return f"{sample.get('n')} answers to each prompt of `{prompts}`, rated by `{rate.get('type')}`"


def _measured(facts: Facts, what: What, number: int, branch: str) -> dict[str, Any]:
    """What the round's measurement says of this model: of an adapter, unmerged where it was measured so."""
    found: dict[str, Any] = (facts.success("evaluate", number).get("extra") or {}).get("evaluate") or {}
    own: dict[str, Any] = (found.get("branches") or {}).get(branch) or found
    unmerged: dict[str, Any] = (found.get("unmerged") or {}).get(branch or "adapter") or {}
    return (unmerged if what == "adapter" else {}) or own


def _results(facts: Facts, what: What, number: int, branch: str) -> str:
    evaluate = _measured(facts, what, number, branch)
    title = "## Results"
    if not evaluate:
        return f"{title}\n\nNot measured yet."
    rows: list[tuple[str, ...]] = []
    win = evaluate.get("win_rate")
    if win:
        rows.append(("win rate against the base", "", "", _interval(win), f"{win['n']:,}"))
    for name, other in (evaluate.get("also") or {}).items():
        rows.append((f"win rate, by {name}", "", "", _interval(other["win_rate"]), f"{other['win_rate']['n']:,}"))
    for group, measures in evaluate.items():
        for name, measure in measures.items() if isinstance(measures, dict) else ():
            if isinstance(measure, dict) and {"aligned", "difference"} <= measure.keys():
                base, aligned = (
                    f"{measure[side]:.3f}" for side in ("base" if "base" in measure else "plain", "aligned")
                )
                label = f"{group} {name}" + (" (lower is better)" if measure.get("lower_is_better") else "")
                rows.append((label, base, aligned, _interval(measure["difference"]), f"{measure['n']:,}"))
    lengths = evaluate.get("lengths") or {}
    if {"base", "aligned"} <= lengths.keys():
        chars = (f"{lengths[side]['chars']:.1f}" for side in ("base", "aligned"))
        rows.append(("mean characters of an answer", *chars, "", ""))
    likely = evaluate.get("perplexity") or {}
    if likely.get("difference"):
        both = (f"{likely[side]['value']:.2f}" for side in ("base", "aligned"))
        rows.append(("perplexity of the answers under the base", *both, "", f"{likely['n']:,}"))
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    text = (
        f"{title}\n\nOn held-out prompts, decoded alike; 95 % intervals by bootstrap over the prompts. A win rate is "
    )
    text += "the aligned model's (0.5: as good as the base), other rows show base, aligned and their difference.\n\n"
    text += f"| | base | aligned | value [95 %] | n |\n|---|---|---|---|---|\n{table}"
    if not win:
        reason = (evaluate.get("not_measured") or {}).get("win_rate")
        text += f"\n\nNo win rate: {reason}." if reason else "\n\nNo win rate was measured."
    return text


def _interval(value: Mapping[str, Any]) -> str:
    return f"{value['value']:.3f} [{value['ci_low']:.3f}, {value['ci_high']:.3f}]"


def _load(facts: Facts, what: What, number: int) -> str:
    if what == "model":
        code = """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER or ORG/NAME")
tokenizer = AutoTokenizer.from_pretrained("FOLDER or ORG/NAME")"""
    else:
        base = hub_id((facts.recipe.get("model") or {}).get("path")) or "the base model's folder"
        base = own_base(facts, what, number) or base
        code = f"""from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("{base}")
model = PeftModel.from_pretrained(base, "FOLDER or ORG/NAME")"""
    return f"## How to load\n\n```python\n{code}\n```"


def _again(facts: Facts) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in facts.versions().items())
    recipe = facts.public_recipe().rstrip()
    return (
        f"## How to make it again\n\n```\n{facts.command()}\n```\n\nWith {versions}, and this recipe (of paths the "
        f"last name is shown):\n\n```yaml\n{recipe}\n```"
    )


def _limits() -> str:
    return (
        "## Limits\n\nMeasured on the prompts named above and by the measures in the table, and nowhere else. A "
        "judge's verdicts have its biases, and a model trained on a signal may please the signal and be no better. "
        "What the base model gets wrong, this one may too."
    )
