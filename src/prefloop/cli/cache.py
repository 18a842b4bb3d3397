"""`prefloop cache`: what is stored of models' answers, and where."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from prefloop.errors import UsageError
from prefloop.ui.console import results
from prefloop.ui.table import print_table as _table

cache = typer.Typer(help="The store of answers, scores and verdicts.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print the machine-readable result to stdout, last.")]


def cache_path() -> Path:
    """The project's cache: `$PREFLOOP_CACHE`, or `.prefloop/cache.db` in the current folder."""
    return Path(os.environ.get("PREFLOOP_CACHE") or ".prefloop/cache.db")


@cache.command("ls")
def cache_ls(as_json: Json = False) -> None:
    """List what is stored, by kind and model."""
    from prefloop.store.cache import Cache

    path = cache_path()
    groups: list[Any] = []
    if path.exists():
        with Cache(path) as store:
            groups = store.ls()
    _table(
        results(as_json=as_json),
        f"cache {path}",
        ["kind", "model", "entries", "bytes", "oldest", "newest"],
        [list(g.values()) for g in groups],
    )
    if as_json:
        print(json.dumps({"path": str(path), "entries": groups}))


@cache.command("show")
def cache_show(
    key: Annotated[str, typer.Argument(help="First digits of an entry's key; any entry without it.")] = "",
    kind: Annotated[str | None, typer.Option(help="Only entries of this kind (see ls).")] = None,
    model: Annotated[str | None, typer.Option(help="Only entries of this model (see ls).")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Entries to show.")] = 1,
    as_json: Json = False,
) -> None:
    """Show the newest answers; of a server's, what was sent and what came back, word for word."""
    from prefloop.store.cache import Cache

    path = cache_path()
    entries: list[Any] = []
    if path.exists():
        with Cache(path) as store:
            entries = store.show(key, kind, model, limit)
    if not entries:
        raise UsageError("no such entry is in the cache", where=str(path), fix="see prefloop cache ls")
    console = results(as_json=as_json)
    for entry in entries:
        call = entry["call"] or {}
        console.print(escape(f"{entry['kind']} {entry['key']} of {entry['model']}, {entry['created']}"), style="bold")
        for name, text in (("sent", call.get("request")), ("came back", call.get("response")), ("is", entry["value"])):
            if text is not None:
                shown = text if isinstance(text, str) else json.dumps(text, ensure_ascii=False, indent=2)
                console.print(f"{name}: {escape(shown)}", soft_wrap=True)
    if as_json:
        print(json.dumps({"entries": entries}, ensure_ascii=False))


@cache.command("prune")
def cache_prune(
    kind: Annotated[str | None, typer.Option(help="Only entries of this kind (see ls).")] = None,
    model: Annotated[str | None, typer.Option(help="Only entries of this model (see ls).")] = None,
    older_than_days: Annotated[float | None, typer.Option(min=0, help="Only entries older than this.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Empty the cache.")] = False,
    as_json: Json = False,
) -> None:
    """Delete stored answers; runs that need them compute them again."""
    from prefloop.store.cache import Cache

    if not everything and kind is None and model is None and older_than_days is None:
        raise UsageError("nothing says what to delete", fix="give --kind, --model, --older-than-days or --all")
    path = cache_path()
    removed, freed = 0, 0
    if path.exists():
        with Cache(path) as store:
            removed, freed = store.prune(kind=kind, model=model, older_than_days=older_than_days)
    results(as_json=as_json).print(f"{removed} entries deleted, {freed} bytes freed")
    if as_json:
        print(json.dumps({"deleted": removed, "bytes_freed": freed}))
