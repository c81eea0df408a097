"""What a command does not import: a small conversion must not wait for libraries that it has no use for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from small_checkpoints import make, tensors_of

HEAVY = {"torch", "transformers", "jsonschema", "jinja2", "ruamel", "safetensors", "rich"}


def run(*arguments: object) -> set[str]:
    """Run a command in a process of its own: the packages that it imported."""
    code = (
        "import sys\nfrom crosswalk.cli.commands import cli, run_command\n"
        "code = run_command(cli, sys.argv[1:])\n"
        "print('', *{name.split('.')[0] for name in sys.modules}, sep='\\n', file=sys.stderr)\nsys.exit(code)"
    )
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run("formats")  # a checkout has no catalog before its first command
    return make(tmp_path_factory.mktemp("startup") / "llama")


def test_a_conversion_that_only_moves_bytes_imports_nothing_heavy(source: Path, tmp_path: Path) -> None:
    native, back = tmp_path / "native", tmp_path / "back"
    assert not run("convert", source, native) & HEAVY  # MLPs are transposed
    assert not run("convert", native, back) & HEAVY
    expected, found = tensors_of(source), tensors_of(back)
    assert {name: tensor.tolist() for name, tensor in found.items()} == {n: t.tolist() for n, t in expected.items()}
    assert json.loads((back / "config.json").read_text()) == json.loads((source / "config.json").read_text())


def test_checking_imports_nothing_that_moves_bytes(source: Path) -> None:
    assert not run("check", source) & {*HEAVY, "numpy", "yaml"}


def test_casting_imports_torch(source: Path, tmp_path: Path) -> None:
    assert run("convert", source, tmp_path / "native", "--dtype", "bfloat16") & HEAVY == {"torch"}
