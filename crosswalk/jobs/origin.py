"""The Hugging Face checkpoint that a native one came from: what is recorded of it, and what is known by that record."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crosswalk.checkpoints.huggingface import CONFIG, carried_files, parse_config
from crosswalk.checkpoints.key_positions import locator
from crosswalk.checkpoints.native import METADATA, NativeCheckpoint
from crosswalk.compiler.config.dialects import dialect_of_names
from crosswalk.compiler.layout.padded_axes import length
from crosswalk.compiler.pipeline import Imported, Origin, main_dtype
from crosswalk.runtime.errors import CrosswalkError, Diagnostic


def record(imported: Imported, text: str, files: Mapping[str, Path], text_only: bool = False) -> dict[str, Any]:
    """What a native checkpoint remembers. ``text``: the config.json that belongs to its tensors as they are decoded;
    ``text_only``: whether it was a tower of another model."""
    mapping, plan, kind = imported.mapping, imported.plan, imported.mapping.root.type
    tensors = dialect_of_names(mapping, (tensor.name for tensor in plan.sources))
    sizes = {axis: {"from": size, "to": length(kind, imported.config, axis)} for axis, size in imported.lengths.items()}
    return {
        "format": mapping.name,
        "config": text,
        "tensor_dialect": tensors.name if tensors else None,
        "dtype": main_dtype(plan.sources),
        "lossy": bool(imported.read.taken.lossy),
        "plan": plan.digest,
        "files": sorted(files),
        **({"padded": sizes} if sizes else {}),
        **({"text_only": True} if text_only else {}),
        **({"kept": list(imported.read.kept)} if imported.read.kept else {}),
    }


def remembered(checkpoint: NativeCheckpoint, format: str | None) -> Origin:
    """The origin of a native checkpoint by its own record, to write it as ``format``. Its config counts only if it is
    of that format. Raises ``CrosswalkError`` if it is no config."""
    said = checkpoint.origin
    there = carried_files(checkpoint.path, frozenset((CONFIG, METADATA)))
    is_config = said.get("format") == format and isinstance(said.get("config"), str)
    return Origin(
        format=said.get("format"),
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


def _config(checkpoint: NativeCheckpoint) -> dict[str, Any]:
    """The config.json that a native checkpoint remembers."""
    keys = ("metadata", "crosswalk", "config")
    try:
        return parse_config(checkpoint.origin["config"], Path(CONFIG))
    except CrosswalkError as error:
        where = locator(checkpoint.text, str(checkpoint.path / METADATA))(keys)
        hint = "remove it: a new config.json is written then"
        raise CrosswalkError(
            Diagnostic("native/metadata", f"`{'.'.join(keys)}`: {d.message}", where, hint) for d in error.diagnostics
        ) from error
