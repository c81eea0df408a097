"""Mappings that an installed package brings, and what the distribution itself says and holds."""

from __future__ import annotations

import ast
import builtins
import ctypes
import errno
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_checkpoints import make, tensors_of

import crosswalk
from crosswalk.cli.commands import cli, run_command
from crosswalk.compiler.catalog_build import build, write
from crosswalk.jobs.formats import catalog
from crosswalk.runtime.checkpoint import reading
from crosswalk.runtime.errors import CrosswalkError
from crosswalk.runtime.files import sinks
from crosswalk.runtime.files.convert import EngineOptions
from crosswalk.runtime.staging import writing

ROOT = Path(__file__).parents[2]
NANO = Path(__file__).parent / "nano_mappings"
MAIN = "import sys; from crosswalk.cli.commands import main; main(sys.argv[1:])"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def install(place: Path, package: str = "nano_mappings", points: dict[str, str] | None = None) -> Path:
    """What pip makes of tests/project/nano_mappings, in a directory: the package, and what is known of it."""
    project = tomllib.loads((NANO / "pyproject.toml").read_text())["project"]
    shutil.copytree(NANO / "nano_mappings", place / package)
    known = place / f"{package}-1.0.dist-info"
    known.mkdir()
    (known / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package.replace('_', '-')}\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in (points or project["entry-points"]["crosswalk.mappings"]).items()]
    (known / "entry_points.txt").write_text("\n".join(["[crosswalk.mappings]", *lines, ""]))
    return place / package


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where packages are installed, for the time of a test."""
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")  # nothing is kept: only what is needed is compiled
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    (tmp_path / "site").mkdir()
    catalog.cache_clear()
    yield tmp_path / "site"
    catalog.cache_clear()
    for name in [name for name in sys.modules if name.startswith(("nano_mappings", "other_mappings"))]:
        del sys.modules[name]


def refused() -> str:
    with pytest.raises(CrosswalkError) as error:
        catalog()
    assert {found.code for found in error.value.diagnostics} == {"mapping/package"}
    return str(error.value)


def test_the_formats_and_layouts_of_an_installed_package_are_there(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(place)
    source = make(tmp_path / "source")
    config: dict[str, Any] = json.loads((source / "config.json").read_text())
    config |= {"architectures": ["NanoForCausalLM"], "model_type": "nano", "n_heads": config["num_attention_heads"]}
    del config["num_attention_heads"]
    (source / "config.json").write_text(json.dumps(config))
    assert run_command(cli, ["convert", str(source), str(tmp_path / "native"), "--format", "nano_llama"]) == 0
    assert "nano_llama" in capsys.readouterr().out
    assert run_command(cli, ["convert", str(tmp_path / "native"), str(tmp_path / "back")]) == 0
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == config

    words = {"architectures": ["NanoWords"], "model_type": "nano_words", "words": 11, "hidden_size": 3}
    plan = crosswalk.compile_plan(words, to="nano", dtype="float32")
    table = torch.arange(33.0).reshape(11, 3)
    ((name, found),) = crosswalk.runtime.execute(plan, {"words.weight": table})
    assert name == "weight"
    assert torch.equal(found, table)


def test_a_package_is_found_by_any_process_and_its_errors_name_its_files(place: Path) -> None:
    install(place)
    file = place / "nano_mappings" / "nano_llama.yaml"
    file.write_text(file.read_text().replace("n_heads: heads", "n_heads: haeds"))
    run = [sys.executable, "-c", MAIN, "formats", "nano_llama"]
    done = subprocess.run(run, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(place)})
    assert f"{file}:9:14: error: type `attention` has no field `haeds`" in done.stderr


def test_a_package_changes_no_other_format(place: Path) -> None:
    home = install(place)
    shutil.copy(home / "nano_llama.yaml", home / "llama.yaml")
    assert "`llama` of package nano-mappings is also in crosswalk itself" in refused()
    (home / "llama.yaml").unlink()
    install(place, "other_mappings", {"other": "other_mappings"})
    said = refused()
    for name in ("nano_llama", "nano_words", "layouts/nano"):
        assert f"`{name}` of package other-mappings is also in package nano-mappings" in said


def test_a_folder_named_in_the_environment_comes_before_packages(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(place)
    text = (NANO / "nano_mappings" / "nano_llama.yaml").read_text()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "nano_llama.yaml").write_text(text.replace("NanoForCausalLM", "MineForCausalLM"))
    monkeypatch.setenv("CROSSWALK_MAPPINGS", str(tmp_path / "mine"))
    assert catalog().mapping("nano_llama").architecture == "MineForCausalLM"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("nano_mapings", "`nano = nano_mapings` of package nano-mappings cannot be imported: ModuleNotFoundError"),
        ("nano_mappings.layouts", "`nano = nano_mappings.layouts` of package nano-mappings leads to no mappings"),
    ],
)
def test_an_entry_point_that_leads_nowhere_is_named(value: str, said: str, place: Path) -> None:
    home = install(place, points={"nano": value})
    for file in (home / "layouts").iterdir():
        file.unlink()
    (home / "layouts" / "__init__.py").touch()
    assert said in refused()


def test_a_package_that_ends_the_process_is_named(place: Path) -> None:
    (install(place) / "__init__.py").write_text("import sys; sys.exit('bye')")
    assert "`nano = nano_mappings` of package nano-mappings cannot be imported: SystemExit: bye" in refused()


def test_a_package_brings_sources_for_its_catalog_may_replace_what_is_shipped(place: Path) -> None:
    home = install(place)
    made = build((home,), ["nano_llama"])
    for file in (*home.glob("*.yaml"), *(home / "layouts").iterdir()):
        file.unlink()
    write(made, home)
    assert "of package nano-mappings leads to no mappings but a catalog" in refused()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a shipped mapping of the same name would be taken in silence."""
    (tmp_path / "file").touch()
    for name, why in (("no", "No such file or directory"), ("file", "Not a directory")):
        monkeypatch.setenv("CROSSWALK_MAPPINGS", str(tmp_path / name))
        with pytest.raises(CrosswalkError, match=rf"{name}: error: cannot read the folder: {why} \[mapping/folder\]"):
            catalog()


