"""The command ``compare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from crosswalk.models.comparison import Comparison


@click.command(short_help="Run SRC and its conversion, and say where they first differ.")
@click.argument("src", type=click.Path(path_type=Path))
@click.argument("dst", type=click.Path(path_type=Path), required=False)
@click.option("--format", "format_", metavar="NAME", help="The format, if it is not to be detected.")
@click.option("--tiny", is_flag=True, help="Compare a small random copy of SRC: needs its config.json only.")
@click.option("--tokens", type=int, default=64, show_default=True, metavar="N", help="Length of the sequence.")
@click.option(
    "--tolerance",
    type=float,
    default=1e-4,
    show_default=True,
    metavar="X",
    help="Largest relative difference.",
)
@click.option("--layout", metavar="NAME", help="The layout of DST, if its directory does not say it.")
@click.option("--keep", multiple=True, metavar="KEY[,KEY]", help="Leave unknown keys of config.json aside.")
@click.option("--allow-lossy", is_flag=True, help="Accept what the mapping declares to be inexact.")
def compare(
    src: Path, dst: Path | None, format_: str | None, tiny: bool, tokens: int, tolerance: float, keep: tuple[str, ...],
    allow_lossy: bool, layout: str | None,
) -> int:  # fmt: skip
    """Run the class of transformers on SRC and the reference on its conversion DST, and compare what they compute.

    A checkpoint of torchtitan is run by torchtitan's own classes, where it is installed. Without DST, SRC is converted
    in memory. Exit code 1 if the two are not the same model.
    """
    from crosswalk.models.comparison import compare as run

    comparison = run(
        src, dst, format_, tiny=tiny, tokens=tokens, tolerance=tolerance, allow_lossy=allow_lossy, keep=keep,
        layout=layout,
    )  # fmt: skip
    show(comparison)
    return 0 if comparison.same else 1


def show(comparison: Comparison) -> None:
    """A line for each part of the model, and the verdict."""
    from .lines import aligned, echo

    rows = [("after", "relative difference", "")]
    for name, difference in {**comparison.parts, "logits": comparison.logits}.items():
        mark = "" if difference <= comparison.tolerance else "differs"
        rows.append((name, f"{difference:.1e}", mark + (" first" if name == comparison.first else "")))
    title = f"{comparison.format}: {comparison.reference} and {comparison.by}, {comparison.tokens} tokens, fp32"
    first, limit = comparison.first, f"{comparison.tolerance:g}"
    verdict = f"the same, within {limit}" if first is None else f"not the same: `{first}` differs by more than {limit}"
    echo([title, "", *aligned(rows), "", *(f"note: {note}" for note in comparison.notes), verdict])
