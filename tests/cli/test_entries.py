"""The same bad checkpoint gives the same diagnostics, positions included, whoever opens it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML
from small_checkpoints import (
    BASE,
    MIXER,
    CommandLine,
    Damage,
    config_of,
    cut,
    edit_config,
    edit_tensors,
    make,
    metadata,
    shard,
    tensors_of,
)

import crosswalk
from crosswalk.runtime.errors import CrosswalkError, Diagnostic

Entry = Callable[[Path], object]
Empty = dict[str, torch.Tensor]


def good(path: Path) -> Path:
    """A native checkpoint beside ``path``."""
    out = path.with_name("good-native")
    if not out.exists():
        crosswalk.convert(path.with_name("good"), out)
    return out


def live(path: Path) -> Empty:
    """The tensors of that checkpoint, by the names of a live model."""
    return {name.removesuffix("/weights"): tensor for name, tensor in tensors_of(good(path)).items()}


def native_config(path: Path) -> Any:
    """The native config in a metadata.yaml."""
    found = YAML(typ="safe", pure=True).load((path / "metadata.yaml").read_text())
    return found["config"]["base_model"]


#: What opens a Hugging Face checkpoint.
ENTRIES: dict[str, Entry] = {
    "check": crosswalk.check,
    "check by format": lambda path: crosswalk.check(path, "llama"),
    "convert": lambda path: crosswalk.convert(path, path.with_name("out")),
    "verify": lambda path: crosswalk.verify(path, good(path)),
    "load": lambda path: crosswalk.load(path, live(path)),
    "reader": crosswalk.reader,
}
#: What takes it for the original of another one: it reads the config, and the headers of the files.
ORIGINAL: dict[str, Entry] = {
    "convert --like": lambda path: crosswalk.convert(good(path), path.with_name("out"), like=path),
    "save": lambda path: crosswalk.save(Empty(), native_config(good(path)), path.with_name("out"), "llama",
                                        carry_from=path),
    "writer": lambda path: crosswalk.writer(path.with_name("out"), native_config(good(path)), "llama",
                                            carry_from=path)._make_plan({}),
}  # fmt: skip
#: What an entry has a reason to take or refuse otherwise: a format that is named is not looked for, an adapter beside a
#: config is no weights, a reader and a plan read no values, and an output is held against its source.
OTHERWISE = {
    *(("no model", name) for name in ("check by format", "save", "writer")),
    *(("an adapter", name) for name in ORIGINAL),
    *(("a tie", name) for name in ("reader", "plan")),
    *((what, "verify with it") for what in ("what has no place", "a shape", "a file that was carried")),
}
#: Commands, with ``...`` for the checkpoint: those that plan a conversion, and those that look at its files.
COMMANDS: Sequence[tuple[object, ...]] = (("plan", ...), ("plan", "--json", ...), ("explain", ..., "model.norm.weight"))
READ_FILES: Sequence[tuple[object, ...]] = (("init", ...), ("compare", ..., ...))
#: What takes nothing but a config, which is in no file then.
CONFIGS: dict[str, Entry] = {
    "import_config": lambda path: crosswalk.import_config(config_of(path)),
    "compile_plan": lambda path: crosswalk.compile_plan(config_of(path)),
}


def config(**changes: Any) -> Damage:
    return lambda path: edit_config(path, lambda found: found.update(changes))


def without(*keys: str) -> Damage:
    return lambda path: edit_config(path, lambda found: [found.pop(key) for key in keys])


def text(content: str) -> Damage:
    return lambda path: (path / "config.json").write_text(content)


def tensors(edit: Callable[[Empty], object]) -> Damage:
    return lambda path: edit_tensors(path, edit)


def norm(tensor: torch.Tensor) -> Damage:
    return tensors(lambda found: found.update({"model.norm.weight": tensor}))


ROPE = {"rope_type": "llama3", "rope_theta": 23456.0}
OLD_ROPE = {"rope_type": "linear", "factor": 2.0}
DATA = "model.safetensors"
#: What is wrong with config.json, and the codes of what is said.
BAD_CONFIGS: dict[str, tuple[Damage, set[str]]] = {
    "unknown keys": (config(hidden_dropout=0.25, foo=1), {"config/unknown-key"}),
    "a type": (config(num_attention_heads="6"), {"config/type"}),
    "keys that are not there": (config(rope_parameters=ROPE), {"config/missing-key"}),
    "a choice": (config(hidden_act="mish"), {"config/choice"}),
    "sizes": (config(num_key_value_heads=4), {"layout/check"}),
    "dialects": (config(rope_scaling=OLD_ROPE), {"config/dialects-differ"}),
    "three at once": (
        config(rope_parameters=ROPE, hidden_act="mish", foo=1),
        {"config/missing-key", "config/choice", "config/unknown-key"},
    ),
    "an encoding": (config(quantization_config=7), {"config/type"}),
}
#: What keeps everybody from looking at the model.
BAD_FILES: dict[str, tuple[Damage, set[str]]] = {
    "no JSON": (text("{"), {"config/json"}),
    "no object": (text("[]"), {"config/type"}),
    "a key twice": (text('{"a": 1, "a": 2}'), {"document/duplicate"}),
    "nothing": (shutil.rmtree, {"source/not-a-directory"}),
    "no config": (lambda path: (path / "config.json").unlink(), {"config/read"}),
    "no model": (config(model_type="nobody", architectures=["Nobody"]), {"format/undetected"}),
    "cut off": (cut(DATA, 20_000), {"header/offsets"}),
    "garbage": (lambda path: (path / DATA).write_bytes(b"garbage"), {"header/length"}),
    "a shard too few": (
        lambda path: (shard(path), (path / "model-00002-of-00003.safetensors").unlink()), {"index/missing-file"}),
    "a pointer": (
        lambda path: (path / DATA).write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), {"source/lfs"}),
    "an adapter": (
        lambda path: ((path / DATA).rename(path / "adapter_model.safetensors"),
                      (path / "adapter_config.json").write_text("{}")), {"source/adapter"}),
}  # fmt: skip
#: What is wrong with the tensors.
BAD_TENSORS: dict[str, tuple[Damage, set[str]]] = {
    "a shape": (norm(torch.ones(17)), {"tensors/shape"}),
    "a dtype": (norm(torch.ones(30, dtype=torch.int32)), {"tensors/dtype"}),
    "one too few": (tensors(lambda found: found.pop("lm_head.weight")), {"tensors/missing"}),
    "one too many": (tensors(lambda found: found.update({"stray.weight": torch.ones(5)})), {"tensors/unexpected"}),
    "keys and tensors": (
        lambda path: (config(hidden_dropout=0.25)(path), norm(torch.ones(17))(path)),
        {"config/unknown-key", "tensors/shape"},
    ),
    "a tie": (
        tensors(lambda found: found.update({"lm_head.weight": found["model.embed_tokens.weight"] + 1})),
        {"tie/differs"},
    ),
}  # fmt: skip
BAD = {**BAD_CONFIGS, **BAD_FILES, **BAD_TENSORS}


def problems(entry: Entry, path: Path) -> list[Diagnostic]:
    with pytest.raises(CrosswalkError) as raised:
        entry(path)
    return list(raised.value.diagnostics)


@pytest.mark.parametrize("what", BAD)
def test_a_bad_checkpoint_is_the_same_problems_for_every_entry(what: str, tmp_path: Path, command: CommandLine) -> None:
    damage, codes = BAD[what]
    path, _ = (make(tmp_path / name, tie_word_embeddings=what == "a tie") for name in ("bad", "good"))
    damage(path)
    expected = problems(crosswalk.check, path)
    assert {found.code for found in expected} == codes
    assert all(found.position is not None for found in expected if found.code != "tie/differs")
    for name, entry in (ENTRIES | (ORIGINAL if what not in BAD_TENSORS else {})).items():
        if (what, name) not in OTHERWISE:
            assert problems(entry, path) == expected, name
    for name, entry in CONFIGS.items() if what in BAD_CONFIGS else ():
        found = problems(entry, path)
        assert [(one.code, one.message, one.rule) for one in found] == [
            (one.code, one.message, one.rule) for one in expected
        ], name
    said = command("check", path).err
    for line in COMMANDS if (what, "plan") not in OTHERWISE else ():
        assert command(*(path if word is ... else word for word in line)).err == said, line
    for line in READ_FILES if what in BAD_FILES and what not in ("nothing", "no model") else ():
        assert command(*(path if word is ... else word for word in line)).err == said, line
    assert command("compare", path.with_name("good"), path).err == said


def test_prove_says_it_too_where_the_class_takes_the_config(tmp_path: Path, command: CommandLine) -> None:
    """In the file of the user, not in the tiny copy that is made of it."""
    path = make(tmp_path / "bad")
    config(hidden_dropout=0.25)(path)
    assert command("prove", "llama", path).err == command("check", path).err


#: What opens a native checkpoint.
NATIVE_ENTRIES: dict[str, Entry] = {
    "check": crosswalk.check,
    "check by format": lambda path: crosswalk.check(path, "llama"),
    "convert": lambda path: crosswalk.convert(path, path.with_name("out")),
    "convert onward": lambda path: crosswalk.convert(path, path.with_name("out"), to="fast_llm", kind="dcp"),
    "verify": lambda path: crosswalk.verify(path, path.with_name("good")),
    "verify with it": lambda path: crosswalk.verify(path.with_name("good"), path),
}
#: What takes nothing but its config.
NATIVE_CONFIGS: dict[str, Entry] = {
    "export_config": lambda path: crosswalk.export_config(native_config(path), "llama"),
    "compile_plan": lambda path: crosswalk.compile_plan(native_config(path), "llama", "hf"),
    "save": lambda path: crosswalk.save(live(path), native_config(path), path.with_name("out"), "llama"),
    "stream": lambda path: crosswalk.stream(live(path), native_config(path), "llama"),
    "publisher": lambda path: crosswalk.publisher(live(path), native_config(path), format="llama"),
    "writer": lambda path: crosswalk.writer(path.with_name("out"), native_config(path), "llama")._make_plan({}),
}
FINAL = "head.final_norm.weight/weights"
BAD_NATIVE: dict[str, tuple[Damage, set[str]]] = {
    "unknown fields": (metadata(*BASE, foo=1), {"native/unknown-field"}),
    "a type": (metadata(*MIXER, heads="6"), {"native/type"}),
    "a field that is not there": (metadata(*BASE, decoder={"type": "pattern"}), {"native/missing-field"}),
    "sizes": (metadata(*MIXER, head_groups=4), {"layout/check"}),
    "what has no place": (metadata(*MIXER, window_size=10), {"export/unused-feature"}),
    "an unknown type": (metadata(*MIXER, type="attn"), {"native/type"}),
}
BAD_NATIVE_FILES: dict[str, tuple[Damage, set[str]]] = {
    "no YAML": (lambda path: (path / "metadata.yaml").write_text("["), {"document/syntax"}),
    "cut off": (cut("model_0.safetensors", 9999), {"header/offsets"}),
    "no data": (lambda path: (path / "model_0.safetensors").unlink(), {"index/missing-file"}),
    "a shape": (tensors(lambda found: found.update({FINAL: torch.ones(17)})), {"tensors/shape"}),
    "a file that was carried": (lambda path: (path / "generation_config.json").unlink(), {"files/missing"}),
}


@pytest.mark.parametrize("what", BAD_NATIVE | BAD_NATIVE_FILES)
def test_a_bad_native_checkpoint_is_too(what: str, tmp_path: Path, command: CommandLine) -> None:
    damage, codes = (BAD_NATIVE | BAD_NATIVE_FILES)[what]
    path = tmp_path / "bad"
    crosswalk.convert(make(tmp_path / "good"), path)
    damage(path)
    expected = problems(crosswalk.check, path)
    assert {found.code for found in expected} == codes
    assert all(found.position is not None for found in expected)
    for name, entry in NATIVE_ENTRIES.items():
        if (what, name) not in OTHERWISE:
            assert problems(entry, path) == expected, name
    for name, entry in NATIVE_CONFIGS.items() if what in BAD_NATIVE else ():
        found = problems(entry, path)
        assert [(one.code, one.message, one.rule) for one in found] == [
            (one.code, one.message, one.rule) for one in expected
        ], name
    assert command("plan", path).err == command("check", path).err


def saved(old: str, new: str) -> Damage:
    """Change the text of the config of a folder that ranks saved."""

    def damage(path: Path) -> None:
        text = (path / "crosswalk.yaml").read_text()
        assert text.count(old) >= 1
        (path / "crosswalk.yaml").write_text(text.replace(old, new, 1))

    return damage


BAD_FOLDERS: dict[str, tuple[Damage, set[str]]] = {
    "unknown fields": (saved("config:\n", "config:\n  foo: 1\n"), {"native/unknown-field"}),
    "a type": (saved("1.0e-05", "x"), {"native/type"}),
    "no YAML": (lambda path: (path / "crosswalk.yaml").write_text("["), {"native/metadata"}),
    "cut off": (cut("__0_0.distcp", 9999), {"dcp/cut-off"}),
    "no data": (lambda path: (path / "__0_0.distcp").unlink(), {"dcp/missing-file"}),
    "garbage": (lambda path: (path / ".metadata").write_bytes(b"garbage"), {"dcp/metadata"}),
}


@pytest.mark.parametrize("what", BAD_FOLDERS)
@pytest.mark.parametrize(("layout", "kind", "below"), [("fast_llm", "dcp", "."), ("megatron", "torch_dist", "release")])
def test_a_bad_folder_of_ranks_is_too(
    layout: str, kind: str, below: str, what: str, tmp_path: Path, command: CommandLine
) -> None:
    damage, codes = BAD_FOLDERS[what]
    path = tmp_path / "bad"
    crosswalk.convert(make(tmp_path / "good"), path, to=layout, kind=kind)
    damage(path / below)
    expected = problems(crosswalk.check, path)
    assert {found.code for found in expected} == codes
    assert all(found.position is not None for found in expected)
    for name, entry in NATIVE_ENTRIES.items():
        if name not in ("check by format", "convert onward"):
            assert problems(entry, path) == expected, name
    found = problems(lambda path: crosswalk.convert(path, path.with_name("out"), to=layout, kind="safetensors"), path)
    assert found == expected
    assert command("plan", path).err == command("check", path).err
