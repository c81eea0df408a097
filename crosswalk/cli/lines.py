"""Plain lines for a terminal or a log: aligned columns, no trailing spaces, no name broken in the middle."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import click

from .render import visible

#: Columns of a line where nobody says how wide the terminal is.
WIDTH = 100
_GAP = "  "


def width() -> int:
    """Columns of the terminal; without one, of a page."""
    return max(shutil.get_terminal_size().columns, 40) if sys.stdout.isatty() else WIDTH


def echo(lines: Iterable[str]) -> None:
    """Print lines; control characters in names out of a checkpoint are shown, not acted on."""
    for line in lines:
        click.echo(_cell(line).rstrip())


def short(position: str) -> str:
    """``llama.yaml:37:5`` for a long path."""
    file, _, rest = position.partition(":")
    return f"{Path(file).name}:{rest}" if rest else Path(file).name


def aligned(rows: Iterable[Sequence[str]], limit: int | None = None) -> Iterator[str]:
    """Rows in columns. Where a line cannot hold them, the last columns of all rows stand on further, indented lines."""
    limit = limit or width()
    cells = [[_cell(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    first = len(widths)
    while first > 1 and sum(widths[:first]) + len(_GAP) * (first - 1) > limit:
        first -= 1
    for row in cells:
        yield _GAP.join(cell.ljust(size) for cell, size in zip(row[:first], widths, strict=False)).rstrip()
        yield from wrapped(_GAP.join(filter(None, row[first:])), limit, "    ")


def wrapped(text: str, limit: int, indent: str) -> list[str]:
    """Words on indented lines; one that is longer than a line has a line of its own."""
    return textwrap.wrap(
        text, limit, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def related(rows: Iterable[tuple[str, str, str]], arrow: str, limit: int | None = None) -> Iterator[list[str]]:
    """The lines of each row of left, right and an end, as in a diff: ``left -> right   end``. What one line cannot hold
    continues on a second, indented one."""
    limit = limit or width()
    cells = [(_cell(left), _cell(right), _cell(end)) for left, right, end in rows]
    ends = max((len(end) for _, _, end in cells), default=0)
    room = limit - len(arrow) - 3 * len(_GAP) - ends
    rights = min(max((len(right) for _, right, _ in cells), default=0), room * 2 // 3)
    lefts = min(max((len(left) for left, _, _ in cells), default=0), room + len(_GAP) - rights)
    for left, right, end in cells:
        between = f" {arrow if right else ' ' * len(arrow)} "
        above = [left] if left and (len(left) > lefts or len(right) > rights) and (right or end) else []
        if len(right) <= rights:
            line = f"{'' if above else left:<{lefts}}{between}{right:<{rights}}"
        else:
            line = f"    {arrow} {right}"
        yield [*above, f"{line}{_GAP}{end:>{ends}}".rstrip()]


def _cell(text: str) -> str:
    return visible(text).replace("\n", "\\n")
