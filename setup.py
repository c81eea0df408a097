"""What pyproject.toml cannot say: which folders are packages, and that a wheel holds the compiled catalog of its
mappings."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

_COMPILE = """
import sys
from pathlib import Path
from crosswalk.compiler.catalog_build import build, write
write(build(()), Path(sys.argv[1]))
"""


class BuildWithCatalog(build_py):
    """Compile the mappings that were just copied, with the compiler beside them."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            place = Path(self.build_lib).resolve()
            command = [sys.executable, "-c", _COMPILE, str(place / "crosswalk" / "mappings")]
            subprocess.run(command, env={**os.environ, "PYTHONPATH": str(place)}, cwd=place, check=True)


def packages() -> list[str]:
    """Every folder with code or data that is imported, by its name there; where they lie is in pyproject.toml."""
    home = Path(__file__).parent
    folders = tomllib.loads((home / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]
    return [
        ".".join((package, *file.parent.relative_to(home / folder).parts))
        for package, folder in folders.items()
        for file in sorted((home / folder).rglob("__init__.py"))
    ]


setup(packages=packages(), cmdclass={"build_py": BuildWithCatalog})
