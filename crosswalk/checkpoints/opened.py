"""A checkpoint of a trainer, opened: the same whatever kind of directory it lies in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from crosswalk.compiler.layout.model import Layout
from crosswalk.runtime.checkpoint.source import Checkpoint
from crosswalk.runtime.errors import shown
from crosswalk.runtime.records import Record, field


class Opened(Record, frozen=True):
    """``config``: the native config as stored, None if nothing says it; ``root``: its type in the layout, where that is
    said. ``origin``: what was recorded of the Hugging Face checkpoint that it came from, empty if it came from
    elsewhere. ``tensors``: of the model alone, under the names of the layout. ``text`` is what ``file`` says, in which
    the config stands below the keys ``config_at``, and the record below ``origin_at``. ``notes`` say what else lies in
    the directory, and is left; ``run``: arguments of the run that saved it, plain values only, where it has them.
    ``own``: whether the config is one that the trainer keeps itself, in a form of its own."""

    path: Path
    kind: str
    layout: Layout
    config: Mapping[str, Any] | None
    root: str | None
    origin: Mapping[str, Any]
    tensors: Checkpoint
    file: Path
    text: str = ""
    config_at: tuple[str, ...] = ()
    origin_at: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    run: Mapping[str, Any] = field(default_factory=dict)
    own: bool = False


#: Keys that lead to a value of a document, what it has to be in words, and whether a value is that.
Wanted = tuple[tuple[str, ...], str, Callable[[Any], bool]]


def is_text(value: Any) -> bool:
    """Whether a value of a document is text."""
    return isinstance(value, str)


def is_mapping(value: Any) -> bool:
    """Whether a value of a document is a mapping of keys."""
    return isinstance(value, Mapping)


def _names(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_text, value))


def _padding(value: Any) -> bool:
    return isinstance(value, Mapping) and all(is_text(axis) and _sizes(found) for axis, found in value.items())


def _sizes(value: Any) -> bool:
    numbers: list[Any] = list(map(value.get, ("from", "to"))) if isinstance(value, Mapping) else []
    return bool(numbers) and {*map(type, numbers)} == {int} and bool(1 <= numbers[0] < numbers[1])


def of_record(at: tuple[str, ...]) -> tuple[Wanted, ...]:
    """What the record of an origin, at a place of a document, has to be. All of it may be absent."""
    return (
        (at, "a mapping", is_mapping),
        *(((*at, key), "text", is_text) for key in ("format", "config", "tensor_dialect", "dtype")),
        ((*at, "lossy"), "true or false", lambda value: isinstance(value, bool)),
        ((*at, "padded"), "a mapping of axes to {from: size, to: larger size}", _padding),
        ((*at, "files"), "a list of file names", _names),
        ((*at, "text_only"), "true or false", lambda value: isinstance(value, bool)),
        ((*at, "kept"), "a list of keys", _names),
    )


def unmet(
    document: Mapping[str, Any], wanted: tuple[Wanted, ...], optional: Callable[[tuple[str, ...]], bool]
) -> Iterator[tuple[tuple[str, ...], str]]:
    """What is not in a document, or not what it has to be: keys, and what is the matter with them."""
    for keys, expected, fits in wanted:
        *parents, key = keys
        container: Any = document
        for parent in parents:
            container = container.get(parent) if isinstance(container, Mapping) else None
        value = container.get(key) if isinstance(container, Mapping) else None
        if value is None and not optional(keys) and isinstance(container, Mapping):
            yield keys, "is missing"
        elif value is not None and not fits(value):
            yield keys, f"must be {expected}; it is {shown(value, 60)}"
