"""The recipe: one YAML file says a whole run. Sections are the boxes of the loop."""

from __future__ import annotations

import re
from typing import Annotated, Any, NamedTuple

from pydantic import Field, model_validator

from prefloop.config.base import Section, path_shorthand
from prefloop.config.data import PairSection, PreferencesSection, PromptsSection, SampleSection
from prefloop.config.harness import HarnessSection
from prefloop.config.models import ModelSection
from prefloop.config.objectives import CutObjectiveSection, KtoObjectiveSection, SftObjectiveSection
from prefloop.config.signals import (
    CriticSignalSection,
    RetrieverSignalSection,
    SelfRewardSignalSection,
    SignalSection,
)
from prefloop.config.source_bias import SourceBiasSection
from prefloop.config.training import MergeSection, TrainSection


class CheckerSection(Section):
    """A function that gives a rate for one answer. Written as a text, it is the function, and more is better."""

    function: str = Field(description="`module:name` of f(prompt: list of messages, completion: str) -> 0..1 or None.")
    lower_is_better: bool = Field(False, description="A lower rate is the better one, as of mistakes.")

    @model_validator(mode="before")
    @classmethod
    def _text(cls, data: Any) -> Any:
        return {"function": data} if isinstance(data, str) else data


class EvaluateSection(Section):
    """The measurement: the aligned model against the base on prompts that were not trained on."""

    prompts: PromptsSection | None = Field(None, description="Held-out prompts; without it `holdout` is split off.")
    holdout: float = Field(0.1, gt=0, lt=1, description="Share of the prompts kept out, when no prompts are given.")
    sample: SampleSection | None = Field(
        None, description="Decoding for both models alike; without it the sample section's, with n = 1."
    )
    judge: SignalSection | None = Field(
        None,
        description="Who compares; without it a pairwise judge by the rate section's judge, else its signal. A recipe "
        "with neither measures no win rate.",
    )
    also: list[SignalSection] = Field(
        default_factory=list, description="Further signals that compare the same answers; agreement is measured."
    )
    unmerged: bool = Field(
        False, description="Measure trained adapters as they are too, beside the models they were merged into."
    )
    perplexity: bool = Field(
        False,
        description="Perplexity of both models' answers under the loop's first model: whether alignment cost the "
        "language its form.",
    )
    checkers: dict[str, dict[str, CheckerSection]] = Field(
        default_factory=dict,
        description="Group -> name -> a function that gives a rate for one answer, or `{function: module:name, "
        "lower_is_better: true}`.",
    )
    references: str | None = Field(
        None,
        description="File of right answers to measured prompts, of which ROUGE is computed: rows of `prompt` and "
        "`reference`, or OpenAI's critiques, whose last refinement is the reference.",
    )
    harness: HarnessSection | None = Field(
        None, description="Ability by lm-eval, base against aligned; without it none is measured."
    )
    source_bias: SourceBiasSection | None = Field(
        None, description="Source bias of rewrites, base against aligned; without it none is measured."
    )
    bootstrap: int = Field(10_000, ge=100, description="Resamples of the prompts for each 95 % interval.")
    side_by_side: int = Field(20, ge=0, description="Answers of both models shown in the report.")

    @model_validator(mode="before")
    @classmethod
    def _prompts_path(cls, data: Any) -> Any:
        return path_shorthand(data, "prompts")

    @model_validator(mode="after")
    def _groups(self) -> EvaluateSection:
        names = {"win_rate", "lengths", "not_measured", "harness", "perplexity", "judgments", "rouge"}
        if taken := (names | {"source_bias", "source_texts"}) & set(self.checkers):
            raise ValueError(f"a group of checkers cannot be called {taken.pop()}: that name is taken")
        return self


class BranchSection(Section):
    """One of several ways that start from the same answers. What it does not say is as the recipe says."""

    rate: SignalSection | None = None
    pair: PairSection | None = None
    train: TrainSection = TrainSection()


