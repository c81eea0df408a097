"""The command line. Exit codes: 0 done, 1 a problem with the input, 2 wrong usage, 130 interrupted.

Everything heavy is imported inside the commands, so that ``--help`` is quick.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from .authoring import init, prove
from .compare import compare
from .progress import progress, waiting

if TYPE_CHECKING:
    from crosswalk.jobs.prepare import Prepared
    from crosswalk.runtime.errors import Diagnostic

Command = TypeVar("Command", bound=Callable[..., Any])
SOURCE = click.argument("src", type=click.Path(path_type=Path))
VERBOSE = click.option(
    "--verbose", "-v", is_flag=True, help="Show the native config too, and the line of the mapping that sets a field."
)
LIKE = click.option(
    "--like", type=click.Path(path_type=Path, exists=True, file_okay=False), metavar="DIR",
    help="The original Hugging Face directory: tokenizer, token ids and the like come from there.",
)  # fmt: skip


KIND = click.option(
    "--as", "kind", metavar="dcp|safetensors|...",
    help="The kind of directory to write. Default: what the trainer keeps.",
)  # fmt: skip
LAYOUT = click.option("--layout", metavar="NAME", help="The layout of SRC, if its directory does not say it.")
NATIVE_CONFIG = click.option(
    "--native-config", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="FILE",
    help="JSON or YAML with the native config, if no directory says it.",
)  # fmt: skip
MAPPINGS = click.option(
    "--mappings", multiple=True, type=click.Path(path_type=Path, exists=True, file_okay=False), metavar="DIR",
    expose_value=False, is_eager=True, callback=lambda context, option, folders: _use_mappings(folders),
    help="A folder of mappings and layouts of your own, before those of CROSSWALK_MAPPINGS.",
)  # fmt: skip


def _use_mappings(folders: tuple[Path, ...]) -> None:
    """Look for mappings in these folders too, in this process."""
    if folders:
        from crosswalk.jobs.formats import use_folders

        use_folders(folders)


def planning_options(command: Command) -> Command:
    """The options that decide a plan, shared by all commands that make one."""
    for option in reversed(
        (
            click.option(
                "--to", metavar="LAYOUT|hf",
                help="A trainer's layout, or hf. Default: hf for what is of a layout, else fast_llm.",
            ),
            KIND,
            LAYOUT,
            NATIVE_CONFIG,
            MAPPINGS,
            click.option("--format", "format_", metavar="NAME", help="The format, if it is not to be detected."),
            click.option(
                "--dialect", metavar="NAME[,NAME]",
                help="Such as transformers-4, transformers-5 or transformers-5-5; `formats NAME` lists those of a "
                "format. Default: that of the source, or all that fit in one file.",
            ),
            click.option("--dtype", metavar="NAME", help="Cast all float tensors, e.g. to bfloat16. Default: keep."),
            click.option("--protect", multiple=True, metavar="TENSOR", help="A tensor, or PREFIX*, to keep its dtype."),
            click.option("--allow-lossy", is_flag=True, help="Accept what the mapping declares to be inexact."),
            click.option(
                "--keep", multiple=True, metavar="KEY[,KEY]",
                help="Carry unknown keys of config.json along; nested ones with dots.",
            ),
            click.option(
                "--take-tied", is_flag=True, help="Leave out tensors that are tied and stored too, unread."
            ),
            click.option("--text-only", is_flag=True, help="Take the text tower of a model that has others too."),
            click.option("--pad", multiple=True, metavar="AXIS=MULTIPLE", help="Round a size up, e.g. vocab=128."),
            click.option(
                "--truncate", multiple=True, metavar="AXIS=SIZE",
                help="Cut an axis on the way back. Default: what --pad added.",
            ),
            LIKE,
            click.option(
                "--model-files", type=click.Path(path_type=Path, exists=True, file_okay=False), metavar="DIR",
                help="Where the model code of a custom architecture is, if SRC does not carry it.",
            ),
        )
    ):  # fmt: skip
        command = option(command)
    return command


def engine_options(command: Command) -> Command:
    """The options of commands that read or write data."""
    for option in reversed(
        (
            click.option("--workers", type=click.IntRange(1, 256), help="Threads. Default: one per core, at most 4."),
            click.option("--memory", metavar="SIZE", help="Most memory to allocate, e.g. 200MiB."),
            click.option("--quiet", "-q", is_flag=True, help="No progress bar."),
        )
    ):
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=lambda *given: _show_versions(*given),
    help="Show the versions of the package, of the mapping language and of plans.",
)  # fmt: skip
def cli() -> None:
    """Convert model checkpoints between Hugging Face and a trainer's layout, both ways, by compiled mappings."""


