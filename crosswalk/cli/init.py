"""The command ``init``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
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