class FirstSection(Section):
    """Training before the loop, by objective `sft` unless it names another. The loop begins with what it made."""

    preferences: PreferencesSection
    train: TrainSection = TrainSection(objective=SftObjectiveSection())

    @model_validator(mode="before")
    @classmethod
    def _sft(cls, data: Any) -> Any:
        data = path_shorthand(data, "preferences")
        train = data.get("train") if isinstance(data, dict) else None
        if not isinstance(train, dict):
            return data
        objective = train.get("objective", {})
        # The type that a training has by default is dpo, and here it is sft.
        if isinstance(objective, dict) and "type" not in objective:
            return data | {"train": train | {"objective": {"type": "sft", **objective}}}
        return data

    @model_validator(mode="after")
    def _takes_answers(self) -> FirstSection:
        if isinstance(self.train.objective, CutObjectiveSection):
            raise ValueError(
                "train.objective cut learns from written judgments; a first stage takes demonstrations, good and bad "
                "answers or pairs: set it to sft, kto or dpo"
            )
        return self


class StopSection(Section):
    """When rounds end early. The run's model is then the one before the round that broke a rule."""

    win_rate_falls: bool = Field(
        True, description="The win rate against the first model is below the interval of the round before."
    )
    length_growth: float | None = Field(
        0.3, gt=0, description="Answers are longer than the first model's by more than this share."
    )


class Sampled(NamedTuple):
    """The sections of a recipe that samples answers."""

    prompts: PromptsSection
    sample: SampleSection


class Way(NamedTuple):
    """How answers are rated and paired and the policy is trained: the recipe's own sections, or a branch's."""

    rate: SignalSection | None
    pair: PairSection | None
    train: TrainSection

    @property
    def judged(self) -> bool:
        """Whether it learns from each answer that a critic judged by itself: answers are then not paired."""
        single = isinstance(self.train.objective, CutObjectiveSection | SftObjectiveSection | KtoObjectiveSection)
        return single and isinstance(self.rate, CriticSignalSection)


