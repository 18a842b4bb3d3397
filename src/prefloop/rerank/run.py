"""Train a reranker, and rerank with it.

A training's folder holds `model/` (one logit, for any cross-encoder server), `metrics.jsonl`, `rejects.parquet`,
`trained.json` (written last: the training is done) and, while it runs, `checkpoint-N/` and the best weights so far.
Called again after a kill it goes on from the last complete checkpoint; called again after the end it returns what
`trained.json` says.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from prefloop.config import RerankSection
from prefloop.config.rerank import RERANK_COSMETIC
from prefloop.engine.load import resolve_encoder_path
from prefloop.errors import Interrupted, PrefloopError, UsageError
from prefloop.pairs.splits import holdout
from prefloop.records import RankingRow
from prefloop.rerank.groups import Group, prepare, ranking_of
from prefloop.store import atomic
from prefloop.store.fingerprint import digest, model_digest

logger = logging.getLogger(__name__)

DONE, MODEL, LOG, REJECTS = "trained.json", "model", "metrics.jsonl", "rejects.parquet"
SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}
Rows = Sequence[RankingRow | Group]


def train_reranker(
    rows: Rows,
    section: RerankSection,
    out: Path,
    *,
    validation: Rows | None = None,
    test: Rows | None = None,
    seed: int = 42,
    on_log: Callable[[dict[str, Any]], None] = lambda record: None,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Train a reranker on ranking rows or published groups.

    Args:
        rows: to train on; without `validation` or `test`, shares of their queries are kept for these, by `query_id`.
        out: the training's folder; a training of other rows or settings there is replaced.
        validation: rows by which the best epoch is chosen. Without any, the last weights are taken.
        test: rows that the finished model is measured on, once.
        seed: of fresh layers, of the order of queries, of dropout.
        on_log: records as `trainer.RerankTrainer` gives them; they are in metrics.jsonl too.
        on_step: called with (optimiser steps done, steps in all).

    Returns:
        The content of `trained.json`: groups, rejected, steps, best (step, metric, value, measures) or null, start
        (the validation rows before training), test (measures) or null, parameters, model (the folder).

    Raises:
        UsageError: no such model, or rows that teach nothing. PrefloopError: a loss or gradient is not finite.
        Interrupted: stopped by a signal, with a checkpoint.
    """
    training, kept = _split(rows, section, validation, test)
    groups, rejects = prepare(training, section, seed)
    if not groups:
        raise UsageError(
            f"none of {len(training):,} rows teaches what {', '.join(section.losses)} could learn",
            fix="give rows with labels of 1 and 0, or with scores that differ",
        )
    _refuse_group_of_processes()
    if out.exists() and not out.is_dir():
        raise UsageError("is a file; a training needs a folder", where=str(out), fix="give another with --out")
    settings = section.model_dump(mode="json", exclude=RERANK_COSMETIC)
    start = model_digest(resolve_encoder_path(section.model), section.revision)
    data = [[vars(g) for g in groups], [list(kept["validation"]), list(kept["test"])]]
    fingerprint = digest([json.loads(json.dumps(data)), settings, seed, start])
    out.mkdir(parents=True, exist_ok=True)
    atomic.sweep(out)
    done: dict[str, Any] = atomic.read_json(out / DONE) if (out / DONE).is_file() else {}
    if done.get("fingerprint") == fingerprint and (out / MODEL).is_dir():
        return done
    (out / DONE).unlink(missing_ok=True)
    _write_rejects(out, rejects)
    return _train(groups, kept, len(rejects), section, out, fingerprint, seed, on_log, on_step)


