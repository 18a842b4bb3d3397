"""Small SVG charts for the report: lines, histograms, values with their intervals.

Written here rather than drawn by matplotlib: these follow the page's colours in light and dark (CSS variables), keep
their text as text, stretch with the page, and take 2 to 6 KB where matplotlib's take 30 and fixed colours.

Colours are CSS classes, `c0` to `c3`; the page defines them. All functions return markup that is safe in HTML.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 340, 176
LEFT, RIGHT, TOP, BOTTOM = 40, 14, 8, 22
MOST_POINTS = 400


@dataclass(frozen=True)
class Line:
    """A curve. Values that are not finite leave a gap."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    colour: int


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten apart) inside [low, high]."""
    span = high - low
    if not span > 0 or not math.isfinite(span):
        return [low]
    power = 10 ** math.floor(math.log10(span / about))
    step = next(power * k for k in (1, 2, 2.5, 5, 10) if span / (power * k) <= about)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """A tick's label: 12k, 1.5, 0.05, −3."""
    if abs(value) >= 1e6 or (value != 0 and abs(value) < 1e-3):
        text = f"{value:.0e}".replace("e+0", "e").replace("e-0", "e-")
    elif abs(value) >= 10_000:
        text = f"{value / 1000:g}k"
    else:
        text = f"{value:.4g}"
    return text.replace("-", "−")


