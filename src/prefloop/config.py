"""The recipe: one YAML file says a whole run. Sections are the boxes of the loop.

Unknown keys are errors. Field descriptions are the one place where a setting is documented: the JSON Schema
(recipes/recipe.schema.json) and docs/recipe.md are made from them. This module imports neither torch nor network code.
"""

from __future__ import annotations

import contextlib
import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from prefloop.errors import UsageError


def _path_shorthand(data: Any, *names: str) -> Any:
    """`model: NAME` says the same as `model: {path: NAME}`."""
    if not isinstance(data, dict):
        return data
    return {k: {"path": v} if k in names and isinstance(v, str) else v for k, v in data.items()}


class Section(BaseModel):
    """Base of all sections: frozen, unknown keys refused."""

    # Defaults are validated too: 32 and 32.0 must not give two fingerprints.
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class ModelSection(Section):
    """A causal language model: hub id, local folder, or `sandbox` for the embedded one."""

    path: str = Field(description="Hub id, folder of a model or of an unmerged LoRA adapter, or `sandbox`.")
    revision: str | None = Field(None, description="Branch, tag or commit on the hub.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Precision of weights and compute; auto: float32 on a CPU, the checkpoint's on a GPU (bfloat16 in "
        "place of float16).",
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps; auto takes a GPU when there is one.")
    template: str = Field(
        "auto",
        description="Chat template: auto (the model's own, or `plain` where it has none), plain, or a Jinja file.",
    )
    batch_size: int = Field(64, gt=0, description="Sequences in one forward pass when sampling or scoring.")
    trust_remote_code: bool = Field(False, description="Run model code that comes with the checkpoint.")


class PromptsSection(Section):
    """Where prompts come from."""

    path: str = Field(
        description="JSONL, JSON, CSV or Parquet file, `hub:ORG/NAME`, or `sandbox:questions/train` and the like."
    )
    format: Literal["auto", "jsonl", "json", "csv", "parquet", "lima", "hub", "sandbox"] = Field(
        "auto", description="auto goes by the path and, for JSONL, by the keys of the first row."
    )
    column: str = Field("prompt", description="Column with the prompt: a text, or a list of messages.")
    ignore_columns: list[str] | Literal["all"] = Field(
        default_factory=list, description="Columns known to be there and not to be read; any other is an error."
    )
    split: str = Field("train", description="Split of a hub data set.")
    system: str | None = Field(None, description="System message put before every prompt that has none.")
    limit: int | None = Field(None, gt=0, description="Use the first N valid prompts.")
    on_bad_row: Literal["stop", "reject"] = Field("stop", description="Stop at bad rows, or send them to rejects.")


class PreferencesSection(Section):
    """Preference data that is there already, in place of prompts, sample, rate and pair."""

    path: str = Field(
        description="JSONL, JSON, CSV or Parquet file, or `hub:ORG/NAME`, of pairs, of single good or bad answers, or "
        "of demonstrations."
    )
    format: Literal[
        "auto", "preference", "unpaired", "completion", "messages", "sharegpt", "sharegpt_pairs", "pku", "lima"
    ] = Field("auto", description="What the columns mean (docs/inputs.md); auto goes by those of the first row.")
    ignore_columns: list[str] | Literal["all"] = Field(
        default_factory=list, description="Columns known to be there and not to be read."
    )
    split: str = Field("train", description="Split of a hub data set.")
    limit: int | None = Field(None, gt=0, description="Use the first N valid rows.")
    on_bad_row: Literal["stop", "reject"] = Field("stop", description="Stop at bad rows, or send them to rejects.")


class SampleSection(Section):
    """How answers are sampled."""

    n: int = Field(5, gt=0, description="Answers per prompt.")
    temperature: float = Field(1.0, ge=0, description="0 is greedy.")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus: least probable tokens beyond this mass are cut.")
    top_k: int = Field(0, ge=0, description="0 switches it off.")
    max_new_tokens: int = Field(512, gt=0, description="Longer answers are cut off and say so (`length`).")


class FunctionSignalSection(Section):
    """Scores from any Python function."""

    type: Literal["function"]
    callable: str = Field(
        description="`module:name` of f(prompt: list of messages, completion: str) -> float or None.",
        pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$",
    )


class JudgeSignalSection(Section):
    """Scores from a language model that reads the answers."""

    type: Literal["judge"]
    mode: Literal["pointwise", "pairwise"] = Field(
        "pointwise",
        description="pointwise: expected rating 1..5, one call an answer; pairwise: mean win probability against the "
        "other answers, every pair in both orders.",
    )
    model: ModelSection | None = Field(None, description="The judge; without it the recipe's first model judges.")
    template: str | None = Field(
        None, description="The judge's prompt: a Jinja file, or a shipped set (`default`, `sandbox`)."
    )
    min_label_mass: float = Field(
        0.0,
        ge=0,
        le=1,
        description="A verdict is null when the judge gives all labels together less probability than this.",
    )
    max_null_share: float = Field(0.05, ge=0, le=1, description="Stop when more verdicts than this share are null.")

    @model_validator(mode="before")
    @classmethod
    def _model_path(cls, data: Any) -> Any:
        return _path_shorthand(data, "model")


SignalSection = Annotated[FunctionSignalSection | JudgeSignalSection, Field(discriminator="type")]


class PairSection(Section):
    """How scored answers become pairs, and which are left out."""

    strategy: Literal["best_worst", "best_random", "all_pairs", "adjacent"] = Field(
        "best_worst",
        description="best_worst: highest against lowest score; best_random: highest against a random lower one; "
        "all_pairs: every two answers; adjacent: neighbours in score.",
    )
    min_gap: float = Field(0.0, ge=0, description="Least score gap of a pair; equal scores never make a pair.")
    max_length_ratio: float | None = Field(
        None, gt=1, description="Drop pairs whose answers' lengths in characters differ by more than this factor."
    )
    drop_truncated: bool = Field(
        False,
        description="Leave out answers that were cut off at max_new_tokens. Those that stay are trained on without an "
        "end of turn, so that they do not teach to stop in mid-sentence.",
    )


class LoraSection(Section):
    """Low-rank adapters (Hu et al. 2021); without this section all weights are trained."""

    r: int = Field(16, gt=0, description="Rank.")
    alpha: float = Field(32, gt=0, description="Scale: the update is multiplied by alpha / r.")
    dropout: float = Field(0.0, ge=0, lt=1, description="On the adapter's input, while training.")
    target_modules: str | list[str] = Field(
        "all-linear", description="all-linear, a list of module names, or a regular expression over them."
    )
    quantize: Literal["nf4"] | None = Field(
        None,
        description="QLoRA (Dettmers et al. 2023): the frozen base in 4 bits while training, by bitsandbytes "
        "(`pip install prefloop[qlora]`). The adapter is merged into the unquantised base.",
    )


Beta = Annotated[float, Field(gt=0, description="How strongly the policy is held to the reference.")]


class _PairedSection(Section):
    """What all objectives on pairs share."""

    sft_weight: float = Field(
        0.0, ge=0, description="Adds this times the chosen answer's negative log-likelihood per token (RPO's term)."
    )


class DpoObjectiveSection(_PairedSection):
    """Direct preference optimisation (Rafailov et al. 2023, eq. 7) and its relatives on the gap of log-ratios."""

    type: Literal["dpo"] = "dpo"
    kind: Literal["sigmoid", "sigmoid_norm", "robust", "hinge", "ipo", "ipo_norm", "exo", "discopop"] = Field(
        "sigmoid", description="The loss of a gap; docs/losses.md has the table of methods."
    )
    beta: Beta = 0.1
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="Share of labels taken to be wrong (cDPO, rDPO).")


