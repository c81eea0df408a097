"""Damaged files and wrong tensors of Hugging Face checkpoints: one clear message a problem, and nothing written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_checkpoints import (
    CommandLine,
    Damage,
    cut,
    edit_config,
    edit_tensors,
    make,
    refuse,
    shard,
    write_index,
)

# ---- data files ------------------------------------------------------------------------------------------------------


def flip(name: str, offset: int) -> Damage:
    def damage(path: Path) -> None:
        data = bytearray((path / name).read_bytes())
        data[offset] ^= 0xFF
        (path / name).write_bytes(data)

    return damage


def without_shards(*numbers: int) -> Damage:
    def damage(path: Path) -> None:
        shard(path)
        for number in numbers:
            (path / f"model-0000{number}-of-00003.safetensors").unlink()

    return damage


def duplicated(path: Path) -> None:
    shard(path)
    first, second = (path / f"model-0000{number}-of-00003.safetensors" for number in (1, 2))
    tensors = load_file(second)
    tensors["lm_head.weight"] = load_file(first)["lm_head.weight"]
    save_file(tensors, second)


def wrong_index(path: Path) -> None:
    weight_map = shard(path)
    write_index(path, {**weight_map, "lm_head.weight": "model-00002-of-00003.safetensors", "more": "../model.bin"})


INDEX = "model.safetensors.index.json"
FILES: dict[str, tuple[Damage, tuple[str, ...]]] = {
    "empty file": (cut("model.safetensors", 0), ("safetensors: error: not a safetensors file: it has 0 bytes",)),
    "cut in the header": (cut("model.safetensors", 100), ("it has 100 bytes and states a header of",)),
    "cut in the data": (cut("model.safetensors", 20_000), ("the file is cut off: it has",)),
    "one byte short": (cut("model.safetensors", 141_503), ("the file is cut off: it has 138479 of 138480 bytes",)),
    "corrupt header": (flip("model.safetensors", 20), ("model.safetensors: error: not valid JSON",)),
    "corrupt length": (
        flip("model.safetensors", 7),
        (
            "model.safetensors: error: not a safetensors file",
            "[header/length]",
        ),
    ),
    "a shard is missing": (
        without_shards(2),
        ("index.json: error: the file model-00002-of-00003.safetensors with 10 tensors is missing",),
    ),
    "two shards are missing": (without_shards(1, 3), ("model-00001-of", "model-00003-of")),
    "a tensor in two shards": (
        duplicated,
        ("`lm_head.weight` is in two files, model-00001-of-00003.safetensors and model-00002-of-00003.safetensors",),
    ),
    "an index that lies": (
        wrong_index,
        ("`lm_head.weight` is not in model-00002", '"../model.bin" is not a plain path'),
    ),
    "no data": (
        lambda path: (path / "model.safetensors").unlink(),
        ("there is no *.safetensors or pytorch_model.bin",),
    ),
    "an index that is no JSON": (
        lambda path: (shard(path), (path / INDEX).write_text("{")),
        (f"{INDEX}: error: not valid JSON",),
    ),
    "an index that is a folder": (
        lambda path: (shard(path), (path / INDEX).unlink(), (path / INDEX).mkdir()),
        (f"{INDEX}: error: cannot be read: Is a directory [index/unreadable]",),
    ),
    "a pickle of garbage": (
        lambda path: ((path / "model.safetensors").unlink(), (path / "pytorch_model.bin").write_bytes(b"garbage")),
        ("pytorch_model.bin: error: not a torch file of plain tensors",),
    ),
}


def test_a_file_that_is_too_long_is_no_index(
    crosswalk: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make(tmp_path / "source")
    shard(source)
    monkeypatch.setattr("crosswalk.runtime.checkpoint.source.MAX_HEADER", 99)
    refuse(crosswalk, source, f"{INDEX}: error: the index is larger than 99 bytes [index/size]")


@pytest.mark.parametrize("name", FILES)
def test_damaged_files(name: str, crosswalk: CommandLine, tmp_path: Path) -> None:
    damage, expected = FILES[name]
    source = make(tmp_path / "source")
    damage(source)
    refuse(crosswalk, source, *expected)


# ---- tensors ---------------------------------------------------------------------------------------------------------


def put(**tensors: torch.Tensor) -> Damage:
    return lambda path: edit_tensors(path, lambda t: t.update({k.replace("__", "."): v for k, v in tensors.items()}))


def drop(*names: str) -> Damage:
    return lambda path: edit_tensors(path, lambda t: [t.pop(name) for name in names])


INT = torch.int32
TENSORS: dict[str, tuple[Damage, tuple[str, ...]]] = {
    "wrong shapes": (
        put(model__layers__1__mlp__up_proj__weight=torch.zeros(30, 37), model__norm__weight=torch.zeros(31)),
        (
            "tensor `model.layers.1.mlp.up_proj.weight` is [30, 37] in the file, [37, 30] by the config",
            "tensor `model.norm.weight` is [31] in the file, [30] by the config",
        ),
    ),
    "a scalar": (put(model__norm__weight=torch.tensor(1.0)), ("`model.norm.weight` is [] in the file, [30]",)),
    "integers": (
        put(**{f"model__layers__{i}__mlp__down_proj__weight": torch.zeros(30, 37, dtype=INT) for i in range(3)}),
        ("tensor `model.layers.{0..2}.mlp.down_proj.weight` has the dtype I32, parameters are floats",),
    ),
    "integers beside floats": (
        put(model__layers__1__mlp__up_proj__weight=torch.zeros(37, 30, dtype=INT)),
        (
            "tensor `model.layers.1.mlp.up_proj.weight` has the dtype I32, parameters are floats",
            "[tensors/dtype]",
        ),
    ),
    "dtypes of which none holds the other": (
        put(
            model__layers__1__mlp__up_proj__weight=torch.zeros(37, 30, dtype=torch.float16),
            model__layers__1__mlp__gate_proj__weight=torch.zeros(37, 30, dtype=torch.bfloat16),
        ),
        (
            "`decoder.1.mlp.layer_1.weight` is made from tensors of BF16 and F16, and none holds the others exactly",
            "[plan/mixed-dtypes]",
        ),
    ),
    "missing in every layer": (
        drop(*(f"model.layers.{i}.mlp.up_proj.weight" for i in range(3))),
        ("error: tensor `model.layers.{0..2}.mlp.up_proj.weight` [37, 30] is missing (3 in all)",),
    ),
    "unexpected": (
        put(model__layers__1__foo__weight=torch.zeros(3), model__layers__2__foo__weight=torch.zeros(3)),
        ("tensor `model.layers.{1..2}.foo.weight` [3] has no counterpart in mapping `llama` (2 in all)",),
    ),
    "a layer too many": (
        put(model__layers__3__mlp__up_proj__weight=torch.zeros(37, 30)),
        ("tensor `model.layers.3.mlp.up_proj.weight` [37, 30] has no counterpart",),
    ),
    "a bias that the config denies": (
        put(model__layers__1__self_attn__k_proj__bias=torch.zeros(28)),
        ("tensor `model.layers.1.self_attn.k_proj.bias` [28] has no counterpart",),
    ),
    "misspelt": (
        lambda path: edit_tensors(path, lambda t: t.update({"lm_heat.weight": t.pop("lm_head.weight")})),
        ("tensor `lm_head.weight` [71, 30] is missing", "tensor `lm_heat.weight` [71, 30] has no counterpart"),
    ),
    "a name with control characters": (
        lambda path: edit_tensors(path, lambda t: t.update({"a\x1b[31m": torch.zeros(1)})),
        (r"tensor `a\x1b[31m` [1] has no counterpart",),
    ),
}


@pytest.mark.parametrize("name", TENSORS)
def test_wrong_tensors(name: str, crosswalk: CommandLine, tmp_path: Path) -> None:
    damage, expected = TENSORS[name]
    source = make(tmp_path / "source")
    damage(source)
    refuse(crosswalk, source, *expected)


def test_a_misspelt_tensor_is_hinted_at(crosswalk: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    TENSORS["misspelt"][0](source)
    assert "hint: there is `lm_heat.weight`, which nothing needs" in crosswalk("check", source).err


def test_every_problem_of_tensors_and_unknown_keys_at_once(crosswalk: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    edit_config(source, lambda config: config.update(foo=1))
    drop("lm_head.weight")(source)
    put(
        extra=torch.zeros(2),
        model__norm__weight=torch.zeros(31),
        model__embed_tokens__weight=torch.zeros(71, 30, dtype=INT),
    )(source)
    refuse(
        crosswalk,
        source,
        "`foo` = 1 has no counterpart",
        "`lm_head.weight` [71, 30] is missing",
        "`extra` [2] has no counterpart",
        "`model.norm.weight` is [31]",
        "`model.embed_tokens.weight` has the dtype I32",
    )


def test_every_problem_of_files_at_once(crosswalk: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    without_shards(1)(source)
    cut("model-00002-of-00003.safetensors", 9)(source)
    (source / "config.json").write_text("[]")
    refuse(
        crosswalk,
        source,
        "config.json: error: config.json must be an object",
        "the file model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors: error: not a safetensors file",
    )


# ---- config.json -----------------------------------------------------------------------------------------------------


def config(**changes: Any) -> Damage:
    return lambda path: edit_config(path, lambda data: data.update(changes))
