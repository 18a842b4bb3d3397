"""The recipe: its sections, one file for each part of the loop, and how one is read.

Unknown keys are errors. Field descriptions are the one place where a setting is documented: the JSON Schema
(recipes/recipe.schema.json) and docs/recipe.md are made from them. Imports neither torch nor network code.
"""

from prefloop.config.base import Section
from prefloop.config.data import (
    ContrastSection,
    PairSection,
    PreferencesSection,
    PromptsSection,
    RewriteSection,
    SampleSection,
)
from prefloop.config.harness import HarnessSection
from prefloop.config.load import (
    AnyRecipe,
    load_answering,
    load_recipe,
    parse_recipe,
    recipe_folder,
    recipe_path,
    recipe_schema,
    shipped_recipes,
)
from prefloop.config.models import EndpointSection, ModelSection
from prefloop.config.objectives import (
    AnchoredObjectiveSection,
    CpoObjectiveSection,
    CutObjectiveSection,
    DpoObjectiveSection,
    KtoObjectiveSection,
    ListObjectiveSection,
    ObjectiveSection,
    OrpoObjectiveSection,
    SftObjectiveSection,
    SimpoObjectiveSection,
)
from prefloop.config.rag_recipe import RagRecipe
from prefloop.config.recipe import (
    BranchSection,
    CheckerSection,
    EvaluateSection,
    FirstSection,
    Recipe,
    Sampled,
    StopSection,
    Way,
)
from prefloop.config.rerank import RerankSection
from prefloop.config.retrieval import RetrieverSection
from prefloop.config.signals import (
    CriticSignalSection,
    FunctionSignalSection,
    HumanSignalSection,
    JudgeSignalSection,
    PairRmSignalSection,
    RetrieverSignalSection,
    RewardModelSignalSection,
    SelfRewardSignalSection,
    SignalSection,
)
from prefloop.config.source_bias import SourceBiasSection
from prefloop.config.training import COSMETIC, LaunchSection, LoraSection, MergeSection, TrainSection

__all__ = [
    "COSMETIC",
    "AnchoredObjectiveSection",
    "AnyRecipe",
    "BranchSection",
    "CheckerSection",
    "ContrastSection",
    "CpoObjectiveSection",
    "CriticSignalSection",
    "CutObjectiveSection",
    "DpoObjectiveSection",
    "EndpointSection",
    "EvaluateSection",
    "FirstSection",
    "FunctionSignalSection",
    "HarnessSection",
    "HumanSignalSection",
    "JudgeSignalSection",
    "KtoObjectiveSection",
    "LaunchSection",
    "ListObjectiveSection",
    "LoraSection",
    "MergeSection",
    "ModelSection",
    "ObjectiveSection",
    "OrpoObjectiveSection",
    "PairRmSignalSection",
    "PairSection",
    "PreferencesSection",
    "PromptsSection",
    "RagRecipe",
    "Recipe",
    "RerankSection",
    "RetrieverSection",
    "RetrieverSignalSection",
    "RewardModelSignalSection",
    "RewriteSection",
    "SampleSection",
    "Sampled",
    "Section",
    "SelfRewardSignalSection",
    "SftObjectiveSection",
    "SignalSection",
    "SimpoObjectiveSection",
    "SourceBiasSection",
    "StopSection",
    "TrainSection",
    "Way",
    "load_answering",
    "load_recipe",
    "parse_recipe",
    "recipe_folder",
    "recipe_path",
    "recipe_schema",
    "shipped_recipes",
]
