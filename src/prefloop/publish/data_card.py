"""The card of a published data set: counts, how the pairs were made, their biases, how to make them again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from prefloop.publish.facts import Facts, public

COLUMN_TEXTS = {
    "id": "hash of the content (or the id that the row came with)",
    "prompt_id": "hash of the prompt; rows of one prompt share it",
    "prompt": "messages, the user's last",
    "chosen": "the better answer, one message of the assistant",
    "rejected": "the worse answer, likewise",
    "score_chosen": "what the signal said of the chosen answer; higher is better",
    "score_rejected": "what it said of the rejected one",
    "weight": "of the row in the loss",
    "margin": "for losses that take one",
    "label": "probability that the chosen answer is the better one; null for certainty",
    "source": "who said which answer is better",
    "strategy": "how the two answers were put together",
    "chosen_id": "hash of the chosen answer",
    "rejected_id": "hash of the rejected answer",
    "chosen_finish": "`stop`, or `length` where the chosen answer was cut off",
    "rejected_finish": "the same of the rejected answer",
}
RATE_TEXTS = {
    "consistency": "pairs that the judge decided alike in both orders (1 is best)",
    "first_seat": "verdicts for the answer shown first (0.5 is unbiased)",
    "longer_wins": "decided comparisons won by the longer answer (0.5 is unbiased)",
    "null_rate": "questions without a verdict, left out",
}
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def data_card(facts: Facts, counts: Mapping[str, Any], licence: str | None) -> str:
    """README.md of an exported data set: YAML for the hub, then text. Holds no time and no path of this machine.

    Args:
        counts: as `dataset.export_pairs` returns them.
        licence: stated as it is given, and not at all otherwise.
    """
    sections = [
        front_matter(counts, licence),
        f"# Preference pairs of `{facts.name}`",
        _summary(facts, counts),
        _columns(counts),
        _made(facts, counts["branch"]),
        _bias(facts, counts),
        _load(counts),
        _again(facts),
        _limits(licence),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def front_matter(counts: Mapping[str, Any], licence: str | None) -> str:
    """The YAML head: which files make which split, their rows, and the bytes of these in Arrow."""
    import yaml

    from prefloop.publish.dataset import data_file

    rounds: dict[str, dict[str, int]] = counts["rounds"]
    named = {"default": list(rounds)} | ({f"round-{n}": [n] for n in rounds} if len(rounds) > 1 else {})
    configs, sizes = [], []
    for name, numbers in named.items():
        files: dict[str, list[str]] = {}
        sums: dict[str, Counter[str]] = {}
        for number in numbers:
            for split, n in rounds[number].items():
                files.setdefault(split, []).append(data_file(split, number, len(rounds)))
                found = {"num_examples": n, "num_bytes": counts["bytes"][number][split]}
                sums.setdefault(split, Counter()).update(found)
        configs.append({"config_name": name, "data_files": [{"split": s, "path": p} for s, p in files.items()]})
        sizes.append({"config_name": name, "splits": [{"name": s, **found} for s, found in sums.items()]})
    head = {
        "pretty_name": f"Preference pairs of {counts['name']}",
        "task_categories": ["text-generation"],
        "tags": ["preference", "dpo", "trl", "llama-factory", "prefloop"],
        "size_categories": [next((name for most, name in _SIZES if counts["pairs"] < most), "n>1M")],
        "configs": configs,
        "dataset_info": sizes,
    }
    # Licence and languages are for people to say: a wrong one does harm, an empty one asks.
    stated = {"license": licence} if licence else {}
    lines = ["---"] if licence else ["---", "# license: not stated; whoever publishes this says it here"]
    lines.append("# language: not stated")
    return "\n".join([*lines, yaml.safe_dump(stated | head, sort_keys=False, allow_unicode=True).rstrip(), "---"])


def _summary(facts: Facts, counts: Mapping[str, Any]) -> str:
    splits = ", ".join(f"{n:,} {name}" for name, n in counts["splits"].items())
    text = f"{counts['pairs']:,} pairs of answers to {counts['prompts']:,} prompts ({splits})"
    text += ", each with the better one as `chosen`. Made with prefloop."
    if "test" in counts["splits"]:
        text += " The prompts of `test` were measured on, and nothing of them was trained on."
    if counts["branch"]:
        text += f" They are those of the recipe's branch `{counts['branch']}`."
    if len(counts["rounds"]) > 1:
        each = ", ".join(f"round {number}: {sum(n.values()):,}" for number, n in counts["rounds"].items())
        text += f" {each}; the model of a round sampled its answers. Each round is a configuration of its own too."
    for what, n in counts["left_out"].items():
        text += f" Left out: {n:,} {what}."
    return text


def _columns(counts: Mapping[str, Any]) -> str:
    rows = "\n".join(f"| `{name}` | {COLUMN_TEXTS[name]} |" for name in counts["columns"])
    return f"| column | |\n|---|---|\n{rows}"


def _made(facts: Facts, branch: str) -> str:
    recipe: dict[str, Any] = public(facts.recipe)
    lines = ["## How the pairs were made", ""]
    if recipe.get("preferences"):
        given = recipe["preferences"]
        lines.append(f"- Preference data that was there: `{given.get('path')}` (format `{given.get('format')}`).")
    else:
        sample, way = recipe.get("sample") or {}, public(facts.way(branch))
        rate, pair = way["rate"], way["pair"]
        model = (sample.get("model") or recipe.get("model") or {}).get("path")
        lines.append(f"- Prompts: `{(recipe.get('prompts') or {}).get('path')}`.")
        first = ((recipe.get("first") or {}).get("preferences") or {}).get("path")
        tuned = f", trained on `{first}` before," if first and not sample.get("model") else ","
        lines.append(
            f"- Answers: {sample.get('n')} a prompt by `{model}`{tuned} temperature {sample.get('temperature')}, at "
            f"most {sample.get('max_new_tokens')} tokens, seed {recipe.get('seed')}."
        )
        by = ", ".join(f"`{name}`" for name in _raters(rate) or [str((recipe.get("model") or {}).get("path"))])
        mode = f", {rate['mode']}" if rate.get("mode") else ""
        lines.append(f"- Which answer is better: `{rate.get('type')}`{mode}, by {by}.")
        lines.append(f"- Pairs: `{pair.get('strategy')}`, least gap of the scores {pair.get('min_gap')}.")
    dropped: dict[str, int] = {}
    for part in [*facts.done("pair", branch=branch), *facts.done("preferences")]:
        for reason, n in ((part.success or {}).get("reject_reasons") or {}).items():
            dropped[reason] = dropped.get(reason, 0) + n
    if dropped:
        reasons = ", ".join(f"{n:,} {reason.replace('_', ' ')}" for reason, n in sorted(dropped.items()))
        lines.append(f"- Dropped on the way, by reason: {reasons}.")
    return "\n".join(lines)


def _raters(rate: Mapping[str, Any]) -> list[str]:
    """Who rates: a function, a file of votes, all judges of a panel, or a model; empty for the recipe's first."""
    models = rate.get("panel") or [rate.get("model") or {}]
    named = rate.get("callable") or rate.get("path")
    return [named] if named else [model["path"] for model in models if model.get("path")]


