"""The train and merge stages: pairs in, an adapter or weights out, then a plain model folder.

A training's folder holds `adapter/` or `model/`, `rejects.parquet`, `trained.json` (written last: the training is
done) and, while it runs, `checkpoint-N/`. Called again after a kill, `train` continues from the last complete
checkpoint and ends with the same weights as an undisturbed run (bit-equal on the CPU); called again after the end, it
returns what `trained.json` says.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import PartialState
from transformers import GenerationConfig

from prefloop.config import COSMETIC, MergeSection, ModelSection, TrainSection
from prefloop.engine import flops
from prefloop.engine.load import choose_device, choose_dtype, freeing, load_config, load_model, resolve_model_path
from prefloop.engine.logprob import attach_scorer
from prefloop.engine.sharing import check_sharing
from prefloop.engine.tokens import end_of_turn_ids, load_tokenizer
from prefloop.errors import Interrupted, PrefloopError, UsageError
from prefloop.store import atomic
from prefloop.store.cache import Cache
from prefloop.store.fingerprint import digest, model_digest
from prefloop.train import adapters, checkpoints
from prefloop.train.arguments import arguments
from prefloop.train.batches import Collator
from prefloop.train.check import check_trainable, in_group, is_sharded, refuse_quantised
from prefloop.train.detector import find_flags
from prefloop.train.encode import Encoder
from prefloop.train.examples import REJECTS, Source, prepare
from prefloop.train.judged import judged_prompt
from prefloop.train.launch import launch, shares_weights
from prefloop.train.meter import SPEEDS, Meter, matmul_peak
from prefloop.train.objectives import OBJECTIVES
from prefloop.train.precision import Precision
from prefloop.train.reference import Reference
from prefloop.train.rhythm import Plan, Rhythm
from prefloop.train.shift import RewardShift
from prefloop.train.steps import Cut, StepSampler
from prefloop.train.stopping import on_first_signal
from prefloop.train.trainer import PreferenceTrainer, Record
from prefloop.train.watch import Watch, look_at_rows
from prefloop.train.weighing import downsample, measure_margins, weigh

__all__ = ["Source", "check_trainable", "merge", "train"]

logger = logging.getLogger(__name__)

DONE = "trained.json"


@freeing()
def train(
    model: ModelSection,
    source: Source,
    section: TrainSection,
    *,
    seed: int,
    out: Path,
    cache: Cache | None,
    held_to: ModelSection | None = None,
    on_log: Callable[[Record], None] = lambda record: None,
    on_step: Callable[[int, int], None] = lambda done, total: None,
    on_reference: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Train a model on preference rows.

    In a process group (`accelerate launch`, see `launch`) every process calls this alike, and the first one writes.

    Args:
        seed: of the adapter's start, the order of rows and LoRA's dropout. On a CPU equal seeds give equal weights.
        out: the training's folder; its own files there are continued, or replaced when data or settings changed.
        cache: holds reference log-probabilities; the first process's, None on the others.
        held_to: the reference, where it is not the model that training starts from.
        on_log: records with `kind` ("train", "validation"), `step`, `epoch` and metrics; see `PreferenceTrainer`.
        on_step: called with (optimiser steps done, steps in all).
        on_reference: called with (responses done, responses in all) while the reference scores them.

    Returns:
        The content of `trained.json`: pairs, rows, rejected, steps, first_loss, final, validation, parameters,
        reference, …

    Raises:
        UsageError: a model or setting that cannot be trained. PrefloopError: no example is left, a loss or gradient
        is not finite, or training does not start from its reference. Interrupted: stopped by a signal, with a
        checkpoint.
    """
    precision = check_trainable(model, section)
    objective = OBJECTIVES[section.objective.type]
    tokenizer = load_tokenizer(model)
    end_of_turn = end_of_turn_ids(tokenizer, _generation_config(model))[0]
    encoder = Encoder(tokenizer, end_of_turn, section.max_length, objective.takes, judged_prompt(section.objective))
    if section.launch is not None and in_group()[0] is None:
        assert cache is not None
        out.mkdir(parents=True, exist_ok=True)
        *_, facts = prepare(source, encoder, out)
        sharded = shares_weights(section.launch)
        *_, fingerprint = _identity(model, held_to, section, precision, facts, seed, cache, sharded=sharded)
        if (done := _finished(out, fingerprint)) is not None:
            checkpoints.clear(out)
            return done
        return launch(
            model,
            section,
            section.launch,
            held_to=held_to,
            source={"digest": source.digest, "held": sorted(source.held)},
            seed=seed,
            out=out,
            cache=cache.path,
            handlers={"log": on_log, "step": on_step, "reference": on_reference},
        )
    ranks = PartialState(cpu=precision.device.type == "cpu")
    if ranks.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        atomic.sweep(out)
    with ranks.main_process_first():
        examples, validation, facts = prepare(source, encoder, out)
    if not len(examples):
        raise PrefloopError(
            f"nothing is left to train on; rejected for {facts['rejected'] or 'nothing'}",
            where=str(out / REJECTS),
            fix="raise train.max_length, or look at the rejected rows",
        )

    examples, left_out = downsample(examples, section.objective, seed)
    look_at_rows(facts["cut_off"], facts["responses"], facts["unread"])
    weighting = weigh(examples, validation, section, facts["without_weight"])
    measure_margins(examples, validation, section.objective, facts["without_margin"])
    weights, reference, fingerprint = _identity(
        model, held_to, section, precision, facts, seed, cache, sharded=is_sharded()
    )
    if (done := _finished(out, fingerprint)) is not None:
        if ranks.is_main_process:
            checkpoints.clear(out)
        return done
    with ranks.main_process_first():
        (out / DONE).unlink(missing_ok=True)
        checkpoint = checkpoints.latest(out, fingerprint)
    if checkpoint is not None and (checkpoint / adapters.SHARDS).is_dir() != is_sharded("FSDP"):
        raise UsageError(
            "was taken by a training whose weights were shared out over processes, and this one's are not, or the "
            "other way round",
            where=str(checkpoint),
            fix="go on with the same train.launch, or remove the checkpoint folders to start over",
        )

    quantize = section.lora.quantize if section.lora is not None else None
    policy = load_model(model.model_copy(update={"dtype": weights, "device": str(precision.device)}), quantize)
    if quantize is None:
        refuse_quantised(policy.config, model.path)
    adapters.switch_off_dropout(policy)
    attach_scorer(policy)
    sharing = check_sharing(policy)
    pad_id = 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    cut = Cut(section.micro_batch_size or section.batch_size, section.micro_batch_tokens, ranks.num_processes)
    at_begin: Callable[[torch.nn.Module], None] | None = None
    if objective.needs_reference:
        frozen = Reference(
            [examples, validation],
            identity=reference,
            name=(held_to or model).path,
            cache=cache,
            precision=precision,
            tokens=section.micro_batch_tokens or cut.rows * int(examples.tokens.max()),
            pad_id=pad_id,
            sharing=sharing,
        )
        if held_to is not None:
            _score_whole(
                held_to, weights, quantize, precision, partial(frozen.compute, ranks=ranks, on_batch=on_reference)
            )
        elif is_sharded():  # no process has a whole model before the trainer has wrapped it
            at_begin = partial(frozen.compute, ranks=ranks, on_batch=on_reference, moved=checkpoint is not None)
        else:
            frozen.compute(policy, ranks, on_reference)
        del frozen  # it knows every response by its key: some hundred bytes that training does not need

    if getattr(section.objective, "detector", None) == "start":
        if is_sharded():
            raise UsageError(
                "flags by the model at the start need it whole, and here its weights are shared out over processes",
                where="train.objective.detector",
                fix="set it to policy, or launch without sharing (ddp)",
            )
        find_flags(
            [examples, validation],
            policy,
            threshold=section.objective.threshold,  # type: ignore[union-attr]
            precision=precision,
            tokens=section.micro_batch_tokens or cut.rows * int(examples.tokens.max()),
            pad_id=pad_id,
            sharing=sharing,
        )
    transformers.set_seed(seed)
    if section.lora is not None:
        policy = adapters.add_lora(policy, section.lora)
    plan = Plan.of(
        len(examples),
        section.batch_size,
        section.epochs,
        section.warmup_ratio,
        log=section.logging_steps,
        save=section.save_steps,
        validate=len(validation) > 0,
        warmup_steps=section.warmup_steps,
    )
    if plan.warmup >= plan.total:
        logger.warning(
            "warm-up takes all %d steps: the learning rate never reaches %g; lower train.warmup_ratio (or _steps) or "
            "train longer",
            plan.total,
            section.learning_rate,
        )
    watch = Watch(getattr(section.objective, "beta", None) if objective.needs_reference else None)

    def log(record: Record) -> None:
        watch(record)
        on_log(record)

    meter = Meter(matmul_peak(precision.device, precision.compute))
    sampler = StepSampler(examples.tokens, section.batch_size, cut, seed=seed, rank=ranks.process_index)
    shift = RewardShift() if checkpoint is None or objective.shifts is None else RewardShift.load(checkpoint)
    rhythm = Rhythm(plan, meter, sampler, out, fingerprint, on_step, shift)
    trainer = PreferenceTrainer(
        policy,
        arguments(section, plan, precision, out=out, seed=seed, fresh=checkpoint is None),
        examples,
        validation,
        section.objective,
        collate=Collator(
            pad_id,
            sharing,
            passes=flops.TRAIN if section.lora is None else flops.ADAPTER,
            drifting=objective.drifts,
        ),
        precision=precision,
        sampler=sampler,
        meter=meter,
        rhythm=rhythm,
        shift=shift,
        check_start=checkpoint is None and held_to is None,
        apart=section.lora is not None and section.lora.dropout > 0,
        on_log=log,
        at_begin=at_begin,
    )
    if checkpoint is not None and ranks.is_main_process:
        logger.info("training goes on from step %d of %d", checkpoints.step_of(checkpoint), plan.total)
    with on_first_signal(rhythm.ask_to_stop):
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if trainer.state.global_step < plan.total:
        raise Interrupted(
            f"training stopped at step {trainer.state.global_step} of {plan.total}, with a checkpoint",
            fix="start the same command again to go on",
        )

    name = adapters.MODEL if section.lora is None else adapters.ADAPTER
    state = trainer.whole_state()
    result = {
        "fingerprint": fingerprint,
        "weights": name,
        "objective": section.objective.model_dump(),
        "reference": reference,
        "pairs": len(examples),
        "validation_pairs": len(validation),
        "rows": facts["rows"],
        "rejected": facts["rejected"],
        **({"left_out": left_out} if left_out else {}),
        **({"weighting": weighting} if weighting else {}),
        "steps": plan.total,
        "steps_per_epoch": plan.epoch,
        "parameters": adapters.count_parameters(policy),
        "trainable_parameters": adapters.count_parameters(policy, trained=True),
        **_outcome(trainer.state.log_history),
    }
    if ranks.is_main_process:
        with atomic.directory(out / name) as folder:
            adapters.save(policy, folder, state)
        atomic.write_json(out / DONE, result)
        checkpoints.clear(out)
    ranks.wait_for_everyone()
    if rhythm.stop:
        raise Interrupted("stopped; the training itself is finished", fix="start the same command again to go on")
    return result