@cli.command(short_help="Convert the checkpoint SRC into the new directory DST.")
@SOURCE
@click.argument("dst", type=click.Path(path_type=Path))
@planning_options
@click.option("--max-shard-size", default="5GB", show_default=True, metavar="SIZE", help="Largest data file.")
@click.option("--checksum", type=click.Choice(["none", "xxh3", "sha256"]), default="xxh3", show_default=True)
@click.option("--overwrite", is_flag=True, help="Replace DST, in one step, once the conversion is complete.")
@click.option("--resume", is_flag=True, help="Continue an interrupted conversion, and be continuable if interrupted.")
@engine_options
def convert(
    src: Path, dst: Path, max_shard_size: str, checksum: str, overwrite: bool, resume: bool, workers: int | None,
    memory: str | None, quiet: bool, **planning: Any,
) -> None:  # fmt: skip
    """Convert the checkpoint SRC into the new directory DST."""
    from crosswalk import convert as run

    from .lines import show_report

    options = _options(workers, memory, checksum, overwrite, resume)
    with progress(quiet, "converting") as shown:
        report = run(src, dst, **_planned(planning), max_shard_size=max_shard_size, options=options, on_progress=shown)
    show_report(report)


@cli.command(short_help="Check config.json and headers of SRC against its mapping.")
@SOURCE
@planning_options
@VERBOSE
def check(src: Path, verbose: bool, **planning: Any) -> None:
    """Check SRC against its mapping: config.json and headers; of the weights only what is tied and stored twice."""
    from crosswalk.jobs.check import checked
    from crosswalk.jobs.report import Report

    from .lines import show_report

    with waiting("checking"):
        prepared = checked(src, _asked(planning))
    show_report(Report.of(prepared))
    if verbose:
        from .configs import show_native_config

        show_native_config(prepared)


@cli.command(short_help="Show what a conversion of SRC would do, relation by relation.")
@SOURCE
@planning_options
@click.option("--json", "as_json", is_flag=True, help="Print the whole plan as JSON.")
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write one page for the review of the mapping: both configs, all relations, drawings.",
)
@click.option("--prove", "with_proof", is_flag=True, help="With --html: what `crosswalk prove` finds, at its lines.")
@click.option("--workers", type=click.IntRange(1, 256), help="Threads to state the peak memory for.")
@VERBOSE
def plan(
    src: Path, as_json: bool, html: Path | None, with_proof: bool, workers: int | None, verbose: bool, **planning: Any
) -> None:
    """Show what a conversion of SRC would do: bytes, peak memory, verdict, and every relation, layers folded."""
    from crosswalk.jobs.prepare import prepare

    if with_proof and html is None:
        raise click.UsageError("--prove goes with --html FILE")
    with waiting("planning"):
        prepared = prepare(src, _asked(planning))
    if html is not None:
        _write_page(prepared, src, html, with_proof)
    elif as_json:
        click.echo(prepared.plan.to_json())
    else:
        from .plans import show_plan

        show_plan(prepared, workers, verbose)


def _write_page(prepared: Prepared, source: Path, file: Path, with_proof: bool) -> None:
    from .review import page

    findings: Sequence[Diagnostic] = ()
    if with_proof:
        from crosswalk import prove as run

        findings = run(prepared.mapping.name, source).findings
    file.write_text(page(prepared, findings), encoding="utf-8")
    click.echo(f"{file}: {len(prepared.plan.copies)} copies, {len(findings)} findings" if with_proof else str(file))


@cli.command(short_help="Show where one tensor comes from, and which line says so.")
@SOURCE
@click.argument("tensor")
@planning_options
def explain(src: Path, tensor: str, **planning: Any) -> None:
    """Show where TENSOR comes from: source tensors, axes, rule, and the line of the mapping that says so."""
    from crosswalk.jobs.prepare import prepare

    from .plans import show_explanation

    with waiting("planning"):
        prepared = prepare(src, _asked(planning))
    show_explanation(prepared, tensor)