# ---- the distribution ------------------------------------------------------------------------------------------------


def test_the_versions_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(cli, ["--version"]) == 0
    assert capsys.readouterr().out == f"crosswalk {crosswalk.__version__}, mapping language 1, plan 2\n"
    assert f"\n## {crosswalk.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_what_is_to_be_installed_is_this_distribution() -> None:
    """The name ``crosswalk`` is another project's on the package index."""
    name = PROJECT["project"]["name"]
    for folder in ("crosswalk", "compiler", "runtime", "reference", "mappings", "docs"):
        for file in (*(ROOT / folder).rglob("*.*"), ROOT / "README.md"):
            text = file.read_text(encoding="utf-8", errors="replace")
            for asked in re.findall(r"pip install '?([\w-]*crosswalk[\w-]*)", text):
                assert asked == name, file


def test_the_demo_runs_what_the_readme_says_it_does() -> None:
    said = re.findall(r"^crosswalk (.+?)(?: +#.*)?$", (ROOT / "README.md").read_text(), re.MULTILINE)
    calls = [
        node
        for node in ast.walk(ast.parse((ROOT / "examples" / "main_job.py").read_text()))
        if isinstance(node, ast.Call)
    ]
    run = [call.args for call in calls if isinstance(call.func, ast.Name) and call.func.id == "crosswalk"]
    assert len(said) == 7
    assert {*map(" ".join, map(str.split, said))} <= {
        " ".join(ast.literal_eval(word) for word in words) for words in run
    }


def test_every_library_that_is_imported_is_required() -> None:
    """Others are for tiny models and comparisons, or hand weights to a receiver that has them, and are not needed."""
    required = {line.partition(">")[0] for line in PROJECT["project"]["dependencies"]} | {
        "transformers",
        "vllm",
        "sglang",
        "zstandard",
        "torchtitan",
    }
    names = {"ruamel": "ruamel.yaml", "yaml": "pyyaml"}
    for top in ("crosswalk", "compiler", "runtime", "reference"):
        for file in (ROOT / top).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                modules += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
                for module in {module.partition(".")[0] for module in modules} - {"crosswalk"}:
                    assert module in sys.stdlib_module_names or names.get(module, module) in required, (file, module)


