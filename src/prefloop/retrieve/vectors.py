"""Exact search among vectors by dot product: by numpy, a block of passages at a time, or by faiss (`IndexFlatIP`).

Both find the k best of each query and whatever ties with the k-th. They add up in different orders, so scores may
differ in the last place (tests/retrieve/test_vectors.py).
"""

from __future__ import annotations

from typing import Any, Protocol

from prefloop.errors import UsageError

BLOCK = 16_384
"""Passages whose scores numpy holds at once: of 1024 queries 64 MB."""

Array = Any


class Vectors(Protocol):
    """Passages that can be searched."""

    def search(self, queries_QD: Array, k: int) -> list[tuple[Array, Array]]:
        """For each query the rows of its k best passages and of all that tie with the k-th, and their scores."""
        ...


def hold(vectors_ND: Array, search: str) -> Vectors:
    """Vectors made ready for a search.

    Args:
        vectors_ND: float32.
        search: numpy or faiss.

    Raises:
        UsageError: faiss is asked for and not installed.
    """
    return Faiss(vectors_ND) if search == "faiss" else Blocks(vectors_ND)


class Blocks:
    """By numpy."""

    def __init__(self, vectors_ND: Array) -> None:
        self._vectors_ND = vectors_ND

    def search(self, queries_QD: Array, k: int) -> list[tuple[Array, Array]]:
        import numpy as np

        best: list[list[tuple[Array, Array]]] = [[] for _ in queries_QD]
        for first in range(0, len(self._vectors_ND), BLOCK):
            scores_QP = queries_QD @ self._vectors_ND[first : first + BLOCK].T
            for q, scores_P in enumerate(scores_QP):
                kept = top(scores_P, k)
                best[q].append((kept + first, scores_P[kept]))
        found = []
        for parts in best:
            rows = np.concatenate([rows for rows, _ in parts]) if parts else np.zeros(0, dtype=int)
            scores = np.concatenate([scores for _, scores in parts]) if parts else np.zeros(0)
            kept = top(scores, k)
            found.append((rows[kept], scores[kept]))
        return found


class Faiss:
    """By faiss, which holds a copy of the vectors and uses all processors that OMP_NUM_THREADS allows."""

    def __init__(self, vectors_ND: Array) -> None:
        import numpy as np

        self._index = require_faiss().IndexFlatIP(vectors_ND.shape[1])
        self._index.add(np.ascontiguousarray(vectors_ND, dtype=np.float32))

    def search(self, queries_QD: Array, k: int) -> list[tuple[Array, Array]]:
        import numpy as np

        count = self._index.ntotal
        found: list[tuple[Array, Array]] = [
            (np.zeros(0, dtype=int), np.zeros(0, dtype=np.float32)) for _ in queries_QD
        ]
        # One more than k says whether something ties with the k-th; of queries where it does more is asked for.
        left, most = np.arange(len(queries_QD)) if count else np.zeros(0, dtype=int), min(k + 1, count)
        while len(left):
            scores_LM, rows_LM = self._index.search(np.ascontiguousarray(queries_QD[left], dtype=np.float32), most)
            whole_L = scores_LM[:, -1] < scores_LM[:, min(k, most) - 1] if most < count else np.ones(len(left), bool)
            for q, rows, scores in zip(left[whole_L], rows_LM[whole_L], scores_LM[whole_L], strict=True):
                kept = top(scores, k)
                found[q] = rows[kept], scores[kept]
            left, most = left[~whole_L], min(2 * most, count)
        return found


def require_faiss() -> Any:
    """The package faiss.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise UsageError(
            f"search by faiss needs the package faiss ({error})",
            where="search: faiss",
            fix="pip install 'prefloop[faiss]', or set search: numpy, which finds the same",
        ) from error
    return faiss


def top(scores_N: Array, k: int) -> Array:
    """Places of the k best and of what ties with the k-th, in no order."""
    import numpy as np

    if len(scores_N) <= k:
        return np.arange(len(scores_N))
    least = np.partition(scores_N, len(scores_N) - k)[len(scores_N) - k]
    return np.flatnonzero(scores_N >= least)
