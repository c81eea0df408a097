"""The files that a class needs beside config.json: its code, which is carried or given, and those made from config."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from crosswalk.compiler.mapping.model import MappingFile
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, Position

from .huggingface import carried_files, config_bytes


def missing_files(carried: Mapping[str, Path], source: Path) -> list[Diagnostic]:
    """The files that are ``carried`` in the checkpoint ``source`` and are not there."""
    return [
        Diagnostic("files/missing", f"the carried file `{name}` is gone", Position(str(source)), "put it back there")
        for name, path in carried.items()
        if not path.is_file()
    ]


def files_to_write(
    mapping: MappingFile, carried: Mapping[str, Path], model_files: Path | None, source: Path
) -> dict[str, Path]:
    """The files that are ``carried`` to a new Hugging Face checkpoint of ``source``, and what the format needs of those
    in ``model_files``.

    Raises ``CrosswalkError`` for carried files that are gone, and for model code that is nowhere.
    """
    problems = missing_files(carried, source)
    given = carried_files(model_files) if model_files is not None else {}
    wanted = (*mapping.files, *mapping.optional_files, *mapping.derived_files)
    files = {**carried, **{name: path for name, path in given.items() if name in wanted}}
    missing = [name for name in mapping.files if name not in files]
    if missing:
        problems.append(
            Diagnostic(
                "files/model-code",
                f"format `{mapping.name}` needs its model files {', '.join(missing)}: it cannot be loaded without",
                Position(str(source)),
                "pass --model-files DIR, a directory that holds them",
            )
        )
    if problems:
        raise CrosswalkError(problems)
    return files


def derived_files(mapping: MappingFile, config: Mapping[str, Any], there: Iterable[str]) -> dict[str, bytes]:
    """The files that the class cannot be loaded without, made from config.json where they are not ``there``."""
    return {
        name: config_bytes({key: config[key] for key in keys if key in config})
        for name, keys in mapping.derived_files.items()
        if name not in there
    }