def _train(
    groups: list[Group],
    kept: dict[str, list[RankingRow]],
    rejected: int,
    section: RerankSection,
    out: Path,
    fingerprint: str,
    seed: int,
    on_log: Callable[[dict[str, Any]], None],
    on_step: Callable[[int, int], None],
) -> dict[str, Any]:
    from prefloop.engine.load import choose_device, free, quiet

    quiet()  # before the imports, some of which complain
    import torch
    import transformers

    from prefloop.rerank import model as models
    from prefloop.rerank import trainer as trainers
    from prefloop.rerank.batches import QuerySampler
    from prefloop.train import checkpoints
    from prefloop.train.precision import Precision
    from prefloop.train.stopping import on_first_signal

    device = choose_device(section.device)
    precision = Precision.choose(device, getattr(torch, section.dtype))
    checkpoint = checkpoints.latest(out, fingerprint)
    model = models.load_two_logits(section, seed)
    sampler = QuerySampler(len(groups), section.batch_size, seed)
    rhythm = trainers.Rhythm(section, sampler, out, fingerprint, validate=bool(kept["validation"]), on_step=on_step)
    records = out / LOG
    if checkpoint is None:
        records.unlink(missing_ok=True)

    def log(record: dict[str, Any]) -> None:
        with records.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")
        on_log(record)

    transformers.set_seed(seed)
    trainer = trainers.RerankTrainer(
        model,
        section,
        groups,
        kept["validation"],
        arguments=_arguments(section, rhythm.total, out, seed, on_cpu=device.type == "cpu"),
        sampler=sampler,
        rhythm=rhythm,
        precision=precision,
        on_log=log,
    )
    before = None
    if kept["validation"] and checkpoint is None:
        before = trainer.evaluate()
    try:
        with on_first_signal(rhythm.ask_to_stop):
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        if trainer.state.global_step < rhythm.total:
            raise Interrupted(
                f"training stopped at step {trainer.state.global_step} of {rhythm.total}, with a checkpoint",
                fix="start the same command again to go on",
            )
        best = trainers.best_of(out, fingerprint) if kept["validation"] else None
        if best is not None:
            trainers.load_best(model, out)
        elif kept["validation"]:
            raise PrefloopError("the best weights are gone", where=str(out), fix="start over in an empty folder")
        result = {
            "fingerprint": fingerprint,
            "groups": len(groups),
            "rejected": rejected,
            "steps": rhythm.total,
            "start": _started(records) if before is None else _bare(before),
            "best": None if best is None else {k: v for k, v in best.items() if k != "fingerprint"},
            "validation_queries": len(kept["validation"]),
            "test": trainer.measured(kept["test"]) if kept["test"] else None,
            "test_queries": len(kept["test"]),
            "parameters": sum(p.numel() for p in model.parameters()),
            "rank_by": section.rank_by,
            "model": MODEL,
        }
        with atomic.directory(out / MODEL) as folder:
            models.save_folded(model, folder, section.rank_by)
        atomic.write_json(out / DONE, result)
        checkpoints.clear(out)
        for name in (trainers.BEST_MARK, trainers.BEST):
            (out / name).unlink(missing_ok=True)
        return result
    finally:
        del trainer, model
        free()


def rerank(
    model: str,
    rows: Iterable[tuple[str, Sequence[str]]],
    *,
    batch_size: int = 64,
    device: str = "auto",
    max_length: int | None = None,
    trust_remote_code: bool = False,
    on_pairs: Callable[[int], None] = lambda n: None,
) -> Iterator[list[float]]:
    """Score documents for queries; higher is better.

    Args:
        model: folder or hub id of a cross-encoder with one logit, such as a training's `model/`.
        rows: (query, documents), in any number; taken `CHUNK` pairs at a time.
        batch_size: pairs in one forward pass; pairs of similar length go together.
        on_pairs: called with the number of pairs just scored.

    Yields:
        Raw logits of each row's documents, by place.
    """
    from prefloop.engine.load import quiet

    quiet()
    import torch

    from prefloop.rerank.model import load_for_scoring

    encoder = load_for_scoring(model, device, max_length, trust_remote_code=trust_remote_code)

    def scored(chunk: list[tuple[str, Sequence[str]]]) -> Iterator[list[float]]:
        pairs = list(dict.fromkeys((query, text) for query, documents in chunk for text in documents))
        logits = encoder.predict(
            pairs, batch_size=batch_size, activation_fn=torch.nn.Identity(), show_progress_bar=False
        )
        by_pair = dict(zip(pairs, logits.tolist(), strict=True))
        on_pairs(sum(len(documents) for _, documents in chunk))
        for query, documents in chunk:
            yield [by_pair[query, text] for text in documents]

    chunk: list[tuple[str, Sequence[str]]] = []
    for row in rows:
        chunk.append(row)
        if sum(len(documents) for _, documents in chunk) >= CHUNK:
            yield from scored(chunk)
            chunk = []
    if chunk:
        yield from scored(chunk)


