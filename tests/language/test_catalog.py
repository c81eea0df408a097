"""The catalog: what is compiled once is what runs, holds to its sources, and is believed only if it can be."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from small_checkpoints import make

from crosswalk.cli.build import command
from crosswalk.cli.commands import run_command
from crosswalk.compiler import catalog as catalog_module
from crosswalk.compiler import catalog_build
from crosswalk.compiler.catalog import Catalog, schema
from crosswalk.compiler.catalog_build import build, stored
from crosswalk.compiler.catalog_folders import digest, shipped
from crosswalk.compiler.catalog_text import FILE, LANGUAGE, Catalogued, from_text, to_text
from crosswalk.compiler.text.positioned import Map, Seq
from crosswalk.jobs.formats import catalog
from crosswalk.runtime.errors import CrosswalkError

ROOT = Path(__file__).parents[2]
MINE = "crosswalk: 1\nextends: llama\narchitecture: MineForCausalLM\nmodel_type: mine\n"


@pytest.fixture(scope="module")
def made() -> Catalogued:
    return build(())


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that has the shipped mappings."""
    home = tmp_path_factory.mktemp("kept")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home))
        assert stored(()) is not None
    return home


@pytest.fixture(autouse=True)
def cache(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(kept, tmp_path / "cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "crosswalk"


def _plain(value: Any) -> Any:
    """A document with all of its positions, to compare."""
    if isinstance(value, Map):
        entries = [(k, str(value.key_position(k)), str(value.value_position(k)), _plain(v)) for k, v in value.items()]
        return [str(value.position), *entries]
    if isinstance(value, Seq):
        return [str(value.position), *((str(value.item_position(i)), _plain(v)) for i, v in enumerate(value))]
    return type(value), value


# ---- it holds to its sources -----------------------------------------------------------------------------------------


def test_every_document_comes_back_with_every_position(made: Catalogued) -> None:
    again = from_text(to_text(made).encode(), FILE)
    read, kept = Catalog(), Catalog(stored=again)
    assert kept.names() == read.names()
    assert kept.layout_names() == read.layout_names()
    assert kept.formats() == read.formats()
    for name in read.names():
        assert kept.listed(name) == read.listed(name)
        if not read.mapping(name).abstract:
            assert kept.compiled(name).claims == read.compiled(name).claims
            assert kept.compiled(name).root == read.compiled(name).root
    for name, document in read.documents().items():
        assert _plain(kept.documents()[name]) == _plain(document)


def test_the_same_sources_give_the_same_bytes_in_any_process(made: Catalogued) -> None:
    code = (
        "import sys; from crosswalk.compiler.catalog_build import build;"
        "from crosswalk.compiler.catalog_text import to_text; sys.stdout.write(to_text(build(())))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == to_text(made)


def test_the_language_is_the_one_of_the_schema() -> None:
    assert schema("mapping")["properties"]["crosswalk"]["const"] == LANGUAGE
    assert schema("layout")["properties"]["crosswalk"]["const"] == LANGUAGE


def test_what_is_shipped_compiled_is_what_is_shipped(made: Catalogued) -> None:
    """In an installed package; a checkout has none, and keeps one in the cache."""
    file = shipped().joinpath(FILE)
    if file.is_file():
        assert file.read_text(encoding="utf-8") == to_text(made)
    assert stored(()) == made


# ---- it is what runs -------------------------------------------------------------------------------------------------

PARSERS = ("ruamel", "yaml", "jsonschema", "jinja2", "rich", "torch", "numpy")


def test_check_needs_neither_a_parser_nor_torch(tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    script = f"""
import io, sys
from contextlib import redirect_stdout
from crosswalk.cli.commands import cli, run_command
with redirect_stdout(io.StringIO()) as out:
    assert run_command(cli, ["check", {str(source)!r}]) == 0
assert "bijective" in out.getvalue()
print([name for name in {PARSERS!r} if name in sys.modules])
"""
    stored(())
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_every_format_is_compiled_without_a_parser() -> None:
    stored(())
    script = f"""
import sys
from crosswalk.jobs.formats import catalog
found = catalog()
print(len([found.compiled(name) for name in found.formats()]))
print([name for name in {PARSERS!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [str(len(catalog().formats())), "[]"]


# ---- folders of one's own --------------------------------------------------------------------------------------------


def test_a_folder_of_ones_own_is_compiled_again_when_a_byte_of_it_changes(tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "mine.yaml").write_text(MINE)
    first = stored((folder,))
    assert first is not None
    assert first.index["mine"].model_types == ("mine",)
    assert first.index["llama"].model_types == ("llama",)
    before = {*cache.iterdir()}
    assert first in [from_text(file.read_bytes(), "x") for file in before]
    times = (folder / "mine.yaml").stat()
    (folder / "mine.yaml").write_text(MINE.replace("type: mine", "type: mind"))
    os.utime(folder / "mine.yaml", ns=(times.st_atime_ns, times.st_mtime_ns))
    second = stored((folder,))
    assert second is not None
    assert second.index["mine"].model_types == ("mind",)
    assert {*cache.iterdir()} == before
    position = Catalog((folder,), stored=second).mapping("mine").place("model_type")
    assert str(position) == f"{folder}/mine.yaml:4:13"


OWN = {
    "beside the shipped": {
        "mine.yaml": MINE,
        "layouts/small.yaml": (ROOT / "mappings/layouts/torchtitan.yaml").read_text(),
    },
    "in the place of one": {"mine.yaml": MINE, "llama.yaml": (ROOT / "mappings/llama.yaml").read_text() + "# mine\n"},
}


def write_files(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.mark.parametrize("files", OWN.values(), ids=OWN)
def test_what_is_shipped_is_not_compiled_again_and_all_is_the_same(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(tmp_path / "own", files)
    compiled = []
    expand = catalog_module.expand
    monkeypatch.setattr(catalog_module, "expand", lambda *given: compiled.append(given[0].name) or expand(*given))
    found = stored((tmp_path / "own",))
    assert found is not None
    assert ("qwen2" in compiled) == ("llama.yaml" in files)
    assert to_text(found) == to_text(build((tmp_path / "own",)))


MISTAKES = {
    "of the mapping": ("mine.yaml", MINE + "attention:\n  config:\n    a: headz\n", "7:8: error: .*headz"),
    "of an expression": ("mine.yaml", MINE + "attention:\n  sets: {heads: = (1}\n", "6:17: error: .*unexpected end"),
    "of YAML": ("mine.yaml", "extends: [llama", "1:10: error: this bracket"),
    "of a layout": (
        "layouts/mine.yaml",
        "crosswalk: 1\nlayout: mine\nroot: model\ntyps: {}\n",
        "4:1: error: unknown key",
    ),
}


@pytest.mark.parametrize(("file", "text", "said"), MISTAKES.values(), ids=MISTAKES)
def test_what_has_a_mistake_shows_it_and_the_others_are_kept(file: str, text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "layouts").mkdir()
    (tmp_path / file).write_text(text)
    (tmp_path / "other.yaml").write_text(MINE.replace("Mine", "Other").replace("mine", "other"))
    name = file.removesuffix(".yaml")
    for _ in range(2):  # made, then read from the cache
        kept = stored((tmp_path,))
        assert kept is not None
        assert name not in kept.documents
        assert {"other", "llama", "layouts/fast_llm"} <= kept.documents.keys()
        assert kept.index["other"].model_types == ("other",)
        found = Catalog((tmp_path,), stored=kept)
        assert name in {*found.names(), *(f"layouts/{layout}" for layout in found.layout_names())}
        assert found.compiled("other").source.architecture == "OtherForCausalLM"
        with pytest.raises(CrosswalkError, match=rf"{file}:{said}"):
            (found.layout if "/" in name else found.compiled)(Path(name).name)


def test_a_mistake_in_the_place_of_a_shipped_mapping_is_one_of_all_that_need_it(tmp_path: Path) -> None:
    (tmp_path / "arcee.yaml").write_text((ROOT / "mappings/arcee.yaml").read_text() + "attention: {sets: {a: 1}}\n")
    kept = stored((tmp_path,))
    assert kept is not None
    assert not {"arcee", "jais2"} & kept.documents.keys()
    assert {"llama", "qwen2"} <= kept.documents.keys()
    with pytest.raises(CrosswalkError, match=r"arcee.yaml:\d+:20: error: .*`a`"):
        Catalog((tmp_path,), stored=kept).compiled("jais2")


@pytest.mark.parametrize("files", OWN.values(), ids=OWN)
def test_without_a_cache_that_can_be_written_only_ones_own_is_read_again(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(tmp_path / "own", files)
    monkeypatch.setattr(catalog_build, "_can_keep", lambda home: False)
    kept = stored((tmp_path / "own",))
    assert kept is not None
    found, sources, read = Catalog((tmp_path / "own",), stored=kept), Catalog((tmp_path / "own",)), []
    formats, root = sources.formats(), sources.compiled("mine").root
    real = Catalog._read
    monkeypatch.setattr(Catalog, "_read", lambda self, name, at: read.append(name) or real(self, name, at))
    assert {*found.names()} >= {"mine", "llama", "gpt2"}
    assert {*found.layout_names()} >= {"fast_llm", *(Path(name).stem for name in files if "/" in name)}
    assert found.formats() == formats
    assert found.compiled("mine").root == root
    assert {*read} <= {name.removesuffix(".yaml") for name in files}


def test_the_cache_holds_the_newest_catalogs(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_build, "_MOST_KEPT", 3)
    (shipped_one,) = cache.iterdir()
    for number in range(5):
        (cache / f"left by {number}").write_text("half of a catalog")
        os.utime(cache / f"left by {number}", (number, number))
    (tmp_path / "own").mkdir()
    stored((tmp_path / "own",))
    left = {*cache.iterdir()}
    assert len(left) == 3
    assert {shipped_one, cache / "left by 4"} < left
    assert stored((tmp_path / "own",)) in [from_text(file.read_bytes(), "x") for file in left if file.suffix]


@pytest.mark.parametrize("home", ["", "relative", "/dev/null", "/proc/nowhere"])
def test_a_cache_that_cannot_be_written_is_done_without(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", home)
    monkeypatch.setenv("HOME", "/dev/null")
    assert stored(()) is None


def test_a_cache_that_others_can_write_is_not_read(cache: Path) -> None:
    stored(())
    (file,) = cache.iterdir()
    text = file.read_text()
    assert stored(()) is not None
    file.write_text(text.replace("LlamaForCausalLM", "OtherForCausalLM"))
    read = stored(())
    assert read is not None
    assert read.index["llama"].architecture == "OtherForCausalLM"
    file.chmod(0o666)
    read = stored(())
    assert read is not None
    assert read.index["llama"].architecture == "LlamaForCausalLM"


# ---- the build step and what comes of it -----------------------------------------------------------------------------


def test_a_folder_with_a_catalog_alone_has_its_mappings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "mine.yaml").write_text(MINE)
    out = tmp_path / "out"
    assert run_command(command, [str(tmp_path / "own" / "mine.yaml"), "-o", str(out)]) == 0
    assert "catalog.json: 4 mappings and layouts" in capsys.readouterr().out
    documents = json.loads((out / FILE).read_text())["documents"]
    assert sorted(documents) == ["huggingface", "layouts/fast_llm", "llama", "mine"]
    found = Catalog((out,))
    assert found.compiled("mine").source.architecture == "MineForCausalLM"
    assert str(found.mapping("mine").place("architecture")) == f"{out}/mine.yaml:3:15"
    kept = stored((out,))
    assert kept is not None
    assert Catalog((out,), stored=kept).compiled("mine").root == found.compiled("mine").root


def test_a_strangers_catalog_is_checked_as_its_sources_would_be(tmp_path: Path) -> None:
    content = json.loads(to_text(build((), ["llama"])))
    tree = content["documents"]["llama"][2]
    content["documents"]["llama"][2] = [*tree[:3], ["lyout", 7, 1, 7, 8, "fast_llm"], *tree[3:]]
    (tmp_path / FILE).write_text(json.dumps(content))
    with pytest.raises(CrosswalkError, match=r"llama.yaml:7:1: error: unknown key `lyout`"):
        Catalog((tmp_path,)).compiled("llama")


@pytest.mark.parametrize("value", [
    "2" + "0" * 30, "1e999", '"\\ud800"', '"\\u202e"', '["m",1,1,["a",1,1,1,1,1],["a",1,4,1,4,2]]', "{}",
])  # fmt: skip
def test_a_strangers_catalog_has_no_values_that_a_source_cannot_have(value: str, tmp_path: Path) -> None:
    content = json.loads(to_text(build((), ["llama"])))
    tree = content["documents"]["llama"][2]
    content["documents"]["llama"][2] = [*tree, ["class_defaults", 99, 1, 99, 17, "VALUE"]]
    (tmp_path / FILE).write_text(json.dumps(content).replace('"VALUE"', value))
    with pytest.raises(CrosswalkError, match=r"a document is not what a document is \[catalog/content\]"):
        Catalog((tmp_path,)).compiled("llama")


def test_a_strangers_expressions_are_not_believed(tmp_path: Path) -> None:
    content = json.loads(to_text(build((), ["llama"])))
    content["expressions"] = {text: ["const", 7] for text in content["expressions"]}
    (tmp_path / FILE).write_text(json.dumps(content))
    found = Catalog((tmp_path,)).compiled("llama")
    (head_dim,) = [value for path, value in found.defaults.values.items() if path == ("head_dim",)]
    assert head_dim.evaluate(lambda path: {"hidden_size": 15, "num_attention_heads": 3}[path[0]]) == 5


@pytest.mark.parametrize("text", [
    "", "[]", "nonsense", "[" * 100_000, '{"crosswalk_catalog": 2}', '{"crosswalk_catalog": 1, "language": 9}',
    '{"crosswalk_catalog": 1, "language": 1}',
    '{"crosswalk_catalog":1,"language":1,"sources":"","index":{},"expressions":{"a":1},"documents":{}}',
    '{"crosswalk_catalog":1,"language":1,"sources":"","index":{"a":{}},"expressions":{},"documents":{}}',
    '{"crosswalk_catalog":1,"language":1,"sources":"","index":{},"expressions":{},"documents":{"a":[0,"../a.yaml",[]]}}',
    '{"crosswalk_catalog":1,"language":1,"sources":"","index":{},"expressions":{},"documents":{"a":[NaN,"a.yaml",[]]}}',
])  # fmt: skip
def test_what_is_no_catalog_is_one_message(text: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(CrosswalkError, match=r"catalog.json: error: .*\[catalog/content\]"):
        Catalog((tmp_path,)).names()


def test_no_damage_to_a_catalog_gives_a_traceback(tmp_path: Path) -> None:
    content = json.loads(to_text(build((), ["llama"])))
    source = random.Random(7)
    outcomes = set()
    for _ in range(60):
        damaged = json.loads(json.dumps(content))
        place = damaged["documents"][source.choice(sorted(damaged["documents"]))]
        while isinstance(place, list) and source.random() < 0.9 and any(isinstance(item, list) for item in place):
            place = source.choice([item for item in place if isinstance(item, list)])
        place[source.randrange(len(place))] = source.choice([None, -1, "m", [], ["m"], ["s", 1, 1], {}, 1e300, True])
        (tmp_path / FILE).write_text(json.dumps(damaged))
        try:
            Catalog((tmp_path,)).compiled("llama")
            outcomes.add("compiled")
        except CrosswalkError as error:
            outcomes |= {found.code for found in error.diagnostics}
    assert {"catalog/content", "schema/type"} <= outcomes


def test_a_damaged_document_of_a_kept_catalog_is_read_from_its_source(made: Catalogued) -> None:
    documents = {name: (number, file, ["m", 1]) for name, (number, file, _) in made.documents.items()}
    trees = {text: ["call", "open", ["const", "/etc/passwd"]] for text in made.expressions}
    damaged = Catalogued(made.sources, made.index, trees, documents)
    assert Catalog(stored=damaged).compiled("llama").root == Catalog().compiled("llama").root


def test_the_digest_follows_order_names_and_content(tmp_path: Path) -> None:
    for folder, text in (("a", "x: 1"), ("b", "x: 2"), ("c", "x: 1")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "one.yaml").write_text(text)
    a, b, c = (tmp_path / folder for folder in "abc")
    assert len({digest(folders) for folders in ((a,), (b,), (a, b), (b, a), (a, a), ())}) == 6
    assert digest((a,)) == digest((c,))
    (c / "one.yaml").rename(c / "two.yaml")
    assert digest((a,)) != digest((c,))
