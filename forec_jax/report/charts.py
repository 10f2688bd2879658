"""Line charts as the coordinates of SVG: the page's style sheet gives them their colours, in light and in dark."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

WIDTH, HEIGHT = 320, 180
"""Of a chart's lines, in SVG's units; the text stands outside."""

MOST_POINTS = 400
"""Points that a line keeps: a pixel apart, more of them would not be seen."""

Points = Sequence[tuple[float, float]]


class Tick(NamedTuple):
    """A number beside an axis."""

    at: float  # in SVG's units
    text: str


class Curve(NamedTuple):
    """A run's line."""

    run: int  # its number, which chooses the colour
    name: str
    path: str  # the attribute `points` of an SVG polyline
    last: str  # the value at its end


class Chart(NamedTuple):
    """A number of the runs over the steps."""

    title: str
    curves: Sequence[Curve]
    x: Sequence[Tick]
    y: Sequence[Tick]


def line_chart(title: str, lines: Mapping[int, tuple[str, Points]]) -> Chart | None:
    """A chart of lines (name, (step, value) pairs) by the number of their run; None where no value is finite."""
    finite = {run: (name, [p for p in points if math.isfinite(p[1])]) for run, (name, points) in lines.items()}
    every = [point for _, points in finite.values() for point in points]
    if not every:
        return None
    steps, values = _span([x for x, _ in every]), _span([y for _, y in every])
    curves = [
        Curve(run, name, _path(points, steps, values), short(points[-1][1]))
        for run, (name, points) in finite.items()
        if points
    ]
    x = [Tick(_place(step, steps) * WIDTH, short(step)) for step in ticks(*steps)]
    y = [Tick((1 - _place(value, values)) * HEIGHT, short(value)) for value in ticks(*values)]
    return Chart(title, curves, x, y)


def ticks(low: float, high: float) -> list[float]:
    """Three to seven round numbers from `low` to `high`: steps of 1, 2 or 5 times a power of ten."""
    size = 10 ** math.floor(math.log10((high - low) / 3))
    step = next(size * factor for factor in (5, 2, 1) if (high - low) / (size * factor) >= 2)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def short(value: float) -> str:
    """A number in at most four digits, without zeros at its end."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _span(values: Sequence[float]) -> tuple[float, float]:
    """The lowest and the highest value; a little room where they are one."""
    low, high = min(values), max(values)
    room = 0.0 if high > low else (abs(low) or 1.0) / 2
    return low - room, high + room


def _place(value: float, span: tuple[float, float]) -> float:
    """Where a value lies in a span, from 0 to 1."""
    return (value - span[0]) / (span[1] - span[0])


def _path(points: Points, steps: tuple[float, float], values: tuple[float, float]) -> str:
    """The points in SVG's units, thinned out where there are many; the last one stays."""
    every = math.ceil(len(points) / MOST_POINTS)
    kept = [*points[:-1:every], points[-1]]
    places = ((_place(x, steps) * WIDTH, (1 - _place(y, values)) * HEIGHT) for x, y in kept)
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
