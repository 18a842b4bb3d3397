"""AlpacaEval's files, read and written: outputs, verdicts, leaderboard, and an annotator's folder with its cache.

What is written here the stock `alpaca_eval` CLI reads offline: it finds our verdicts in the annotator's cache, asks
nobody, and prints the same win rate (tests/evaluate/test_alpaca_eval_cli.py runs it). Numbers of the published files
are computed from them to the last place (tests/evaluate/test_length_control.py).
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefloop.errors import UsageError
from prefloop.evaluate.win_rate import preference, summarize
from prefloop.store import atomic

ROW = ("instruction", "output_1", "generator_1", "output_2", "generator_2", "dataset", "annotator", "preference")
LEADERBOARD = (
    *("win_rate", "standard_error", "n_wins", "n_wins_base", "n_draws", "n_total", "discrete_win_rate", "mode"),
    *("avg_length", "length_controlled_winrate", "lc_standard_error"),
)
CONFIG = "configs.yaml"
# The name that AlpacaEval makes of its default seed and the configuration's name.
CACHE = "annotations_seed0_configs.json"
# What its cache holds for an example that was asked about in vain; without it, it would ask again.
CACHED_NULL = -1

Rows = list[dict[str, Any]]


def read_outputs(path: str | Path, generator: str | None = None) -> Rows:
    """Answers of one model: rows of instruction, output, generator, and what else the file has.

    Args:
        path: a JSON list, such as `model_outputs.json`.
        generator: the model's name where the file has none.

    Raises:
        UsageError: a row has no instruction or output, the generator is not one, or an instruction stands there twice.
    """
    rows = _read(path)
    for i, row in enumerate(rows):
        for name in ("instruction", "output"):
            if not isinstance(row.get(name), str):
                raise UsageError(f"no text {name!r}", where=f"{path}, row {i}", fix="give instruction and output")
        row["generator"] = row.get("generator") or generator or Path(path).stem
    _one_each([row["instruction"] for row in rows], str(path))
    names = sorted({str(row["generator"]) for row in rows})
    if len(names) > 1:
        raise UsageError(f"is of {len(names)} generators: {', '.join(names)}", where=str(path), fix="a file for each")
    return rows


def write_outputs(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of instruction, output, generator (and dataset) as AlpacaEval reads them."""
    _one_each([row["instruction"] for row in rows], str(path))
    atomic.write_json(path, list(rows))


def paired(reference: Sequence[Mapping[str, Any]], model: Sequence[Mapping[str, Any]]) -> Rows:
    """Answers to be compared, joined by instruction in the reference's order; preference and annotator are None.

    Raises:
        UsageError: an instruction has an answer of one of the two only.
    """
    answers = {row["instruction"]: row for row in model}
    missing = [row["instruction"] for row in reference if row["instruction"] not in answers]
    surplus = answers.keys() - {row["instruction"] for row in reference}
    if missing or surplus:
        raise UsageError(
            f"{len(missing)} instructions are answered by the reference only, {len(surplus)} by the model only; the "
            f"first: {[*missing, *sorted(surplus)][0][:80]!r}",
            fix="let both answer the same instructions",
        )
    return [
        {
            "instruction": row["instruction"],
            "output_1": row["output"],
            "generator_1": row.get("generator"),
            "output_2": (answer := answers[row["instruction"]])["output"],
            "generator_2": answer.get("generator"),
            "dataset": row.get("dataset") or answer.get("dataset"),
            "annotator": None,
            "preference": None,
        }
        for row in reference
    ]


def outputs(annotations: Sequence[Mapping[str, Any]], seat: int) -> Rows:
    """The answers that were compared, as rows of an outputs file.

    Args:
        annotations: rows with verdicts.
        seat: 1 for the baseline's, 2 for the model's.
    """
    rows = []
    for row in annotations:
        answer = {
            "instruction": row["instruction"],
            "output": row[f"output_{seat}"],
            "generator": row.get(f"generator_{seat}") or ("baseline", "model")[seat - 1],
        }
        rows.append(answer | ({} if row.get("dataset") is None else {"dataset": row["dataset"]}))
    return rows


def read_annotations(path: str | Path, needed: Sequence[str] = ()) -> Rows:
    """Verdicts: a JSON list such as `annotations.json`, or an annotator's cache.

    Args:
        needed: keys that must hold a text in every row, such as both answers where lengths are measured.

    Returns:
        Rows with every key of ROW; what the file does not have is None. preference is 1 (the baseline is better) to 2
        (the model is), or None; 0, an old code for a tie, becomes 1.5, text is read as a number, and what lies outside
        1..2 is None. Further keys stay as they are.

    Raises:
        UsageError: the file is no list of rows, a row lacks one of `needed`, or a preference is no number.
    """
    found = []
    for i, row in enumerate(_read(path)):
        missing = next((name for name in needed if not isinstance(row.get(name), str)), None)
        if missing is not None:
            held = f"is {row[missing]!r:.40}, no text" if row.get(missing) is not None else "is missing"
            raise UsageError(
                held, where=f"{path}, row {i}, {missing}", fix=f"every row needs the texts {', '.join(needed)}"
            )
        try:
            verdict = preference(row.get("preference"), i)
        except UsageError as error:
            raise UsageError(error.what, where=f"{path}, row {i}, preference", fix=error.fix) from error
        found.append({**dict.fromkeys(ROW), **row, "preference": verdict})
    return found