@freeing()
def _score_whole(
    model: ModelSection,
    weights: Any,
    quantize: Any,
    precision: Precision,
    compute: Callable[[torch.nn.Module], None],
) -> None:
    """Let another model than the policy score the responses; it is in memory for as long as that takes, and whole."""
    other = load_model(model.model_copy(update={"dtype": weights, "device": str(precision.device)}), quantize)
    adapters.switch_off_dropout(other)
    compute(attach_scorer(other))


def _identity(
    model: ModelSection,
    held_to: ModelSection | None,
    section: TrainSection,
    precision: Precision,
    facts: dict[str, Any],
    seed: int,
    cache: Cache | None,
    *,
    sharded: bool,
) -> tuple[Any, dict[str, Any], str]:
    """(dtype of the base's weights, what identifies the reference, fingerprint of the training).

    Known before any group is started: a finished training starts none.
    """
    # A sharded model is one block of weights of one type, of which each process holds a part.
    weights = _name(precision.weights(frozen=section.lora is not None and not sharded))
    held = held_to or model
    reference = {
        "model": model_digest(resolve_model_path(held.path), held.revision, memo=cache),
        "dtype": precision.name,
        "weights": weights if section.lora is None or section.lora.quantize is None else section.lora.quantize,
    }
    settings = section.model_dump(exclude=COSMETIC)
    if held_to is not None:  # what training starts from is not in the reference then
        settings["start"] = model_digest(resolve_model_path(model.path), model.revision, memo=cache)
    return weights, reference, digest([facts["digest"], settings, seed, reference])


