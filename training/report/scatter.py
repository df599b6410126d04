"""Scatter charts of named points as inline SVG, without scripts and external files. The page's CSS has the colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from training.report.axis import Axis
from training.report.charts import BOTTOM, COLOURS, LEFT, RIGHT, WIDTH, axes, legend_places, opening, svg_text
from training.report.markup import escape

HEIGHT = 380
LINE = 12  # height of a label


@dataclass(frozen=True)
class Dot:
    """One named point.

    group: name of the points that share its colour, one of the groups of the chart.
    """

    name: str
    x: float
    y: float
    group: str


def scatter_chart(title: str, dots: Sequence[Dot], x_label: str, y_label: str, groups: Sequence[str]) -> str:
    """Draw named points on linear axes. Raises `ValueError` if there are none.

    groups: all groups, in the order of their colours; the legend shows those that have points.
    """
    if not dots:
        raise ValueError(f"chart {title!r} has no points")
    shown = [group for group in groups if any(dot.group == group for dot in dots)]
    places, rows = legend_places(shown)
    x = Axis.around((dot.x for dot in dots), LEFT, WIDTH - RIGHT, margin=0.06)
    y = Axis.around((dot.y for dot in dots), HEIGHT - BOTTOM, 14 + 18 * rows, margin=0.08)
    parts = [opening(title, WIDTH, HEIGHT), *axes(x, y, x_label, y_label)]
    heights = _label_heights([(x.place(dot.x), y.place(dot.y), dot.name) for dot in dots])
    for dot, height in zip(dots, heights, strict=True):
        across, colour = x.place(dot.x), groups.index(dot.group) % COLOURS
        parts.append(
            f'<circle class="c{colour}" cx="{across:.1f}" cy="{y.place(dot.y):.1f}" r="3.5">'
            f"<title>{escape(dot.name)}: {dot.x:.4g}, {dot.y:.4f}</title></circle>"
        )
        left = _to_the_left(across, dot.name)
        parts.append(
            svg_text("figure", across + (-7 if left else 7), height + 4, dot.name, "end" if left else "start")
        )
    for group, (at, height) in zip(shown, places, strict=True):
        colour = groups.index(group) % COLOURS
        parts.append(f'<circle class="c{colour}" cx="{at + 10}" cy="{height}" r="3.5"/>')
        parts.append(svg_text("legend", at + 26, height + 4, group, "start"))
    return "".join([*parts, "</svg>"])


def _width(name: str) -> float:
    return 7 + 6.5 * len(name)


def _to_the_left(across: float, name: str) -> bool:
    return across + _width(name) > WIDTH


def _label_heights(places: Sequence[tuple[float, float, str]]) -> list[float]:
    """Return the height of each label: that of its point, or lower where it would cover another label.

    places: x, y and name of each point.
    """
    taken: list[tuple[float, float, float]] = []  # left, right, height
    heights = [0.0] * len(places)
    for k in sorted(range(len(places)), key=lambda k: places[k][1]):
        across, height, name = places[k]
        left = across - _width(name) if _to_the_left(across, name) else across
        right = left + _width(name)
        while any(a < right and left < b and abs(h - height) < LINE for a, b, h in taken):
            height += 1
        taken.append((left, right, height))
        heights[k] = height
    return heights
