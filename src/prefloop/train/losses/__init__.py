"""Preference losses: vectors of log-probabilities in, one loss per row out.

No function here takes a mean, draws a number, keeps state or lets one row see another. Weights, margins and labels are
therefore ordinary columns: margins and labels are arguments of the losses, `reduce` applies the weights, once, at the
end. docs/losses.md says which published method is which function with which settings.

- of the gap between two answers: `dpo` (six kinds), `exo`, `discopop`
- of two answers, each held against a fixed point: `sppo`, `nca`, `bco`, `apo_zero`, `apo_down`
- without a reference: `simpo`, `orpo`, `cpo`, `sft`
- of single answers: `kto`
- of a ranking: `plackett_luce`
- of single tokens, of an answer with a written judgment: `cut`
"""

from prefloop.train.losses.anchored import apo_down, apo_zero, bco, nca, sppo
from prefloop.train.losses.columns import reduce, scale_margin
from prefloop.train.losses.gap import DPO_KINDS, NEEDS_LENGTHS, discopop, dpo, exo
from prefloop.train.losses.listwise import plackett_luce
from prefloop.train.losses.reference_free import cpo, orpo, sft, simpo
from prefloop.train.losses.unlikelihood import cut, flags
from prefloop.train.losses.unpaired import kto

__all__ = [
    "DPO_KINDS",
    "NEEDS_LENGTHS",
    "apo_down",
    "apo_zero",
    "bco",
    "cpo",
    "cut",
    "discopop",
    "dpo",
    "exo",
    "flags",
    "kto",
    "nca",
    "orpo",
    "plackett_luce",
    "reduce",
    "scale_margin",
    "sft",
    "simpo",
    "sppo",
]
