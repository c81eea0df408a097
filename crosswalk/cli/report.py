"""Print a report as one line a fact, without a library: it is what every check and conversion ends with."""

from __future__ import annotations

import shutil
import sys
import textwrap

import click

from crosswalk.jobs.report import Report

from .render import visible

_INDENT = 11


def bytes_text(count: int) -> str:
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.2f} {unit}"
        value /= 1000
    return f"{value:.2f} TB"


def show_report(report: Report) -> None:
    """One line a fact; on a terminal, long ones are wrapped to its width."""
    facts = [
        ("format", f"{report.format} -> {report.to}"),
        ("tensors", report.verdict),
        ("config", report.config),
        ("moved", f"{report.sources} -> {report.targets} tensors in {report.copies} copies"),
        ("bytes", f"{bytes_text(report.bytes_read)} read, {bytes_text(report.bytes_written)} written"),
        ("plan", report.digest),
    ]
    if report.destination is not None:
        facts += [("checkpoint", str(report.destination)), ("time", f"{report.seconds:.2f} s")]
    if report.carried:
        facts.append(("carried", ", ".join(report.carried)))
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
