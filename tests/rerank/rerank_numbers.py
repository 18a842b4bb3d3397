"""Inputs of known numbers, by a formula, so that anybody can make them again."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LABELS = torch.tensor([1, 0, 0, 1])
"""The published labels 1, 2, 2, 1: 2 is unaligned."""


def seq(*shape: int, a: float = 0.7, b: float = 0.3, scale: float = 1.0) -> Tensor:
    """scale·(sin(a·i + b) + 0.5·cos(1.9·a·i)) over the flat index i, float64."""
    i = torch.arange(math.prod(shape), dtype=torch.float64)
    return (scale * (torch.sin(a * i + b) + 0.5 * torch.cos(1.9 * a * i))).reshape(shape)
