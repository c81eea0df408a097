"""Options of a conversion: dtypes, dialects, overwriting, resuming, checksums."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from converted import convert, metadata_of
from small_checkpoints import (
    CommandLine,
    config_of,
    contents,
    lines,
    make,
    native,
    tensors_of,
)

from crosswalk.runtime.plan.model import Plan

# ---- options ---------------------------------------------------------------------------------------------------------


def test_dtype_and_protect(crosswalk: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    options = ("--dtype", "bfloat16", "--protect", "decoder.1.*", "--protect", "head.final_norm.weight")
    target = convert(crosswalk, source, tmp_path / "native", *options)
    whole = tensors_of(convert(crosswalk, source, tmp_path / "whole"))
    found = tensors_of(target)
    kept = {name for name in found if name.startswith(("decoder.1.", "head.final_norm"))}
    assert {name for name, tensor in found.items() if tensor.dtype == torch.float32} == kept
    assert all(torch.equal(tensor, whole[name].to(tensor.dtype)) for name, tensor in found.items())
    proved = lines(crosswalk("verify", source, target).out)
    assert all(row in proved for row in lines(crosswalk("check", source, *options).out))
    back = convert(crosswalk, target, tmp_path / "back")
    assert config_of(back) == {**config_of(source), "dtype": "bfloat16"}
    assert tensors_of(back)["model.layers.1.mlp.up_proj.weight"].dtype == torch.float32
    rows = lines(crosswalk("plan", source, *options).out)
    assert next(row for row in rows if row[0] == "tensors")[1:4] == ["bijective", "but", "for"]


@pytest.mark.parametrize("name", ["bfloat16", "bf16", "BF16", "torch.bfloat16"])
def test_names_of_dtypes(name: str, crosswalk: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    plan = Plan.from_json(crosswalk("plan", source, "--dtype", name, "--json").out)
    assert {tensor.dtype for tensor in plan.targets} == {"BF16"}


def test_a_wider_dtype_is_undone_exactly(crosswalk: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source", dtype="bfloat16")
    target = convert(crosswalk, source, tmp_path / "native", "--dtype", "float32")
    assert crosswalk("verify", source, target).code == 0
    wide = convert(crosswalk, target, tmp_path / "wide")
    assert config_of(wide) == {**config_of(source), "dtype": "float32"}
    back = convert(crosswalk, target, tmp_path / "back", "--dtype", "bfloat16")
    assert contents(back) == contents(source)


OLD_KEYS, NEW_KEYS = {"rope_theta"}, {"rope_parameters"}


@pytest.mark.parametrize(
    ("dialect", "keys"),
    [
        ("transformers-4", OLD_KEYS),
        ("transformers_4", OLD_KEYS),
        ("transformers-5", NEW_KEYS),
        ("newest", NEW_KEYS),
        ("transformers-4,transformers-5", OLD_KEYS | NEW_KEYS),
        ("transformers-5, transformers-4", OLD_KEYS | NEW_KEYS),
    ],
)
def test_dialects(dialect: str, keys: set[str], crosswalk: CommandLine, tmp_path: Path) -> None:
    target = native(tmp_path, crosswalk)
    back = convert(crosswalk, target, tmp_path / "back", "--dialect", dialect)
    found = config_of(back)
    assert found.keys() & (OLD_KEYS | NEW_KEYS) == keys
    original = config_of(tmp_path / "source")
    # The version of transformers that wrote the file is not left in one that only another version reads.
    changed = NEW_KEYS if keys >= NEW_KEYS else NEW_KEYS | {"transformers_version"}
    assert {k: v for k, v in found.items() if k not in keys} == {k: v for k, v in original.items() if k not in changed}
    assert found.get("rope_theta", 23456.0) == 23456.0
    assert found.get("rope_parameters", original["rope_parameters"]) == original["rope_parameters"]
    assert crosswalk("verify", target, back).code == 0
    assert crosswalk("check", back).code == 0


def test_overwrite_replaces_all_of_the_destination(crosswalk: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    target = tmp_path / "native"
    target.mkdir()
    (target / "old").write_text("old")
    assert crosswalk("convert", source, target).code == 1
    assert crosswalk("convert", source, target, "--overwrite").code == 1  # this is no checkpoint
    assert (target / "old").read_text() == "old"
    (target / "model.safetensors").write_bytes(b"")
    convert(crosswalk, source, target, "--overwrite")
    assert contents(target) == contents(convert(crosswalk, source, tmp_path / "fresh"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fresh", "native", "source"]


def test_resume_of_nothing_is_a_conversion(crosswalk: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    target = convert(crosswalk, source, tmp_path / "native", "--resume")
    assert contents(target) == contents(convert(crosswalk, source, tmp_path / "fresh"))


@pytest.mark.parametrize("checksum", ["none", "xxh3", "sha256"])
def test_checksums(checksum: str, crosswalk: CommandLine, tmp_path: Path) -> None:
    target = convert(crosswalk, make(tmp_path / "source"), tmp_path / "native", "--checksum", checksum)
    found = metadata_of(target)["metadata"]["crosswalk"]["checksums"]
    assert found.keys() == (set() if checksum == "none" else tensors_of(target).keys())
    assert {len(text) for text in found.values()} == {"none": set(), "xxh3": {32}, "sha256": {64}}[checksum]


def test_quiet_where_there_is_no_terminal(crosswalk: CommandLine, tmp_path: Path) -> None:
    ran = crosswalk("convert", make(tmp_path / "source"), tmp_path / "native", "--workers", "2", "--memory", "200MiB")
    assert (ran.code, ran.err) == (0, "")
    assert "\x1b" not in ran.out
    assert "\r" not in ran.out