class AnchoredObjectiveSection(_PairedSection):
    """Losses that hold each of the two answers against a fixed point, so that both cannot sink together."""

    type: Literal["sppo", "nca", "bco", "apo_zero", "apo_down"] = Field(description="Which of them.")
    beta: Beta = 0.1


class SimpoObjectiveSection(_PairedSection):
    """SimPO (Meng et al. 2024): length-averaged log-probabilities, a target margin, no reference."""

    type: Literal["simpo"] = "simpo"
    beta: float = Field(2.0, gt=0, description="Scale of the rewards.")
    gamma: float = Field(1.0, ge=0, description="Target margin of the rewards.")


class CpoObjectiveSection(Section):
    """CPO (Xu et al. 2024): DPO's loss without a reference, and the likelihood of the chosen answer."""

    type: Literal["cpo"] = "cpo"
    beta: float = Field(0.1, gt=0, description="Scale of the rewards.")
    nll_weight: float = Field(1.0, ge=0, description="Of the chosen answer's negative log-likelihood.")


class OrpoObjectiveSection(Section):
    """ORPO (Hong et al. 2024): likelihood of the chosen answer plus a log odds ratio, no reference."""

    type: Literal["orpo"] = "orpo"
    odds_weight: float = Field(0.1, gt=0, description="Of the odds-ratio term (the paper's lambda).")


