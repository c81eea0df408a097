"""Checkpoints whose tensors are stored encoded: what the config says of it, and which tensors the files really mean.

A mapping declares the object of config.json that says how tensors are stored, and the names of what is stored for one.
On import the files are read as if they held the decoded tensors: everything after this module sees those only, and a
config without that object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from crosswalk.runtime.encodings import KINDS, misfits
from crosswalk.runtime.errors import Diagnostic, Position, fail
from crosswalk.runtime.plan import Encoding, TensorSpec

from .containers import Map, did_you_mean
from .layout import MISSING
from .mapping import EncodingCase, Encodings, Entry, MappingFile
from .names import Template
from .planning import fold
from .theirs import same_number

#: What an entry of the config of an encoding may say; ``block`` is the only field.
_ENTRIES = ("field", "only", "drop")
_HINT = "a checkpoint that is quantised in another way has to be dequantised first"


# ---- from a document ------------------------------------------------------------------------------------------------


def parse_encodings(
    document: Map, base: MappingFile, entries: Callable[[Map, tuple[str, ...]], list[Entry]]
) -> dict[str, Encodings]:
    """The encodings of a mapping, with those that it inherits; a case replaces the inherited one of the same value.
    Raises ``CrosswalkError`` at the first mistake."""
    result = dict(base.encodings)
    for key, body in document.get("encodings", Map()).items():
        cases = dict(result[key].cases) if key in result else {}
        for value, case in body["cases"].items():
            cases[value] = _parse_case(case, body["cases"].key_position(value), entries)
        result[key] = Encodings(key, body["by"], cases)
    return result


def _parse_case(body: Map, position: Position, entries: Callable[[Map, tuple[str, ...]], list[Entry]]) -> EncodingCase:
    kind = KINDS.get(body["is"])
    if kind is None:
        hint = did_you_mean(body["is"], KINDS) or f"there are {', '.join(KINDS)}"
        raise fail("mapping/encoding", f"`{body['is']}` is no kind of encoding", body.value_position("is"), hint)
    config = entries(body.get("config", Map()), ())
    for entry in config:
        if entry.kind not in _ENTRIES or len(entry.theirs) != 1:
            raise fail("mapping/encoding", "of an encoding this can be `block`, `only` or `~`", entry.position)
        if entry.kind == "field" and (entry.ours != ("block",) or len(kind.blocks) < 2):
            what = "`block`" if len(kind.blocks) > 1 else f"none in `{kind.name}`"
            raise fail("mapping/encoding", f"the only field of an encoding is {what}", entry.right)
    names = {word: _parse_name(body[word], body.value_position(word)) for word in ("tensor", "payload", "scales")}
    ignores = body.get("ignores", [])
    ignored = tuple(_parse_name(text, ignores.item_position(index)) for index, text in enumerate(ignores))
    return EncodingCase(kind.name, tuple(config), **names, ignores=ignored, position=position)


def _parse_name(text: str, position: Position) -> Template:
    template = Template.parse(text, position)
    if [str(hole) for hole in template.holes] != ["{name}"]:
        raise fail("mapping/encoding", "a name of an encoding has one hole, which is `{name}`", position)
    return template


# ---- from a checkpoint ----------------------------------------------------------------------------------------------


@dataclass
class Read:
    """A checkpoint as its decoded tensors. ``config``: without what says how tensors are stored. ``specs``: the tensors
    by name, encoded ones as they are decoded. ``unused``: those among them that belong to encoded tensors and are not
    needed, and why. ``problems``: what is wrong with any of it."""

    config: Mapping[str, Any]
    specs: dict[str, TensorSpec]
    encodings: list[Encoding] = field(default_factory=list)
    unused: dict[str, str] = field(default_factory=dict)
    problems: list[Diagnostic] = field(default_factory=list)


def without_encodings(mapping: MappingFile, config: Mapping[str, Any]) -> tuple[Mapping[str, Any], list[Diagnostic]]:
    """The config without the objects that say how tensors are stored, and what is wrong in those."""
    read = read_encodings(mapping, config, ())
    return read.config, read.problems


def read_encodings(
    mapping: MappingFile, config: Mapping[str, Any], specs: Iterable[TensorSpec], dtype: str = "BF16"
) -> Read:
    """What a checkpoint with this config and these tensors holds. ``dtype``: what encoded tensors are decoded to.

    Never raises: problems are in the result, so that those of the rest can be found too."""
    left = {key: value for key, value in config.items() if key not in mapping.encodings}
    read = Read(left, {spec.name: spec for spec in specs})
    for declared in mapping.encodings.values():
        said = config.get(declared.key)
        if said is None:
            for case in declared.cases.values():
                _undeclared(declared, case, read, dtype)
            continue
        if not isinstance(said, Mapping):
            text = f"`{declared.key}` must be an object, it is {said!r}"
            read.problems.append(Diagnostic("config/type", text, path=(declared.key,)))
            continue
        value = said.get(declared.by)
        chosen = declared.cases.get(value) if isinstance(value, str) else None
        if chosen is None:
            found = repr(value) if declared.by in said else "absent"
            text = f"`{declared.key}.{declared.by}` must be {' or '.join(declared.cases)}, it is {found}"
            at = (declared.key, declared.by)
            read.problems.append(Diagnostic("config/encoding", text, hint=_HINT, path=at))
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
        if entry is None and key != declared.by:
            text = f"`{where}` = {value!r} has no counterpart in mapping `{mapping.name}` ({case.position})"
            near = did_you_mean(key, entries)
            problems.append(Diagnostic("config/unknown-key", text, None, near, path=(declared.key, key)))
        elif entry is not None and entry.kind == "only" and not any(same_number(value, v) for v in entry.values):
            allowed = " or ".join(map(repr, entry.values))
            text = f"`{where}` must be {allowed}, it is {value!r}"
            problems.append(Diagnostic("config/value", text, path=(declared.key, key)))
    for key, entry in entries.items():
        if entry.kind == "field":
            value = said.get(key, None if entry.default is MISSING else entry.default)
            sizes = [] if value is None else value
            fits = isinstance(sizes, list) and all(type(size) is int and size > 0 for size in sizes)
            if fits and len(sizes) in KINDS[case.kind].blocks:
                return tuple(sizes)
            text = f"`{declared.key}.{key}` must be null or the sizes of a block, it is {value!r}"
            problems.append(Diagnostic("config/value", text, path=(declared.key, key)))
            return None
    return ()


def _decode(declared: Encodings, case: EncodingCase, block: tuple[int, ...] | None, read: Read, dtype: str) -> None:
    """Put the decoded tensors in the place of what is stored for them."""
    kind = KINDS[case.kind]
    at = (declared.key,)
    alone: dict[str, list[str]] = {"payload": [], "scales": []}
    wrong: list[str] = []
    found: list[Encoding] = []
    for name in _names(case, read.specs):
        payload, scales = (read.specs.get(_filled(part, name)) for part in (case.payload, case.scales))
        if payload is None or scales is None:
            present = "scales" if payload is None else "payload"
            alone[present].append(name)
            read.specs.pop(_filled(case.payload if scales is None else case.scales, name))
        else:
            found.append(Encoding(_filled(case.tensor, name), case.kind, (payload, scales), block or ()))
            wrong += misfits(found[-1]) if block is not None else ()
            for part in found[-1].stored:
                del read.specs[part.name]
            for template in case.ignores:
                if _filled(template, name) in read.specs:
                    read.unused[_filled(template, name)] = f"no part of the weights ({case.position})"
        shape = None if payload is None else kind.shape(payload.shape)
        tensor = _filled(case.tensor, name)
        if shape is not None:
            read.specs[tensor] = TensorSpec(tensor, shape, dtype)
    read.encodings += found
    plain = [spec.name for spec in read.specs.values() if spec.dtype in kind.payload and spec.dtype != dtype]
    alone["payload"] = [_filled(case.payload, name) for name in alone["payload"]] + plain
    alone["scales"] = [_filled(case.scales, name) for name in alone["scales"]]
    for present, other in (("payload", "scales"), ("scales", "payload")):
        for pattern, names in fold(alone[present]):
            template = case.scales if other == "scales" else case.payload
            text = f"`{pattern}` ({len(names)} in all) has no {other}: with `{template}` it would be one tensor"
            read.problems.append(Diagnostic("tensors/encoding", text, None, "the download may be incomplete", path=at))
    for pattern, texts in fold(wrong):
        count = f" ({len(texts)} in all)" if len(texts) > 1 else ""
        read.problems.append(Diagnostic("tensors/encoding", f"{pattern}{count}", path=at))


def _undeclared(declared: Encodings, case: EncodingCase, read: Read, dtype: str) -> None:
    """Report tensors that are stored encoded though the config does not say so, and read them all the same."""
    kind = KINDS[case.kind]
    both = []
    for name in _names(case, read.specs):
        payload, scales = (read.specs.get(_filled(part, name)) for part in (case.payload, case.scales))
        if payload is not None and scales is not None and payload.dtype in kind.payload:
            both.append(payload.name)
            tensor, shape = _filled(case.tensor, name), kind.shape(payload.shape)
            del read.specs[payload.name], read.specs[scales.name]
            if shape is not None:
                read.specs[tensor] = TensorSpec(tensor, shape, dtype)
    for pattern, names in fold(both):
        text = f"`{pattern}` ({len(names)} in all) has scales, and config.json has no `{declared.key}`"
        hint = f"it says how tensors are stored: restore it, with its `{declared.by}`"
        read.problems.append(Diagnostic("config/encoding", text, None, hint))


def _names(case: EncodingCase, specs: Mapping[str, TensorSpec]) -> Iterator[str]:
    """What fills the hole in the names of tensors for which scales, or a payload by its dtype, are stored."""
    found: dict[str, None] = {}
    dtypes = KINDS[case.kind].payload
    for spec in specs.values():
        for template in (case.scales, case.payload):
            before, after = _around(template)
            name = spec.name[len(before) : len(spec.name) - len(after)]
            is_one = template is case.scales or spec.dtype in dtypes
            if is_one and name and spec.name == before + name + after:
                found[name] = None
    yield from found


def _around(template: Template) -> tuple[str, str]:
    before, _, after = str(template).partition("{name}")
    return before, after


def _filled(template: Template, name: str) -> str:
    return str(template.render({"name": name}))
