"""Ability, by lm-eval (EleutherAI's language model evaluation harness): what alignment cost, task by task.

lm-eval makes the prompts, asks the model and scores each document. From there on the figures are ours: both models'
scores are paired document by document, so a difference of two points between two models that answer nearly alike is
seen where two separate standard errors would hide it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prefloop.config import ModelSection
from prefloop.config.harness import LEADERBOARD, HarnessSection
from prefloop.engine.load import LOAD_ERRORS, freeing, load_model
from prefloop.engine.tokens import load_tokenizer
from prefloop.errors import PrefloopError, UsageError
from prefloop.evaluate.contrasts import HIGHER, LOWER, SAME, contrast, decide
from prefloop.evaluate.stats import standard_error
from prefloop.store.fingerprint import Memo, folder_digest

Document = tuple[str, int, str]
"""Which document: its task, its number there, and the hash of its content."""

WORDS = {HIGHER: "better", LOWER: "worse", SAME: "no detectable change"}


@dataclass
class Ability:
    """What one model did on some tasks.

    Attributes:
        scores: (task or group, metric) -> document -> score. Their mean is the metric.
        shots: task or group -> examples before each question.
        higher_is_better: (task or group, metric) -> whether it is.
        cut: task or group -> prompts that were longer than the model's context and lost their beginning.
        left_out: "task metric" -> why it is not in `scores`.
    """

    scores: dict[tuple[str, str], dict[Document, float]] = field(default_factory=dict)
    shots: dict[str, int] = field(default_factory=dict)
    higher_is_better: dict[tuple[str, str], bool] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def identity(section: HarnessSection, memo: Memo | None = None) -> dict[str, Any]:
    """Everything besides the models that changes the figures, for the fingerprint of a stage.

    Raises:
        UsageError: lm-eval is not installed, or the folder of tasks is not there.
    """
    _preflight(section)
    own = None if section.folder is None else folder_digest(section.folder, memo)
    return section.model_dump(exclude={"folder"}) | {"folder": own, "lm_eval": version("lm_eval")}


def harness(
    base: ModelSection, aligned: ModelSection, section: HarnessSection, *, resamples: int = 10_000, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Both models on all tasks, one model in memory at a time, and the differences paired by document.

    Args:
        base, aligned: models, or folders of unmerged adapters.
        section: tasks, shots and limit.
        resamples, seed: of the bootstrap over documents.

    Returns:
        See `compare_ability`.

    Raises:
        UsageError: lm-eval or a task is not there, or a model cannot be loaded.
    """
    return compare_ability(measure(base, section), measure(aligned, section), resamples=resamples, seed=seed)


@freeing()
def measure(model: ModelSection, section: HarnessSection) -> Ability:
    """One model on all tasks.

    Raises:
        UsageError: as for `harness`.
    """
    _preflight(section)
    lm_eval, language_model, manager = _open(model, section)
    found = Ability()
    for task in section.tasks:
        shots, metric = LEADERBOARD.get(task, (None, None))
        wanted = section.shots if section.shots is not None else shots
        try:
            results = lm_eval.simple_evaluate(
                model=language_model,
                tasks=[task],
                task_manager=manager,
                num_fewshot=wanted,
                limit=section.limit,
                apply_chat_template=section.chat,
                bootstrap_iters=0,
                log_samples=True,
            )
        except (*LOAD_ERRORS, KeyError) as error:
            raise UsageError(
                f"lm-eval cannot run it: {type(error).__name__}: {error}",
                where=f"task {task}",
                fix="check its name (`lm-eval ls tasks`), its data (hub data sets need the network once), or give a "
                "folder of task files",
            ) from error
        _collect(found, task, results, metric)
        found.cut[task] = _cut(results, language_model)
    return found


