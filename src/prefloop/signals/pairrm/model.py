"""PairRM as people call it: `PairRM.from_pretrained("llm-blender/PairRM").matrix(source, candidates)`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch

from prefloop.backends.base import Logits
from prefloop.config.signals import EMBEDDED_PAIRRM
from prefloop.engine.load import SANDBOX, choose_device, resolve_model_path
from prefloop.signals.pairrm import checkpoint
from prefloop.signals.pairrm import matrix as arithmetic
from prefloop.signals.pairrm.network import PairRMNetwork
from prefloop.signals.pairrm.text import Encoded, Encoder, Pair

ATTENTION_BUDGET = 2**23
"""Most B·L² in one forward pass. DeBERTa holds several score matrices per head: 3 GiB with 16 heads in float32."""

Prompt = tuple[str, Sequence[str]]
"""A source and the answers to it."""


class PairRM:
    """A pairwise reward model: which of two answers to a request is better.

    Args:
        network, encoder: as `checkpoint.read` gives them.
        batch_size: pairs in one forward pass at most; long ones are fewer. Changes no logit beyond rounding.

    Attributes:
        truncated: how many texts lost their ends so far, counted once for each pair that they stand in. Of such an
            answer only the beginning was judged.
    """

    def __init__(self, network: PairRMNetwork, encoder: Encoder, batch_size: int = 64) -> None:
        self.network, self.encoder, self.batch_size = network.eval(), encoder, batch_size
        self.truncated = 0

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        revision: str | None = None,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        batch_size: int = 64,
    ) -> Self:
        """Load a checkpoint of either format.

        Args:
            path: a folder, a hub id, or `sandbox` for the embedded one.
            revision: branch, tag or commit on the hub.
            device: auto takes a GPU when there is one.
            dtype: of weights and compute. auto: float32 on a CPU, the checkpoint's on a GPU (bfloat16 in place of
                float16).

        Raises:
            UsageError: there is no such checkpoint, or it is no PairRM.
        """
        place = choose_device(str(device))
        where = resolve_model_path(EMBEDDED_PAIRRM if str(path) == SANDBOX else str(path))
        network, encoder = checkpoint.read(checkpoint.fetch(where, revision))
        return cls(network.to(place, _dtype(dtype, place, network)), encoder, batch_size)

    def save_pretrained(self, folder: str | Path) -> None:
        """Save in the format of PairRM-hf, limits and tokenizer included; it loads again without a hub."""
        checkpoint.write(Path(folder), self.network, self.encoder)

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.network.parameters()).dtype

    def logits(self, pairs: Sequence[Pair]) -> list[Logits]:
        """One logit for each (source, first answer, second answer), in their order.

        Every pair goes through the network, equal texts too; `matrix` leaves those out.
        """
        rows = self.encoder.encode(pairs)
        found: dict[int, Logits] = {}
        for batch in batches([len(row.ids) for row in rows], self.batch_size):
            found.update(zip(batch, self._forward([rows[i] for i in batch]), strict=True))
        return [found[i] for i in range(len(rows))]

    def matrices(self, prompts: Sequence[Prompt]) -> list[torch.Tensor]:
        """As `matrix`, of many prompts together; each may have another number of answers."""
        pairs: list[Pair] = []
        plans = []
        for source, candidates in prompts:
            firsts, member = arithmetic.distinct(candidates)
            seats = arithmetic.ordered_pairs(len(firsts))
            pairs += [(source, candidates[firsts[i]], candidates[firsts[j]]) for i, j in seats]
            plans.append((seats, member))
        logits = iter(self.logits(pairs))
        made = []
        for seats, member in plans:
            known = {pair: next(logits).values[0] for pair in seats}
            made.append(torch.tensor(arithmetic.expand(known, member)).reshape(len(member), len(member)))
        return made

    def matrix(self, source: str, candidates: Sequence[str]) -> torch.Tensor:
        """All pairs in both orders.

        Args:
            source: the request, as the user wrote it; an instruction goes in front without a separator.
            candidates: N answers, one or more.

        Returns:
            [N, N] float32 on the CPU: M[i][j] is the logit with i first and j second, 0 on the diagonal and between
            texts that are equal but for outer white space.
        """
        return self.matrices([(source, candidates)])[0]

    def scores(self, source: str, candidates: Sequence[str]) -> torch.Tensor:
        """(1/N) Σ_j (M[i][j] - M[j][i]), [N] float32, higher is better. They sum to 0; the scale depends on N."""
        return torch.tensor(arithmetic.scores(self.matrix(source, candidates).tolist()))

    def rank(self, source: str, candidates: Sequence[str]) -> list[int]:
        """1 for the best; ties share the better rank."""
        return arithmetic.ranks(arithmetic.scores(self.matrix(source, candidates).tolist()))

    def compare(self, source: str, first: str, second: str) -> float:
        """d = M[0][1] - M[1][0], both orders: > 0 where `first` is better; P(first is better) is its sigmoid."""
        return arithmetic.difference(self.matrix(source, [first, second]).tolist(), 0, 1)

    def best_of_n(self, source: str, candidates: Sequence[str]) -> str:
        """The answer with the highest score, the first of equals."""
        return candidates[self.rank(source, candidates).index(1)]

    def encode(self, pairs: Sequence[Pair]) -> list[Encoded]:
        """What the network reads of each pair."""
        return self.encoder.encode(pairs)

    def _forward(self, rows: Sequence[Encoded]) -> list[Logits]:
        batch = self.encoder.collate(rows)
        with torch.inference_mode():
            logits_B = self.network(*(t.to(self.device) for t in (batch.ids_BL, batch.mask_BL, batch.places_B3)))
        self.truncated += sum(row.cut for row in rows)
        return [Logits([value], row.cut) for value, row in zip(logits_B.tolist(), rows, strict=True)]


def batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices in batches of similar length, the longest first: what does not fit in memory fails early."""
    made: list[list[int]] = []
    room = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not made or len(made[-1]) >= room:
            # The first of a batch is its longest.
            room = max(1, min(batch_size, ATTENTION_BUDGET // max(lengths[index], 1) ** 2))
            made.append([])
        made[-1].append(index)
    return made


def _dtype(dtype: str | torch.dtype, device: torch.device, network: PairRMNetwork) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype != "auto":
        named: torch.dtype = getattr(torch, dtype)
        return named
    stored = next(network.parameters()).dtype
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if stored == torch.float16 else stored