def _bias(facts: Facts, counts: Mapping[str, Any]) -> str:
    from prefloop.signals.bias import rates

    rows = [
        ("mean length of chosen answers", f"{counts['mean_chars_chosen']:.1f} characters"),
        ("mean length of rejected answers", f"{counts['mean_chars_rejected']:.1f} characters"),
    ]
    if counts["chosen_longer"] is not None:
        share = f"{counts['chosen_longer']:.1%} of {counts['unequal_lengths']:,}"
        rows.append(("chosen answer is the longer one, of pairs of different lengths (50 % is unbiased)", share))
    rated = facts.done("rate", branch=counts["branch"])
    for part in rated:
        number = f"round {part.round}: " if len(rated) > 1 else ""
        found = rates((part.success or {}).get("counts") or {})
        rows += [(f"{number}{text}", f"{found[key]:.1%}") for key, text in RATE_TEXTS.items() if key in found]
    votes = (facts.success("preferences").get("extra") or {}).get("votes") or {}
    for key, text in (("krippendorff_alpha", "Krippendorff's alpha"), ("cohen_kappa", "Cohen's kappa")):
        if votes.get(key) is not None:
            rows.append((f"{text} of the voters (1: all agree, 0: chance)", f"{votes[key]:.2f}"))
    table = "\n".join(f"| {what} | {value} |" for what, value in rows)
    return f"## Biases\n\n| | |\n|---|---|\n{table}"


def _load(counts: Mapping[str, Any]) -> str:
    return f"""## How to load

```python
from datasets import load_dataset

pairs = load_dataset("FOLDER or ORG/NAME", split="train")
```

TRL's `DPOTrainer` takes `pairs` as they are. For LLaMA-Factory give this folder as `dataset_dir` and
`dataset: {counts["name"]}` (`dataset_info.json` describes `llamafactory/*.jsonl`). prefloop reads
`preferences: {{path: train.jsonl}}`."""


def _again(facts: Facts) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in facts.versions().items())
    return f"""## How to make it again

```
{facts.command()}
```

With {versions}, and this recipe (of paths the last name is shown):

```yaml
{facts.public_recipe().rstrip()}
```"""


def _limits(licence: str | None) -> str:
    text = (
        "## Limits\n\nWhich answer is better is what the signal above said, with its biases; nobody checked the pairs "
        "one by one, unless people are the signal. The answers of a model may be wrong or offensive."
    )
    if not licence:
        text += " No licence is stated: terms of the prompts and of the models that wrote the answers apply."
    return text
