"""The commands of authors of mappings: ``init`` and ``prove``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from crosswalk.proving.findings import Proof

_FILE = click.Path(path_type=Path, exists=True)


@click.command(short_help="Hold a mapping against the class of transformers.")
@click.argument("mapping")
@click.argument("checkpoint", type=_FILE, required=False)
@click.option("--config", type=_FILE, metavar="FILE", help="The config.json, in place of a checkpoint.")
@click.option("--logits", is_flag=True, help="Run the models beside the reference of the layout too.")
@click.option("--keys", metavar="N|KEY,KEY", help="Try these keys alone, or N of them, drawn. Default: all.")
@click.option("--seed", type=int, default=0, show_default=True, help="Draws the keys and the native fields.")
def prove(mapping: str, checkpoint: Path | None, config: Path | None, logits: bool, keys: str | None, seed: int) -> int:
    """Hold MAPPING (a file, or the name of a format) against the class of transformers of CHECKPOINT.

    Of CHECKPOINT only config.json is read: a tiny random model of it is made. Where the class is code that comes with
    its checkpoints, what can be proved without it is. Exit code 1 if anything was found.
    """
    from crosswalk.proving.proof import prove as run

    source = config or checkpoint
    if source is None or (config is not None and checkpoint is not None):
        raise click.UsageError("give either CHECKPOINT or --config FILE")
    tried = None if keys is None else int(keys) if keys.isdigit() else [key.strip() for key in keys.split(",")]
    proof = run(mapping, source, logits=logits, keys=tried, seed=seed)
    show(proof)
    return 0 if proof.holds else 1


def show(proof: Proof) -> None:
    """What was tried, how often and with how many findings; then each finding with its line."""
    from crosswalk.proving.findings import CHECKS, CODES

    from .lines import aligned, echo
    from .render import render

    rows = [("tried", "found", "")]
    for name, what in CHECKS.items():
        if proof.tried[name]:
            found = sum(1 for finding in proof.findings if CODES.get(finding.code) == name)
            rows.append((str(proof.tried[name]), str(found), what))
    against = "by itself" if proof.alone else f"held against {proof.reference} in a tiny model"
    echo([f"{proof.format}: {against}", *proof.notes, "", *aligned(rows), ""])
    if proof.findings:
        click.echo(render(proof.findings))
        click.echo()
    said = f"{len(proof.findings)} finding{'s' if len(proof.findings) != 1 else ''}"
    echo([said if proof.findings else "nothing found"])


@click.command(short_help="Draft the mapping of a checkpoint, with its questions.")
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True))
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="The file to write.")
@click.option("--without", multiple=True, metavar="FORMAT", help="Formats not to begin with.")
def init(checkpoint: Path, output: Path | None, without: tuple[str, ...]) -> None:
    """Draft the mapping of CHECKPOINT, a Hugging Face directory or its config.json.

    The draft extends the nearest format, and ends each line that needs an answer with a question. Without -o it is
    printed.
    """
    from crosswalk.drafting.init import init as run
    from crosswalk.runtime.errors import Position, fail

    from .lines import echo

    if output is not None and output.exists():
        raise fail("init/exists", "the file exists", Position(str(output)), "name another, or remove it")
    draft = run(checkpoint, without=without)
    if output is None:
        click.echo(draft.text(), nl=False)
        return
    output.write_text(draft.text(), encoding="utf-8")
    count = len(draft.questions)
    echo([f"{output}: extends `{draft.header['extends']}`, {count or 'no'} question{'s' if count != 1 else ''}"])
    echo(f"  {question}" for question in draft.questions)