@cli.command(short_help="Prove that DST is the conversion of SRC, by reading both.")
@SOURCE
@click.argument("dst", type=click.Path(path_type=Path))
@click.option("--format", "format_", metavar="NAME", help="The format, if it is not to be detected.")
@click.option("--allow-lossy", is_flag=True, help="Accept what the mapping declares to be inexact.")
@click.option("--take-tied", is_flag=True, help="Leave out tensors that are tied and stored too, unread.")
@LIKE
@LAYOUT
@NATIVE_CONFIG
@MAPPINGS
@engine_options
def verify(
    src: Path, dst: Path, format_: str | None, allow_lossy: bool, take_tied: bool, like: Path | None,
    layout: str | None, native_config: Path | None, workers: int | None, memory: str | None, quiet: bool,
) -> None:  # fmt: skip
    """Prove that DST is the conversion of SRC, by reading both. Nothing is written."""
    from crosswalk import verify as run

    from .lines import show_report

    with progress(quiet, "verifying") as shown:
        report = run(
            src,
            dst,
            format_,
            like=like,
            layout=layout,
            native_config=native_config,
            allow_lossy=allow_lossy,
            take_tied=take_tied,
            options=_options(workers, memory),
            on_progress=shown,
        )
    show_report(report)


@cli.command(short_help="List the formats; with NAME, what one of them says.")
@click.argument("name", required=False)
@MAPPINGS
def formats(name: str | None) -> None:
    """Show which classes go onto which layouts; with NAME, the flattened mapping and what replaced what."""
    from .formats import show_format, show_formats

    if name is None:
        show_formats()
    else:
        show_format(name)


cli.add_command(compare)
cli.add_command(init)
cli.add_command(prove)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``crosswalk``."""
    gc.disable()  # what a command makes stays until it ends: looking for cycles would be a third of the planning
    sys.exit(run_command(cli, arguments))


def run_command(command: click.Command, arguments: list[str] | None) -> int:
    """Run a command and turn every problem into one message and an exit code."""
    from crosswalk.runtime.errors import CrosswalkError, system_limits

    _open_streams()
    try:
        with system_limits():
            result = command.main(arguments, standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Abort:
        click.echo("interrupted", err=True)
        return 130
    except click.ClickException as error:
        from .render import visible

        error.__dict__["message"] = visible(error.message)  # declared final, and still what is shown
        error.show()
        return error.exit_code
    except CrosswalkError as error:
        from .render import render

        click.echo(render(error.diagnostics), err=True)
        return 2 if all(found.code.startswith(("usage/", "options/")) for found in error.diagnostics) else 1
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output is gone: there is nobody to tell
        return 1
    except OSError as error:
        from .render import on_one_line

        where = f"{error.filename}: " if error.filename else ""
        click.echo(on_one_line(f"{where}error: {error.strerror or error}"), err=True)
        return 1
    except MemoryError:
        click.echo("error: there is not enough memory", err=True)
        return 1
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        return 130


def _open_streams() -> None:
    """Give standard streams that are closed a place: a file of a checkpoint must not take the number of one."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) < 3:
        pass
    os.close(descriptor)
    sys.stdout = sys.stdout or os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    sys.stderr = sys.stderr or os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")


def _show_versions(context: click.Context, option: click.Parameter, asked: bool) -> None:
    if not asked or context.resilient_parsing:
        return
    from crosswalk import __version__
    from crosswalk.compiler.catalog_text import LANGUAGE
    from crosswalk.runtime.plan.text import FOLDED

    click.echo(f"crosswalk {__version__}, mapping language {LANGUAGE}, plan {FOLDED}")
    context.exit()


def _planned(options: dict[str, Any]) -> dict[str, Any]:
    from crosswalk.jobs.options import parse_sizes

    options["format"] = options.pop("format_")
    if "protect" in options:
        options["protect"] = tuple(options["protect"])
    for option in ("pad", "truncate"):
        options[option] = parse_sizes(options[option], option)
    return options


def _asked(options: dict[str, Any]) -> Any:
    """The options of a plan, of commands that only make one."""
    from crosswalk.jobs.options import AskedOptions, options_of

    planned = _planned(options)
    format, to, dialect, dtype = (planned.pop(name) for name in ("format", "to", "dialect", "dtype"))
    return options_of(format, to, dialect, dtype, cast("AskedOptions", planned))


def _options(
    workers: int | None, memory: str | None, checksum: str = "xxh3", overwrite: bool = False, resume: bool = False
) -> Any:
    from crosswalk.jobs.options import parse_size
    from crosswalk.runtime.files.convert import EngineOptions

    bytes_ = parse_size(memory, "--memory") if memory else None
    return EngineOptions(workers=workers, memory=bytes_, checksum=checksum, overwrite=overwrite, resume=resume)
