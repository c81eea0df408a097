"""Prove that a wheel works alone: that it holds what it should, and that the demo runs in an environment of the wheel
and what it requires, away from the checkout.

    python .ci/wheel.py WHEEL

The packages that it requires are not installed again: the new environment links those of the one that runs this, found
from the requirements of the wheel, so that one that it does not name is not there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {
    "crosswalk": "crosswalk",
    "compiler": "crosswalk/compiler",
    "runtime": "crosswalk/runtime",
    "reference": "crosswalk/reference",
    "mappings": "crosswalk/mappings",
    "schema": "crosswalk/schema",
}
MADE = {"crosswalk/mappings/catalog.json"}


def expected() -> set[str]:
    """Every file that belongs into the package, and nothing else."""
    tracked = subprocess.run(
        [*["git", "ls-files", "--cached", "--others", "--exclude-standard"], *FOLDERS],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return {file.replace(top, home, 1) for file in tracked.split() for top, home in FOLDERS.items()
            if file.startswith(f"{top}/")} | MADE  # fmt: skip


def required(of: Distribution, extras: frozenset[str]) -> Iterator[Distribution]:
    """What a distribution requires, and what that requires in turn."""
    for line in of.requires or ():
        requirement = Requirement(line)
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": e}) for e in (*extras, "")):
            found = distribution(requirement.name)
            if not requirement.specifier.contains(found.version, prereleases=True):
                sys.exit(f"{of.metadata['Name']} requires {line}, and {found.version} is installed")
            yield found
            yield from required(found, frozenset(requirement.extras))


def link(found: Distribution, site: Path) -> None:
    """Make a distribution part of the new environment."""
    for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
        if not (site / top).exists():
            (site / top).symlink_to(Path(str(found.locate_file(top))).resolve())


def run(*command: object, home: Path) -> str:
    """Run a command in a directory that has nothing of the checkout, and say what it printed."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "CROSSWALK"))}
    variables |= {"XDG_CACHE_HOME": str(home / "cache"), "PYTHONSAFEPATH": "1"}
    done = subprocess.run([*map(str, command)], cwd=home, env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def main(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    if held != expected():
        sys.exit(f"missing in the wheel: {sorted(expected() - held)}, not expected: {sorted(held - expected())}")
    with tempfile.TemporaryDirectory() as name:
        home = Path(name).resolve()
        venv.create(home / "venv", with_pip=False)
        python = home / "venv" / "bin" / "python"
        install = ("-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel.resolve())
        run(sys.executable, *install, home=home)
        (installed,) = (home / "venv").glob("lib/*/site-packages/model_crosswalk-*.dist-info")
        seen: dict[str, Distribution] = {}
        for found in required(Distribution.at(installed), frozenset({"transformers"})):
            seen.setdefault(canonicalize_name(found.metadata["Name"]), found)
        for found in seen.values():
            link(found, installed.parent)
        shutil.copy(ROOT / "examples" / "main_job.py", home)
        print(run(home / "venv" / "bin" / "crosswalk", "--version", home=home), end="")
        where = run(python, "-c", "import crosswalk; print(crosswalk.__file__)", home=home).strip()
        if not Path(where).is_relative_to(home):
            sys.exit(f"{where} was imported in place of the wheel")
        print("\n".join(run(python, "main_job.py", home=home).splitlines()[-2:]))
        if list((home / "cache").rglob("*.json")):
            sys.exit("the catalog in the wheel is not that of its mappings: another was made")
    print(f"{wheel.name}: {len(held)} files, and {len(seen)} distributions that it requires")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
