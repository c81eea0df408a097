"""A cluster job that receives a plan needs torch and safetensors, and nothing that the compiler needs."""

from __future__ import annotations

import subprocess
import sys

import pytest

MODULES = ["plan", "plan.proof", "checkpoint.source", "files.convert", "checkpoint.output", "memory"]


@pytest.mark.parametrize("module", ["", *MODULES])
def test_runtime_imports_nothing_of_the_compiler(module: str) -> None:
    name = f"crosswalk.runtime.{module}".rstrip(".")
    code = f"import sys, {name}; print(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "crosswalk" in loaded
    assert not {"yaml", "ruamel", "jsonschema", "jinja2", "click", "rich", "transformers"} & {*loaded}


def test_opening_and_planning_need_no_torch() -> None:
    code = "import sys, crosswalk.runtime.files.convert, crosswalk.runtime.plan.model; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