class _Frame:
    """Axes from data ranges to the drawing."""

    def __init__(self, xs: tuple[float, float], ys: tuple[float, float]) -> None:
        self.x_range, self.y_range = xs, ys

    def x(self, value: float) -> float:
        low, high = self.x_range
        return round(LEFT + (value - low) / ((high - low) or 1) * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return round(HEIGHT - BOTTOM - (value - low) / ((high - low) or 1) * (HEIGHT - TOP - BOTTOM), 1)

    def axes(self, *, whole_x: bool = False) -> str:
        parts = []
        for tick in ticks(*self.y_range):
            y = self.y(tick)
            css = "zero" if tick == 0 else "grid"
            parts.append(f'<line class="{css}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
            parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 3.5}" text-anchor="end">{number(tick)}</text>')
        for tick in ticks(*self.x_range, about=6):
            if whole_x and tick != int(tick):
                continue
            x, y = self.x(tick), HEIGHT - BOTTOM + 16
            parts.append(f'<text class="tick" x="{x}" y="{y}" text-anchor="middle">{number(tick)}</text>')
        return "".join(parts)


def _svg(body: str, title: str, width: float = WIDTH, height: float = HEIGHT, css: str = "chart") -> Markup:
    return Markup(
        f'<svg class="{css}" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{body}</svg>"
    )


def line_chart(lines: Sequence[Line], title: str, *, breaks: Sequence[float] = ()) -> Markup | None:
    """Curves over steps; None when no value is finite.

    A curve of more than 60 points is drawn faintly with its running mean on top. `breaks` are the steps at which a new
    round begins.
    """
    finite = [(x, y) for line in lines for x, y in zip(line.xs, line.ys) if math.isfinite(y)]
    if not finite:
        return None
    xs, ys = [x for x, _ in finite], [y for _, y in finite]
    low, high = min(ys), max(ys)
    pad = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    frame = _Frame((min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1), (low - pad, high + pad))
    parts = [frame.axes(whole_x=True)]
    for x in breaks:
        parts.append(f'<line class="break" x1="{frame.x(x)}" x2="{frame.x(x)}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
    for line in lines:
        many = len(line.xs) > 60
        parts.append(_path(frame, line.xs, line.ys, f"line c{line.colour}{' faint' if many else ''}"))
        if many:
            parts.append(_path(frame, line.xs, running_mean(line.ys), f"line c{line.colour}"))
        elif len(line.xs) == 1 and math.isfinite(line.ys[0]):
            x, y = frame.x(line.xs[0]), frame.y(line.ys[0])
            parts.append(f'<circle class="dot c{line.colour}" cx="{x}" cy="{y}" r="3"/>')
    return _svg("".join(parts), title)


def running_mean(values: Sequence[float]) -> list[float]:
    """Mean of the values around each, about a twentieth of all on either side; gaps stay gaps.

    Centred and shrinking towards the ends, so that it neither lags nor bends a straight line.
    """
    reach = max(1, len(values) // 20)
    smooth = []
    for i, value in enumerate(values):
        span = min(reach, i, len(values) - 1 - i)
        near = [v for v in values[i - span : i + span + 1] if math.isfinite(v)]
        smooth.append(sum(near) / len(near) if math.isfinite(value) else math.nan)
    return smooth


def _path(frame: _Frame, xs: Sequence[float], ys: Sequence[float], css: str) -> str:
    every = max(1, math.ceil(len(xs) / MOST_POINTS))
    points, pen_down = [], False
    for i in [*range(0, len(xs), every), *([len(xs) - 1] if (len(xs) - 1) % every else [])]:
        if not math.isfinite(ys[i]):
            pen_down = False
            continue
        points.append(f"{'L' if pen_down else 'M'}{frame.x(xs[i])} {frame.y(ys[i])}")
        pen_down = True
    return f'<path class="{css}" d="{"".join(points)}"/>'


def histogram(groups: Sequence[tuple[str, Sequence[float], int]], title: str, *, bins: int = 24) -> Markup | None:
    """Shares of values per bin, groups over one another; None without values.

    Args:
        groups: (name, values, colour).
        title: for those who do not see the picture.
        bins: at most; values that are few and whole get one bin each.
    """
    everything = [v for _, values, _ in groups for v in values if math.isfinite(v)]
    if not everything:
        return None
    edges = bin_edges(everything, bins)
    shares = []
    for _, values, _ in groups:
        counts = [0] * (len(edges) - 1)
        for value in values:
            if math.isfinite(value):
                place = int((value - edges[0]) / (edges[-1] - edges[0]) * len(counts))
                counts[min(max(place, 0), len(counts) - 1)] += 1
        shares.append([c / max(1, sum(counts)) for c in counts])
    top = max(max(s) for s in shares)
    frame = _Frame((edges[0], edges[-1]), (0, 100 * top * 1.08))
    parts = [frame.axes()]
    for (_, _, colour), share in zip(groups, shares):
        floor = frame.y(0)
        outline = [f"M{frame.x(edges[0])} {floor}"]
        for i, part in enumerate(share):
            outline.append(f"V{frame.y(100 * part)}H{frame.x(edges[i + 1])}")
        parts.append(f'<path class="area c{colour}" d="{"".join(outline)}V{floor}Z"/>')
    return _svg("".join(parts), title)


def bin_edges(values: Sequence[float], bins: int) -> list[float]:
    """Equal bins over all values: centred on whole numbers where there are only a few of these."""
    low, high = min(values), max(values)
    if all(v == int(v) for v in values) and high - low < bins:
        return [i - 0.5 for i in range(int(low), int(high) + 2)]
    if high == low:
        return [low - 0.5, low + 0.5]
    step = (high - low) / bins
    return [low + i * step for i in range(bins)] + [high]


def interval(
    value: float, low: float, high: float, title: str, *, axis: tuple[float, float], centre: float, height: int = 18
) -> Markup:
    """One value with its interval on a track, and a mark at `centre`, where there is no difference."""
    width = 240

    def x(v: float) -> float:
        return round(4 + (min(max(v, axis[0]), axis[1]) - axis[0]) / (axis[1] - axis[0]) * (width - 8), 1)

    middle = height / 2
    colour = 0 if low > centre else 1 if high < centre else 3
    reach = f'x="{x(low)}" width="{max(2.0, round(x(high) - x(low), 1))}"'
    body = (
        f'<rect class="track" x="4" width="{width - 8}" y="{middle - 1}" height="2" rx="1"/>'
        f'<line class="centre" x1="{x(centre)}" x2="{x(centre)}" y1="1" y2="{height - 1}"/>'
        f'<rect class="reach c{colour}" {reach} y="{middle - 4}" height="8" rx="4"/>'
        f'<circle class="dot c{colour}" cx="{x(value)}" cy="{middle}" r="4.5"/>'
    )
    return _svg(body, title, width, height, "interval")


def before_after(before: float, after: float, title: str, *, height: int = 18) -> Markup:
    """Two shares on one track from 0 to 1: a ring for the base, a dot for the aligned model."""
    width = 240

    def x(v: float) -> float:
        return round(6 + min(max(v, 0.0), 1.0) * (width - 12), 1)

    middle = height / 2
    left, right = sorted((x(before), x(after)))
    body = (
        f'<rect class="track" x="6" width="{width - 12}" y="{middle - 1}" height="2" rx="1"/>'
        f'<rect class="reach c0" x="{left}" width="{round(right - left, 1)}" y="{middle - 1.5}" height="3"/>'
        f'<circle class="ring" cx="{x(before)}" cy="{middle}" r="4.5"/>'
        f'<circle class="dot c0" cx="{x(after)}" cy="{middle}" r="5"/>'
    )
    return _svg(body, title, width, height, "interval")
