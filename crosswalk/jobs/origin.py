"""The Hugging Face checkpoint that a native one came from: what is recorded of it, and what is known by that record."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from crosswalk.checkpoints.huggingface import (
    CONFIG,
    carried_files,
    config_bytes,
    holds_weights,
    open_hugging_face,
    parse_config,
    read_config_text,
)
from crosswalk.checkpoints.key_positions import locator, read_from
from crosswalk.checkpoints.kinds.every import HUGGING_FACE, kind_of
from crosswalk.checkpoints.native import require_checkpoint
from crosswalk.checkpoints.opened import Opened
from crosswalk.compiler.config.architectures import right_architecture
from crosswalk.compiler.config.dialects import dialect_of_names
from crosswalk.compiler.config.dtypes import main_dtype, state_dtype, stated_dtype
from crosswalk.compiler.config.origin import Origin
from crosswalk.compiler.layout.padded_axes import length
from crosswalk.compiler.layout.scope import as_stored
from crosswalk.compiler.pipeline import (
    ConfigRead,
    Imported,
    read_config,
)
from crosswalk.compiler.relations.tree import CompiledMapping
from crosswalk.compiler.text.values import same_value
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, Position, fail
from crosswalk.runtime.plan.model import TensorSpec

from .detect import chosen_format
from .formats import short_name
from .options import Options


def record(imported: Imported, text: str, files: Mapping[str, Path], text_only: bool = False) -> dict[str, Any]:
    """What a native checkpoint remembers. ``text``: the config.json that belongs to its tensors as they are decoded;
    ``text_only``: whether it was a tower of another model."""
    mapping, plan, kind = imported.mapping, imported.plan, imported.mapping.root.type
    sizes = {axis: {"from": size, "to": length(kind, imported.config, axis)} for axis, size in imported.lengths.items()}
    return {
        "format": short_name(mapping),
        "config": text,
        "tensor_dialect": imported.dialect.name if imported.dialect else None,
        "dtype": main_dtype(plan.sources),
        "lossy": bool(imported.read.taken.lossy),
        "plan": plan.digest,
        "files": sorted(files),
        **({"padded": sizes} if sizes else {}),
        **({"text_only": True} if text_only else {}),
        **({"kept": list(imported.read.kept)} if imported.read.kept else {}),
    }


def remembered(checkpoint: Opened, mapping: CompiledMapping) -> Origin:
    """The origin of a native checkpoint by its own record, to write it in the format of ``mapping``. Its config counts
    only if it is of that format. Raises ``CrosswalkError`` if it is no config."""
    said = checkpoint.origin
    there = carried_files(checkpoint.path, frozenset((CONFIG, checkpoint.file.name)))
    same = said.get("format") in (mapping.name, short_name(mapping))
    is_config = same and isinstance(said.get("config"), str)
    return Origin(
        format=mapping.name if same else said.get("format"),
        text=said["config"] if is_config else "",
        config=_config(checkpoint) if is_config else None,
        dtype=said.get("dtype"),
        tensor_dialect=said.get("tensor_dialect"),
        lossy=bool(said.get("lossy")),
        padded=said.get("padded") or {},
        kept=tuple(said.get("kept") or ()),
        # A name that is no file here is kept, so that it is missed.
        files={name: there.get(name, checkpoint.path / CONFIG / name) for name in said.get("files") or ()},
    )


def original(path: Path, options: Options) -> Origin:
    """The origin that a user names: a Hugging Face checkpoint, or its files without the weights. Its format is that of
    the options, or found among those of their layout.

    Raises ``CrosswalkError`` if it is none, or with every problem of its config.
    """
    require_checkpoint(path)
    directory = path if path.is_dir() else path.parent
    if kind_of(directory) is not HUGGING_FACE:
        hint = f"name the one with {CONFIG} that the model came from"
        raise fail("usage/like", "this is no Hugging Face checkpoint", Position(str(path)), hint)
    file, specs = directory / CONFIG, None
    if holds_weights(directory):
        checkpoint = open_hugging_face(path)
        text, config, specs = checkpoint.text, dict(checkpoint.config), list(checkpoint.tensors.specs())
    else:
        text = read_config_text(file)
        config = parse_config(text, file)
    with read_from(file, text):
        layout = options.to if options.to != "hf" else None
        mapping = chosen_format(options.format, config, specs, layout)
        read = read_config(mapping, config, specs, allow_lossy=True, keep=options.keep)
        if read.problems:
            raise CrosswalkError(read.problems)
    return origin_of(directory, text, mapping, read, specs)


def origin_of(
    path: Path, text: str, mapping: CompiledMapping, read: ConfigRead, specs: Iterable[TensorSpec] | None
) -> Origin:
    """What is known of a Hugging Face checkpoint that was read. ``text``: its config.json; ``specs``: its tensors."""
    config = parse_config(text, path / CONFIG)
    tensors = dialect_of_names(mapping, read.stored.names) if specs is not None else None
    dtype = main_dtype(read.stored.specs.values()) if specs is not None else stated_dtype(config)
    text, config = decoded_config(text, config, mapping, read, dtype)
    return Origin(
        format=mapping.name, text=text, config=config, dtype=dtype,
        tensor_dialect=tensors.name if tensors else None, lossy=bool(read.taken.lossy), kept=read.kept,
        files=carried_files(path), native=as_stored(mapping.layout, mapping.root.type, read.native), name=str(path),
    )  # fmt: skip


def decoded_config(
    text: str, config: dict[str, Any], mapping: CompiledMapping, read: ConfigRead, dtype: str
) -> tuple[str, dict[str, Any]]:
    """config.json, as text and as content, as it is to be remembered: of a checkpoint of floats, to which the tensors
    are decoded (``dtype``), and with the class in its right form."""
    right = dict(right_architecture(mapping.source, read.stored.config)[0])
    if any(config.get(key) is not None for key in config.keys() - right.keys()):
        state_dtype(right, dtype)
    elif all(same_value(right.get(key), config.get(key)) for key in ("architectures", "model_type")):
        return text, config
    return config_bytes(right).decode(), right


def _config(checkpoint: Opened) -> dict[str, Any]:
    """The config.json that a native checkpoint remembers."""
    keys = (*checkpoint.origin_at, "config")
    try:
        return parse_config(checkpoint.origin["config"], Path(CONFIG))
    except CrosswalkError as error:
        where = locator(checkpoint.text, str(checkpoint.file))(keys)
        hint = "remove it: a new config.json is written then"
        raise CrosswalkError(
            Diagnostic("native/metadata", f"`{'.'.join(keys)}`: {d.message}", where, hint) for d in error.diagnostics
        ) from error
