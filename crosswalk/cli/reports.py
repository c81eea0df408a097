"""Print what a command found or did: one line a fact."""

from __future__ import annotations

from collections.abc import Iterator

from crosswalk.jobs.report import Report

from .lines import bytes_text, echo, width, wrapped


def show_report(report: Report) -> None:
    """One line a fact; a list of files may be several."""
    echo(report_lines(report))


def report_lines(report: Report) -> Iterator[str]:
    """The lines of a report."""
    yield _fact("format", f"{report.format} -> {report.to}")
    yield _fact("tensors", report.verdict)
    yield _fact("config", report.config)
    yield _fact("moved", f"{report.sources} -> {report.targets} tensors in {report.copies} copies")
    yield _fact("bytes", f"{bytes_text(report.bytes_read)} read, {bytes_text(report.bytes_written)} written")
    yield _fact("plan", report.digest)
    if report.destination is not None:
        yield _fact("checkpoint", str(report.destination))
        yield _fact("time", f"{report.seconds:.2f} s")
    for number, line in enumerate(wrapped(", ".join(report.carried), width() - 12, "")):
        yield _fact("" if number else "carried", line)
    for note in report.notes:
        yield _fact("note", note)


def _fact(name: str, value: str) -> str:
    return f"{name:<10}  {value}"
