#!/usr/bin/env python3
"""Set up an environment of its own and run a task in it. Needs nothing but Python 3.11 or newer.

    python3 dev.py demo      the main job on a real checkpoint that it makes
    python3 dev.py test      the tests
    python3 dev.py check     lint, types of the installed package, and every shipped mapping
    python3 dev.py wheel     the demo, from the wheel alone in an environment of what it requires
    python3 dev.py dialects  the tests of config dialects under transformers 4

The environment is ``.venv`` here, or the directory in CROSSWALK_VENV; it is made and filled when it is not there.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent
# The exact version, because its CPU build is small; the package itself allows a range.
TORCH = "torch==2.13.0"
TRANSFORMERS_4 = "transformers==4.57.6"


def environment(suffix: str = "", extra: tuple[str, ...] = ()) -> Path:
    """The bin directory of an environment with the project and its tools; made at the first call."""
    home = Path(os.environ.get("CROSSWALK_VENV", ROOT / ".venv"))
    home = home.with_name(home.name + suffix)
    done = home / "crosswalk-is-installed"
    if not done.exists():
        venv.create(home, with_pip=True, clear=True)
        pip = (home / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        # Torch first and alone, so that nothing else pulls in another build of it.
        run(*pip, TORCH)
        with building():
            run(*pip, "--editable", f"{ROOT}[dev]", *extra)
        done.touch()
    return home / "bin"


def run(*command: object, directory: Path = ROOT, **variables: str) -> None:
    """Run a command, by default in the repository; leave with its exit code if it fails."""
    result = subprocess.run([str(c) for c in command], cwd=directory, env={**os.environ, **variables}, check=False)
    if result.returncode:
        sys.exit(result.returncode)


def demo() -> None:
    run(environment() / "python", "examples/main_job.py")


def test() -> None:
    run(environment() / "python", "-m", "pytest", "-n", "3", *sys.argv[2:])


def check() -> None:
    binaries = environment()
    run(binaries / "ruff", "check", ".")
    run(binaries / "ruff", "format", "--check", ".")
    # Types are checked on the package as users get it: built and installed, away from the source folders.
    with tempfile.TemporaryDirectory() as installed:
        pip(binaries, "install", "--no-deps", "--target", installed, ROOT)
        config = ("--config-file", ROOT / "pyproject.toml")
        run(binaries / "mypy", *config, "-p", "crosswalk", directory=Path(installed), MYPYPATH=installed)
    run(binaries / "compile-mappings")


def wheel() -> None:
    binaries = environment()
    with tempfile.TemporaryDirectory() as home:
        pip(binaries, "wheel", "--no-deps", "--wheel-dir", home, ROOT)
        run(binaries / "python", ".ci/wheel.py", next(Path(home).iterdir()))


def pip(binaries: Path, *arguments: object) -> None:
    """Let pip build the project, from nothing that an earlier build has left."""
    command = (binaries / "python", "-m", "pip", *arguments[:1], "--quiet", "--disable-pip-version-check")
    with building():
        shutil.rmtree(ROOT / "build", ignore_errors=True)
        run(*command, *arguments[1:])
        shutil.rmtree(ROOT / "build", ignore_errors=True)


@contextlib.contextmanager
def building() -> Iterator[None]:
    """Builds leave files in the repository: one at a time, whoever runs tasks side by side."""
    with open(__file__) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def dialects() -> None:
    tests = (
        "tests/config/test_dialects.py",
        "tests/config/test_effective_config.py",
        "tests/field/test_hub_configs.py",
    )
    run(environment("-transformers-4", (TRANSFORMERS_4,)) / "python", "-m", "pytest", *tests)


if __name__ == "__main__":
    tasks = {"demo": demo, "test": test, "check": check, "wheel": wheel, "dialects": dialects}
    if len(sys.argv) < 2 or sys.argv[1] not in tasks:
        print(__doc__)
        sys.exit(2)
    tasks[sys.argv[1]]()
