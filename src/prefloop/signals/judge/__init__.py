"""Scores from a language model that reads the answers (LLM-as-a-judge, Zheng et al. 2023).

`signal.py` is the judge, `panel.py` several of them. `modes.py` makes questions of answers and scores of verdicts,
`ask.py` puts the questions, `verdicts.py` says what a verdict is and reads it. `checks.py` says when verdicts are of
no use; `card.py` tells a judge's habits, which `signals.bias` counts.
"""

from prefloop.signals.judge.card import card
from prefloop.signals.judge.checks import check_noise, check_nulls, warning
from prefloop.signals.judge.panel import PanelSignal, agreement
from prefloop.signals.judge.signal import JudgeSignal

__all__ = ["JudgeSignal", "PanelSignal", "agreement", "card", "check_noise", "check_nulls", "warning"]
