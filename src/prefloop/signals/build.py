"""From a recipe's signal section to the signal and the models that it needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from prefloop.backends.base import Backend
from prefloop.config import (
    CriticSignalSection,
    FunctionSignalSection,
    HumanSignalSection,
    JudgeSignalSection,
    ModelSection,
    PairRmSignalSection,
    RetrieverSection,
    RetrieverSignalSection,
    RewardModelSignalSection,
    SelfRewardSignalSection,
    SignalSection,
)
from prefloop.errors import UsageError
from prefloop.records import CandidatesRow, PromptRow, ScoredRow
from prefloop.signals import (
    attribute,
    critic,
    function,
    human,
    judge,
    references,
    retriever,
    reward_model,
    self_reward,
)
from prefloop.signals.base import Need, Signal
from prefloop.signals.pairrm import checkpoint as pairrm_checkpoint
from prefloop.signals.pairrm import signal as pairrm
from prefloop.store.cache import Cache
from prefloop.store.fingerprint import Memo

# By the names under which the signal calls them.
Needs = dict[str, Need]


def _function(section: FunctionSignalSection) -> tuple[Signal, Needs]:
    return function.FunctionSignal(section.callable), {}


def _judge(section: JudgeSignalSection, seed: int = 0) -> tuple[Signal, Needs]:
    read = None if section.references is None else references.load(section.references)
    judges = [
        judge.JudgeSignal(
            section.mode,
            section.template,
            section.min_label_mass,
            rubric=section.rubric,
            by_criterion=section.by_criterion,
            references=read,
            verdict=section.verdict,
            samples=section.samples,
            temperature=section.temperature,
            max_new_tokens=section.max_new_tokens,
            orders=section.orders,
            seed=seed,
            backend=name,
        )
        for name in section.models
    ]
    signal = judges[0] if section.panel is None else judge.PanelSignal(judges)
    return signal, {name: Need(model) for name, model in section.models.items()}


def _pairrm(section: PairRmSignalSection) -> tuple[Signal, Needs]:
    return pairrm.PairRmSignal(section.score), {section.name: Need(section.model, "pairrm")}


def _reward_model(section: RewardModelSignalSection) -> tuple[Signal, Needs]:
    return reward_model.build(section), {section.name: Need(section.model, "reward")}


def _human(section: HumanSignalSection) -> tuple[Signal, Needs]:
    return human.HumanSignal(section.path), {}


def _self_reward(section: SelfRewardSignalSection) -> tuple[Signal, Needs]:
    attributes = None if section.attributes is None else attribute.load_all(section.attributes)
    signal = self_reward.SelfRewardSignal(attributes, section.against, section.average, section.name)
    return signal, {section.name: Need(section.model, policy=True)}


def _retriever(section: RetrieverSignalSection, kept_out: frozenset[str] = frozenset()) -> tuple[Signal, Needs]:
    needs: Needs = {
        name: Need(retriever.counting(one, section.judgments), "pairs")
        for name, one in zip(section.names, section.retrievers, strict=True)
    }
    if section.similarity is not None:
        needs[retriever.SIMILARITY] = Need(section.similarity, "likeness")
    return retriever.RetrieverSignal(section, retriever.judged(section, kept_out)), needs


def _critic(section: CriticSignalSection) -> tuple[Signal, Needs]:
    if section.callable is not None:
        return critic.FunctionCritic(section.callable), {}
    signal = critic.CriticSignal(section.template, section.max_new_tokens, section.retries, section.name)
    return signal, {section.name: Need(section.model)}


def _critic_identity(section: CriticSignalSection) -> dict[str, Any]:
    if section.callable is not None:  # not imported
        return function.identity(section.callable) | {"type": "critic"}
    return _critic(section)[0].identity


BUILDERS: dict[str, Callable[[Any], tuple[Signal, Needs]]] = {
    "function": _function,
    "judge": _judge,
    "human": _human,
    "pairrm": _pairrm,
    "reward_model": _reward_model,
    "self_reward": _self_reward,
    "critic": _critic,
    "retriever": _retriever,
}


IDENTITIES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "function": lambda section: function.identity(section.callable),
    "judge": lambda section: _judge(section)[0].identity,
    "human": lambda section: human.identity(section.path),
    "pairrm": lambda section: pairrm.PairRmSignal(section.score).identity,
    "reward_model": reward_model.identity,
    "self_reward": lambda section: _self_reward(section)[0].identity,
    "critic": _critic_identity,
    "retriever": retriever.identity,
}


def build(section: SignalSection, seed: int = 0, kept_out: frozenset[str] = frozenset()) -> tuple[Signal, Needs]:
    """The signal, and the models that its backends need, by backend name.

    Args:
        section: the signal's.
        seed: the run's, of replies that are sampled.
        kept_out: texts of queries that are measured on: a retriever is not asked them.

    Raises:
        UsageError: the function, template or judgments that the section names are not there or faulty.
    """
    if isinstance(section, JudgeSignalSection):
        return _judge(section, seed)
    if isinstance(section, RetrieverSignalSection):
        return _retriever(section, kept_out)
    return BUILDERS[section.type](section)


def _open_language(section: ModelSection, cache: Cache | None) -> Backend:
    if section.endpoint is not None:
        from prefloop.backends.http import HttpBackend

        return HttpBackend(section)
    from prefloop.backends.hf import HfBackend

    return HfBackend.load(section, cache)


def _open_pairrm(section: ModelSection, cache: Cache | None) -> Backend:
    from prefloop.signals.pairrm.backend import PairRmBackend

    return PairRmBackend.load(section, cache)


def _open_reward(section: ModelSection, cache: Cache | None) -> Backend:
    from prefloop.backends.reward import RewardBackend

    return RewardBackend.load(section, cache)


def _open_nli(section: ModelSection, cache: Cache | None) -> Backend:
    from prefloop.backends.nli import NliBackend

    return NliBackend.load(section, cache)


# Each loads its own kind's libraries, when a model is opened.
OPENERS: dict[str, Callable[[Any, Cache | None], Backend]] = {
    "language": _open_language,
    "pairrm": _open_pairrm,
    "reward": _open_reward,
    "nli": _open_nli,
}


def open_backend(section: ModelSection | RetrieverSection, kind: str, cache: Cache | None) -> Backend:
    """The model of a section, loaded, here or in its workers, or connected to.

    Args:
        kind: what it is, see `base.Need`.
        cache: remembers file digests between runs.

    Raises:
        UsageError: there is no such model, or it is not of this kind.
    """
    if isinstance(section, RetrieverSection) and kind in ("pairs", "likeness"):
        from prefloop.retrieve.pairs import open_pairs

        return open_pairs(section, cache, likeness=kind == "likeness")
    if isinstance(section, RetrieverSection):
        from prefloop.retrieve.retriever import open_model

        return open_model(section, kind, cache)
    if section.endpoint is not None and kind != "language":
        raise UsageError(
            "a server is asked as a language model; this one is to score texts",
            where=section.path,
            fix="remove its endpoint: it is loaded here",
        )
    if section.workers > 1:
        from prefloop.backends.pool import PoolBackend

        opening = {
            "section": section.model_dump(mode="json", exclude={"workers"}),
            "kind": kind,
            "cache": None if cache is None else str(cache.path.absolute()),
        }
        size = section.batch_size
        return PoolBackend("prefloop.signals.worker", opening, section.workers, name=section.path, batch_size=size)
    return OPENERS[kind](section, cache)


def identity(section: SignalSection, seed: int = 0, memo: Memo | None = None) -> dict[str, Any]:
    """Everything about a signal, besides its models, that changes a score; for the fingerprint of a stage.

    A judge is known by the text of its templates, rubric and references, a function by the digest of its file. Loads
    no model and imports no user code. Whether nulls or noise stop a stage changes no score and is not in it.

    Args:
        section: the signal's.
        seed: as for `build`; it is part of the identity where replies are sampled.
        memo: remembers the digests of files.

    Raises:
        UsageError: a judge's template is not there or faulty.
    """
    if isinstance(section, JudgeSignalSection):
        return _judge(section, seed)[0].identity
    if isinstance(section, RetrieverSignalSection):
        return retriever.identity(section, memo)
    return IDENTITIES[section.type](section)


class Asking(NamedTuple):
    """What is asked of a judge: calls, tokens that it reads besides the instruction, and tokens that it writes."""

    calls: int
    read: int
    written: int


def asking(section: SignalSection, answers: int, tokens: int) -> Asking:
    """What a signal asks of a judge for one row, at most if every reply holds a verdict; nothing of other signals.

    Args:
        section: the signal's.
        answers: of the row, all different.
        tokens: of each answer.
    """
    signal, _ = build(section) if isinstance(section, JudgeSignalSection) else (None, None)
    if isinstance(signal, judge.JudgeSignal | judge.PanelSignal):
        return Asking(*signal.asking(answers, tokens))
    return Asking(0, 0, 0)


def function_identity(path: str) -> dict[str, Any]:
    """As `identity`, of a checker's `module:name`."""
    return function.identity(path)


