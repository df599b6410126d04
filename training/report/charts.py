"""Line charts and heat maps as inline SVG, without scripts and external files. The page's CSS has the colours."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from training.report.axis import Axis
from training.report.markup import escape

WIDTH, HEIGHT = 680, 300
LEFT, RIGHT, BOTTOM = 64, 28, 42
MOST_POINTS = 2000  # a longer line is reduced to its extremes, which keeps pages small and looks the same
COLOURS = 6  # --c0 .. --c5 in the page's CSS
Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    colour: index of a colour of the page; lines of one subject share it.
    dashed: the line belongs to the baseline.
    faint: the line is in the background, and not in the legend.
    """

    name: str
    points: Sequence[Point]
    colour: int = 0
    dashed: bool = False
    faint: bool = False


def line_chart(title: str, lines: Sequence[Line], x_label: str, y_label: str) -> str:
    """Draw lines on linear axes. Lines without points are left out; raises `ValueError` if all are empty."""
    drawn = [line for line in lines if line.points]
    if not drawn:
        raise ValueError(f"chart {title!r} has no points")
    named = [line for line in drawn if not line.faint]
    places, rows = legend_places([line.name for line in named])
    top, bottom = 14 + 18 * rows, HEIGHT - BOTTOM
    x = Axis.around((p[0] for line in drawn for p in line.points), LEFT, WIDTH - RIGHT)
    y = Axis.around((p[1] for line in drawn for p in line.points), bottom, top, margin=0.04)
    parts = [opening(title, WIDTH, HEIGHT)]
    parts += axes(x, y, x_label, y_label, smallest=1)
    parts += [_polyline(line, x, y) for line in sorted(drawn, key=lambda line: not line.faint)]
    for line, (at, height) in zip(named, places, strict=True):
        parts.append(f'<line class="{_classes(line)}" x1="{at}" x2="{at + 20}" y1="{height}" y2="{height}"/>')
        parts.append(svg_text("legend", at + 26, height + 4, _short(line.name), "start"))
    return "".join([*parts, "</svg>"])


def axes(x: Axis, y: Axis, x_label: str, y_label: str, smallest: float = 0.0) -> Iterator[str]:
    """Draw the grid, the ticks and the labels of two axes; `y` runs from the bottom to the top of the drawing.

    smallest: smallest distance between two ticks of `x`.
    """
    bottom, top = y.start, y.end
    for value, label in y.ticks(5):
        at = y.place(value)
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
        yield svg_text("tick", LEFT - 6, at + 4, label, "end")
    for value, label in x.ticks(8, smallest=smallest):
        at = x.place(value)
        yield f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{bottom}" y2="{bottom + 4}"/>'
        yield svg_text("tick", at, bottom + 17, label, "middle")
    yield f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>'
    yield svg_text("name", (LEFT + WIDTH - RIGHT) / 2, bottom + BOTTOM - 6, x_label, "middle")
    yield (
        f'<text class="name" transform="translate(13 {(top + bottom) / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>"
    )


