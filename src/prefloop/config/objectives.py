"""Objectives: what is learned from a row."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from prefloop.config.base import Section

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
    margin_weight: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="The rows' margins are clipped and multiplied by this, and every row must have one (DLMA: 0.2). "
        "Without it margins are taken as they are, and a row without one has 0.",
    )
    margin_clip: tuple[float, float] | None = Field(
        None, description="Range that margins are clipped to before `margin_weight` (DLMA: [-40, 40])."
    )
    margin_unit: Literal["nats", "mad"] = Field(
        "nats",
        description="nats: margins as they are; mad: divided by their median absolute deviation over all rows, so "
        "that clip and weight mean the same for long and for short answers.",
    )
    weight_alpha: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="Rows count by their weight to this power (LLM-SBM: 2; 0 is plain DPO). Weights must then lie "
        "above 0 and reach 1 at most; validation and the likelihood term are not weighted. Without it weights are "
        "taken as they are, everywhere.",
    )

    @model_validator(mode="after")
    def _margins(self) -> Self:
        if self.margin_weight is None:
            set_ = {"margin_clip": self.margin_clip is not None, "margin_unit": self.margin_unit == "mad"}
            for name in (name for name, given in set_.items() if given):
                raise ValueError(f"{name} without margin_weight does nothing: set margin_weight, or take it out")
            return self
        if self.margin_clip is not None and not self.margin_clip[0] < self.margin_clip[1]:
            low, high = self.margin_clip
            raise ValueError(f"margin_clip is an empty range, {low:g} to {high:g}: give the lower end first")
        if self.kind in ("ipo", "ipo_norm"):
            raise ValueError(
                f"kind {self.kind} with margin_weight: its loss draws every gap to the one value 1/(2 beta), and a "
                "margin would only move that value; take kind sigmoid, or take margin_weight out"
            )
        return self


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

    @model_validator(mode="before")
    @classmethod
    def _no_pairs(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("weight_alpha") is not None:
            raise ValueError(
                "weight_alpha: a pair's weight says how far its two answers are apart, and kto learns from each "
                "answer by itself; take it out, or set type to dpo"
            )
        return data


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


class CutObjectiveSection(Section):
    """CUT (Xu et al. 2024): likelihood of an answer's tokens, unlikelihood of those that a judgment speaks of."""

    type: Literal["cut"] = "cut"
    threshold: float = Field(
        1.1,
        gt=1,
        description="A token is flagged when the judgment in the prompt multiplies its probability by more than this.",
    )
    unlike_weight: float = Field(1.0, ge=0, description="Of the flagged tokens' unlikelihood (the paper's alpha).")
    gamma: float = Field(
        0.0,
        ge=0,
        description="Flagged tokens are also weighed by their probability behind the judged prompt to this power; 0 "
        "is the published code, above 0 the paper's formula.",
    )
    normalize: Literal["sequence", "token", "paper"] = Field(
        "sequence",
        description="sequence: every answer counts alike, its two contexts half each; token: every token of a step "
        "counts alike (the published code with a step as its micro-batch); paper: each context counts whole.",
    )
    detector: Literal["policy", "start"] = Field(
        "policy",
        description="Whose probabilities flag: the model in training, as it is at each step, or the one that training "
        "starts from, once.",
    )
    judged_prompt: str = Field(
        "default",
        description="How the judgment is put into the user's last turn: `default`, `alpaca` (for the template of that "
        "name), `sandbox`, or a Jinja file with `instruction` and `judgment`.",
    )
    downsample: float | None = Field(
        None,
        ge=0,
        description="Keep at most this many satisfactory answers for each criticised one, drawn by the recipe's seed.",
    )


ObjectiveSection = Annotated[
    DpoObjectiveSection
    | AnchoredObjectiveSection
    | SimpoObjectiveSection
    | CpoObjectiveSection
    | OrpoObjectiveSection
    | KtoObjectiveSection
    | ListObjectiveSection
    | SftObjectiveSection
    | CutObjectiveSection,
    Field(discriminator="type"),
]