class KtoObjectiveSection(Section):
    """KTO (Ethayarajh et al. 2024): single answers, good or bad."""

    type: Literal["kto"] = "kto"
    beta: Beta = 0.1
    desirable_weight: float = Field(1.0, gt=0, description="Of the answers that are good.")
    undesirable_weight: float = Field(1.0, gt=0, description="Of the answers that are bad.")


class ListObjectiveSection(Section):
    """Plackett-Luce over all answers to a prompt in the order of their scores (Rafailov et al. 2023, appendix A.3)."""

    type: Literal["plackett_luce"] = "plackett_luce"
    beta: Beta = 0.1


class SftObjectiveSection(Section):
    """Likelihood of the chosen answers alone."""

    type: Literal["sft"] = "sft"
    average: Literal["tokens", "rows"] = Field(
        "tokens", description="tokens: every token of a step counts alike; rows: every answer, whatever its length."
    )


ObjectiveSection = Annotated[
    DpoObjectiveSection
    | AnchoredObjectiveSection
    | SimpoObjectiveSection
    | CpoObjectiveSection
    | OrpoObjectiveSection
    | KtoObjectiveSection
    | ListObjectiveSection
    | SftObjectiveSection,
    Field(discriminator="type"),
]


class LaunchSection(Section):
    """Training in several processes, started by accelerate; without this section in this process alone."""

    config: str = Field(
        description="An accelerate configuration: a file, or a shipped one (`ddp`, `fsdp2`, `zero3`, `cpu`)."
    )
    processes: int | None = Field(None, gt=0, description="How many; without it as many as the configuration says.")


class TrainSection(Section):
    """Training of the policy on pairs."""

    objective: ObjectiveSection = Field(
        DpoObjectiveSection(), description="What is learned from the rows; see the objective sections."
    )
    lora: LoraSection | None = LoraSection()
    epochs: float = Field(1.0, gt=0, description="Passes over the pairs.")
    batch_size: int = Field(8, gt=0, description="Pairs in one optimiser step.")
    micro_batch_size: int | None = Field(
        None, gt=0, description="Pairs in one forward pass at most. None: the whole batch."
    )
    micro_batch_tokens: int | None = Field(
        None,
        gt=0,
        description="Tokens in one forward pass at most, a prompt counted with each of its answers; short rows go "
        "together in larger numbers than long ones. A longer row is passed alone.",
    )
    learning_rate: float = Field(5e-5, gt=0, description="Peak, behind the warm-up.")
    schedule: Literal["linear", "cosine", "constant"] = Field("linear", description="How it falls afterwards.")
    warmup_ratio: float = Field(0.1, ge=0, lt=1, description="Share of the steps in which it rises.")
    weight_decay: float = Field(0.0, ge=0, description="Of AdamW.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are clipped to this norm.")
    max_length: int = Field(1024, gt=0, description="Prompt and answer together, tokens; longer pairs are rejected.")
    scale_weights: bool = Field(
        False,
        description="Divide the rows' weights by their mean over the data set, so that a training with weights takes "
        "steps as large as one without. Otherwise they are taken as they are.",
    )
    launch: LaunchSection | None = Field(None, description="Several processes; see `LaunchSection`.")
    gradient_checkpointing: bool = Field(False, description="Less memory for about a third more time.")
    logging_steps: int = Field(1, gt=0, description="Optimiser steps between records in metrics.jsonl.")
    save_steps: int = Field(50, gt=0, description="Optimiser steps between checkpoints.")
    validation_share: float = Field(
        0.05, ge=0, lt=1, description="Share of prompts whose pairs are kept from training to measure the loss on."
    )
    report_to: list[str] = Field(default_factory=list, description="Trackers of transformers, such as tensorboard.")

    @model_validator(mode="before")
    @classmethod
    def _launch_config(cls, data: Any) -> Any:
        launch = data.get("launch") if isinstance(data, dict) else None
        return {**data, "launch": {"config": launch}} if isinstance(launch, str) else data

    @model_validator(mode="before")
    @classmethod
    def _objective_type(cls, data: Any) -> Any:
        objective = data.get("objective") if isinstance(data, dict) else None
        if isinstance(objective, str):
            return {**data, "objective": {"type": objective}}
        if isinstance(objective, dict) and "type" not in objective:
            return {**data, "objective": {"type": "dpo", **objective}}
        return data


COSMETIC = {
    "report_to",
    "save_steps",
    "logging_steps",
    "micro_batch_size",
    "micro_batch_tokens",
    "gradient_checkpointing",
    "launch",
}
"""Settings of `TrainSection` that change no weight, beyond rounding and the draws of LoRA's dropout.

A training may be continued with other values of these, such as a smaller micro-batch after the memory was full
(tests/train/test_resume.py::test_a_smaller_micro_batch_continues).
"""


