"""Checkpoints whose tensors are stored encoded: what the config says of it, and which tensors the files really mean.

On import the files are read as if they held the decoded tensors: everything after this module sees those only, and a
config without the object that says how tensors are stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from crosswalk.compiler.layout.model import MISSING
from crosswalk.compiler.mapping.model import EncodingCase, Encodings, MappingFile
from crosswalk.compiler.notation.templates import Template
from crosswalk.compiler.text.positioned import did_you_mean
from crosswalk.compiler.text.values import same_value
from crosswalk.runtime.dtypes import FLOATS, size_of
from crosswalk.runtime.errors import Diagnostic, shown
from crosswalk.runtime.folding import fold
from crosswalk.runtime.plan.encodings import KINDS, misfits
from crosswalk.runtime.plan.model import Encoding, TensorSpec
from crosswalk.runtime.records import Record, field

_HINT = "a checkpoint that is quantised in another way has to be dequantised first"


class Read(Record):
    """A checkpoint as its decoded tensors. ``config``: without what says how tensors are stored. ``specs``: the tensors
    by name, encoded ones as they are decoded. ``unused``: those among them that belong to encoded tensors and are not
    needed, and why. ``problems``: what is wrong with any of it; ``notes``: what is odd. ``understood``: whether the
    config says in a known way what the stored tensors mean; if not, nothing can be said of them."""

    config: Mapping[str, Any]
    specs: dict[str, TensorSpec]
    encodings: list[Encoding] = field(default_factory=list)
    unused: dict[str, str] = field(default_factory=dict)
    problems: list[Diagnostic] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    understood: bool = True

    @property
    def names(self) -> list[str]:
        """The tensors that the config has to explain."""
        return [name for name in self.specs if name not in self.unused]


def without_encodings(mapping: MappingFile, config: Mapping[str, Any]) -> tuple[Mapping[str, Any], list[Diagnostic]]:
    """The config without the objects that say how tensors are stored, and what is wrong in those."""
    read = read_encodings(mapping, config, ())
    return read.config, read.problems


def read_encodings(
    mapping: MappingFile, config: Mapping[str, Any], specs: Iterable[TensorSpec], dtype: str = "BF16"
) -> Read:
    """What a checkpoint with this config and these tensors holds. ``dtype``: what encoded tensors are decoded to, of 16
    bits at least.

    Never raises: problems are in the result, so that those of the rest can be found too."""
    left = {key: value for key, value in config.items() if key not in mapping.encodings}
    read = Read(left, {spec.name: spec for spec in specs})
    for declared in mapping.encodings.values():
        said = config.get(declared.key)
        if said is None or said == {}:
            for case in declared.cases.values():
                _undeclared(declared, case, read, dtype)
            continue
        if not isinstance(said, Mapping):
            text = f"`{declared.key}` must be an object, it is {shown(said)}"
            read.problems.append(Diagnostic("config/type", text, path=(declared.key,)))
            read.understood = False
            continue
        value = said.get(declared.by)
        if read.specs and all(spec.dtype in FLOATS and size_of(spec.dtype) > 1 for spec in read.specs.values()):
            how = f" ({declared.by} {shown(value)})" if declared.by in said else ""
            text = f"`{declared.key}` says that tensors are quantised{how}, and all are floats: it is left out"
            read.notes.append(text)
            continue
        chosen = declared.cases.get(value) if isinstance(value, str) else None
        if chosen is None:
            found = shown(value) if declared.by in said else "absent"
            text = f"`{declared.key}.{declared.by}` must be {' or '.join(declared.cases)}, it is {found}"
            if not declared.cases:
                text = f"`{declared.key}` says that tensors are quantised ({declared.by} {found}): that is not decoded"
            at = (declared.key, declared.by)
            read.problems.append(Diagnostic("config/encoding", text, hint=_HINT, path=at))
            read.understood = False
            continue
        block = _read_config(mapping, declared, chosen, said, read.problems)
        _decode(declared, chosen, block, read, dtype)
    return read


def _read_config(
    mapping: MappingFile, declared: Encodings, case: EncodingCase, said: Mapping[str, Any], problems: list[Diagnostic]
) -> tuple[int, ...] | None:
    """Check what the object says of the encoding; the sizes of its blocks, None if they are wrong."""
    entries = {entry.theirs[0]: entry for entry in case.config}
    for key, value in said.items():
        where = f"{declared.key}.{key}"
        entry = entries.get(key)
        if entry is None and key != declared.by and value is not None:
            text = f"`{where}` = {shown(value)} has no counterpart in mapping `{mapping.name}` ({case.position})"
            near = did_you_mean(key, entries)
            problems.append(Diagnostic("config/unknown-key", text, None, near, path=(declared.key, key)))
        elif entry is not None and entry.kind == "only" and not any(same_value(value, v) for v in entry.values):
            allowed = " or ".join(map(shown, entry.values))
            text = f"`{where}` must be {allowed}, it is {shown(value)}"
            problems.append(Diagnostic("config/value", text, path=(declared.key, key)))
    for key, entry in entries.items():
        if entry.kind == "field":
            value = said.get(key, None if entry.default is MISSING else entry.default)
            sizes = [] if value is None else value
            fits = isinstance(sizes, list) and all(type(size) is int and size > 0 for size in sizes)
            if fits and len(sizes) in KINDS[case.kind].blocks:
                return tuple(sizes)
            text = f"`{declared.key}.{key}` must be null or the sizes of a block, it is {shown(value)}"
            problems.append(Diagnostic("config/value", text, path=(declared.key, key)))
            return None
    return ()


def _decode(declared: Encodings, case: EncodingCase, block: tuple[int, ...] | None, read: Read, dtype: str) -> None:
    """Put the decoded tensors in the place of what is stored for them. ``block``: None if nobody knows it."""
    kind = KINDS[case.kind]
    wrong: list[str] = []
    alone: dict[str, list[str]] = {"payload": [], "scales": []}
    for name in _names(case, read.specs):
        encoding = _replace(case, name, block or (), read, dtype)
        if len(encoding.stored) == 2:
            wrong += misfits(encoding) if block is not None else ()
        else:
            (part,) = encoding.stored
            alone["payload" if part.name == _filled(case.payload, name) else "scales"].append(part.name)
    alone["payload"] += [s.name for s in read.specs.values() if s.dtype in kind.payload]
    hint, at = "the download may be incomplete", (declared.key,)
    for pattern, names in fold(alone["payload"]):
        text = f"`{pattern}` ({len(names)} in all) is encoded, and its scales `{case.scales}` are missing"
        read.problems.append(Diagnostic("tensors/encoding", text, None, hint, path=at))
    for pattern, names in fold(alone["scales"]):
        text = f"`{pattern}` ({len(names)} in all) holds scales, and their payload `{case.payload}` is missing"
        read.problems.append(Diagnostic("tensors/encoding", text, None, hint, path=at))
    for pattern, texts in fold(wrong):
        count = f" ({len(texts)} in all)" if len(texts) > 1 else ""
        read.problems.append(Diagnostic("tensors/encoding", f"{pattern}{count}", path=at))


def _undeclared(declared: Encodings, case: EncodingCase, read: Read, dtype: str) -> None:
    """Report tensors that are stored encoded though the config does not say so, and read them all the same."""
    encoded = [
        _replace(case, name, (), read, dtype).stored[0].name
        for name in _names(case, read.specs)
        if (payload := read.specs.get(_filled(case.payload, name))) is not None
        and payload.dtype in KINDS[case.kind].payload
        and _filled(case.scales, name) in read.specs
    ]
    for pattern, names in fold(encoded):
        text = f"`{pattern}` ({len(names)} in all) has scales, and config.json has no `{declared.key}`"
        hint = f"it says how tensors are stored: restore it, with its `{declared.by}`"
        read.problems.append(Diagnostic("config/encoding", text, None, hint))


def _replace(case: EncodingCase, name: str, block: tuple[int, ...], read: Read, dtype: str) -> Encoding:
    """Put one decoded tensor in the place of the tensors that are stored for it, of which one may be missing."""
    payload = _filled(case.payload, name)
    stored = tuple(read.specs.pop(n) for n in (payload, _filled(case.scales, name)) if n in read.specs)
    encoding = Encoding(_filled(case.tensor, name), case.kind, stored, block)
    shape = KINDS[case.kind].shape(stored[0].shape) if stored[0].name == payload else None
    if encoding.tensor in read.specs:
        text = f"`{encoding.tensor}` stands in the files twice, as it is and encoded as `{stored[0].name}`"
        read.problems.append(Diagnostic("tensors/encoding", text))
    elif shape is not None:
        read.specs[encoding.tensor] = TensorSpec(encoding.tensor, shape, dtype)
        read.encodings.append(encoding)
    for template in case.ignores:
        if _filled(template, name) in read.specs:
            read.unused[_filled(template, name)] = f"no part of the weights ({case.position})"
    return encoding


def _names(case: EncodingCase, specs: Mapping[str, TensorSpec]) -> Iterator[str]:
    """What fills the hole in the names of tensors for which scales, or a payload by its dtype, are stored."""
    found: dict[str, None] = {}
    dtypes = KINDS[case.kind].payload
    ways = [(*_around(template), template is case.scales) for template in (case.scales, case.payload)]
    for spec in specs.values():
        for before, after, is_scales in ways:
            if (is_scales or spec.dtype in dtypes) and spec.name.endswith(after) and spec.name.startswith(before):
                name = spec.name[len(before) : len(spec.name) - len(after)]
                if name and spec.name == before + name + after:
                    found[name] = None
    # One may have been taken as a part of another.
    yield from (name for name in found if any(_filled(t, name) in specs for t in (case.scales, case.payload)))


def _around(template: Template) -> tuple[str, str]:
    before, _, after = str(template).partition("{name}")
    return before, after


def _filled(template: Template, name: str) -> str:
    return str(template.render({"name": name}))