def test_what_compiles_the_catalog_of_a_wheel_is_there_where_it_is_built() -> None:
    """An environment of a build has what the build says it requires, and nothing that the package requires."""
    code = (
        "import sys; from crosswalk.compiler.catalog_build import build; build((), ['llama'])\n"
        "print(*(module.__file__ for name, module in sys.modules.items() if name.startswith('crosswalk.')), sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    there = {line.partition(">")[0] for line in PROJECT["build-system"]["requires"]}
    files = [Path(line) for line in done.stdout.splitlines() if line.endswith(".py")]
    assert len(files) > 40
    for file in files:
        for node in ast.parse(file.read_text()).body:
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            for module in {module.partition(".")[0] for module in modules} - {"crosswalk", *sys.stdlib_module_names}:
                assert {"ruamel": "ruamel.yaml"}.get(module, module) in there, (file, module)


def test_another_system_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has neither the calls that read files in place nor locks on directories."""
    code = compile((ROOT / "runtime" / "__init__.py").read_text(), "__init__.py", "exec")
    monkeypatch.setattr(os, "name", "nt")
    with pytest.raises(ImportError, match=r"Crosswalk runs on Linux and macOS; on Windows, run it in WSL"):
        exec(code, {"__name__": "crosswalk.runtime"})


def test_what_only_linux_has_is_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files are those of Linux: read without advice, not shared, and swapped by two renames."""
    source = make(tmp_path / "source")
    crosswalk.convert(source, tmp_path / "here")
    state: dict[str, Any] = {name: torch.zeros_like(tensor) for name, tensor in tensors_of(tmp_path / "here").items()}
    state = {name.removesuffix("/weights"): tensor for name, tensor in state.items()}
    for name in ("copy_file_range", "posix_fadvise", "posix_fallocate", "sched_getaffinity", "O_TMPFILE", "O_DIRECT"):
        monkeypatch.delattr(os, name, raising=False)
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())  # a C library without renameat2
    monkeypatch.setattr(sinks, "_sync_file_range", None)
    monkeypatch.setattr(fcntl, "ioctl", None)
    asked: list[int] = []
    monkeypatch.setattr(fcntl, "fcntl", lambda descriptor, command: asked.append(command))
    monkeypatch.setattr(writing, "_FULL_SYNC", 51)
    for module in (reading, writing):
        monkeypatch.setattr(module, "_MOST", 1000)
    for function in ("open", "read_text", "read_bytes"):
        monkeypatch.setattr(*((builtins, "open") if function == "open" else (Path, function)), _without_proc(function))
    with pytest.raises(FileNotFoundError):
        Path("/proc/self/stat").read_text()
    for overwrite in (False, True):
        crosswalk.convert(source, tmp_path / "there", options=EngineOptions(overwrite=overwrite))
        same_files(tmp_path / "there", tmp_path / "here")
        loaded = crosswalk.load(source, state)
        crosswalk.save(state, loaded, tmp_path / "saved", overwrite=overwrite)
        same_files(tmp_path / "saved", source)
    assert set(asked) == {51}


def test_a_sync_that_a_file_system_cannot_do_is_a_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(writing, "_FULL_SYNC", 51)
    monkeypatch.setattr(os, "fsync", synced.append)

    def refuse(number: int) -> None:
        def call(descriptor: int, command: int) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, "fcntl", call)

    refuse(errno.ENOTSUP)
    writing.sync(7)
    assert synced == [7]
    refuse(errno.EIO)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        writing.sync(7)
    assert synced == [7]


def _without_proc(function: str) -> Callable[..., Any]:
    """A function of a system that has no ``/proc``."""
    real = builtins.open if function == "open" else getattr(Path, function)

    def absent(path: Any, *arguments: Any, **options: Any) -> Any:
        if str(path).startswith("/proc/"):
            raise FileNotFoundError(path)
        return real(path, *arguments, **options)

    return absent


def same_files(one: Path, other: Path) -> None:
    assert sorted(file.name for file in one.iterdir()) == sorted(file.name for file in other.iterdir())
    for file in other.iterdir():
        assert (one / file.name).read_bytes() == file.read_bytes()
