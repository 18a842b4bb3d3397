"""`prefloop export` and `prefloop votes`: what leaves a run, and what people say of it."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from prefloop.errors import UsageError
from prefloop.ui.console import results

Json = Annotated[bool, typer.Option("--json", help="Print the machine-readable result to stdout, last.")]
Run = Annotated[Path, typer.Argument(help="A run directory.")]

Branch = Annotated[
    str | None, typer.Option(help="Of a recipe with branches, which; without it that of the run's model.")
]

votes = typer.Typer(help="Sheets of pairs for people to vote on.", no_args_is_help=True)


class What(StrEnum):
    """What of a run is exported."""

    pairs = "pairs"
    model = "model"
    adapter = "adapter"


def export(
    run: Run,
    out: Annotated[Path, typer.Option("--out", help="Folder to write; an earlier export there is replaced.")],
    what: Annotated[What, typer.Option(help="The pairs as a data set, or the last round's model or adapter.")] = (
        What.pairs
    ),
    licence: Annotated[
        str | None, typer.Option("--licence", "--license", help="For the data set's card, such as cc-by-4.0.")
    ] = None,
    push: Annotated[str | None, typer.Option(help="Upload to this repository of the hub (ORG/NAME).")] = None,
    public: Annotated[bool, typer.Option(help="Make the repository public; without it, private.")] = False,
    branch: Branch = None,
    round_number: Annotated[
        int | None, typer.Option("--round", min=1, help="Of a model or adapter: another round's than the run's.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a run's pairs, model or adapter as a folder with a card, for others to load."""
    from prefloop.publish.dataset import export_pairs
    from prefloop.publish.hub import push as upload
    from prefloop.publish.models import export_model

    console = results(as_json=as_json)
    if what is What.pairs:
        if round_number is not None:
            raise UsageError(
                "the pairs of all rounds are exported", where="--round", fix="load one: its configuration is round-N"
            )
        result = export_pairs(run, out, licence, branch)
        console.print(f"{result['pairs']:,} pairs of {result['prompts']:,} prompts: {escape(str(out))}")
    else:
        result = export_model(run, out, "model" if what is What.model else "adapter", branch, round_number)
        console.print(f"{what.value}: {escape(str(out))}")
    if push is not None:
        address = upload(out, push, "dataset" if what is What.pairs else "model", private=not public)
        result = result | {"address": address}
        console.print(f"uploaded: {escape(address)}")
    if as_json:
        print(json.dumps(result))


@votes.command("export")
def votes_export(
    run: Run,
    out: Annotated[Path, typer.Argument(help="The sheet, a .csv file; its key lies beside it.")],
    limit: Annotated[int | None, typer.Option(min=1, help="That many pairs, drawn at random.")] = None,
    seed: Annotated[int, typer.Option(help="Of order and seats.")] = 0,
    branch: Branch = None,
    as_json: Json = False,
) -> None:
    """Write a run's pairs as a sheet to vote on: seats at random, nothing tells which answer was chosen."""
    from prefloop.publish.sheets import export_sheet

    result = export_sheet(run, out, limit=limit, seed=seed, branch=branch)
    results(as_json=as_json).print(
        f"{result['pairs']:,} pairs: {escape(result['sheet'])}; keep its key: {escape(result['key'])}"
    )
    if as_json:
        print(json.dumps(result))


@votes.command("import")
def votes_import(
    key: Annotated[Path, typer.Argument(help="The sheet's key (.key.jsonl).")],
    sheets: Annotated[list[Path], typer.Argument(help="Filled copies of the sheet.")],
    out: Annotated[Path, typer.Option("--out", help="Votes to write, a .jsonl file.")],
    as_json: Json = False,
) -> None:
    """Join filled sheets, undo the seats, and say how far the voters agree."""
    from prefloop.inputs.votes import agreement_line
    from prefloop.publish.sheets import import_sheets

    result = import_sheets(key, sheets, out)
    console = results(as_json=as_json)
    console.print(f"{result['votes']:,} votes, {result['blank']:,} rows left empty: {escape(result['out'])}")
    if result["repeated"]:
        said = f"{result['repeated']:,} second votes of the same voter left out; the column voter tells voters apart"
        console.print(said)
    console.print(agreement_line(result["agreement"]))
    if result["first_seat"] is not None:
        console.print(f"the answer in seat a won {result['first_seat']:.0%} of the decided votes (50 % is unbiased)")
    if as_json:
        print(json.dumps(result))
