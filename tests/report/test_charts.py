"""The SVG charts: geometry by hand, gaps, escaping."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.report.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Line,
    before_after,
    bin_edges,
    histogram,
    interval,
    line_chart,
    number,
    running_mean,
    ticks,
)

finite = st.floats(-1e9, 1e9)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.25, 0.5, 0.75, 1]),
        (0, 100, [0, 25, 50, 75, 100]),
        (-1.2, 1.3, [-1, 0, 1]),
        (3, 3, [3]),
    ],
)
def test_ticks(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == expected


@given(low=finite, span=st.floats(1e-3, 1e9))
def test_ticks_are_inside_and_few(low: float, span: float) -> None:
    found = ticks(low, low + span)
    assert len(found) <= 6
    assert all(low - 1e-6 * span <= t <= low + span + 1e-6 * span for t in found)


def test_number() -> None:
    assert [number(v) for v in (0, 0.25, -3, 12_500, 2e6, 5e-4)] == ["0", "0.25", "−3", "12.5k", "2e6", "5e−4"]


def test_a_line_goes_from_corner_to_corner() -> None:
    svg = line_chart([Line("loss", [0, 1], [0, 1], 0)], "loss")
    assert svg is not None
    (path,) = re.findall(r'class="line c0" d="([^"]+)"', svg)
    x0, y0, x1, y1 = map(float, re.findall(r"[-\d.]+", path))
    assert (x0, x1) == (LEFT, WIDTH - RIGHT)
    assert y0 > y1  # up is less in SVG
    assert TOP < y1 < y0 < HEIGHT - BOTTOM


def test_a_value_that_is_not_finite_leaves_a_gap() -> None:
    svg = line_chart([Line("loss", [1, 2, 3, 4, 5], [1.0, 2.0, math.nan, 3.0, math.inf], 0)], "loss")
    assert svg is not None
    (path,) = re.findall(r'class="line c0" d="([^"]+)"', svg)
    assert re.sub(r"[-\d. ]", "", path) == "MLM"
    assert line_chart([Line("loss", [1], [math.nan], 0)], "loss") is None
    assert line_chart([], "loss") is None


def test_long_curves_are_thinned_and_keep_their_end() -> None:
    xs = list(range(10_001))
    svg = line_chart([Line("loss", xs, [float(x) for x in xs], 0)], "loss")
    assert svg is not None
    assert len(svg) < 20_000
    assert f"L{WIDTH - RIGHT:.1f} " in svg


def test_running_mean() -> None:
    straight = [2.0 * i for i in range(100)]
    assert running_mean(straight) == pytest.approx(straight)
    assert running_mean([0.0, 3.0, 0.0]) == pytest.approx([0, 1, 0])
    assert math.isnan(running_mean([1.0, math.nan, 1.0])[1])


def test_bin_edges() -> None:
    assert bin_edges([1.0, 2.0, 4.0], 24) == [0.5, 1.5, 2.5, 3.5, 4.5]
    assert bin_edges([0.3, 0.3], 24) == [-0.2, 0.8]
    assert bin_edges([0.0, 0.5, 1.1], 2) == [0.0, 0.55, 1.1]


@given(st.lists(finite, min_size=1, max_size=50))
def test_any_values_make_a_histogram_that_is_xml(values: list[float]) -> None:
    svg = histogram([("all", values, 0), ("none", [], 1)], "h")
    assert svg is not None
    assert "nan" not in svg
    ET.fromstring(svg)


def test_histogram_shares_by_hand() -> None:
    svg = histogram([("all", [1.0, 1.0, 1.0, 2.0], 0)], "h")
    assert svg is not None
    (path,) = re.findall(r'class="area c0" d="([^"]+)"', svg)
    floor, high, low = (
        float(re.findall(r, path)[0]) for r in (r"^M[\d.]+ ([\d.]+)", r"V([\d.]+)", r"V[\d.]+H[\d.]+V([\d.]+)")
    )
    assert (floor - high) / (floor - low) == pytest.approx(3, rel=0.01)  # 75 % against 25 %
    assert histogram([("all", [], 0)], "h") is None


def test_an_interval_lies_where_it_should() -> None:
    svg = interval(0.5, 0.25, 0.75, "x", axis=(0, 1), centre=0.5)
    assert 'cx="120.0"' in svg
    assert 'x="62.0" width="116.0"' in svg
    assert "dot c3" in svg  # it holds the centre: no difference
    assert "dot c0" in interval(0.7, 0.6, 0.8, "x", axis=(0, 1), centre=0.5)
    assert "dot c1" in interval(0.3, 0.2, 0.4, "x", axis=(0, 1), centre=0.5)
    assert 'cx="236.0"' in interval(7, 6, 8, "x", axis=(0, 1), centre=0.5)  # off the axis: at its end


def test_titles_are_escaped() -> None:
    for svg in (
        before_after(0.2, 0.3, "<b>&"),
        interval(0.5, 0.4, 0.6, "<b>&", axis=(0, 1), centre=0.5),
        line_chart([Line("l", [1], [1.0], 0)], "<b>&"),
        histogram([("h", [1.0], 0)], "<b>&"),
    ):
        assert svg is not None
        assert ET.fromstring(svg).find("title").text == "<b>&"  # type: ignore[union-attr]
