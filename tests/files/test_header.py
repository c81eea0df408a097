"""Headers and checkpoints: what safetensors writes is read, what is wrong is named, all of it at once."""

from __future__ import annotations

import json
import os
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from crosswalk.runtime.checkpoint.header import build_header, read_header
from crosswalk.runtime.checkpoint.source import open_checkpoint
from crosswalk.runtime.dtypes import DTYPES, torch_dtype
from crosswalk.runtime.errors import CrosswalkError
from crosswalk.runtime.plan.model import TensorSpec


def codes(error: pytest.ExceptionInfo[CrosswalkError]) -> list[str]:
    return sorted(diagnostic.code for diagnostic in error.value.diagnostics)


def raw_file(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    body = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(body) if length is None else length).to_bytes(8, "little") + body + data)
    return path


def entry(dtype: object, shape: object, begin: object, end: object) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.fixture
def sample() -> dict[str, torch.Tensor]:
    """A tensor of every dtype, of odd sizes, with an empty one and a scalar."""
    torch.manual_seed(1)
    tensors = {
        name: torch.randint(0, 2 if name == "BOOL" else 256, (3, 5, DTYPES[name][0]), dtype=torch.uint8)
        .view(torch_dtype(name) if name != "BOOL" else torch.uint8)
        .squeeze(-1)
        for name in DTYPES
    }
    tensors["BOOL"] = tensors["BOOL"].bool()
    return {**tensors, "empty": torch.zeros(0, 7), "scalar": torch.tensor(2.5)}


