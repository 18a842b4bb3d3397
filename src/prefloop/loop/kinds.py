"""What the loop asks of a recipe, whichever kind it is: its stages, its models, and who computes what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefloop.config import AnyRecipe, ModelSection, RagRecipe, RetrieverSection
from prefloop.loop import pins, plan, rag_plan
from prefloop.store.cache import Cache

if TYPE_CHECKING:
    from prefloop.loop.bench import Bench, Runner


@dataclass(frozen=True)
class Kind:
    """One kind of recipe. All but `preflight` and `runners` load neither torch nor network code.

    Attributes:
        plan: the stages in order; see `loop.plan.plan`.
        models_of: every model of a recipe, retrievers' too.
        pinned: the recipe with every hub model at its commit.
        selects: whether there are several models of which one becomes the run's.
        preflight: finds what is wrong before hours of work, not after.
        runners: what each verb does.
    """

    plan: Callable[[Any, Cache | None], list[plan.Stage]]
    models_of: Callable[[Any], list[ModelSection | RetrieverSection]]
    pinned: Callable[[Any, dict[str, str]], Any]
    selects: Callable[[Any], bool]
    preflight: Callable[[Bench], None]
    runners: Callable[[], dict[str, Runner]]


def kind_of(recipe: AnyRecipe) -> Kind:
    """How the loop treats this recipe."""
    return RETRIEVING if isinstance(recipe, RagRecipe) else ANSWERING


def _answering_runners() -> dict[str, Runner]:
    from prefloop.loop.stages import RUNNERS

    return RUNNERS


def _retrieving_runners() -> dict[str, Runner]:
    from prefloop.loop.rag_stages import RUNNERS

    return RUNNERS


def _retrieving_preflight(bench: Bench) -> None:
    from prefloop.loop.rag_stages import preflight

    preflight(bench)


ANSWERING = Kind(
    plan.plan, pins.models_of, pins.pinned, plan.selects, lambda bench: bench.preflight(), _answering_runners
)
RETRIEVING = Kind(
    rag_plan.plan,
    pins.rag_models_of,
    pins.rag_pinned,
    lambda recipe: False,
    _retrieving_preflight,
    _retrieving_runners,
)
