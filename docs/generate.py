"""Write what can be generated in the pages beside this file: ``python docs/generate.py``.

language.md               the tables of words, from the schemas
add-an-architecture.md    what the commands print, run on the mapping as far as the page has written it
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from word_examples import examples

HERE = Path(__file__).parent
Schema = Mapping[str, Any]


# ---- language.md: tables of words -----------------------------------------------------------------------------------


def tables(page: str) -> str:
    """The page with a table below every marker ``<!-- words: SCHEMA DEFINITION... -->``."""

    def table(found: re.Match[str]) -> str:
        name, *definitions = found[1].split()
        schema = json.loads((HERE.parent / "schema" / f"{name}.schema.json").read_text(encoding="utf-8"))
        parts, shown = [], set[tuple[str, ...]]()
        for definition in definitions:
            body = schema if definition == "-" else schema["$defs"][definition]
            listed = [cells for cells in words(name, schema, body, definition) if cells[:3] not in shown]
            shown.update(cells[:3] for cells in listed)
            rows = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |" for cells in listed]
            heading = f"**{body['title']}**\n\n" if len(definitions) > 1 else ""
            parts.append(heading + "\n".join(["| word | holds | meaning | as in |", "|---|---|---|---|", *rows]))
        return f"<!-- words: {found[1]} -->\n" + "\n\n".join(parts) + "\n<!-- end -->"

    return re.sub(r"<!-- words: ([\w. -]+?) -->.*?<!-- end -->", table, page, flags=re.DOTALL)


def words(name: str, schema: Schema, body: Schema, definition: str) -> Iterator[tuple[str, ...]]:
    """The cells of a row for each property of an object, or of the alternatives that are objects."""
    for alternative in body.get("anyOf", ()):
        yield from words(name, schema, alternative, definition)
    for word, described in body.get("properties", {}).items():
        while "description" not in described:
            described = resolve(schema, described["$ref"])
        holds, _, meaning = described["description"].partition(". ")
        example = examples(name).get((definition, word), "")
        yield f"`{word}`", holds.rstrip("."), f"{meaning.rstrip('.')}." if meaning else "", example


def resolve(schema: Any, reference: str) -> Any:
    for part in reference.removeprefix("#/").split("/"):
        schema = schema[part]
    return schema


# ---- add-an-architecture.md: what commands print --------------------------------------------------------------------

BLOCK = re.compile(r"```(yaml|console)\n(.*?)```", re.DOTALL)


def outputs(page: str, run: Callable[[str, str], str]) -> str:
    """The page with the output of every command in a ``console`` block, each run on the ``yaml`` blocks before it.
    ``run(command, mapping)`` gives what it prints; ``| head -N`` behind a command keeps as many lines of that."""
    mapping: dict[str, dict[str, str]] = {}

    def block(found: re.Match[str]) -> str:
        if found[1] == "yaml":
            add(mapping, found[2])
            return found[0]
        command = re.match(r"\$ (.*)", found[2])
        assert command, found[2]
        program, _, head = command[1].partition(" | head -")
        printed = run(program, joined(mapping)).splitlines()
        kept = printed[: int(head)] if head else printed
        return "\n".join(["```console", command[0], *kept, "```"])

    return BLOCK.sub(block, page)


def add(mapping: dict[str, dict[str, str]], text: str) -> None:
    """Put the lines of a block into the mapping so far: a word that a section has already is replaced."""
    section = word = ""
    seen: set[tuple[str, str]] = set()
    for line in text.splitlines(keepends=True):
        if re.match(r"[\w#]", line):
            section, word = line.partition(":")[0].strip() if line[0] != "#" else "", ""
        elif re.match(r"  [\w#]", line):
            word = line.partition(":")[0].strip()
        if not line.strip():
            continue
        words = mapping.setdefault(section, {})
        words[word] = (words[word] if (section, word) in seen else "") + line
        seen.add((section, word))


def joined(mapping: dict[str, dict[str, str]]) -> str:
    """The mapping as a file: sections apart by blank lines, words of the header not."""
    parts = ["".join(words.values()) for words in mapping.values()]
    return "".join(("\n" if "\n  " in part and "\n" in part.rstrip("\n") else "") + part for part in parts)


@contextlib.contextmanager
def workplace() -> Iterator[Callable[[str, str], str]]:
    """Runs commands of the page beside a small GPT-2, which the real class has saved, and the mapping as it stands."""
    import torch
    import transformers

    before = Path.cwd()
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory).resolve()
        torch.manual_seed(0)
        sizes: dict[str, Any] = {"n_embd": 24, "n_head": 4, "n_layer": 3, "n_positions": 37, "vocab_size": 211}
        config = transformers.GPT2Config(**sizes, bos_token_id=210, eos_token_id=210)
        transformers.utils.logging.disable_progress_bar()
        transformers.GPT2LMHeadModel(config).save_pretrained(folder / "gpt2-small")
        os.chdir(folder)
        try:
            yield lambda command, mapping: run_in(folder, command, mapping)
        finally:
            os.chdir(before)


def run_in(folder: Path, line: str, mapping: str) -> str:
    """What a command prints, on a terminal of any width; places in shipped files without their lines, which move."""
    from crosswalk.cli import build as compile_mappings
    from crosswalk.cli import commands as cli
    from crosswalk.cli.render import render
    from crosswalk.jobs import formats as catalog
    from crosswalk.runtime.errors import CrosswalkError

    (folder / "gpt2.yaml").write_text(mapping, encoding="utf-8")
    catalog.catalog.cache_clear()
    os.environ["CROSSWALK_MAPPINGS"] = str(folder)
    program, *arguments = line.split()
    command = compile_mappings.command if program == "compile-mappings" else cli.cli
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            command.main(args=arguments, standalone_mode=False)
    except CrosswalkError as error:
        printed.write(render(error.diagnostics))
    finally:
        del os.environ["CROSSWALK_MAPPINGS"]
        catalog.catalog.cache_clear()
        for made in arguments[2:]:
            shutil.rmtree(folder / made, ignore_errors=True)
    text = printed.getvalue().replace(f"{folder}/", "")
    text = re.sub(r"/[\w./-]*/((?:layouts/)?\w+\.yaml)(:\d+:\d+)?", r"\1", text)
    return "\n".join(line.rstrip() for line in text.splitlines()).strip("\n")


PAGES = ("language.md", "add-an-architecture.md")


def generated(page: str) -> str:
    """A page as it should be."""
    text = (HERE / page).read_text(encoding="utf-8")
    if page == "language.md":
        return tables(text)
    with workplace() as run:
        return outputs(text, run)


def main() -> None:
    for page in PAGES:
        text = generated(page)
        changed = text != (HERE / page).read_text(encoding="utf-8")
        (HERE / page).write_text(text, encoding="utf-8")
        sys.stdout.write(f"{page}: {'written' if changed else 'up to date'}\n")


if __name__ == "__main__":
    main()