CHUNK = 4096
"""Pairs that `rerank` holds at a time: enough to find neighbours of equal length, few enough for any memory."""


def _split(
    rows: Rows, section: RerankSection, validation: Rows | None, test: Rows | None
) -> tuple[list[RankingRow | Group], dict[str, list[RankingRow]]]:
    """Rows to train on and to measure on; a query and its rewritings are on one side."""
    queries = {_query_id(row) for row in rows}
    kept = {"validation": validation, "test": test}
    if validation is not None and test is not None:
        both = {_query_id(row) for row in validation} & {_query_id(row) for row in test}
        if both:
            raise UsageError(
                f"{len(both):,} queries are among the validation rows and the test rows, {min(both)} first",
                fix="take them out of one of the two: a test of what chose the best epoch says too much",
            )
    taken: set[str] = set()
    found: dict[str, list[RankingRow]] = {}
    for name, given in kept.items():
        if given is not None:
            found[name] = [_as_ranking(row) for row in given]
            shared = sorted(queries & {row["query_id"] for row in found[name]})
            if shared:
                raise UsageError(
                    f"{len(shared):,} queries of the {name} rows are trained on too, {shared[0]} first",
                    fix="take them out of one of the two; rewritings of a query carry its query_id",
                )
            continue
        share = section.validation_share if name == "validation" else section.test_share
        # The share is one of all queries, whatever was taken before.
        left = queries - taken
        ids = holdout(left, share * len(queries) / len(left), salt=f"rerank {name}") if left else set()
        taken |= ids
        found[name] = [_as_ranking(row) for row in rows if _query_id(row) in ids]
    return [row for row in rows if _query_id(row) not in taken], found


def _query_id(row: RankingRow | Group) -> str:
    return row.query_id if isinstance(row, Group) else row["query_id"]


def _as_ranking(row: RankingRow | Group) -> RankingRow:
    return ranking_of(row) if isinstance(row, Group) else row


def _write_rejects(out: Path, rejects: Sequence[Any]) -> None:
    from prefloop.store.rows import to_table

    atomic.write_parquet(out / REJECTS, to_table("rejects", rejects, where=str(out / REJECTS)))
    if rejects:
        logger.warning("%d rows teach nothing and are left out; %s says why", len(rejects), out / REJECTS)


def _refuse_group_of_processes() -> None:
    import os

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            "a reranker is trained in one process: the weights of its losses come from the whole batch",
            fix="start it without a launcher",
        )


def _bare(named: dict[str, float]) -> dict[str, float]:
    return {name.removeprefix("eval_"): value for name, value in named.items()}


def _started(records: Path) -> dict[str, float] | None:
    """What a training that goes on measured before its first step."""
    for line in records.read_text(encoding="utf-8").splitlines() if records.is_file() else ():
        record = json.loads(line)
        if record["kind"] == "validation" and record["step"] == 0:
            return {k: v for k, v in record.items() if k not in ("kind", "step", "epoch")}
    return None


def _arguments(section: RerankSection, steps: int, out: Path, seed: int, *, on_cpu: bool) -> Any:
    import math

    from sentence_transformers import CrossEncoderTrainingArguments

    return CrossEncoderTrainingArguments(
        output_dir=str(out),
        max_steps=steps,
        per_device_train_batch_size=section.batch_size,
        learning_rate=section.learning_rate,
        lr_scheduler_type=SCHEDULES[section.schedule],
        warmup_steps=math.ceil(section.warmup_ratio * steps),
        weight_decay=section.weight_decay,
        max_grad_norm=section.max_grad_norm,
        optim="adamw_torch_fused",
        seed=seed,
        # `Rhythm` decides all of these.
        logging_strategy="no",
        save_strategy="no",
        eval_strategy="no",
        logging_nan_inf_filter=False,
        report_to=section.report_to or "none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        use_cpu=on_cpu,
    )
