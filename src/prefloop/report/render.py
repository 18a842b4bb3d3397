"""From a report's data to one HTML file that needs nothing else: no network, no other files, no scripts."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment


def render(data: dict[str, Any], page: str = "report.html.j2") -> str:
    """A page as HTML, by default a run's report.

    Every text is escaped: answers of models may hold HTML (test_texts_of_models_and_users_are_escaped in
    tests/report/test_report.py).

    Args:
        data: what the page shows; of the report as `report.data.collect` gives it. Parts that are None or empty are
            left out of the page.
        page: its template.
    """
    return _environment().get_template(page).render(**data)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("prefloop.report"),
        autoescape=True,  # not by file name: `.html.j2` would not be recognised
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"share": share, "points": points, "count": count, "duration": duration, "short": short}
    return environment


def share(value: float | None, digits: int = 1) -> str:
    """0.873 as 87.3 %."""
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def points(value: float) -> str:
    """A difference of shares: 0.45 as +45.0; what rounds to 0 has no sign."""
    return f"{100 * value:+.1f}".replace("-", "−") if round(100 * value, 1) else "0.0"


def count(value: float | None) -> str:
    """12345 as 12,345."""
    return "–" if value is None else f"{value:,.0f}"


def duration(seconds: float | None) -> str:
    """Seconds as 8 s, 2 min 5 s or 3 h 4 min."""
    if seconds is None:
        return "–"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def short(text: str, length: int = 16) -> str:
    """A digest's beginning."""
    return text if len(text) <= length else text[:length] + "…"
