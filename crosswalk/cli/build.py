"""The build step: validate mapping files, print what they cover, and write a catalog of them or a plan."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .commands import run_command

if TYPE_CHECKING:
    from crosswalk.compiler.catalog import Catalog
    from crosswalk.compiler.relations.tree import CompiledMapping


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("files", nargs=-1, metavar="[FILES...]")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Directory for the catalog; plan file.")
@click.option("--config", type=click.Path(path_type=Path, dir_okay=False), help="A config: compile its plan too.")
@click.option("--to", default="fast_llm", show_default=True, metavar="fast_llm|hf", help="Direction of the plan.")
@click.option("--dtype", help="Cast all float tensors of the plan.")
@click.option("--allow-lossy", is_flag=True, help="Accept what the mapping declares to be inexact.")
def command(
    files: tuple[str, ...], output: Path | None, config: Path | None, to: str, dtype: str | None, allow_lossy: bool
) -> int:
    """Validate mappings: FILES (or names of shipped ones), all shipped ones without any.

    With -o, compile them and what they need into one catalog in that directory, which can be named in
    CROSSWALK_MAPPINGS. With --config, also compile the flat plan of one mapping for one config and write it to the
    file -o.
    """
    from crosswalk.runtime.errors import CrosswalkError, Diagnostic

    from .formats import show_coverage

    catalog, names = _catalog(files)
    compiled: list[CompiledMapping] = []
    problems: list[Diagnostic] = []
    for name in names:
        try:
            compiled.append(catalog.compiled(name))
        except CrosswalkError as error:
            problems += error.diagnostics
    if files and any(Path(file).suffix for file in files):
        from crosswalk.models.named_classes import missing_classes

        problems += [found for mapping in compiled for found in missing_classes(mapping.source)]
    if problems:
        raise CrosswalkError(dict.fromkeys(problems))
    if config is None:
        show_coverage(compiled)
        if output is not None:
            _write_catalog(catalog, names if files else None, output)
        return 0
    if len(names) != 1:
        raise CrosswalkError(Diagnostic("usage/config", "--config takes one mapping", None, "name one mapping or file"))
    _write_plan(compiled[0], config, to, dtype, allow_lossy, output)
    return 0


def _catalog(files: tuple[str, ...]) -> tuple[Catalog, list[str]]:
    from crosswalk.compiler.catalog import Catalog
    from crosswalk.jobs.formats import folders

    own = tuple(dict.fromkeys(Path(file).resolve().parent for file in files if Path(file).suffix))
    found = Catalog((*own, *folders()))
    if files:
        return found, [Path(file).stem if Path(file).suffix else file for file in files]
    return found, [name for name in found.names() if not found.mapping(name).abstract]


def _write_catalog(catalog: Catalog, names: list[str] | None, output: Path) -> None:
    from crosswalk.compiler.catalog_build import build, write

    made = build(catalog.folders[:-1], names)
    click.echo(f"{write(made, output)}: {len(made.documents)} mappings and layouts, {made.sources}")


def _write_plan(
    mapping: CompiledMapping, config: Path, to: str, dtype: str | None, allow_lossy: bool, output: Path | None
) -> None:
    from crosswalk.checkpoints.huggingface import parse_config, read_config_text
    from crosswalk.checkpoints.key_positions import read_from
    from crosswalk.jobs.options import Options
    from crosswalk.jobs.plans import plan_for

    given = read_config_text(config)
    with read_from(config, given):
        plan = plan_for(mapping, parse_config(given, config), Options(to=to, dtype=dtype, allow_lossy=allow_lossy))
    text = plan.to_json()
    if output is None:
        click.echo(text)
    else:
        output.write_text(text, encoding="utf-8")
        click.echo(f"{output}: {len(plan.copies)} copies, {plan.verify()}, {plan.digest}")


def main() -> None:
    """Entry point of ``compile-mappings``."""
    sys.exit(run_command(command, None))
