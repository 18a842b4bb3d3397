"""In which precision the policy is held and computed: one rule for the reference and for training alike."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from prefloop.errors import UsageError


@dataclass(frozen=True)
class Precision:
    """float32 throughout, or bfloat16 compute under autocast.

    Trained weights are float32 always: an AdamW step of 5e-5 is below bfloat16's resolution of most weights. With
    LoRA these are the adapter's only, so the frozen base may lie in bfloat16; without, all weights are float32.
    """

    device: torch.device
    compute: torch.dtype

    @classmethod
    def choose(cls, device: torch.device, dtype: torch.dtype, *, grouped: bool = False) -> Precision:
        """The precision for a model that is to run in `dtype`.

        Args:
            grouped: this is one process of several, each with a GPU of its own.

        Raises:
            UsageError: float16, whose small gradients vanish without loss scaling; or, for a process alone, a device
                other than the first.
        """
        if dtype not in (torch.float32, torch.bfloat16):
            raise UsageError(
                f"training in {str(dtype).removeprefix('torch.')} is not supported",
                fix="set model.dtype=bfloat16, or float32",
            )
        if device.type == "cuda" and device.index not in (None, 0) and not grouped:
            raise UsageError(
                f"training runs on the first visible GPU, not on {device}",
                fix=f"set CUDA_VISIBLE_DEVICES={device.index} and model.device=cuda",
            )
        return cls(device, dtype)

    @property
    def name(self) -> str:
        """float32 or bfloat16."""
        return str(self.compute).removeprefix("torch.")

    def weights(self, *, frozen: bool) -> torch.dtype:
        """The dtype in which to load the base: that of the compute when it stays frozen."""
        return self.compute if frozen else torch.float32

    def autocast(self) -> AbstractContextManager[object]:
        """Around every forward pass."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.compute == torch.bfloat16)
