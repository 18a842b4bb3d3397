"""`prefloop rerank train` and `prefloop rerank apply`: a reranker outside a run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from prefloop.errors import Interrupted, UsageError
from prefloop.ui.console import results
from prefloop.ui.table import print_table

app = typer.Typer(help="Train a reranker on what helps a reader, and rerank with it.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print the machine-readable result to stdout, last.")]
Plain = Annotated[bool, typer.Option("--plain", help="Plain lines instead of a live display.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]


@app.command()
def train(
    rows: Annotated[str, typer.Argument(help="Rankings: JSONL, JSON, Parquet or hub:ORG/NAME (docs/rerank.md).")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(help="Settings to change, as learning_rate=2e-5.", metavar="[A=B]..."),
    ] = None,
    model: Annotated[
        str, typer.Option(help="What training starts from: hub id or folder of an encoder or cross-encoder.")
    ] = "sandbox",
    out: Annotated[Path, typer.Option("--out", help="Folder of the training; the reranker is its model/.")] = Path(
        "runs/rerank"
    ),
    validation: Annotated[
        str | None, typer.Option(help="Rankings to choose the best epoch by; without it a share of ROWS.")
    ] = None,
    test: Annotated[
        str | None, typer.Option(help="Rankings to measure on at the end; without it a share of ROWS.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of fresh layers and the order of queries.")] = 42,
    plain: Plain = False,
    as_json: Json = False,
) -> None:
    """Train a reranker with up to three losses at once: point-wise, pair-wise, contrastive."""
    from prefloop.config import RerankSection
    from prefloop.config.load import parse_section
    from prefloop.rerank.files import read
    from prefloop.rerank.run import train_reranker
    from prefloop.ui.progress import Progress

    section: RerankSection = parse_section(RerankSection, {"model": model}, settings)
    given = {"validation": validation, "test": test}
    kept: Any = {name: None if path is None else read(path) for name, path in given.items()}
    with Progress(plain=plain, title=f"rerank {section.model}") as progress:
        progress.stage("train", 1, 1)

        def on_log(record: dict[str, Any]) -> None:
            if record["kind"] == "train":
                progress.update(**{name: record[name] for name in ("loss", *section.losses) if name in record})
            elif section.metric in record:
                progress.update(**{f"validation {section.metric}": record[section.metric]})

        def on_step(done: int, total: int) -> None:
            progress.total(total, "steps")
            progress.at(done)

        try:
            result = train_reranker(read(rows), section, out, seed=seed, on_log=on_log, on_step=on_step, **kept)
        except KeyboardInterrupt as interruption:
            raise Interrupted("stopped", fix="start the same command again to go on") from interruption
    console = results(as_json=as_json)
    columns = [("start", result["start"]), ("best", (result["best"] or {}).get("measures")), ("test", result["test"])]
    shown = [(name, found) for name, found in columns if found]
    if shown:
        names = list(dict.fromkeys(name for _, found in shown for name in found))
        table = [[name, *(f"{found[name]:.4g}" if name in found else "" for _, found in shown)] for name in names]
        title = f"{result['groups']:,} queries trained on, {result['rejected']:,} rows left out"
        print_table(console, title, ["", *(name for name, _ in shown)], table)
    console.print(f"reranker: {escape(str(out / result['model']))}", soft_wrap=True)
    if as_json:
        print(json.dumps(result))


@app.command()
def apply(
    model: Annotated[str, typer.Argument(help="A reranker: folder or hub id of a cross-encoder with one logit.")],
    rows: Annotated[str, typer.Argument(help="Queries with documents: JSONL, JSON, Parquet or hub:ORG/NAME.")],
    out: Annotated[
        Path,
        typer.Option("--out", help="JSON Lines to write: the rows, best documents first, with the reranker's scores."),
    ],
    top: Annotated[int | None, typer.Option(min=1, help="Documents to keep of each query.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pairs in one forward pass.")] = 64,
    max_length: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a pair; without it the model's own.")
    ] = None,
    device: Device = "auto",
    plain: Plain = False,
    as_json: Json = False,
) -> None:
    """Rerank documents; where rows have labels, measure the order too."""
    from prefloop.rerank.files import read
    from prefloop.rerank.groups import ranking_of
    from prefloop.rerank.metrics import ranking
    from prefloop.rerank.run import rerank
    from prefloop.store import atomic
    from prefloop.ui.progress import Progress

    if not out.parent.is_dir() or out.is_dir():
        reason = "is a folder" if out.is_dir() else f"there is no folder {out.parent}"
        raise UsageError(reason, where=str(out), fix="give a file in a folder that is there")
    if out.exists() and Path(rows).exists() and out.samefile(rows):
        raise UsageError("is the file that is read, and its scores would be lost", where=str(out), fix="give another")
    found = [row if isinstance(row, dict) else ranking_of(row) for row in read(rows)]
    pairs = sum(len(row["documents"]) for row in found)
    with Progress(plain=plain, title=f"rerank with {model}") as progress:
        progress.stage("rerank", 1, 1)
        progress.total(pairs, "pairs")
        asked = [(row["query"], row["documents"]) for row in found]
        scored = rerank(
            model, asked, batch_size=batch_size, device=device, max_length=max_length, on_pairs=progress.advance
        )
        scores = list(scored)

    def lines() -> Iterator[str]:
        for row, own in zip(found, scores, strict=True):
            order = sorted(range(len(own)), key=lambda i: (-own[i], i))[:top]
            lists = {name: [row[name][i] for i in order] for name in ("document_ids", "documents", "labels")}  # type: ignore[literal-required]
            yield json.dumps({**row, **lists, "scores": [own[i] for i in order]}, ensure_ascii=False) + "\n"

    atomic.write_text(out, "".join(lines()))
    measures = ranking(found, scores)
    console = results(as_json=as_json)
    if measures:
        print_table(console, "order of the labelled rows", list(measures), [[f"{v:.4g}" for v in measures.values()]])
    console.print(f"{len(found):,} queries, {pairs:,} pairs: {escape(str(out))}", soft_wrap=True)
    if as_json:
        print(json.dumps({"queries": len(found), "pairs": pairs, "out": str(out), "measures": measures}))
