"""Help and light commands: nothing heavy is imported, and the installed programs run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from small_checkpoints import CommandLine, make

# ---- help ------------------------------------------------------------------------------------------------------------

HEAVY = ("torch", "transformers", "ruamel", "jsonschema", "jinja2", "safetensors", "numpy")


def test_help_of_every_command_imports_nothing_heavy() -> None:
    script = f"""
import io, sys
from contextlib import redirect_stdout
from crosswalk.cli.commands import cli, run_command
from crosswalk.cli.build import command
texts = []
for arguments in ([], *([name] for name in cli.commands)):
    with redirect_stdout(io.StringIO()) as out:
        assert run_command(cli, [*arguments, "--help"]) == 0
    texts.append(out.getvalue())
with redirect_stdout(io.StringIO()) as out:
    assert run_command(command, ["-h"]) == 0
texts.append(out.getvalue())
assert all(text.startswith("Usage:") and len(text) > 150 for text in texts)
print(len(texts), sorted(cli.commands))
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    names = ["check", "compare", "convert", "explain", "formats", "init", "plan", "prove", "verify"]
    assert done.stdout.splitlines() == [f"{len(names) + 2} {names}", "[]"]


def test_check_and_plan_import_no_torch(tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    script = f"""
import io, sys
from contextlib import redirect_stdout
from crosswalk.cli.commands import cli, run_command
for command in ("check", "plan"):
    with redirect_stdout(io.StringIO()):
        assert run_command(cli, [command, {str(source)!r}]) == 0
print([name for name in ("torch", "transformers") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_the_installed_commands_run(tmp_path: Path) -> None:
    for name in ("crosswalk", "compile-mappings"):
        program = Path(sys.executable).with_name(name)
        if not program.exists():
            pytest.skip("the commands are not installed")
        done = subprocess.run([program, "--help"], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0
        assert done.stdout.startswith(f"Usage: {name} ")


def test_the_list_of_commands_has_whole_sentences(command: CommandLine) -> None:
    listed = command("--help").out.partition("Commands:\n")[2].splitlines()
    assert len(listed) > 8
    assert all(line.endswith(".") and not line.endswith("...") for line in listed)
