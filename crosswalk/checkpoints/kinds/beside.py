"""``crosswalk.yaml``: what a directory that holds only tensors does not say. It is written beside them, and read."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from crosswalk.checkpoints import yaml_text
from crosswalk.checkpoints.key_positions import locator, read_from
from crosswalk.checkpoints.native import stored_config
from crosswalk.checkpoints.opened import Opened, Wanted, is_mapping, is_text, of_record, unmet
from crosswalk.compiler.layout.model import Layout
from crosswalk.compiler.layout.scope import Scope, stored_type
from crosswalk.runtime.checkpoint.opening import open_regular
from crosswalk.runtime.checkpoint.output import Written
from crosswalk.runtime.checkpoint.source import Checkpoint
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, Position, fail, shorten
from crosswalk.runtime.records import Record, field, replace

from .forms import Mappings, read_form
from .kind import Contents, Given
from .run import ARCHIVE, arguments

NAME = "crosswalk.yaml"
VERSION = 1
_MAX = 256 << 20
_ORIGIN = ("origin",)


class Said(Record, frozen=True):
    """What such a file, or one with a config alone, says. ``at``: keys that lead to the config in it; ``own``: whether
    it is a form of a config that the trainer has."""

    file: Path
    text: str = ""
    layout: str | None = None
    root: str | None = None
    config: Mapping[str, Any] | None = None
    at: tuple[str, ...] = ()
    origin: Mapping[str, Any] = field(default_factory=dict)
    own: bool = False

    def opened(self, path: Path, kind: str, layout: Layout, tensors: Checkpoint, notes: tuple[str, ...]) -> Opened:
        """The checkpoint that this is said of. Raises ``CrosswalkError`` if the layout has no such model."""
        roots = layout.roots()
        if self.root is not None and self.root not in roots:
            text = f"layout `{layout.name}` has no model `{shorten(self.root)}`: there are {', '.join(roots)}"
            raise fail("native/metadata", text, locator(self.text, str(self.file))(("model",)))
        root = roots[self.root] if self.root is not None else None
        return Opened(
            path, kind, layout, self.config, root, self.origin, tensors, self.file, self.text, self.at, _ORIGIN, notes,
            own=self.own,
        )  # fmt: skip


def text_beside(contents: Contents, written: Written) -> dict[str, bytes]:
    """The file for a complete native config, and what is to be remembered of its origin."""
    assert contents.layout is not None
    layout = contents.layout
    kind = stored_type(layout, layout.types[contents.root], contents.config)
    document = {
        "crosswalk": VERSION,
        "layout": layout.name,
        "model": kind.model,
        "config": stored_config(Scope(layout, kind, contents.config)),
        "origin": {**contents.origin, "checksums": dict(sorted(written.checksums.items()))},
    }
    return {NAME: yaml_text.dump(document).encode()}


def said_of(path: Path, given: Given, kind: str) -> tuple[Said, Layout]:
    """What is known of a directory that holds tensors: by the user, or else by the file in it. If nobody says the
    layout, it is the only one whose trainer keeps such a kind with a config of its own in it. Raises ``CrosswalkError``
    if it is not known."""
    file = path / NAME
    there = read(file) if file.is_file() else Said(file)
    said = there
    if isinstance(given.config, Path):
        said = read(given.config)
    elif given.config is not None:
        said = Said(path, config=given.config)
    if said is not there:
        root = there.root if said.layout is None else said.root
        said = Said(
            said.file, said.text, said.layout or there.layout, root, said.config, said.at, said.origin or there.origin
        )
    kept = given.kept_as(kind)
    only = kept[0] if len(kept) == 1 and given.layouts(kept[0]).forms else None
    name = given.layout or said.layout or only
    if name is None:
        text = f"there is no {NAME} here that says of which layout these tensors are"
        hint = "pass --layout NAME (in Python: layout=): hf for names of Hugging Face"
        raise fail("usage/layout", text, Position(str(path)), hint)
    if said.layout not in (None, name):
        text = f"this is said to be of layout `{said.layout}`, not `{name}`"
        raise fail("usage/layout", text, Position(str(said.file)), "leave out --layout")
    with read_from(said.file, said.text) if given.layout is None else nullcontext():
        layout = given.layouts(name)
    if said.config is not None and not said.at:
        with read_from(said.file, said.text):
            config = read_form(layout, said.config, given.mappings)
        said = said if config is None else replace(said, config=config, own=True)
    return said, layout


def config_of(file: Path, layout: Layout, mappings: Mappings) -> Mapping[str, Any] | None:
    """The native config that a file holds, in whatever form. Raises ``CrosswalkError``."""
    said = read(file)
    if said.config is None or said.at:
        return said.config
    with read_from(file, said.text):
        return read_form(layout, said.config, mappings) or said.config


def read(file: Path) -> Said:
    """The file, or one that has nothing but a native config, as JSON or YAML, or the arguments of a run. Raises
    ``CrosswalkError``."""
    from crosswalk.checkpoints import portable_yaml

    where = Position(str(file))
    try:
        with open(open_regular(file), "rb") as stream:
            data = stream.read(_MAX + 1)
        if len(data) > _MAX:
            raise fail("native/metadata", f"larger than {_MAX >> 20} MiB", where)
        if data.startswith(ARCHIVE):
            return Said(file, config=arguments(data, file))
        text = data.decode()
    except UnicodeDecodeError as error:
        raise fail("native/metadata", "this is not UTF-8 text", where) from error
    except OSError as error:
        raise fail("native/metadata", f"cannot read it: {error.strerror or error}", where) from error
    document = portable_yaml.load(text, str(file), shared=True)
    if not isinstance(document, Mapping):
        raise fail("native/metadata", "this is not a mapping of keys to values", where)
    if "crosswalk" not in document:
        return Said(file, text, config=document)
    wanted: tuple[Wanted, ...] = (
        (("crosswalk",), str(VERSION), lambda value: value == VERSION and type(value) is int),
        (("layout",), "text", is_text),
        (("model",), "text", is_text),
        (("config",), "a mapping", is_mapping),
        *of_record(_ORIGIN),
    )
    problems = list(unmet(document, wanted, lambda keys: keys[0] in ("model", "origin")))
    if problems:
        locate = locator(text, str(file))
        raise CrosswalkError(
            Diagnostic("native/metadata", f"`{'.'.join(keys)}` {what}", locate(keys)) for keys, what in problems
        )
    return Said(
        file, text, document["layout"], document.get("model"), document["config"], ("config",),
        document.get("origin") or {},
    )  # fmt: skip