class MergeSection(Section):
    """What the merged model folder looks like."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="auto: as trained.")
    max_shard_size: str = Field("5GB", description="Size of one weights file.")


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
    checkers: dict[str, dict[str, str]] = Field(
        default_factory=dict,
        description="Group -> name -> `module:name` of functions that give a rate for one answer, 0..1 or None.",
    )
    bootstrap: int = Field(10_000, ge=100, description="Resamples of the prompts for each 95 % interval.")
    side_by_side: int = Field(20, ge=0, description="Answers of both models shown in the report.")

    @model_validator(mode="before")
    @classmethod
    def _prompts_path(cls, data: Any) -> Any:
        return _path_shorthand(data, "prompts")

    @model_validator(mode="after")
    def _groups(self) -> EvaluateSection:
        if taken := {"win_rate", "lengths", "not_measured"} & set(self.checkers):
            raise ValueError(f"a group of checkers cannot be called {taken.pop()}: that name is taken")
        return self


class Sampled(NamedTuple):
    """The sections of a recipe that samples and rates answers."""

    prompts: PromptsSection
    sample: SampleSection
    rate: SignalSection
    pair: PairSection


class Recipe(Section):
    """One run of the loop: answers to prompts are sampled and rated, or preferences that are there are trained on."""

    name: str = Field(pattern=r"^[\w.-]+$")
    model: ModelSection
    prompts: PromptsSection | None = None
    preferences: PreferencesSection | None = None
    seed: int = Field(0, description="Of sampling, random pairing and training.")
    rounds: int = Field(1, gt=0, description="The merged model samples again, on prompts not used before.")
    sample: SampleSection | None = None
    rate: SignalSection | None = None
    pair: PairSection | None = None
    train: TrainSection = TrainSection()
    merge: MergeSection = MergeSection()
    evaluate: EvaluateSection = EvaluateSection()

    @model_validator(mode="before")
    @classmethod
    def _paths(cls, data: Any) -> Any:
        data = _path_shorthand(data, "model", "prompts", "preferences")
        if isinstance(data, dict) and data.get("preferences") is None:
            data = data | {name: data.get(name) or {} for name in ("sample", "pair")}
        return data

    @model_validator(mode="after")
    def _one_way(self) -> Recipe:
        if self.preferences is None:
            if self.prompts is None and self.rate is None:
                raise ValueError(
                    "nothing says where preferences come from: set prompts and rate (answers are sampled and rated), "
                    "or preferences (a file of them is trained on)"
                )
            if missing := [name for name in ("prompts", "rate") if getattr(self, name) is None]:
                raise ValueError(f"{missing[0]} is missing; it must be set in the recipe or as {missing[0]}=…")
            if self.sample is not None and self.sample.n < 2:
                raise ValueError("sample.n is 1: a pair needs two answers to a prompt; set sample.n=2 or more")
            if self.sample is not None and self.sample.temperature == 0:
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

    @property
    def sampled(self) -> Sampled:
        """How answers are sampled, rated and paired, of a recipe that does so and has no preferences."""
        assert self.prompts is not None and self.sample is not None  # noqa: PT018
        assert self.rate is not None and self.pair is not None  # noqa: PT018
        return Sampled(self.prompts, self.sample, self.rate, self.pair)


def recipe_folder() -> Path:
    """Folder of the shipped recipes: inside the installed package, or beside `src` in a checkout."""
    installed = Path(__file__).parent / "recipes"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "recipes"


def shipped_recipes() -> list[str]:
    """Names of the shipped recipes, such as `quickstart` and `sandbox/judge-dpo`."""
    folder = recipe_folder()
    return sorted(str(p.relative_to(folder).with_suffix("")) for p in folder.rglob("*.yaml"))


def recipe_path(name: str) -> Path:
    """The file of a recipe given by path or by shipped name.

    Raises:
        UsageError: there is neither such a file nor such a recipe.
    """
    given = Path(name)
    if given.suffix in {".yaml", ".yml"} or given.is_file():
        if not given.is_file():
            raise UsageError("there is no such file", where=name, fix="check the path, or name a shipped recipe")
        return given
    shipped = recipe_folder() / f"{name}.yaml"
    if name in shipped_recipes():
        return shipped
    close = difflib.get_close_matches(name, shipped_recipes(), n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}? " if close else ""
    raise UsageError(
        f"no recipe is called {name!r}",
        fix=f"{hint}give the path of a .yaml file or one of: {', '.join(shipped_recipes())}",
    )


def load_recipe(name: str, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe and apply `a.b=c` overrides, later ones last.

    Args:
        name: path of a YAML file, or a shipped name.
        overrides: values are YAML, so `train.lora=null`, `sample.n=8` and `model=org/name` mean what they look like.
            A plain value for a section that has a `path` sets its path.

    Raises:
        UsageError: file, key or value is wrong; says which, with the nearest known key.
    """
    path = recipe_path(name)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"not readable as YAML: {error}", where=str(path)) from error
    if not isinstance(data, dict):
        raise UsageError("a recipe is a mapping of sections", where=str(path))
    # The type of a section first: its other settings are those of the new type.
    for override in sorted(overrides or [], key=lambda o: not o.partition("=")[0].endswith(".type")):
        _apply(data, override)
    return parse_recipe(data, where=name)


