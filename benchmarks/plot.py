"""A result file as a table in Markdown and as a bar chart in SVG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from xml.sax.saxutils import escape

COLOURS = {
    "crosswalk": "#1f6f8b",
    "crosswalk model": "#1f6f8b",
    "crosswalk without torch": "#5b97ab",
    "crosswalk, no checksum": "#99a8b2",
    "torch by hand": "#e07a5f",
    "transformers": "#e07a5f",
    "safetensors load and save": "#e6b89c",
}
BAR, GAP, LEFT, SCALE = 13, 16, 250, 420


def draw(rows: Sequence[dict[str, Any]]) -> str:
    """Throughput of every variant as a ratio to ``cp`` in the same round, with a line where ``cp`` is."""
    parts: list[str] = []
    y = 30
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["medium"], row["workload"], row["direction"]), []).append(row)
    for (medium, workload, direction), group in groups.items():
        label = f"{medium}: {workload} {direction}"
        parts.append(f'<text x="6" y="{y + 11}" font-weight="bold">{escape(label)}</text>')
        for row in group:
            if row["variant"] == "cp":
                continue
            width = min(row["ratio"], 1.9) * SCALE
            colour = COLOURS[row["variant"]]
            parts.append(f'<rect x="{LEFT}" y="{y}" width="{width:.0f}" height="{BAR}" fill="{colour}"/>')
            text = f"{row['ratio']:.2f}  {row['variant']}"
            parts.append(f'<text x="{LEFT + width + 6:.0f}" y="{y + 11}">{escape(text)}</text>')
            y += BAR + 3
        y += GAP
    line = f'<line x1="{LEFT + SCALE}" y1="20" x2="{LEFT + SCALE}" y2="{y}" stroke="#333" stroke-dasharray="4 3"/>'
    title = f'<text x="{LEFT + SCALE}" y="14" text-anchor="middle">cp = 1</text>'
    size = f'width="{LEFT + 2 * SCALE + 60}" height="{y}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', title, line, *parts, "</svg>", ""])


def table(rows: Sequence[dict[str, Any]], medium: str) -> str:
    """One line for each variant on a medium."""
    lines = [
        "| workload | variant | GB | GB/s, median (best) | ratio to cp, median (best) | CPU s/GB | peak MiB | equal |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row["medium"] != medium:
            continue
        same = {True: "yes", False: "NO", None: ""}[row.get("equal")]
        cells = [
            f"{row['workload']} {row['direction']}",
            row["variant"],
            f"{row['gb']:.2f}",
            f"{row['gb_per_second']:.2f} ({row['best_gb_per_second']:.2f})",
            f"{row['ratio']:.2f} ({row['best_ratio']:.2f})",
            f"{row['cpu_per_gb']:.2f}",
            f"{row['peak_mib']:.0f}",
            same,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
