"""What pyproject.toml cannot say: every folder of code is a package, and a wheel holds the compiled catalog of its
mappings."""

from __future__ import annotations

import os
import subprocess
import sys
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
    """Compile the mappings that were just copied, with the compiler beside them, which leaves nothing else there."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            place = Path(self.build_lib).resolve()
            command = [sys.executable, "-B", "-c", _COMPILE, str(place / "crosswalk" / "mappings")]
            # pip has what the build requires in a place of its own, which only the path of this process leads to.
            there = os.pathsep.join([str(place), *filter(None, sys.path)])
            subprocess.run(command, env={**os.environ, "PYTHONPATH": there}, cwd=place, check=True)


def packages() -> list[str]:
    """Every folder of code below the top-level folders, as a package of ``crosswalk``."""
    root = Path(__file__).resolve().parent
    found = ["crosswalk.schema"]
    for top in ("crosswalk", "compiler", "runtime", "reference", "mappings"):
        for file in (root / top).rglob("__init__.py"):
            parts = file.parent.relative_to(root).parts
            found.append(".".join(parts if top == "crosswalk" else ("crosswalk", *parts)))
    return sorted(found)


setup(packages=packages(), cmdclass={"build_py": BuildWithCatalog})
