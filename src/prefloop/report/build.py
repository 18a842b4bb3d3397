"""`prefloop report RUN`: a run directory's report.html."""

from __future__ import annotations

from pathlib import Path

from prefloop.errors import UsageError
from prefloop.report.data import collect
from prefloop.report.render import render
from prefloop.store import atomic
from prefloop.store.rundir import RunDir


def build_report(run_dir: Path) -> Path:
    """Write `report.html` from what is in a run directory, finished or not.

    Takes no lock: the loop calls it while it holds the run, `prefloop report` when nobody does.

    Returns:
        The file's path.

    Raises:
        UsageError: there is no run in this folder.
    """
    run = RunDir.peek(run_dir)
    if run.read_manifest() is None:
        raise UsageError("there is no run here", where=str(run_dir), fix="give the --out folder of a run")
    page = render(collect(run))
    target = Path(run_dir) / "report.html"
    with atomic.file(target) as stream:
        # A half character in a model's answer must not cost the report.
        stream.write(page.encode("utf-8", "backslashreplace"))
    return target
