"""The results as one SVG picture: rates as bars, latencies by percentile as lines."""

import math
from collections.abc import Iterator, Sequence
from html import escape

from benchmarks.figures import Figures
from benchmarks.histogram import Latencies

WIDTH, LEFT, RIGHT = 1000, 380, 90
BAR, GAP = 16, 6
CHART_HEIGHT, CHART_TOP = 360, 40
COLOURS = (
    "#4269d0",
    "#efb118",
    "#ff725c",
    "#6cc5b0",
    "#3ca951",
    "#ff8ab7",
    "#a463f2",
    "#97bbf5",
    "#9c6b4e",
    "#9498a0",
)
PERCENTILES = (50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9)


def svg(figures: Sequence[Figures], title: str) -> str:
    """Return the text of an SVG file."""
    closed = [item for item in figures if item.loop == "closed" and item.done]
    opened = [item for item in figures if item.loop == "open" and item.latency.count]
    bars_height = CHART_TOP + len(closed) * (BAR + GAP) + 30
    legend_height = 20 + len(opened) * 16
    lines_height = CHART_TOP + CHART_HEIGHT + 40 + legend_height if opened else 0
    height = 30 + bars_height + lines_height
    body = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        _text(10, 20, title, weight="bold"),
        f'<g transform="translate(0 30)">{"".join(_bars(closed))}</g>',
    ]
    if opened:
        lines = "".join(_lines(opened))
        body.append(f'<g transform="translate(0 {30 + bars_height})">{lines}</g>')
    return "\n".join([*body, "</svg>\n"])


def _bars(figures: Sequence[Figures]) -> Iterator[str]:
    yield _text(10, 20, "Highest rate, per second (closed loop)", weight="bold")
    highest = max((item.per_s for item in figures), default=1.0)
    parts = list(dict.fromkeys(item.part for item in figures))
    for place, item in enumerate(figures):
        top = CHART_TOP + place * (BAR + GAP)
        width = item.per_s / highest * (WIDTH - LEFT - RIGHT)
        colour = COLOURS[parts.index(item.part) % len(COLOURS)]
        yield _text(LEFT - 8, top + 12, f"{item.part}: {item.name}", anchor="end")
        yield f'<rect x="{LEFT}" y="{top}" width="{width:.1f}" height="{BAR}" fill="{colour}"/>'
        yield _text(LEFT + width + 6, top + 12, f"{item.per_s:,.0f}")


def _lines(figures: Sequence[Figures]) -> Iterator[str]:
    yield _text(10, 20, "Latency in ms by percentile (open loop at half the rate)", weight="bold")
    curves = [_curve(item) for item in figures]
    low = math.floor(math.log10(min(min(curve) for curve in curves)))
    high = max(low + 1, math.ceil(math.log10(max(max(curve) for curve in curves))))
    left, right = 60, WIDTH - 30
    bottom = CHART_TOP + CHART_HEIGHT
    labels = [f"{item:g}%" for item in PERCENTILES] + ["max"]
    step = (right - left) / (len(labels) - 1)

    def y(value: float) -> float:
        return bottom - (math.log10(value) - low) / (high - low) * CHART_HEIGHT

    for power in range(low, high + 1):
        line = y(10.0**power)
        yield f'<path d="M{left} {line:.1f}H{right}" stroke="#ddd"/>'
        yield _text(left - 6, line + 4, f"{10.0**power:g}", anchor="end")
    for place, label in enumerate(labels):
        yield _text(left + place * step, bottom + 18, label, anchor="middle")
    for number, (item, curve) in enumerate(zip(figures, curves, strict=True)):
        colour = COLOURS[number % len(COLOURS)]
        dashes = ("none", "6 3", "2 2")[number // len(COLOURS) % 3]
        points = " ".join(f"{left + n * step:.1f},{y(value):.1f}" for n, value in enumerate(curve))
        stroke = f'stroke="{colour}" stroke-width="1.5" stroke-dasharray="{dashes}"'
        yield f'<polyline points="{points}" fill="none" {stroke}/>'
        legend = bottom + 44 + number * 16
        yield f'<path d="M{left} {legend - 4}h24" {stroke}/>'
        rate = item.planned_per_s or item.per_s
        yield _text(left + 32, legend, f"{item.part}: {item.name}, {rate:,.0f}/s")


def _curve(item: Figures) -> list[float]:
    latencies = Latencies(item.histogram)
    return [max(0.01, value) for value in latencies.at_ms(*PERCENTILES, 100.0)]


def _text(x: float, y: float, text: str, anchor: str = "start", weight: str = "normal") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}">'
        f"{escape(text)}</text>"
    )
