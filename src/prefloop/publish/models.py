"""A run's merged model or adapter as a folder of its own, with its card: what is uploaded, or handed on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from prefloop.errors import UsageError
from prefloop.publish import facts as of_run
from prefloop.publish.dataset import COUNTS, check_target
from prefloop.publish.facts import hub_id, public
from prefloop.publish.model_card import CARD, What, folder_of, model_card, own_base
from prefloop.store import atomic


def export_model(
    run_dir: Path, out: Path, what: What = "model", branch: str | None = None, round_number: int | None = None
) -> dict[str, Any]:
    """Copy the model that the run ends with, or its adapter, and write its card.

    Args:
        branch: another branch's of that round.
        round_number: another round's.
        out: the folder; put in place whole. An earlier export there is replaced.

    Returns:
        What `export.json` holds: name, what, round, branch and files.

    Raises:
        UsageError: the run has no such thing, the folder holds something else, or it is the adapter of a later round,
            which fits upon the model of the round before and upon none that others have.
    """
    facts = of_run.read(run_dir)
    number = facts.chosen()[0] if round_number is None else round_number
    if branch is None and number != facts.chosen()[0]:
        branch = facts.winner(number)
    branch = of_run.check_branch(facts, branch)
    if own := own_base(facts, what, number):
        other = "" if facts.recipe.get("first") else ", or the adapter of round 1 (--what adapter --round 1)"
        raise UsageError(
            f"the adapter of round {number} belongs to {own}, not to the recipe's",
            where=str(run_dir),
            fix=f"export the merged model (--what model){other}",
        )
    source = folder_of(facts, what, number, branch)
    if source is None or not source.is_dir():
        fix = "run it to its end" if what == "model" else "train with LoRA (train.lora), or export the model"
        of_round = f" of round {number}" if round_number is not None else ""
        raise UsageError(f"the run has no {what}{of_round}", where=str(run_dir), fix=fix)
    check_target(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic.directory(out) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)
        _hide_base(folder / "adapter_config.json", facts)
        atomic.write_text(folder / CARD, model_card(run_dir, what, number, branch))
        files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        found = {"name": facts.name, "what": what, "round": number, "branch": branch, "files": files}
        atomic.write_json(folder / COUNTS, found)
    return found


def _hide_base(config: Path, facts: of_run.Facts) -> None:
    """An adapter names the folder of its base on this machine: it gets the recipe's name for it, without folders."""
    if not config.is_file():
        return
    entries = json.loads(config.read_text(encoding="utf-8"))
    base = entries.get("base_model_name_or_path")
    if base and hub_id(base) is None:
        atomic.write_json(config, entries | {"base_model_name_or_path": public(facts.recipe["model"]["path"])})