def running_mean(points: Sequence[Point], window: int) -> list[Point]:
    """Return the running mean over the last `window` values (fewer at the beginning)."""
    sums = list(accumulate((value for _, value in points), initial=0.0))
    return [
        (x, (sums[k + 1] - sums[max(0, k + 1 - window)]) / min(window, k + 1))
        for k, (x, _) in enumerate(points)
    ]


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """Reduce a line to at most `most` points: the lowest and the highest point of runs of equal length."""
    if len(points) <= most:
        return list(points)
    groups = max(1, most // 2)
    bounds = [len(points) * k // groups for k in range(groups + 1)]
    kept = []
    for low, high in pairwise(bounds):
        values = range(low, high)
        extremes = {min(values, key=lambda k: points[k][1]), max(values, key=lambda k: points[k][1])}
        kept += [points[k] for k in sorted(extremes)]
    return kept


def heat_map(
    title: str, values: Mapping[tuple[str, str], float], rows: Sequence[str], columns: Sequence[str]
) -> str:
    """Draw a cell for every (row, column), coloured on the fixed scale 0..2; a cell without a value is hollow.

    Maps with the same rows and columns can be compared cell by cell.
    Raises `ValueError` if there are no rows or no columns.
    """
    if not rows or not columns:
        raise ValueError(f"heat map {title!r} has no cells")
    wide = len(columns) <= 16  # the cells have room for figures
    cell_width, cell_height = (36, 24) if wide else (16, 20)
    left = 20 + 7 * max(len(_short(row)) for row in rows)
    top, below = 10, 10 + cell_height * len(rows)
    mean = f": mean {statistics.fmean(values.values()):.2f}" if values else ""
    parts = [opening(title + mean, max(left + cell_width * len(columns) + 10, left + 230), below + 84)]
    for i, row in enumerate(rows):
        at = top + cell_height * i
        parts.append(svg_text("tick", left - 6, at + cell_height / 2 + 4, _short(row), "end"))
        for j, column in enumerate(columns):
            value, name = values.get((row, column)), f"{row}, layer {column}"
            parts.append(_cell(value, name, left + cell_width * j, at, cell_width - 1, cell_height - 1, wide))
    for j, column in list(enumerate(columns))[:: 1 if wide else 5]:
        parts.append(svg_text("tick", left + cell_width * (j + 0.5), below + 14, column, "middle"))
    parts.append(svg_text("name", left, below + 30, "layer", "start"))
    return "".join([*parts, *_scale(left, below + 42), "</svg>"])


def heat_colour(value: float) -> tuple[int, int, int]:
    """Return red, green, blue (0..255) of a value: blue at 0, white at 1, red at 2; values beyond are clipped."""
    from_white = min(1.0, abs(value - 1))
    end = (33, 102, 172) if value < 1 else (178, 24, 43)
    red, green, blue = (round(255 + (channel - 255) * from_white) for channel in end)
    return red, green, blue


def _cell(
    value: float | None, name: str, x: float, y: float, width: float, height: float, shown: bool
) -> str:
    box = f'x="{x}" y="{y}" width="{width}" height="{height}"'
    if value is None:
        return f'<rect class="absent" {box}><title>{escape(name)}: not measured</title></rect>'
    red, green, blue = heat_colour(value)
    rect = (
        f'<rect class="cell" {box} fill="rgb({red},{green},{blue})">'
        f"<title>{escape(name)}: {value:.3f}</title></rect>"
    )
    luminance = 0.299 * red + 0.587 * green + 0.114 * blue
    ink = "#fff" if luminance < 135 else "#111"
    figure = svg_text("figure", x + width / 2, y + height / 2 + 4, f"{value:.2f}", "middle", ink)
    return rect + figure if shown else rect


def _scale(x: float, y: float) -> Iterator[str]:
    """Draw the colour legend, 0 to 2."""
    steps, width = 40, 5
    for k in range(steps + 1):
        red, green, blue = heat_colour(2 * k / steps)
        yield (
            f'<rect class="scale" x="{x + width * k}" y="{y}" width="{width}" height="10" '
            f'fill="rgb({red},{green},{blue})"/>'
        )
    for value, word, anchor in (
        (0, "0 aligned", "start"),
        (1, "1 orthogonal", "middle"),
        (2, "2 opposed", "end"),
    ):
        yield svg_text("tick", x + width * (steps + 1) * value / 2, y + 25, word, anchor)


def _polyline(line: Line, x: Axis, y: Axis) -> str:
    points = [(x.place(a), y.place(b)) for a, b in thin(line.points)]
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
    drawn = (
        f'<polyline class="{_classes(line)}" points="{path}"><title>{escape(line.name)}</title></polyline>'
    )
    if len(points) > 30 or line.faint:
        return drawn
    dots = (
        f'<circle class="c{line.colour % COLOURS}" cx="{a:.1f}" cy="{b:.1f}" r="2.5"/>' for a, b in points
    )
    return drawn + "".join(dots)


def _classes(line: Line) -> str:
    kinds = [f"line c{line.colour % COLOURS}", "dashed" * line.dashed, "faint" * line.faint]
    return " ".join(kind for kind in kinds if kind)


def legend_places(names: Sequence[str]) -> tuple[list[tuple[int, int]], int]:
    """Return the start (x, y) of each entry of the legend, and the number of rows. A character is about 7 wide."""
    places, at, row = [], LEFT, 0
    for name in names:
        width = 44 + 7 * len(_short(name))
        if at + width > WIDTH and at > LEFT:
            at, row = LEFT, row + 1
        places.append((at, 14 + 18 * row))
        at += width
    return places, row + 1


def opening(title: str, width: float, height: float) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{escape(title)}" '
        f'viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
    )


def svg_text(kind: str, x: float, y: float, text: str, anchor: str, fill: str = "") -> str:
    ink = f' fill="{fill}"' if fill else ""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{ink}>{escape(text)}</text>'


def _short(name: str) -> str:
    return name if len(name) <= 40 else name[:39] + "…"
