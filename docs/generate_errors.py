"""Write docs/errors.md from runtime/error_codes.toml.

``python docs/generate_errors.py`` writes it; with ``--check`` it fails if the file is not up to date.
"""

from __future__ import annotations

import sys
import tomllib
from itertools import groupby
from pathlib import Path

from pages import write_or_check

HERE = Path(__file__).parent
CODES = HERE.parent / "runtime" / "error_codes.toml"
INTRODUCTION = """\
<!-- Written by docs/generate_errors.py from runtime/error_codes.toml: edit that. -->
# Error codes

Every problem has a code, which stays what it is: `CrosswalkError.diagnostics` has it as `code`, and the text of the
exception and what the command line prints end its first line with it. The message says what was expected and found, and
where; this page what a code means in general, and what to do. A problem of a config is placed at the key in the user's
file, and `rule` is the line of the mapping that does not hold; of a config that is in no file it is the only place."""


def registry() -> dict[str, list[str]]:
    """Every code with what it means and what to do."""
    return tomllib.loads(CODES.read_text(encoding="utf-8"))


def render() -> str:
    """The whole page."""
    lines = [INTRODUCTION]
    for family, codes in groupby(registry().items(), lambda item: item[0].partition("/")[0]):
        lines += ["", f"## {family}", "", "| code | means | what to do |", "|---|---|---|"]
        lines += [f"| `{code}` | {means} | {todo} |" for code, (means, todo) in codes]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(write_or_check(HERE / "errors.md", render(), sys.argv[1:]))
