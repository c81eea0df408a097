"""What stands around the engine as a picture in SVG: start-up, growth, formats, and whole processes beside ``cp``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log10
from typing import Any
from xml.sax.saxutils import escape

WIDTH, HEIGHT, LEFT, TOP = 430, 270, 60, 40
COLOURS = ("#1f6f8b", "#e07a5f", "#99a8b2", "#81b29a")
#: Seconds, of docs/performance.md; of ``cp`` for whole processes, by GB.
STARTUP_GOALS = {"check": 0.35, "convert": 1.0, "convert back": 1.0}
CHECK_GOALS = {47_278: 1.2, 70_702: 1.6}
WHOLE_GOALS = ((2.0, 2.0), (6.0, 1.3), (float("inf"), 1.0))


@dataclass(frozen=True)
class Bar:
    label: str
    value: float
    goal: float | None = None


def draw(results: Mapping[str, Any]) -> str:
    """Four panels, two beside each other; goals are short black lines, or circles where there is a curve."""
    startup = [
        Bar(name, found["seconds"], STARTUP_GOALS.get(name)) for name, found in results["startup"].items()
    ]  # fmt: skip
    growth = {
        "check, whole process": [(row["tensors"], row["check"]["seconds"]) for row in results["growth"]],
        **{
            part: [(row["tensors"], row[part]) for row in results["growth"]] for part in ("compile", "verify", "digest")
        },
    }
    formats = {
        "first check": [(row["formats"], row["first"]["seconds"]) for row in results["formats"]],
        "then": [(row["formats"], row["then"]["seconds"]) for row in results["formats"]],
    }
    whole = [
        Bar(f"{row['gb']:.1f} GB, {way}", row[f"{way} to cp"], _whole_goal(row["gb"]))
        for row in results["whole"]
        for way in ("import", "export")
    ]
    panels = [
        _bars("Start-up: whole processes, tiny model (s)", startup),
        _curves("Planning a Mixtral by number of tensors (s)", growth, CHECK_GOALS),
        _curves("check by number of formats of one's own (s)", formats, {}),
        _bars("Whole processes, time as a multiple of cp's", whole),
    ]
    placed = [
        f'<g transform="translate({index % 2 * WIDTH},{index // 2 * HEIGHT})">{panel}</g>'
        for index, panel in enumerate(panels)
    ]
    size = f'width="{2 * WIDTH}" height="{2 * HEIGHT}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *placed, "</svg>", ""])


def _whole_goal(gigabytes: float) -> float:
    return next(goal for limit, goal in WHOLE_GOALS if gigabytes < limit)


def _text(x: float, y: float, text: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {more}>{escape(text)}</text>'


def _bars(title: str, bars: Sequence[Bar]) -> str:
    """Lying bars, each with its number, and a line where its goal is."""
    left, scale = 2 * LEFT, (WIDTH - 3 * LEFT) / max(max(bar.value, bar.goal or 0) for bar in bars)
    parts = [_text(8, 20, title, 'font-weight="bold"')]
    for row, bar in enumerate(bars):
        y = TOP + 30 * row
        parts.append(_text(left - 6, y + 12, bar.label, 'text-anchor="end"'))
        parts.append(f'<rect x="{left}" y="{y}" width="{bar.value * scale:.1f}" height="16" fill="{COLOURS[0]}"/>')
        parts.append(_text(left + max(bar.value, bar.goal or 0) * scale + 6, y + 12, f"{bar.value:.2f}"))
        if bar.goal is not None:
            x = left + bar.goal * scale
            parts.append(f'<line x1="{x:.1f}" y1="{y - 4}" x2="{x:.1f}" y2="{y + 20}" stroke="black"/>')
    return "".join(parts)


def _curves(title: str, curves: Mapping[str, Sequence[tuple[float, float]]], goals: Mapping[float, float]) -> str:
    """Curves on logarithmic axes with lines at 1 and 3 of each power of ten."""
    points = [point for curve in curves.values() for point in curve] + list(goals.items())
    (left, right), (low, high) = ((log10(min(v)), log10(max(v))) for v in zip(*points, strict=True))
    inner_width, inner_height = WIDTH - LEFT - 20, HEIGHT - TOP - 70

    def at(x: float, y: float) -> tuple[float, float]:
        across = (log10(x) - left) / (right - left) * inner_width
        return LEFT + across, TOP + (high - log10(y)) / (high - low) * inner_height

    parts = [_text(8, 20, title, 'font-weight="bold"')]
    for value in (first * 10.0**power for power in range(-4, 3) for first in (1, 3)):
        if low <= log10(value) <= high:
            _, y = at(10**left, value)
            parts.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - 20}" y2="{y:.1f}" stroke="#ddd"/>')
            parts.append(_text(LEFT - 6, y + 4, f"{value:g}", 'text-anchor="end"'))
    for x in sorted({x for curve in curves.values() for x, _ in curve}):
        parts.append(
            _text(
                at(x, 10**low)[0], HEIGHT - 50, f"{x / 1000:.0f}k" if x >= 1000 else f"{x:.0f}", 'text-anchor="middle"'
            )
        )
    for row, (name, curve) in enumerate(curves.items()):
        line = " ".join("{:.1f},{:.1f}".format(*at(*point)) for point in curve)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{COLOURS[row]}" stroke-width="2"/>')
        parts.append(f'<rect x="{LEFT + 92 * row}" y="{HEIGHT - 36}" width="10" height="10" fill="{COLOURS[row]}"/>')
        parts.append(_text(LEFT + 14 + 92 * row, HEIGHT - 27, name.split(",")[0]))
    for point in goals.items():
        x, y = at(*point)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="none" stroke="black"/>')
    return "".join(parts)
