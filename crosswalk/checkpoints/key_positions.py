"""Where the keys of a config stand in the file that it was read from, for messages about them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from crosswalk.compiler.text.positioned import Map
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, Position
from crosswalk.runtime.records import replace


def locator(text: str, file: str, root: tuple[str, ...] = ()) -> Callable[[tuple[str, ...]], Position]:
    """A function from a path of keys, below ``root``, to the deepest of them that stands in a JSON or YAML text."""

    @cache
    def document() -> object:
        from .portable_yaml import load  # and with it two libraries: only where there is a problem to place

        with suppress(CrosswalkError):  # fine for its own reader only
            return load(text, file)
        with suppress(CrosswalkError):
            return load(text, file, shared=True)
        return None

    def locate(path: tuple[str, ...]) -> Position:
        position, container = Position(file), document()
        for key in (*root, *path):
            if not isinstance(container, Map) or key not in container:
                break
            position, container = container.key_position(key), container[key]
        return position

    return locate


def located(problems: Iterable[Diagnostic], text: str, file: Path, root: tuple[str, ...] = ()) -> list[Diagnostic]:
    """The problems, those without a position at the key of the file that they are about. Problems with an option that
    was given are in no file."""
    listed = list(problems)

    def is_elsewhere(problem: Diagnostic) -> bool:
        return problem.position is not None or problem.code.startswith("usage/")

    if all(map(is_elsewhere, listed)):
        return listed
    locate = locator(text, str(file), root)
    return [problem if is_elsewhere(problem) else replace(problem, position=locate(problem.path)) for problem in listed]


@contextmanager
def read_from(file: Path, text: str = "", root: tuple[str, ...] = ()) -> Iterator[None]:
    """Problems of this block that have no position are those of ``file``, at their keys if its ``text`` is given.
    They are raised as ``CrosswalkError`` again."""
    try:
        yield
    except CrosswalkError as error:
        raise CrosswalkError(located(error.diagnostics, text, file, root)) from error
