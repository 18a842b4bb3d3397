"""What the length-controlled win rate is computed from: difficulties, regulariser rows, published weights.

All of it is AlpacaEval's and CC BY-NC 4.0, so none is in this package: files are given, or the regulariser, which has
the difficulties too, is fetched from the hub and checked by its SHA-256.
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from prefloop.errors import UsageError
from prefloop.evaluate.alpaca_prompts import PROMPTS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

HUB = ("tatsu-lab/alpaca_eval", "df_gamed.csv")
OFFICIAL_SHA256 = "97aeec3f1c7de6dee6fd31fe66f1702623f4614c3efe1c6fc5f4927cd5fd674d"

# Names of the three weights in AlpacaEval's files, in the order of the design's columns.
COLUMNS = ("np.tanh(std_delta_len)", "instruction_difficulty", "not_gamed_baseline.astype(float)")


class Weights(NamedTuple):
    """What a model's fit found: of length (below 0: longer answers win), of difficulty, and of the model itself."""

    length: float
    difficulty: float
    model: float


@dataclass(frozen=True)
class Gamed:
    """The regulariser: verdicts on a baseline that was told to be brief or wordy, against itself.

    Attributes:
        z_G: tanh of the standardised length difference; g_G: difficulties; y_G: preferences, 0..1.
        difficulties: [805], of AlpacaEval's prompts.
        sha256: of the file.
    """

    z_G: Array
    g_G: Array
    y_G: Array
    difficulties: Array
    sha256: str


def read_weights(path: str | Path) -> dict[str, Weights]:
    """Published weights of length control: model -> weights. The first column is the model's name."""
    table = _read_csv(path, COLUMNS)
    return {next(iter(row.values())): Weights(*(_number(row, name, path, i) for name in COLUMNS)) for i, row in table}


def read_difficulties(source: str | Path | Sequence[float] | None) -> Array:
    """[805] difficulties from a file like `instruction_difficulty.csv` (columns index, instruction_difficulty).

    Raises:
        UsageError: they are not 805, or not one for every prompt.
    """
    import numpy as np

    if source is None:
        raise UsageError("no difficulties are given", fix="give difficulties=FILE, or gamed=FILE, which has them too")
    if isinstance(source, (str, Path)):
        table = _read_csv(source, ("instruction_difficulty",))
        index = next(iter(table[0][1]))
        found = {int(row[index]): _number(row, "instruction_difficulty", source, i) for i, row in table}
        values = [found[i] for i in range(len(found)) if i in found]
    else:
        values = [float(v) for v in source]
    if len(values) != PROMPTS:
        raise UsageError(
            f"{len(values)} difficulties, not one for each of AlpacaEval's {PROMPTS} prompts",
            where=str(source) if isinstance(source, (str, Path)) else None,
            fix="give the whole instruction_difficulty.csv",
        )
    return np.array(values)


def read_gamed(path: str | Path | None = None) -> Gamed:
    """The regulariser's rows from a file like `df_gamed.csv`, or the official file from the hub.

    Columns: index (position of the prompt), preference (0..1), std_delta_len, instruction_difficulty.

    Raises:
        UsageError: the file is not such a one; from the hub: it cannot be reached, or is not the published file.
    """
    import numpy as np

    file = Path(path) if path is not None else fetch_gamed()
    names = ("preference", "std_delta_len", "instruction_difficulty")
    table = _read_csv(file, ("index", *names))
    y_G, d_G, g_G = (np.array([_number(row, name, file, i) for i, row in table]) for name in names)
    difficulty = dict(zip((int(row["index"]) for _, row in reversed(table)), reversed(g_G.tolist())))
    return Gamed(
        np.tanh(d_G),
        g_G,
        y_G,
        read_difficulties([difficulty[i] for i in range(len(difficulty)) if i in difficulty]),
        hashlib.sha256(file.read_bytes()).hexdigest(),
    )


def fetch_gamed() -> Path:
    """The official `df_gamed.csv` in the hub's cache, downloaded where it is not there.

    Raises:
        UsageError: it cannot be had, or its SHA-256 is not the published one.
    """
    from huggingface_hub import errors, hf_hub_download

    repo, name = HUB
    try:
        file = Path(hf_hub_download(repo, name, repo_type="dataset"))
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError) as error:
        raise UsageError(
            f"AlpacaEval's regulariser {name} is not in the local cache and not to be had ({type(error).__name__})",
            where=f"hub:{repo}",
            fix=f"give the file, or fetch it once: hf download --repo-type dataset {repo} {name}",
        ) from error
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != OFFICIAL_SHA256:
        raise UsageError(
            f"is not the published file: SHA-256 {found}, not {OFFICIAL_SHA256}",
            where=str(file),
            fix="remove it from the cache and fetch it again, or give a file of your own by name",
        )
    return file


def _read_csv(path: str | Path, needed: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """(line, row) of a table; the columns that are needed are there and so is a row."""
    try:
        with Path(path).open(encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream)
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot be read: {error}", where=str(path)) from error
    missing = [name for name in needed if name not in (reader.fieldnames or ())]
    if missing or not rows:
        raise UsageError(
            f"has no column {missing[0]!r}" if missing else "has no rows",
            where=str(path),
            fix=f"give a file with {', '.join(needed)}",
        )
    return rows


def _number(row: Mapping[str, str], name: str, path: str | Path, line: int) -> float:
    try:
        value = float(row[name])
    except (TypeError, ValueError):
        raise UsageError(f"{row[name]!r} is no number", where=f"{path}, line {line}, {name}") from None
    if not math.isfinite(value):
        raise UsageError(f"{value} is no number to fit with", where=f"{path}, line {line}, {name}")
    return value
