"""Scores from a language model that reads the answers (LLM-as-a-judge, Zheng et al. 2023).

`signal.py` is the judge, `panel.py` several of them. `modes.py` makes questions of answers and scores of verdicts,
`ask.py` puts the questions, `verdicts.py` says what a verdict is and reads it, `bias.py` keeps count of habits.
"""

from prefloop.signals.judge.bias import (
    FEW_CASES,
    HIGH_LONGER_WINS,
    LOW_CONSISTENCY,
    check_noise,
    check_nulls,
    length_correlation,
    rates,
    warning,
)
from prefloop.signals.judge.card import card
from prefloop.signals.judge.panel import PanelSignal, agreement
from prefloop.signals.judge.signal import JudgeSignal

__all__ = [
    "FEW_CASES",
    "HIGH_LONGER_WINS",
    "LOW_CONSISTENCY",
    "JudgeSignal",
    "PanelSignal",
    "agreement",
    "card",
    "check_noise",
    "check_nulls",
    "length_correlation",
    "rates",
    "warning",
]