def compare_ability(
    base: Ability, aligned: Ability, *, resamples: int = 10_000, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Aligned - base, paired over documents.

    Returns:
        "task metric" -> base, aligned (means over documents), base_standard_error, aligned_standard_error, n,
        shots, cut (prompts that lost their beginning, in either model), difference (value, ci_low, ci_high,
        standard_error, p_value, p_holm over all rows, n) and verdict: better, worse or "no detectable change".
        `not_compared` says of what could not be paired why.

    Raises:
        PrefloopError: the two were not asked the same documents.
    """
    rows: dict[str, dict[str, Any]] = {}
    contrasts: list[dict[str, Any]] = []
    for key, of_base in base.scores.items():
        task, metric = key
        of_aligned = aligned.scores.get(key, {})
        if of_base.keys() != of_aligned.keys():
            raise PrefloopError("the two models were not asked the same documents", where=f"{task} {metric}")
        documents = list(of_base)
        sides = [[side[document] for document in documents] for side in (of_base, of_aligned)]
        difference = contrast(*sides, resamples=resamples, seed=seed)
        contrasts.append(difference)
        rows[f"{task} {metric}"] = {
            "base": math.fsum(sides[0]) / len(documents),
            "aligned": math.fsum(sides[1]) / len(documents),
            "base_standard_error": standard_error(sides[0]),
            "aligned_standard_error": standard_error(sides[1]),
            "n": len(documents),
            "shots": base.shots[task],
            "cut": max(base.cut[task], aligned.cut[task]),
            "higher_is_better": base.higher_is_better[key],
            "difference": difference,
        }
    decide(contrasts)
    for row in rows.values():
        said = row["difference"].pop("verdict")
        turned = said if row["higher_is_better"] else {HIGHER: LOWER, LOWER: HIGHER}.get(said, said)
        row["verdict"] = WORDS[turned]
    if left_out := base.left_out | aligned.left_out:
        rows["not_compared"] = dict(left_out)
    return rows


def _preflight(section: HarnessSection) -> None:
    from importlib.util import find_spec

    if find_spec("lm_eval") is None:
        raise UsageError(
            "lm-eval is not installed", where="evaluate.harness", fix="install it: pip install 'prefloop[harness]'"
        )
    if section.folder is not None and not Path(section.folder).is_dir():
        raise UsageError("there is no such folder", where=section.folder, fix="give a folder of lm-eval's task files")


def _open(section: ModelSection, tasks: HarnessSection) -> tuple[Any, Any, Any]:
    """(lm_eval, its wrapper around the loaded model, its tasks)."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    # What it warns of is counted and said in the figures: prompts cut, shots changed.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    # Loaded by us: from safetensors, adapters upon their base, and in the precision that the loop uses.
    model = HFLM(pretrained=load_model(section), tokenizer=load_tokenizer(section), batch_size=section.batch_size)
    # Without the shipped tasks where a folder is given: listing them takes seconds.
    manager = TaskManager(include_path=tasks.folder, include_defaults=tasks.folder is None)
    return lm_eval, model, manager


def _collect(found: Ability, task: str, results: Mapping[str, Any], only: str | None) -> None:
    """Put the documents' scores of a task, or of all tasks of a group, into `found`."""
    leaves = sorted(results["samples"])
    found.shots[task] = max(int(results["n-shot"][leaf] or 0) for leaf in leaves)
    by_metric: dict[str, dict[Document, float]] = {}
    complete: dict[str, int] = {}
    for leaf in leaves:
        for metric, scores in _scores(found, leaf, results).items():
            by_metric.setdefault(metric, {}).update(scores)
            complete[metric] = complete.get(metric, 0) + 1
            better = results["higher_is_better"][leaf].get(metric.partition(",")[0])
            found.higher_is_better[task, metric] = better is not False
    for metric, scores in by_metric.items():
        if complete[metric] < len(leaves):
            found.left_out[f"{task} {metric}"] = "not every task of the group has it"
        elif only is None or metric == only:
            found.scores[task, metric] = scores
    if only is not None and (task, only) not in found.scores:
        raise UsageError(
            f"has no metric {only}: {', '.join(by_metric) or 'none with one number a document'}",
            where=f"task {task}",
            fix="a task file of this name in the folder is not the leaderboard's: give it a name of its own",
        )


def _scores(found: Ability, leaf: str, results: Mapping[str, Any]) -> dict[str, dict[Document, float]]:
    """metric -> document -> score of one task; a metric that is no mean of documents' numbers is left out and named.

    A metric under one of several filters is called "metric,filter".
    """
    by_metric: dict[str, dict[Document, float]] = {}
    for sample in results["samples"][leaf]:
        which = "" if sample["filter"] == "none" else f",{sample['filter']}"
        for name in sample["metrics"]:
            value = sample[name]
            scores = by_metric.setdefault(name + which, {})
            if isinstance(value, bool | int | float) or hasattr(value, "item"):
                scores[leaf, int(sample["doc_id"]), sample["doc_hash"]] = float(value)
    documents = {sample["doc_id"] for sample in results["samples"][leaf]}
    kept = {}
    for metric, scores in by_metric.items():
        name, _, which = metric.partition(",")
        reported = results["results"][leaf].get(f"{name},{which or 'none'}")
        whole = len(scores) == len(documents)
        if whole and reported is not None and math.isclose(math.fsum(scores.values()) / len(scores), reported):
            kept[metric] = scores
        else:
            found.left_out[f"{leaf} {metric}"] = "it is no mean of one number a document, so it cannot be paired"
    return kept


def _cut(results: Mapping[str, Any], language_model: Any) -> int:
    """How many prompts were longer than the model's context; lm-eval keeps their end."""
    most = int(language_model.max_length)
    cut = 0
    for samples in results["samples"].values():
        for sample in samples:
            for context, continuation, *_ in sample["arguments"]:
                text = context + continuation if isinstance(continuation, str) else context
                # A token is at least one byte: short texts need not be counted.
                if len(text.encode("utf-8", "replace")) > most:
                    cut += len(language_model.tok_encode(text)) > most + 1
    return cut