def write_annotations(path: str | Path, annotations: Sequence[Mapping[str, Any]]) -> None:
    """Write verdicts as `annotations.json`; the common keys first."""
    atomic.write_json(path, [{**{name: row.get(name) for name in ROW}, **row} for row in annotations])


def leaderboard_row(
    annotations: Sequence[Mapping[str, Any]], controlled: Mapping[str, Any] | None = None, mode: str = "community"
) -> dict[str, Any]:
    """One model's line of a leaderboard.

    Args:
        annotations: its verdicts, with output_2.
        controlled: what `length_controlled` returned, None where it was not measured.
        mode: AlpacaEval's word for who measured.
    """
    row: dict[str, Any] = dict(summarize([r["preference"] for r in annotations]))
    row.pop("n_excluded")
    row |= {"mode": mode, "avg_length": average_length(annotations)}
    for name in ("length_controlled_winrate", "lc_standard_error"):
        row[name] = None if controlled is None else controlled[name]
    return {name: row[name] for name in LEADERBOARD}


def average_length(annotations: Sequence[Mapping[str, Any]]) -> int:
    """Mean characters of the model's answers, cut to a whole number as AlpacaEval does."""
    return int(math.fsum(len(row["output_2"]) for row in annotations) / len(annotations))


def read_leaderboard(path: str | Path) -> dict[str, dict[str, Any]]:
    """A leaderboard: model -> its row; numbers are numbers, empty cells None.

    Raises:
        UsageError: there is no win_rate.
    """
    text = Path(path).read_text(encoding="utf-8")
    reader = csv.DictReader(io.StringIO(text, newline=""))
    names = list(reader.fieldnames or [])
    if "win_rate" not in names:
        raise UsageError("has no column win_rate", where=str(path), fix="give AlpacaEval's leaderboard.csv")
    return {row[names[0]]: {name: _cell(row[name]) for name in names[1:]} for row in reader}


def write_leaderboard(path: str | Path, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Write a leaderboard, the best win rate first; the first column, the model's name, has no name itself."""
    extra = dict.fromkeys(name for row in rows.values() for name in row if name not in LEADERBOARD)
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, ["", *LEADERBOARD, *extra], lineterminator="\n")
    writer.writeheader()
    for name, row in sorted(rows.items(), key=lambda item: -(item[1].get("win_rate") or 0)):
        writer.writerow({"": name, **row})
    atomic.write_text(path, stream.getvalue())


def write_annotator(
    folder: str | Path,
    annotations: Sequence[Mapping[str, Any]],
    *,
    prompt: str,
    config: Mapping[str, Any] | None = None,
) -> None:
    """Write an annotator's folder whose cache has our verdicts, for `alpaca_eval --annotators_config FOLDER`.

    It has a configuration under the folder's name, the prompt, and the cache. A null verdict is cached as one: it is
    not asked about again and does not count.

    Args:
        folder: of this annotator alone; made where it is not there.
        annotations: rows with instruction, both outputs and preference.
        prompt: what the judge was asked, as a text for people.
        config: more of AlpacaEval's settings (fn_completions, completions_kwargs, …), to ask where the cache has none.
    """
    import yaml

    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    name = out.resolve().name
    atomic.write_text(out / "prompt.txt", prompt)
    settings = {"prompt_template": f"{name}/prompt.txt", "fn_completions": None, **(config or {})}
    atomic.write_text(out / CONFIG, yaml.safe_dump({name: settings}, sort_keys=False))
    rows = []
    for row in annotations:
        verdict = row.get("preference")
        found = {key: row[key] for key in ("instruction", "output_1", "output_2")}
        rows.append(found | {"annotator": name, "preference": CACHED_NULL if verdict is None else verdict})
    atomic.write_json(out / CACHE, rows)


def read_annotator(folder: str | Path) -> tuple[dict[str, dict[str, Any]], Rows]:
    """An annotator's configurations by name, and the verdicts in its cache (none where there is none).

    Raises:
        UsageError: the folder has no configuration.
    """
    import yaml

    path = Path(folder) / CONFIG
    try:
        configs = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UsageError(f"cannot be read: {error}", where=str(path), fix="give an annotator's folder") from error
    if not isinstance(configs, dict) or not all(isinstance(c, dict) for c in configs.values()):
        raise UsageError("is no table of configurations by name", where=str(path), fix="give an annotator's folder")
    cache = Path(folder) / CACHE
    return configs, read_annotations(cache) if cache.exists() else []


def _one_each(instructions: Sequence[str], where: str) -> None:
    twice = [text for text, n in Counter(instructions).items() if n > 1]
    if twice:
        raise UsageError(
            f"{len(twice)} instructions stand there more than once, the first: {twice[0][:80]!r}",
            where=where,
            fix="AlpacaEval joins answers by instruction: give one answer for each",
        )


def _read(path: str | Path) -> Rows:
    try:
        rows = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError("no such file", where=str(path), fix=f"check the path (looked from {Path.cwd()})") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot be read: {error}", where=str(path), fix="give a JSON list of rows") from error
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise UsageError("is no JSON list of rows", where=str(path), fix="give a file as AlpacaEval writes it")
    return rows


def _cell(text: str | None) -> Any:
    if text is None or text == "":
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