def preflight(section: SignalSection) -> None:
    """Find what is wrong with a signal before hours of work, not after. Imports the user's module, loads no model.

    Raises:
        UsageError: the function, its module or a judge's template is missing or faulty.
    """
    signal, _ = build(section)
    if isinstance(signal, judge.JudgeSignal | judge.PanelSignal | critic.CriticSignal):
        signal.try_template()
    if isinstance(section, PairRmSignalSection):
        pairrm_checkpoint.preflight(section.model.path)


def check_prompts(section: SignalSection | None, rows: Iterable[PromptRow | CandidatesRow]) -> None:
    """Stop before a judge is asked whose reference answers are to none of the prompts.

    Raises:
        UsageError: so it is.
    """
    if isinstance(section, JudgeSignalSection) and section.references is not None:
        references.load(section.references).require_match(rows)


def remark(section: SignalSection, counts: Mapping[str, float]) -> str | None:
    """A warning about a rating from its summed counts; None when there is nothing to warn of."""
    if isinstance(section, PairRmSignalSection):
        return pairrm.warning(counts)
    return judge.warning(dict(counts)) if isinstance(section, JudgeSignalSection) else None


def card(section: SignalSection, counts: Mapping[str, float], rows: Iterable[ScoredRow] = ()) -> str | None:
    """The rates of a judge or of PairRM in one neutral line; None of others, and where nothing was decided.

    Args:
        section: the signal's.
        counts: summed over all rows.
        rows: the scored rows, for what does not add up over rows; none leaves it out.
    """
    if isinstance(section, CriticSignalSection):
        return critic.card(counts)
    if isinstance(section, PairRmSignalSection):
        return pairrm.card(counts)
    if isinstance(section, RetrieverSignalSection):
        return retriever.card(counts)
    return judge.card(counts, rows) if isinstance(section, JudgeSignalSection) else None


def check_noise(section: SignalSection, counts: Mapping[str, float]) -> None:
    """Refuse to train on a rating that is noise; a measurement by the same signal is only warned of (`remark`).

    Raises:
        PrefloopError: a judge's orders agree too seldom, or it reads little but length, and its section does not say
            `force`.
    """
    if isinstance(section, JudgeSignalSection):
        judge.check_noise(counts, force=section.force)


def check(section: SignalSection, counts: Mapping[str, float], final: bool = True) -> None:
    """Stop when the summed counts of a rating say that its scores cannot be used.

    Args:
        section: the signal's.
        counts: summed over the rows so far.
        final: whether these are all rows; before the end only a judge that hardly ever gives a verdict is stopped.

    Raises:
        PrefloopError: a judge gave no verdict in more calls than `max_null_share` allows.
    """
    if isinstance(section, CriticSignalSection):
        critic.check(counts, section.max_null_share, final=final)
    if isinstance(section, JudgeSignalSection):
        judge.check_nulls(dict(counts), section.max_null_share, final=final)
