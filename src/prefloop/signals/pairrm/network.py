"""The network: DeBERTa-v3 over source and both answers, and a head that compares what stands at the three prefixes.

Shapes: B pairs, L tokens, H hidden size, T tasks. Names of modules are those of the published checkpoints.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import DebertaV2Config, DebertaV2Model


class PairRMNetwork(nn.Module):
    """One signed logit per pair: > 0 where the answer in the first seat is the better one.

    Args:
        config: of the backbone; relative positions only, so inputs may be longer than `max_position_embeddings`.
        n_tasks: outputs of the head; their mean is the logit.
        dropout: of the head; off outside training.
    """

    def __init__(self, config: DebertaV2Config, n_tasks: int = 1, dropout: float = 0.05) -> None:
        super().__init__()
        width = config.hidden_size
        self.config = config
        self.n_tasks, self.dropout = n_tasks, dropout
        self.pretrained_model: Any = DebertaV2Model(config)
        self.head_layer = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(2 * width, width), nn.Tanh(), nn.Dropout(dropout), nn.Linear(width, n_tasks)
        )

    def states(self, ids_BL: torch.Tensor, mask_BL: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Hidden states behind the embeddings and behind every layer, each [B, L, H]."""
        found: tuple[torch.Tensor, ...] = self.pretrained_model(
            input_ids=ids_BL, attention_mask=mask_BL, output_hidden_states=True
        ).hidden_states
        return found

    def compare(self, hidden_BLH: torch.Tensor, places_B3: torch.Tensor) -> torch.Tensor:
        """Logits [B], float32, from the last layer and the positions of the three prefixes.

        left = f([source; first]), right = f([source; second]) with one head f, and the logit is mean_T(left - right).
        """
        rows_B1 = torch.arange(len(hidden_BLH), device=hidden_BLH.device)[:, None]
        source_BH, first_BH, second_BH = hidden_BLH[rows_B1, places_B3].unbind(dim=1)
        left_BT = self.head_layer(torch.cat([source_BH, first_BH], dim=-1))
        right_BT = self.head_layer(torch.cat([source_BH, second_BH], dim=-1))
        difference_B: torch.Tensor = (left_BT - right_BT).float().mean(dim=-1)
        return difference_B

    def forward(self, ids_BL: torch.Tensor, mask_BL: torch.Tensor, places_B3: torch.Tensor) -> torch.Tensor:
        """Logits [B] of right-padded sequences; mask 1 on tokens, 0 on padding."""
        return self.compare(self.states(ids_BL, mask_BL)[-1], places_B3)
