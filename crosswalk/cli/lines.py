"""Plain lines for a terminal or a log, without a library: aligned columns, no name broken in the middle; and the report
that every check and conversion ends with."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import click

from crosswalk.jobs.report import Report

from .render import on_one_line, visible

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
    """The lines of each row of left, right and an end, as in a diff: ``left -> right   end``, in columns as far as that
    takes no second line. What one line cannot hold continues on a second, indented one."""
    limit = limit or width()
    cells = [(_cell(left), _cell(right), _cell(end)) for left, right, end in rows]
    ends = max((len(end) for _, _, end in cells), default=0)
    room = limit - len(arrow) - 2 * len(_GAP) - ends
    rights = min(max((len(right) for _, right, _ in cells), default=0), room * 2 // 3)
    lefts = min(max((len(left) for left, _, _ in cells), default=0), room - rights)
    for left, right, end in cells:
        between = f" {arrow if right else ' ' * len(arrow)} "
        above = [left] if left and len(left) + len(right) > lefts + rights and (right or end) else []
        column = min(lefts, lefts + rights - len(right))
        line = f"{'' if above else left:<{column}}{between}{right}" if column > 0 else f"    {arrow} {right}"
        yield [*above, f"{line:<{lefts + len(between) + rights}}{_GAP}{end:>{ends}}".rstrip()]


def _cell(text: str) -> str:
    return on_one_line(text)


#: Columns before the values of a report.
_INDENT = 11


def bytes_text(count: int) -> str:
    """A number of bytes as people write it, in powers of 1000."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.2f} {unit}"
        value /= 1000
    return f"{value:.2f} TB"


def facts_of(report: Report) -> list[tuple[str, str]]:
    """What is known of a conversion before it runs."""
    return [
        ("format", f"{report.format} -> {report.to}"),
        ("tensors", report.verdict),
        ("config", report.config),
        ("moved", f"{report.sources} -> {report.targets} tensors in {report.copies} copies"),
        ("bytes", f"{bytes_text(report.bytes_read)} read, {bytes_text(report.bytes_written)} written"),
        ("plan", report.digest),
    ]


def show_report(report: Report) -> None:
    """One line a fact; on a terminal, long ones are wrapped to its width."""
    facts = facts_of(report)
    if report.destination is not None:
        facts += [("checkpoint", on_one_line(str(report.destination))), ("time", f"{report.seconds:.2f} s")]
    if report.carried:
        facts.append(("carried", on_one_line(", ".join(report.carried))))
    facts += [("note", note) for note in report.notes]
    for name, text in facts:
        first, *more = visible(text).split("\n")
        for line in (f" {name:<{_INDENT}}{first}", *(" " * (_INDENT + 1) + line for line in more)):
            click.echo(_fitted(line))


def _fitted(line: str) -> str:
    if not sys.stdout.isatty():
        return line
    width = max(shutil.get_terminal_size().columns, 2 * _INDENT)
    after = " " * (_INDENT + 1)
    return textwrap.fill(line, width, subsequent_indent=after, break_on_hyphens=False, drop_whitespace=True)
