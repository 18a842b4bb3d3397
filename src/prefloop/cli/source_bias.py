"""`prefloop evaluate source-bias`: do retrievers favour rewritten texts, on any collection, without any training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal, cast

import typer
from rich.markup import escape

from prefloop.errors import UsageError
from prefloop.ui.console import results
from prefloop.ui.table import print_table


def source_bias(
    corpus: Annotated[
        str,
        typer.Option(
            help="Folder or zip with corpus/<source>.jsonl, queries.jsonl and qrels/<split>.tsv; or cocktail:NAME, "
            "which is fetched from the hub."
        ),
    ],
    retriever: Annotated[
        list[str],
        typer.Option(
            help="[NAME=] and bm25, hub id or folder of an encoder or cross-encoder, or a section in braces "
            "({path: ORG/QUERIES, passages: ORG/PASSAGES}); again for more."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for summary.json, queries.csv and report.html.")],
    source: Annotated[
        list[str] | None, typer.Option(help="Sources to compare with the human one; all without it.")
    ] = None,
    human: Annotated[str, typer.Option(help="The source of the original passages.")] = "human",
    split: Annotated[str, typer.Option(help="Judgements: qrels/<split>.tsv.")] = "test",
    no_hit: Annotated[
        str, typer.Option("--no-hit", help="Queries without any hit: drop (as published), or zero.")
    ] = "drop",
    ties: Annotated[
        str, typer.Option(help="Equal scores: trec (as trec_eval, published), or neutral; the other stands beside.")
    ] = "trec",
    k: Annotated[list[int] | None, typer.Option("--k", min=1, help="Cut-off, again for more: 1 3 5 10 100.")] = None,
    titles: Annotated[
        bool, typer.Option("--titles", help="Retrievers read titles too; published: text only.")
    ] = False,
    semantic: Annotated[
        str | None, typer.Option(help="Encoder for the similarity of rewrites to the human text.")
    ] = None,
    resamples: Annotated[int, typer.Option(min=100, help="Of each bootstrap, and flips of each test.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Of bootstraps and tests.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary to stdout, last.")] = False,
    plain: Annotated[bool, typer.Option("--plain", help="Plain lines instead of a live display.")] = False,
) -> None:
    """Measure whether retrievers favour rewritten passages over the human ones (Relative Δ, after Cocktail)."""
    from prefloop.cli.cache import cache_path
    from prefloop.evaluate.source_task import KS, Settings
    from prefloop.measure import source_bias as verb
    from prefloop.ui.progress import Progress

    for name, value, choices in (("--no-hit", no_hit, ("drop", "zero")), ("--ties", ties, ("trec", "neutral"))):
        if value not in choices:
            raise UsageError(f"{value} is none of {', '.join(choices)}", where=name, fix="give one of them")
    settings = Settings(
        human=human,
        ks=tuple(k) if k else KS,
        no_hit=no_hit,
        ties=cast(Literal["trec", "neutral"], ties),
        titles=titles,
        resamples=resamples,
        seed=seed,
    )
    sections = verb.retriever_sections(retriever)
    meaning = None if semantic is None else next(iter(verb.retriever_sections([semantic]).values()))
    with Progress(plain=plain, title=f"source-bias → {out}") as progress:
        summary = verb.measure(
            *(corpus, sections, out, cache_path(), progress),
            settings=settings,
            sources=source,
            split=split,
            semantic=meaning,
        )
    console = results(as_json=as_json)
    found = summary["corpus"]
    title = f"{found['passages']:,} passages in {len(found['sources'])} versions, {found['queries']:,} queries"
    print_table(console, title, verb.COLUMNS, [[escape(cell) for cell in row] for row in verb.lines(summary)])
    for line in verb.sentences(summary):
        console.print(escape(line), soft_wrap=True)
    for name, texts in summary["evaluate"]["source_texts"].items():
        said = (
            f"{name}: {texts['length_ratio']['value']:.2f} words to one of the human text, "
            f"word overlap {texts['overlap']['value']:.2f}, copied {texts['copied']['value']:.1%}"
        )
        if "similarity" in texts:
            said += f", similarity {texts['similarity']['value']:.3f}"
        console.print(escape(said), soft_wrap=True)
    if found["queries"] < 200:
        few = f"{found['queries']} queries do not tell a few points from chance: read the intervals, pool collections"
        console.print(few, soft_wrap=True)
    console.print(escape(f"page: {out / 'report.html'}"), soft_wrap=True)
    if as_json:
        print(json.dumps(summary))