def parse_recipe(data: dict[str, Any], *, where: str) -> Recipe:
    """Validate a recipe's data; every problem in one UsageError."""
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise UsageError("\n".join(_explain(e) for e in error.errors()), where=where) from None


def _apply(data: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    names = key.split(".")
    if not equals or not all(names):
        raise UsageError(f"{override!r} is not of the form a.b=c", fix="for example sample.n=8")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"the value is not YAML: {text!r}", where=key) from error
    if isinstance(value, str):
        # YAML 1.1 reads 5e-5 as a text; people mean the number.
        with contextlib.suppress(ValueError):
            value = float(value) if "e" in value.lower() else value
    node = data
    for name in names[:-1]:
        inner = node.get(name)
        if inner is None or not isinstance(inner, dict):
            inner = {} if inner is None else {"path": inner}
        node[name] = inner
        node = inner
    old = node.get(names[-1])
    if names[-1] == "type" and old not in (None, value):
        # What was set for another type means nothing to this one.
        node.clear()
    if isinstance(old, dict) and "path" in old and isinstance(value, str):
        node[names[-1]] = {**old, "path": value}
    else:
        node[names[-1]] = value


_UNIONS = {"rate", "judge", "objective"}
_TAGS = {"judge", "function"} | {
    "dpo", "sppo", "nca", "bco", "apo_zero", "apo_down", "simpo", "cpo", "orpo", "kto", "plackett_luce", "sft"
}  # fmt: skip


def _explain(error: Any) -> str:
    """One line for one pydantic error: the setting, what is wrong, the nearest known name."""
    # pydantic puts the tag of a union behind its field (rate.judge.mode); people write rate.mode.
    loc = error["loc"]
    untagged = [part for i, part in enumerate(loc) if not (i and loc[i - 1] in _UNIONS and part in _TAGS)]
    place = ".".join(str(part) for part in untagged)
    if error["type"] == "extra_forbidden":
        known = _known_keys(error["loc"][:-1])
        close = difflib.get_close_matches(str(error["loc"][-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else f"known here: {', '.join(known)}"
        return f"{place}: unknown setting; {hint}"
    if error["type"] == "missing":
        return f"{place}: is missing; it must be set in the recipe or as {place}=…"
    message = error["msg"].removeprefix("Value error, ")
    given = error.get("input")
    shown = f" (given: {given!r})" if isinstance(given, (str, int, float, bool)) else ""
    return f"{place or 'recipe'}: {message[0].lower()}{message[1:]}{shown}"


def _known_keys(loc: tuple[Any, ...]) -> list[str]:
    """The settings of the section at a place of the schema, following unions by their tag."""
    schema = Recipe.model_json_schema()
    node: dict[str, Any] = schema
    for part in loc:
        options = _options(schema, node)
        if options:
            node = next((n for n in options if _tagged(n, part)), next((n for n in options if "properties" in n), {}))
        if part in node.get("properties", {}):
            node = _resolve(schema, node["properties"][part])
    node = next((n for n in _options(schema, node) if "properties" in n), node)
    return sorted(node.get("properties", {}))


def _options(schema: dict[str, Any], node: dict[str, Any]) -> list[dict[str, Any]]:
    """The members of a union, those of a union inside it too: an optional section of several types is both."""
    found = []
    for option in node.get("oneOf") or node.get("anyOf") or []:
        resolved = _resolve(schema, option)
        found += _options(schema, resolved) or [resolved]
    return found


def _resolve(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    reference = node.get("$ref")
    return schema["$defs"][reference.rsplit("/", 1)[1]] if reference else node


def _tagged(node: dict[str, Any], tag: Any) -> bool:
    return bool(node.get("properties", {}).get("type", {}).get("const") == tag)
