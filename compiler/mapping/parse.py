"""From a document to a mapping: every line becomes an entry, a fact or a tensor line that knows where it stands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from crosswalk.compiler.layout.model import MISSING
from crosswalk.compiler.notation.axes import parse_dims
from crosswalk.compiler.notation.expressions import Expression, KeyPath, compile_expression
from crosswalk.compiler.notation.templates import Template
from crosswalk.compiler.text.positioned import Map, Seq
from crosswalk.compiler.text.scalars import scalar_of
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, Position
from crosswalk.runtime.records import replace

from .dialects import parse_dialects
from .encodings import parse_encodings, parse_signs
from .header import parse_parts, parse_versions
from .model import PLACES, CheckEntry, CutLine, Entry, EnumRow, Fact, MappingFile, Section, TensorEntry, Tower
from .overlay import overlay

#: The words of an entry of ``config:`` that are fields of it, and with those that tell its kind: a map with any of
#: them is an entry, any other map nests keys.
_FIELDS = tuple(word for word in Entry.__struct_fields__ if word not in PLACES)
ENTRY_WORDS = frozenset(("is", "const", "only", *_FIELDS))
#: The same for ``tensors:``.
TENSOR_WORDS = frozenset(("is", "axes", "encoded"))


HEADER = ("layout", "root", "architecture", "model_type", "config_class", "newest", "description")
RESERVED = frozenset(
    (*HEADER, "crosswalk", "extends", "abstract", "files", "optional_files", "derived_files", "auto_map",
     "versions", "write_dialects", "keeps", "class_defaults", "harmless", "unmapped", "wrappers", "quantised",
     "enums", "dialects", "encodings", "parts", "tower_of", "elsewhere")
)  # fmt: skip


def parse_mapping(name: str, document: Map, load_base: Callable[[str, Position], MappingFile]) -> MappingFile:
    """The mapping of a document, laid over the one that it extends. ``load_base(name, position)`` gives that one.

    Raises ``CrosswalkError`` with every problem found in the document.
    """
    problems: list[Diagnostic] = []
    base = MappingFile(name, document.position.file, document.position)
    if "extends" in document:
        base = load_base(document["extends"], document.value_position("extends"))
    sections = dict(base.sections)
    for key in document:
        if key not in RESERVED:
            try:
                section = parse_section(key, document[key] or Map(), document.key_position(key))
                sections[key] = overlay(sections[key], section) if key in sections else section
            except CrosswalkError as error:
                problems.extend(error.diagnostics)
    if problems:
        raise CrosswalkError(problems)
    parts = {part.theirs: part for part in (*base.parts, *parse_parts(document))}
    header = {key: document.get(key, getattr(base, key)) for key in HEADER}
    others = list(base.other_model_types) if "model_type" not in document else []
    if isinstance(header["model_type"], list):
        header["model_type"], *others = header["model_type"]  # the first is written, all are read
    return MappingFile(
        name=name,
        file=document.position.file,
        position=document.position,
        **header,
        other_model_types=tuple(others),
        abstract=bool(document.get("abstract", False)),
        files=tuple(document.get("files", base.files)),
        optional_files=tuple(document.get("optional_files", base.optional_files)),
        derived_files={name: tuple(keys) for name, keys in document.get("derived_files", base.derived_files).items()},
        auto_map=dict(document.get("auto_map", base.auto_map)),
        versions=parse_versions(document, base),
        write_dialects=tuple(document.get("write_dialects", base.write_dialects)),
        keeps=tuple({entry.theirs: entry for entry in (*base.keeps, *_keeps(document), *_harmless(document))}.values()),
        class_defaults=dict(document.get("class_defaults", base.class_defaults)),
        wrappers=(*base.wrappers, *document.get("wrappers", ())),
        quantised=parse_signs(document, base),
        unmapped={**base.unmapped, **document.get("unmapped", {})},
        enums=_enums(document, base),
        dialects=parse_dialects(document, base, parse_section),
        encodings=parse_encodings(document, base, _entries),
        sections=sections,
        parts=tuple(parts.values()),
        tower_of={
            **base.tower_of,
            **{
                name: Tower(_path(body["config"]), tuple(body["tensors"].items()), body.get("default"))
                for kind, body in document.get("tower_of", {}).items()
                for name in (kind, *body.get("also", ()))
            },
        },
        elsewhere=tuple(document.get("elsewhere", base.elsewhere)),
        ancestors=(*base.ancestors, base.name) if "extends" in document else (),
        places={**base.places, **{key: document.value_position(key) for key in document if key in RESERVED}},
    )


def parse_section(name: str, body: Map, position: Position) -> Section:
    """One section, or the overlay of a case or kind."""
    config: list[Entry] = []
    for index, path in enumerate(body.get("same", ())):
        config.append(Entry(_path(path), "field", body["same"].item_position(index), ours=_path(path)))
    config += _entries(body.get("config", Map()), ())
    config += _keeps(body)
    by, by_default = _by(body)
    each = body.get("each")
    tensors = body.get("tensors")
    cases = body.get("cases", Map())
    if isinstance(cases, list):
        case_sections = {str(case): Section(str(case), position) for case in cases}
    else:
        case_sections = {case: _case(name, cases[case], cases.key_position(case)) for case in cases}
    overrides = body.get("overrides")
    kinds = {
        kind: {
            key: parse_section(key, overlays[key] or Map(), overlays.key_position(key))
            for overlays in [body["kinds"][kind] or Map()]
            for key in overlays
        }
        for kind in body.get("kinds", ())
    }
    lines = _tensors(tensors or Map(), "")
    _check_distinct(config, lines)
    return Section(
        name=name,
        position=position,
        config=tuple(config),
        sets=tuple(_facts(body.get("sets", Map()), ())),
        tensors=tuple(lines),
        same_names="*" in (tensors or ()),
        has_tensors=tensors is not None,
        checks=tuple(_checks(body.get("checks", Map()))),
        by=by,
        by_default=by_default,
        cases=case_sections,
        of=body.get("of"),
        count=_path(body["count"]) if "count" in body else None,
        each=_each(body),
        repeats=isinstance(each, Mapping),
        kinds=kinds,
        overrides=_path(next(iter(overrides)) if isinstance(overrides, Mapping) else overrides) if overrides else None,
        overridable=frozenset(*overrides.values()) if isinstance(overrides, Mapping) else None,
        nothing=_nothing(cases) | _nothing(body.get("kinds", ())),
        cuts=_cuts(body.get("cuts", Map())),
        transposed={"in -> out": True, "out <- in": False, None: None}[body.get("linear")],
    )


def _each(body: Map) -> KeyPath | Expression | None:
    """What tells the kinds of layers: a key, or an expression over keys and ``layer``."""
    each = body.get("each")
    if not each:
        return () if "each" in body else None
    value = value_of(next(iter(each)) if isinstance(each, Mapping) else each, body.value_position("each"))
    return value if isinstance(value, Expression) else _path(value)


def _cuts(body: Map) -> dict[str, CutLine]:
    """The axes that the section cuts in parts."""
    result = {}
    for axis, parts in body.items():
        sizes = tuple((name, value_of(parts[name], parts.value_position(name))) for name in parts)
        result[axis] = CutLine(axis, sizes, body.key_position(axis))
    return result


def _nothing(named: Any) -> frozenset[str]:
    """The cases or kinds that are written as ``~``."""
    return frozenset(name for name in named if named[name] is None) if isinstance(named, Mapping) else frozenset()


def _case(name: str, body: Any, position: Position) -> Section:
    """One case: an overlay, or the text that says why there is none."""
    if isinstance(body, str):
        return Section(name, position, refused=body)
    return parse_section(name, body or Map(), position)


def _check_distinct(config: list[Entry], tensors: list[TensorEntry]) -> None:
    """A left side stands once in a section, however it is nested."""
    seen: dict[str, Position] = {}
    problems = []
    named = [("key", ".".join(e.theirs), e.position) for e in config]
    named += [("tensor", f"{line.theirs} {line.types}", line.position) for line in tensors]
    for what, name, position in named:
        first = seen.setdefault(f"{what} {name}", position)
        if first is not position:
            message = f"{what} `{name.partition(' ')[0]}` is already written at {first}"
            problems.append(Diagnostic("mapping/key-twice", message, position, "keep one of the two"))
    if problems:
        raise CrosswalkError(problems)


def _path(text: str) -> KeyPath:
    return tuple(text.split("."))


def value_of(value: Any, position: Position) -> Any:
    """A literal, or the expression that a string starting with ``= `` holds."""
    if isinstance(value, str) and value.startswith("= "):
        return compile_expression(value[2:].strip(), position)
    return value


def _entries(body: Map, prefix: KeyPath) -> list[Entry]:
    result: list[Entry] = []
    for key, value in body.items():
        theirs = (*prefix, *_path(key))
        if isinstance(value, Mapping) and not ENTRY_WORDS & value.keys():
            result += _entries(body[key], theirs)
        else:
            entry = _entry(theirs, value, body.key_position(key))
            at = body.value_position(key) if isinstance(value, str) else value.value_position("is") if value else None
            result.append(replace(entry, ours_at=at) if entry.ours else entry)
    return result


def _entry(theirs: KeyPath, value: Any, position: Position) -> Entry:
    if value is None:
        return Entry(theirs, "drop", position)
    if isinstance(value, str):
        return Entry(theirs, "field", position, ours=_path(value))
    said = {word: _said(word, value, theirs) for word in _FIELDS if word in value}
    if "is" in value:
        return Entry(theirs, "field", position, _path(value["is"]), **{"default": value.get("omit", MISSING), **said})
    for word in ("const", "only"):
        if word in value:
            values = _listed(value[word]) if word == "only" else (value[word],)
            values = tuple(value_of(v, value.value_position(word)) for v in values)
            return Entry(theirs, word, position, values=values, **said)
    return Entry(theirs, "mirror" if "write" in said else "drop", position, **said)


def _said(word: str, entry: Map, theirs: KeyPath) -> Any:
    """The value of a word of an entry, as it is unless it may be several values, paths or an expression."""
    value = entry[word]
    if word in ("default", "read", "write"):
        return value_of(value, entry.value_position(word))
    if word == "alias":
        return tuple((*theirs[:-1], *_path(alias)) for alias in _listed(value))
    return _listed(value) if word in ("unset", "cases") else value


def _listed(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list) else (value,)


def _keeps(body: Map) -> list[Entry]:
    keeps = body.get("keeps", ())
    return [Entry(_path(key), "keep", keeps.item_position(i)) for i, key in enumerate(keeps)]


def _harmless(document: Map) -> list[Entry]:
    """Keys that are carried at some values alone."""
    result = []
    for key, body in document.get("harmless", Map()).items():
        only = body["only"]
        values = tuple(only) if isinstance(only, list) and only else (only,)
        position = document["harmless"].key_position(key)
        result.append(Entry(_path(key), "keep", position, values=values, why=body["feature"]))
    return result


def _facts(body: Map, prefix: KeyPath) -> list[Fact]:
    result: list[Fact] = []
    for key, value in body.items():
        ours = (*prefix, *_path(key))
        if isinstance(value, Map):
            result += _facts(value, ours)
        else:
            at = body.value_position(key)
            result.append(Fact(ours, value_of(value, at), body.key_position(key), at))
    return result


def _tensors(body: Map, prefix: str) -> list[TensorEntry]:
    result: list[TensorEntry] = []
    for key, value in body.items():
        position, at = body.key_position(key), body.value_position(key)
        name = f"{prefix}.{key}" if prefix else key
        if key == "*" and not prefix:
            continue
        if isinstance(value, Map) and not TENSOR_WORDS & value.keys():
            result += _tensors(value, name)
            continue
        result.append(_tensor(name, value, position, at))
    return result


def _tensor(name: str, value: Any, position: Position, at: Position) -> TensorEntry:
    """One line; ``at`` is where its right side is."""
    dims = dims_at = encoded = encoded_at = None
    if isinstance(value, Map):
        if "axes" in value:
            dims_at = value.value_position("axes")
            dims = parse_dims(value["axes"], dims_at)
        if "encoded" in value:
            encoded_at = value.value_position("encoded")
            encoded = parse_dims(value["encoded"], encoded_at)
        value, at = value["is"], value.value_position("is")
    refs = [value] if isinstance(value, str) else list(value or ())
    places = tuple(value.item_position(i) for i in range(len(refs))) if isinstance(value, Seq) else (at,)
    types: tuple[str, ...] | None = None
    ours = []
    for ref in refs:
        path, _, filtered = ref.partition("(")
        if filtered:
            types = tuple(filtered.removesuffix(")").split("|"))
        ours.append(_path(path))
    template = Template.parse(name, position)
    return TensorEntry(template, tuple(ours), types, dims, position, places, dims_at, encoded, encoded_at)


def _checks(body: Map) -> list[CheckEntry]:
    result = []
    for text, message in body.items():
        position = body.key_position(text)
        severity = "error"
        if isinstance(message, Mapping):
            severity, message = "warning", message["warn"]
        result.append(CheckEntry(compile_expression(text, position), message or "", severity, position))
    return result


def _by(body: Map) -> tuple[KeyPath | None, Any]:
    by = body.get("by")
    if by is None:
        return (() if "by" in body else None), MISSING
    if isinstance(by, Mapping):
        ((key, default),) = by.items()
        return _path(key), default
    return _path(by), MISSING


def _enums(document: Map, base: MappingFile) -> dict[str, tuple[EnumRow, ...]]:
    result = dict(base.enums)
    for name, rows in document.get("enums", {}).items():
        own = []
        for theirs, ours in rows.items():
            lossy = None
            if isinstance(ours, Mapping):
                lossy, ours = ours.get("lossy"), ours["is"]
            own.append(EnumRow(scalar_of(theirs, rows.key_position(theirs)), ours, lossy, rows.key_position(theirs)))
        replaced = {row.theirs for row in own}
        result[name] = (*own, *(row for row in base.enums.get(name, ()) if row.theirs not in replaced))
    return result
