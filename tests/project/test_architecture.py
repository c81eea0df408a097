"""Reading order is folder order: a module imports only what stands before it, and every folder is small."""

import ast
import builtins
import graphlib
import re
import typing
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ORDER = (
    "crosswalk.runtime.records", "crosswalk.runtime.errors", "crosswalk.runtime.dtypes", "crosswalk.runtime.folding",
    "crosswalk.runtime.background",
    "crosswalk.runtime.gathering",
    "crosswalk.runtime.kept",
    "crosswalk.runtime.plan", "crosswalk.runtime.torch_files", "crosswalk.runtime.checkpoint", "crosswalk.runtime.dcp",
    "crosswalk.runtime.staging", "crosswalk.runtime.files", "crosswalk.runtime.memory", "crosswalk.runtime.training",
    "crosswalk.runtime.publishing",
    "crosswalk.reference.parts", "crosswalk.reference.mixers", "crosswalk.reference.mlps", "crosswalk.reference",
    "crosswalk.compiler.text", "crosswalk.compiler.notation", "crosswalk.compiler.layout", "crosswalk.compiler.mapping",
    "crosswalk.compiler.relations", "crosswalk.compiler.config", "crosswalk.compiler.tensors",
    "crosswalk.compiler.pipeline", "crosswalk.compiler.compile", "crosswalk.compiler.catalog_text",
    "crosswalk.compiler.catalog_folders", "crosswalk.compiler.catalog_packages", "crosswalk.compiler.catalog",
    "crosswalk.compiler.catalog_build",
    "crosswalk.checkpoints", "crosswalk.classes", "crosswalk.jobs", "crosswalk.publish", "crosswalk.models",
    "crosswalk.proving", "crosswalk.drafting", "crosswalk.pictures", "crosswalk.cli",
)  # fmt: skip
FOLDERS = {
    "crosswalk.runtime": "runtime",
    "crosswalk.reference": "reference",
    "crosswalk.compiler": "compiler",
    "crosswalk": "crosswalk",
}


def _modules() -> dict[str, Path]:
    found = {}
    for package, folder in FOLDERS.items():
        for file in (ROOT / folder).rglob("*.py"):
            if file.name != "__init__.py":
                found[".".join((package, *file.relative_to(ROOT / folder).with_suffix("").parts))] = file
    return found


MODULES = _modules()


def _imports(name: str) -> set[str]:
    result = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            result |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            base = name.split(".")[: -node.level] if node.level else []
            module = ".".join((*base, *filter(None, [node.module])))
            result |= {f"{module}.{alias.name}" for alias in node.names} | {module}
    return {found for found in result if found in MODULES}


def _place(name: str) -> int:
    return next(index for index, folder in enumerate(ORDER) if f"{name}.".startswith(f"{folder}."))


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_module_imports_only_what_stands_before_it(name: str) -> None:
    late = [found for found in _imports(name) if _place(found) > _place(name)]
    assert not late, f"{name} imports {', '.join(late)}, which stands after it"


def test_folders_say_what_lives_there_and_are_small() -> None:
    for folder in {file.parent for file in MODULES.values()}:
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or "", folder
        assert len(list(folder.glob("*.py"))) <= 13, folder


COMPILER = [name for name in sorted(MODULES) if name.startswith("crosswalk.compiler.")]


def _compiler_nodes(*kinds: type[ast.AST]) -> list[tuple[str, ast.AST]]:
    return [
        (name, node)
        for name in COMPILER
        for node in ast.walk(ast.parse(MODULES[name].read_text()))
        if isinstance(node, kinds)
    ]


def test_the_page_lists_every_module() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text().partition("## Words")[0]
    known = set(re.findall(r"\w+", page))
    assert [name for name in sorted(MODULES) if name.rpartition(".")[2] not in known] == []


def test_modules_import_each_other_in_no_circle() -> None:
    """Imports inside of functions and those for types alone count."""
    graph = {name: _imports(name) for name in MODULES}
    assert any(graph.values())
    graphlib.TopologicalSorter(graph).prepare()


def _all_files() -> list[Path]:
    """Every file of Python that is kept: the product, and the tests, pages, examples and tools around it."""
    folders = (*FOLDERS.values(), ".ci", "benchmarks", "docs", "examples", "mappings", "tests")
    return [*ROOT.glob("*.py"), *(file for folder in folders for file in sorted((ROOT / folder).rglob("*.py")))]