class Recipe(Section):
    """One run of the loop: answers to prompts are sampled and rated, or preferences that are there are trained on."""

    name: str = Field(pattern=r"^[\w.-]+$", description="Of the run; it is in `runs/NAME` unless --out says else.")
    model: ModelSection
    prompts: PromptsSection | None = None
    preferences: PreferencesSection | None = None
    first: FirstSection | None = Field(
        None,
        description="Training before the loop, such as SFT; the loop, its reference and its measurement then begin "
        "with the model that it made.",
    )
    seed: int = Field(0, description="Of sampling, random pairing and training.")
    rounds: int = Field(1, gt=0, description="The merged model samples again, on prompts not used before.")
    stop: StopSection | None = Field(StopSection(), description="When rounds end early; null: never.")
    sample: SampleSection | None = None
    rate: SignalSection | None = None
    pair: PairSection | None = None
    train: TrainSection = TrainSection()
    branches: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], BranchSection] = Field(
        default_factory=dict,
        description="Name -> rate, pair and train sections, or the settings in which they differ from the recipe's. "
        "All learn from the same answers and are measured together; the better model goes on to the next round.",
    )
    merge: MergeSection = MergeSection()
    evaluate: EvaluateSection = EvaluateSection()

    @model_validator(mode="before")
    @classmethod
    def _paths(cls, data: Any) -> Any:
        data = path_shorthand(data, "model", "prompts", "preferences")
        if not isinstance(data, dict):
            return data
        if data.get("preferences") is None:
            data = data | {name: data.get(name) or {} for name in ("sample", "pair")}
        if isinstance(branches := data.get("branches"), dict):
            own = {name: data[name] for name in BranchSection.model_fields if data.get(name) is not None}
            data = data | {"branches": {name: _over(own, branch or {}) for name, branch in branches.items()}}
        return data

    @model_validator(mode="after")
    def _models(self) -> Recipe:
        if self.model.endpoint is not None:
            raise ValueError(
                "model.endpoint: the model is trained, so it is loaded here; a server can answer (sample.model) and "
                "judge (rate.model, evaluate.judge.model)"
            )
        if taken := [
            name for name in self.branches if name in ("base", "aligned", "first") or re.fullmatch(r"r\d+", name)
        ]:
            raise ValueError(f"branches.{taken[0]}: that name is taken; call the branch by what is different in it")
        if self.evaluate.unmerged and all(way.train.lora is None for way in self.ways.values()):
            raise ValueError("evaluate.unmerged: all weights are trained, so there is no adapter; take it out")
        if self.evaluate.sample is not None and self.evaluate.sample.model is not None:
            raise ValueError("evaluate.sample.model: the base and the aligned model answer; take it out")
        if self.evaluate.sample is not None and self.evaluate.sample.contrast is not None:
            raise ValueError("evaluate.sample.contrast: both models are measured without notes; take it out")
        if self.rounds > 1 and self.sample is not None and self.sample.model is not None:
            raise ValueError("sample.model answers in the first round, the merged model in the next: set rounds=1")
        return self

    @model_validator(mode="after")
    def _one_way(self) -> Recipe:
        if self.preferences is None:
            rated = all(way.rate is not None for way in self.ways.values())
            if self.prompts is None and not rated:
                raise ValueError(
                    "nothing says where preferences come from: set prompts and rate (answers are sampled and rated), "
                    "or preferences (a file of them is trained on)"
                )
            if self.prompts is None or not rated:
                missing = "prompts" if self.prompts is None else "rate"
                raise ValueError(f"{missing} is missing; it must be set in the recipe or as {missing}=…")
            for way in self.ways.values():
                panel = getattr(way.rate, "panel", None) or ()
                if way.pair is not None and (way.pair.min_agree or 0) > len(panel):
                    raise ValueError(
                        f"pair.min_agree is {way.pair.min_agree} and there are {len(panel)} judges: set rate.panel to "
                        "as many models, or take it out"
                    )
            several = self.sample is None or self.sample.rewrite is not None or self.sample.answers > 1
            if not several and not all(w.judged for w in self.ways.values()):
                raise ValueError("sample.n is 1: a pair needs two answers to a prompt; set sample.n=2 or more")
            if self.sample is not None and self.sample.temperature == 0 and self.sample.n > 1:
                raise ValueError("sample.temperature is 0: all answers to a prompt would be the same; set it above 0")
            return self
        if given := [name for name in ("prompts", "sample", "pair") if getattr(self, name) is not None]:
            decoding = "; decoding for the measurement is evaluate.sample" if "sample" in given else ""
            raise ValueError(
                f"preferences and {', '.join(given)} exclude each other: what is there is neither sampled nor "
                f"paired. Take preferences out, or set {' '.join(f'{name}=null' for name in given)}{decoding}"
            )
        if self.rounds > 1:
            raise ValueError("rounds need answers sampled anew; with preferences there is one: set rounds=1")
        return self

    @model_validator(mode="after")
    def _criticised(self) -> Recipe:
        """Objective `cut` learns from judgments, which a critic writes; what learns from them makes no pairs."""
        for way in self.ways.values():
            cut = isinstance(way.train.objective, CutObjectiveSection)
            if self.preferences is None and cut and not isinstance(way.rate, CriticSignalSection):
                raise ValueError("objective cut learns from written judgments: set rate.type=critic")
        if not self.branches and self.pair not in (None, PairSection()) and self.ways[""].judged:
            objective = self.train.objective.type
            raise ValueError(
                f"pair: with a critic, objective {objective} learns from each answer by itself; take the section out"
            )
        return self

    @model_validator(mode="after")
    def _self_rewarding(self) -> Recipe:
        """Contrasts, rewards by their notes and margins need one another; what lacks is told before any work."""
        contrast = self.sample.contrast if self.sample is not None else None
        noted = "set sample.contrast, for example sample.contrast=harmless"
        for way in self.ways.values():
            if isinstance(way.rate, SelfRewardSignalSection) and way.rate.attributes is None and contrast is None:
                raise ValueError(f"rate self_reward goes by notes, and there are none: {noted}, or rate.attributes")
            if way.pair is not None and way.pair.strategy == "contrast" and contrast is None:
                raise ValueError(f"pair.strategy is contrast, and answers are sampled without notes: {noted}")
            if way.pair is not None and way.pair.swap_negative and way.pair.strategy != "contrast":
                raise ValueError(
                    f"pair.swap_negative with strategy {way.pair.strategy}: there the chosen answer always has the "
                    "higher score; take it out"
                )
            weighted = getattr(way.train.objective, "margin_weight", None) is not None
            if weighted and way.pair is not None and way.pair.margin is None:
                raise ValueError(
                    "train.objective.margin_weight is set, and the pairs have no margins: set pair.margin=gap"
                )
        for signal in (self.evaluate.judge, *self.evaluate.also):
            if isinstance(signal, SelfRewardSignalSection) and signal.attributes is None:
                raise ValueError(
                    "evaluate: self_reward needs attributes there, as answers are measured without notes: set them"
                )
        return self

    @model_validator(mode="after")
    def _rewriting(self) -> Recipe:
        """Passages, rewrites, the retriever's scores and pairs around the human text need one another."""
        rewrites = self.sample is not None and self.sample.rewrite is not None
        passages = self.prompts is not None and self.prompts.format == "passages"
        if rewrites and not passages:
            raise ValueError("sample.rewrite rewrites passages: set prompts.format=passages")
        if passages and not rewrites:
            raise ValueError("prompts.format is passages, and nothing is to be done with them: set sample.rewrite={}")
        for way in self.ways.values():
            retrieved = isinstance(way.rate, RetrieverSignalSection)
            if retrieved and not rewrites:
                raise ValueError("rate retriever compares rewrites with their passages: set sample.rewrite={}")
            if way.pair is None:
                continue
            straddling = way.pair.strategy == "straddle"
            if straddling and not retrieved:
                raise ValueError("pair.strategy is straddle, and it goes by a retriever: set rate.type=retriever")
            if way.pair.weight is not None and not straddling:
                raise ValueError(
                    "pair.weight: a score's gap is a pair's weight with strategy straddle alone; take it out"
                )
            if straddling and way.pair.min_similarity is not None and way.rate.similarity is None:  # type: ignore[union-attr]
                raise ValueError("pair.min_similarity needs rate.similarity: set it, or set pair.min_similarity=null")
            alpha = getattr(way.train.objective, "weight_alpha", None)
            if alpha and way.pair.weight is None:
                raise ValueError(
                    "train.objective.weight_alpha is set, and the pairs have no weights: set pair.weight=gap"
                )
        bias = self.evaluate.source_bias
        if bias is not None:
            if not rewrites:
                raise ValueError("evaluate.source_bias measures rewrites: set sample.rewrite={}, or take it out")
            rated = any(isinstance(way.rate, RetrieverSignalSection) for way in self.ways.values())
            if missing := [name for name in ("judgments", "retrievers") if getattr(bias, name) is None and not rated]:
                raise ValueError(f"evaluate.source_bias: nothing says which {missing[0]}; set them")
        given = self.evaluate.prompts
        if rewrites and given is not None and given.format != "passages":
            raise ValueError(
                "evaluate.prompts: rewrites are measured on passages; set evaluate.prompts.format=passages"
            )
        return self

    @property
    def sampled(self) -> Sampled:
        """How answers are sampled, of a recipe that does so and has no preferences."""
        assert self.prompts is not None and self.sample is not None  # noqa: PT018
        return Sampled(self.prompts, self.sample)

    def training(self, round_number: int, branch: str = "") -> tuple[PreferencesSection | None, TrainSection]:
        """The file that a training reads, where it reads one, and its settings; round 0 is the first stage."""
        if round_number == 0:
            assert self.first is not None
            return self.first.preferences, self.first.train
        return self.preferences, self.ways[branch].train

    @property
    def source_bias(self) -> SourceBiasSection | None:
        """How source bias is measured, with what the section leaves to the first rating by a retriever."""
        section = self.evaluate.source_bias
        rated = [way.rate for way in self.ways.values() if isinstance(way.rate, RetrieverSignalSection)]
        if section is None or not rated:
            return section
        names = ("judgments", "split", "retrievers", "similarity")
        return section.model_copy(
            update={name: getattr(rated[0], name) for name in names if getattr(section, name) is None}
        )

    @property
    def ways(self) -> dict[str, Way]:
        """The branches by name; a recipe without any has one, without a name."""
        if not self.branches:
            return {"": Way(self.rate, self.pair, self.train)}
        return {name: Way(branch.rate, branch.pair, branch.train) for name, branch in self.branches.items()}


def _over(below: Any, above: Any) -> Any:
    """`above` laid over `below`, key by key; a section of another type replaces the one below it."""
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    if "type" in above and above["type"] != below.get("type"):
        return above
    return below | {key: _over(below.get(key), value) for key, value in above.items()}