def test_reads_what_safetensors_writes(tmp_path: Path, sample: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(sample, path, metadata={"format": "pt"})
    file, tensors = read_header(path)
    raw = path.read_bytes()
    assert file.metadata == {"format": "pt"}
    assert file.size == len(raw)
    assert tensors.keys() == sample.keys()
    for name, stored in tensors.items():
        assert stored.shape == tuple(sample[name].shape)
        assert torch_dtype(stored.dtype) == sample[name].dtype
        expected = sample[name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        assert raw[stored.offset : stored.offset + stored.nbytes] == expected


def test_safetensors_reads_what_is_built(tmp_path: Path) -> None:
    specs = [TensorSpec("b", (3, 5), "F32"), TensorSpec("ä", (), "F64"), TensorSpec("a", (0, 7), "I64")]
    specs = sorted(specs, key=lambda spec: spec.dtype, reverse=True)
    data = torch.arange(17, dtype=torch.float32).view(torch.uint8).numpy().tobytes()
    header = build_header(specs, {"format": "pt"})
    assert len(header) % 8 == 0
    (tmp_path / "x.safetensors").write_bytes(header + data)
    with safetensors.safe_open(tmp_path / "x.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt"}
        assert set(opened.keys()) == {"a", "b", "ä"}
        assert opened.get_tensor("a").shape == (0, 7)
        assert opened.get_tensor("ä").shape == ()
    tensors = read_header(tmp_path / "x.safetensors")[1]
    assert [tensors[spec.name].shape for spec in specs] == [spec.shape for spec in specs]


def test_repeated_output_name_is_refused() -> None:
    with pytest.raises(CrosswalkError) as error:
        build_header([TensorSpec("a", (1,), "U8"), TensorSpec("a", (2,), "U8")], {})
    assert codes(error) == ["output/name"]


def test_a_header_beyond_what_the_format_allows_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crosswalk.runtime.checkpoint.header.MAX_HEADER", 64)
    with pytest.raises(CrosswalkError) as error:
        build_header([TensorSpec("a" * 65, (1,), "U8")], {})
    assert codes(error) == ["output/header"]


HOSTILE: dict[str, tuple[object, int, str]] = {
    "hole": ({"a": entry("U8", [4], 0, 4), "b": entry("U8", [4], 5, 9)}, 9, "header/offsets"),
    "overlap": ({"a": entry("U8", [4], 0, 4), "b": entry("U8", [4], 3, 7)}, 7, "header/offsets"),
    "late start": ({"a": entry("U8", [4], 2, 6)}, 6, "header/offsets"),
    "trailing bytes": ({"a": entry("U8", [4], 0, 4)}, 5, "header/offsets"),
    "beyond the end": ({"a": entry("U8", [4], 0, 4)}, 3, "header/offsets"),
    "reversed": ({"a": entry("U8", [4], 4, 0)}, 4, "header/offsets"),
    "negative": ({"a": entry("U8", [4], -4, 0)}, 4, "header/offsets"),
    "float offset": ({"a": entry("U8", [4], 0, 4.0)}, 4, "header/offsets"),
    "boolean offset": ({"a": entry("U8", [1], False, True)}, 1, "header/offsets"),
    "three offsets": ({"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 2, 4]}}, 4, "header/offsets"),
    "size mismatch": ({"a": entry("F32", [4], 0, 4)}, 4, "header/size"),
    "overflow": ({"a": entry("F32", [2**32, 2**32, 2**62], 0, 0)}, 0, "header/size"),
    "huge dimension": ({"a": entry("F32", [2**63], 0, 0)}, 0, "header/shape"),
    "negative dimension": ({"a": entry("U8", [-2, -2], 0, 4)}, 4, "header/shape"),
    "rank": ({"a": entry("U8", [1] * 65, 0, 1)}, 1, "header/shape"),
    "shape is text": ({"a": entry("U8", "4", 0, 4)}, 4, "header/shape"),
    "dtype": ({"a": entry("F7", [4], 0, 4)}, 4, "header/dtype"),
    "dtype is a list": ({"a": entry(["U8"], [4], 0, 4)}, 4, "header/dtype"),
    "extra key": ({"a": {**entry("U8", [4], 0, 4), "x": 1}}, 4, "header/entry"),
    "entry is null": ({"a": None}, 0, "header/entry"),
    "metadata": ({"__metadata__": {"a": 1}}, 0, "header/metadata"),
    "list": ([1, 2], 0, "header/json"),
    "duplicate key": (b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":1}', 1, "header/json"),
    "infinity": (b'{"a":Infinity}', 0, "header/json"),
    "deep": (b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}", 0, "header/json"),
    "long integer": (b'{"a":' + b"9" * 10_000 + b"}", 0, "header/json"),
    "not UTF-8": (b'{"\xff":1}', 0, "header/json"),
    "half a surrogate pair": (b'{"\\ud800":1}', 0, "header/json"),
    "not JSON": (b"{nonsense", 0, "header/json"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_header(case: str, tmp_path: Path) -> None:
    header, size, code = HOSTILE[case]
    path = raw_file(tmp_path / "model.safetensors", header, bytes(size))
    with pytest.raises(CrosswalkError) as error:
        read_header(path)
    assert set(codes(error)) == {code}
    assert all(str(path) in str(diagnostic) for diagnostic in error.value.diagnostics)
    str(error.value).encode()


@pytest.mark.parametrize("length", [0, 1, 3, 10**9, 2**63, 2**64 - 1])
def test_wrong_header_length(length: int, tmp_path: Path) -> None:
    path = raw_file(tmp_path / "model.safetensors", {}, length=length)
    with pytest.raises(CrosswalkError) as error:
        read_header(path)
    assert codes(error)[0].startswith("header/")


def test_every_problem_at_once(tmp_path: Path) -> None:
    header = {"a": entry("F7", [4], 0, 4), "b": entry("U8", [5], 4, 8), "c": entry("U8", [-1], 8, 9)}
    with pytest.raises(CrosswalkError) as error:
        read_header(raw_file(tmp_path / "model.safetensors", header, bytes(9)))
    assert codes(error) == ["header/dtype", "header/shape", "header/size"]
    many = {str(i): entry("F7", [4], 0, 4) for i in range(1000)}
    with pytest.raises(CrosswalkError, match=r"and 950 more problems \[header/more\]"):
        read_header(raw_file(tmp_path / "model.safetensors", many, bytes(4)))


def test_truncated_file(tmp_path: Path, sample: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(sample, path)
    whole = path.read_bytes()
    for size in (0, 5, 8, 100, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(CrosswalkError):
            open_checkpoint(tmp_path)


def sharded(directory: Path) -> dict[str, str]:
    """Two shards with three tensors; the weight map of their index."""
    raw_file(directory / "one.safetensors", {"a": entry("U8", [3], 0, 3), "b": entry("U8", [2], 3, 5)}, bytes(5))
    raw_file(directory / "two.safetensors", {"c": entry("U8", [7], 0, 7)}, bytes(7))
    return {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"}


def write_index(directory: Path, weight_map: object) -> None:
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_sharded_checkpoint(tmp_path: Path) -> None:
    write_index(tmp_path, sharded(tmp_path))
    for path in (tmp_path, tmp_path / "model.safetensors.index.json"):
        checkpoint = open_checkpoint(path)
        assert [(s.name, s.shape) for s in checkpoint.specs()] == [("a", (3,)), ("b", (2,)), ("c", (7,))]
        assert len(checkpoint.files) == 2
    selected = open_checkpoint(tmp_path, sharded(tmp_path)).select({"b": "x"})
    assert selected.tensors["x"].nbytes == 2
    with pytest.raises(CrosswalkError, match=r"`d`.*\[source/missing-tensor\]"):
        selected.select({"d": "d"})


BAD_INDEX: dict[str, tuple[dict[str, str], str]] = {
    "missing file": ({"d": "three.safetensors"}, "index/missing-file"),
    "name too long": ({"d": "x" * 300 + ".safetensors"}, "index/missing-file"),
    "missing tensor": ({"d": "two.safetensors"}, "index/missing-tensor"),
    "parent": ({"d": "../two.safetensors"}, "index/file-name"),
    "inner parent": ({"d": "x/../two.safetensors"}, "index/file-name"),
    "absolute": ({"d": "/etc/passwd"}, "index/file-name"),
    "second spelling": ({"d": "./two.safetensors"}, "index/file-name"),
    "empty name": ({"d": ""}, "index/file-name"),
    "null byte": ({"d": "two\0.safetensors"}, "index/file-name"),
    "loop": ({"d": "loop.safetensors"}, "source/dangling"),
    "pipe": ({"d": "pipe.safetensors"}, "header/unreadable"),
    "directory": ({"d": "directory"}, "header/unreadable"),
    "in two files": ({"d": "again.safetensors"}, "index/duplicate-tensor"),
}


@pytest.mark.parametrize("case", BAD_INDEX)
def test_bad_index(case: str, tmp_path: Path) -> None:
    extra, code = BAD_INDEX[case]
    os.symlink(tmp_path / "loop.safetensors", tmp_path / "loop.safetensors")
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "directory").mkdir()
    again = {"d": entry("U8", [2], 0, 2), "c": entry("U8", [2], 2, 4)}
    raw_file(tmp_path / "again.safetensors", again, bytes(4))
    write_index(tmp_path, sharded(tmp_path) | extra)
    with pytest.raises(CrosswalkError) as error:
        open_checkpoint(tmp_path)
    assert codes(error) == [code]


def test_every_problem_of_an_index_at_once(tmp_path: Path) -> None:
    weight_map = {**sharded(tmp_path), "x": "gone.safetensors", "y": "../z", "z": "two.safetensors"}
    del weight_map["b"]
    write_index(tmp_path, weight_map)
    with pytest.raises(CrosswalkError) as error:
        open_checkpoint(tmp_path)
    assert codes(error) == ["index/file-name", "index/missing-file", "index/missing-tensor", "index/unlisted-tensor"]


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": 1}', '{"weight_map": {"a": 1}}', "{", "[" * 10**6])
def test_malformed_index(content: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CrosswalkError) as error:
        open_checkpoint(tmp_path)
    assert codes(error) == ["index/weight-map"] or content in ("{", "[" * 10**6)


def test_which_files_are_the_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CrosswalkError) as error:
        open_checkpoint(tmp_path)
    assert codes(error) == ["source/not-found"]
    with pytest.raises(CrosswalkError) as error:
        open_checkpoint(tmp_path / "nothing")
    assert codes(error) == ["source/not-found"]
    sharded(tmp_path)
    with pytest.raises(CrosswalkError) as error:
        open_checkpoint(tmp_path)
    assert codes(error) == ["source/ambiguous"]
    assert open_checkpoint(tmp_path / "two.safetensors").specs() == [TensorSpec("c", (7,), "U8")]
    (tmp_path / "two.safetensors").rename(tmp_path / "model.safetensors")
    assert open_checkpoint(tmp_path).specs() == [TensorSpec("c", (7,), "U8")]


def test_pickle(tmp_path: Path) -> None:
    tied = torch.randn(5, 3)
    state = {"a": torch.arange(7), "b": tied, "c": tied, "d": torch.nn.Parameter(torch.randn(11).bfloat16()[3:])}
    state["one"] = torch.randn(5, 1, 2).transpose(0, 1)  # of one row, however far the next would be
    path = tmp_path / "pytorch_model.bin"
    torch.save(state, path)
    checkpoint = open_checkpoint(tmp_path)
    raw = path.read_bytes()
    assert checkpoint.tensors.keys() == state.keys()
    for name, stored in checkpoint.tensors.items():
        data = raw[stored.offset : stored.offset + stored.nbytes]
        loaded = torch.frombuffer(bytearray(data), dtype=torch_dtype(stored.dtype)).view(stored.shape)
        assert torch.equal(loaded, state[name])


def rewrite(path: Path, out: Path, changes: dict[str, Any]) -> None:
    """The archive again, with other contents of some records or another compression."""
    out.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w", changes.get("compress_type", 0)) as new:
        for record in old.infolist():
            name = f"archive/{record.filename.partition('/')[2]}"
            new.writestr(name, changes.get(name, old.read(record)))


def test_pickle_runs_no_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "owned"),)

    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": Evil()}, path)
    with pytest.raises(CrosswalkError) as error:
        open_checkpoint(tmp_path)
    assert codes(error) == ["pickle/unreadable"]
    assert not (tmp_path / "owned").exists()
    for content, code in (
        ({"a": 3}, "pickle/content"),
        ([torch.ones(2)], "pickle/content"),
        ({"a": torch.randn(3, 5).t()}, "pickle/strided"),
        ({"a": torch.ones(3, dtype=torch.complex128)}, "pickle/dtype"),
    ):
        torch.save(content, path)
        with pytest.raises(CrosswalkError) as error:
            open_checkpoint(tmp_path)
        assert codes(error) == [code]
    torch.save({"a": torch.ones(3), "b": torch.ones(5)}, path)
    for changes, code in (
        ({"compress_type": zipfile.ZIP_DEFLATED}, "pickle/encoding"),
        ({"archive/data/1": b"cut off"}, "pickle/offsets"),
    ):
        rewrite(path, tmp_path / "changed" / path.name, changes)
        with pytest.raises(CrosswalkError) as error:
            open_checkpoint(tmp_path / "changed")
        assert codes(error) == [code]
    torch.save({"a": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(CrosswalkError):
        open_checkpoint(tmp_path)


def test_many_tensors(tmp_path: Path) -> None:
    names = [f"model.layers.{i // 768}.mlp.experts.{i % 768}.gate_proj.weight" for i in range(46_000)]
    specs = [TensorSpec(name, (2, 3), "U8") for name in names]
    for shard in range(4):
        header = build_header(specs[shard::4], {})
        (tmp_path / f"{shard}.safetensors").write_bytes(header + bytes(6 * len(specs[shard::4])))
    write_index(tmp_path, {name: f"{i % 4}.safetensors" for i, name in enumerate(names)})
    start = time.process_time()
    checkpoint = open_checkpoint(tmp_path)
    assert len(checkpoint.tensors) == 46_000
    print(f"opened 46,000 tensors in {time.process_time() - start:.2f} s of CPU time")