def test_files_can_be_read_at_once() -> None:
    long = {file.relative_to(ROOT).as_posix() for file in _all_files() if len(file.read_text().splitlines()) > 400}
    assert not long


def test_functions_are_short() -> None:
    """Without what is said of them. How branched they may be is left to ruff (C901)."""
    functions = [
        (file, node)
        for file in _all_files()
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef)
    ]
    assert len(functions) > 1000
    assert [f"{file}: {function.name}" for file, function in functions if _lines(function) > 60] == []


def _lines(function: ast.FunctionDef) -> int:
    said = function.body[0] if ast.get_docstring(function) else None
    lines = (function.end_lineno or 0) - function.lineno + 1
    return lines - ((said.end_lineno or 0) - said.lineno + 1 if said else 0)


def test_what_is_public_says_what_it_is() -> None:
    """Every module, function, class and method of the product, also what it raises; fields alone may speak for
    themselves, and so may a method for which the class that it is derived from has spoken."""
    modules = {file: ast.parse(file.read_text()) for file in MODULES.values()}
    classes = {node.name: node for module in modules.values() for node in module.body if isinstance(node, ast.ClassDef)}
    silent = [f"{file}" for file, module in modules.items() if not ast.get_docstring(module)]
    for file, module in modules.items():
        for owner in (module, *(node for node in module.body if isinstance(node, ast.ClassDef) and _public(node))):
            known = _methods_said(owner, classes) if isinstance(owner, ast.ClassDef) else {}
            for node in owner.body:
                if not (isinstance(node, (ast.FunctionDef, ast.ClassDef)) and _public(node)):
                    continue
                said = ast.get_docstring(node) or known.get(node.name, "")
                raises = isinstance(node, ast.FunctionDef) and "cli" not in file.parts and _raises(node)
                if not said or (raises and not re.search("[Rr]aise|[Rr]efuse|[Ff]ail|Error", said)):
                    silent.append(f"{file}: {node.name}")
    assert silent == []


def _public(node: ast.FunctionDef | ast.ClassDef) -> bool:
    fields = isinstance(node, ast.ClassDef) and all(isinstance(each, ast.AnnAssign) for each in node.body)
    return not (node.name.startswith("_") or fields)


def _methods_said(node: ast.ClassDef, classes: Mapping[str, ast.ClassDef]) -> dict[str, str]:
    """What the classes that one is derived from say of their methods."""
    bases = [classes[base.id] for base in node.bases if isinstance(base, ast.Name) and base.id in classes]
    said = {name: text for base in bases for name, text in _methods_said(base, classes).items()}
    methods = (each for base in bases for each in base.body if isinstance(each, ast.FunctionDef))
    return said | {method.name: text for method in methods if (text := ast.get_docstring(method))}


def _raises(node: ast.AST) -> bool:
    """Whether what a function does itself raises an error."""
    inside = (each for each in ast.iter_child_nodes(node) if not isinstance(each, (ast.FunctionDef, ast.Lambda)))
    return any((isinstance(each, ast.Raise) and each.exc is not None) or _raises(each) for each in inside)


def test_every_folder_says_what_lives_there_and_what_does_not() -> None:
    folders = {file: ast.get_docstring(ast.parse(file.read_text())) or "" for file in _packages()}
    assert len(folders) > 25
    assert [str(file) for file, said in folders.items() if not re.search(r"\.\s+\w.*\.", said, re.DOTALL)] == []


def _packages() -> list[Path]:
    return [
        file
        for name in ("compiler", "runtime", "crosswalk", "reference")
        for file in ROOT.glob(f"{name}/**/__init__.py")
    ]


def test_a_class_has_its_name_alone() -> None:
    """Among all of the product, and against what a reader knows from Python."""
    nodes = (node for file in MODULES.values() for node in ast.walk(ast.parse(file.read_text())))
    names = Counter(node.name for node in nodes if isinstance(node, ast.ClassDef))
    assert [name for name, count in names.items() if count > 1] == []
    assert not names.keys() & {*dir(builtins), *typing.__all__}


def test_a_path_is_a_path_of_files() -> None:
    aliases = [name for name, node in _compiler_nodes(ast.Assign, ast.AnnAssign) if "Path" in _assigned(node)]
    assert not aliases


def _assigned(node: ast.AST) -> set[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {target.id for target in targets if isinstance(target, ast.Name)}
