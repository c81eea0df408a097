"""The one exception a user of Crosswalk has to catch, and the diagnostics it carries.

Every problem is a :class:`Diagnostic`. Functions collect all of them and raise once, so that a user sees every problem
of a file or a checkpoint in one run.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from crosswalk.runtime.records import Record

#: How many problems are shown; the exception has all.
MOST_SHOWN = 200
#: How much of a line of a message is shown: values of a config may be of any length.
_WIDTH = 4000


class Position(Record, frozen=True):
    """A place in a text file; lines and columns count from 1. ``line == 0`` means the file as a whole."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


class Diagnostic(Record, frozen=True):
    """One problem: a stable code, where it is, what was expected and found, and what to do about it.

    ``path`` are the keys that lead to what the problem is about, where it is about a config; whoever knows the file
    that the config was read from makes a position of it. ``rule`` is where a mapping says what does not hold: for its
    author, beside the position, or in its place where the config was read from no file.
    """

    code: str
    message: str
    position: Position | None = None
    hint: str | None = None
    severity: str = "error"
    path: tuple[str, ...] = ()
    rule: Position | None = None

    @property
    def place(self) -> Position | None:
        """Where a reader is to look first."""
        return self.position or self.rule

    def __str__(self) -> str:
        where = f"{self.place}: " if self.place else ""
        hint = f"\n  hint: {self.hint}" if self.hint else ""
        rule = f"\n  rule: {self.rule}" if self.position and self.rule else ""
        return f"{where}{self.severity}: {cut(self.message)} [{self.code}]{hint}{rule}"


class CrosswalkError(Exception):
    """Raised with every :class:`Diagnostic` that a step found; ``str()`` is what a user should read."""

    def __init__(self, diagnostics: Iterable[Diagnostic] | Diagnostic):
        self.diagnostics = (diagnostics,) if isinstance(diagnostics, Diagnostic) else tuple(diagnostics)
        shown = [str(found) for found in self.diagnostics[:MOST_SHOWN]]
        super().__init__("\n".join([*shown, *and_more(len(self.diagnostics))]))

    def __reduce__(self) -> tuple[type[CrosswalkError], tuple[tuple[Diagnostic, ...]]]:
        return type(self), (self.diagnostics,)  # as exceptions travel between processes


def cut(message: str) -> str:
    """A message as it is shown, without the ends of very long lines."""
    if len(message) <= _WIDTH:
        return message
    lines = message.split("\n")
    return "\n".join(line if len(line) <= _WIDTH else f"{line[:_WIDTH]}…" for line in lines)


def and_more(number: int) -> list[str]:
    """What is said after the problems that are shown, of ``number`` in all."""
    return [f"and {number - MOST_SHOWN} more problems"] if number > MOST_SHOWN else []


def shorten(text: str, length: int = 120) -> str:
    """Text of a file as a message has it: printable, and cut to ``length`` characters."""
    text = text if len(text) <= length else text[:length] + "…"
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def shown(value: Any, length: int = 200) -> str:
    """A value as a message has it: as JSON writes it, printable, and cut to ``length`` characters."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
        return shorten(text if text.isprintable() else json.dumps(value, default=str), length)
    except ValueError:  # Python refuses to print an int of thousands of digits
        return "a very large number"


def listed(values: Iterable[Any]) -> str:
    """Values that a message offers, each once: text as it is, others as JSON writes them."""
    return ", ".join(dict.fromkeys(value if isinstance(value, str) else shown(value) for value in values))


def fail(code: str, message: str, position: Position | None = None, hint: str | None = None) -> CrosswalkError:
    """A :class:`CrosswalkError` with a single diagnostic, ready to be raised."""
    return CrosswalkError(Diagnostic(code, message, position, hint))


@contextmanager
def system_limits() -> Iterator[None]:
    """What runs into a limit of the system is a problem like any other: memory, threads, and the length of names.
    Raises ``CrosswalkError``."""
    try:
        yield
    except MemoryError as error:
        raise _no_memory() from error
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise _no_memory() from error
        if error.errno != errno.ENAMETOOLONG:
            raise
        named = str(error.filename or "")
        raise fail("system/name", f"the file system takes no name as long as this: {named[:80]}...") from error
    except RuntimeError as error:
        if "can't start new thread" in str(error):
            hint = "end what else runs, or raise the limit of processes"
            raise fail("system/threads", "the system gives this process no further thread", None, hint) from error
        if "can't allocate memory" not in str(error):  # as torch says it
            raise
        raise _no_memory() from error


def _no_memory() -> CrosswalkError:
    return fail("system/memory", "there is not enough memory", None, "ask for fewer workers, or raise the limit")