def _finished(out: Path, fingerprint: str) -> dict[str, Any] | None:
    """The result of this very training, if it is done."""
    done: dict[str, Any] = atomic.read_json(out / DONE) if (out / DONE).exists() else {}
    return dict(done) if done.get("fingerprint") == fingerprint else None


@freeing()
def merge(model: ModelSection, trained: Path, out: Path, section: MergeSection) -> dict[str, Any]:
    """Write the trained policy as a plain Hugging Face folder; see `adapters.merge`.

    Args:
        model: the model that was trained.
        trained: the training's folder, or any LoRA adapter's.
        out: the folder to write; replaced when it is there.

    Returns:
        {"dtype", "parameters"}.
    """
    if section.dtype != "auto":
        dtype = getattr(torch, section.dtype)
    elif (trained / DONE).exists():
        dtype = getattr(torch, atomic.read_json(trained / DONE)["reference"]["dtype"])
    else:
        dtype = choose_dtype(model, choose_device(model.device))
    return dict(adapters.merge(model, trained, out, dtype=dtype, max_shard_size=section.max_shard_size))


def _generation_config(model: ModelSection) -> Any:
    """As loading the model would set it: the folder's own, or one made from the model's configuration."""
    path = resolve_model_path(model.path)
    try:
        return GenerationConfig.from_pretrained(path, revision=model.revision)
    except OSError:
        return GenerationConfig.from_model_config(load_config(model))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _outcome(history: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """First loss, last training record and first and last validation, without speeds: equal for equal runs."""
    steps = [h for h in history if "loss" in h]
    validations = [
        {k.removeprefix("eval_"): v for k, v in sorted(h.items()) if k.startswith("eval_")}
        for h in history
        if "eval_loss" in h
    ]
    return {
        "first_loss": steps[0]["loss"],
        "final": {k: v for k, v in sorted(steps[-1].items()) if k not in ("epoch", "step", *SPEEDS)},
        "validation": {"before": validations[0], "after": validations[-1]} if validations else None,
    }
