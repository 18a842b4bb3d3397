"""PairRM (Jiang et al. 2023, LLM-Blender): a cross-encoder that reads a request and two answers side by side.

`network` is the model, `text` its token sequence, `spm` a tokenizer from a SentencePiece file, `checkpoint` its
folders, `model` what people call, `backend` the same behind the seam of backends, `matrix` the arithmetic of its
verdicts, `signal` the signal, `training` the objective. Planning imports `signal`, `matrix` and `checkpoint`, so
`PairRM`, which needs torch, is imported when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefloop.signals.pairrm.model import PairRM

__all__ = ["PairRM"]


def __getattr__(name: str) -> Any:
    if name == "PairRM":
        from prefloop.signals.pairrm.model import PairRM

        return PairRM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
