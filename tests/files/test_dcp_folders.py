"""Folders of torch.distributed.checkpoint, against torch: it loads what is written, and what it saves is read."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import random
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from comparing import tensor_differences
from ranks import Failed, run_ranks
from safetensors.torch import save_file
from torch.distributed.checkpoint.metadata import BytesStorageMetadata
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import crosswalk
from crosswalk.runtime.checkpoint.reading import Reader
from crosswalk.runtime.checkpoint.source import open_checkpoint
from crosswalk.runtime.dcp.folder import locate, open_folder
from crosswalk.runtime.dcp.frames import frame
from crosswalk.runtime.dcp.metadata import allowed_in_metadata
from crosswalk.runtime.dcp.output import folder_layout
from crosswalk.runtime.dtypes import DTYPES, size_of, torch_dtype
from crosswalk.runtime.errors import CrosswalkError
from crosswalk.runtime.files.convert import EngineOptions, FileReport, write_checkpoint
from crosswalk.runtime.files.runs import STEP, SourceBlock, StridedRuns, read_block
from crosswalk.runtime.plan.model import TensorSpec, make_plan
from crosswalk.runtime.torch_files.archives import ArchiveError, read_tensor
from crosswalk.runtime.torch_files.pickles import PickleError, read_pickle

Tensors = dict[str, torch.Tensor]
WHOLE: dict[str, tuple[int, ...]] = {"rows": (13, 7), "columns": (5, 11), "both": (9, 10, 3), "one": (17,), "none": ()}


def values(seed: int = 1) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in WHOLE.items()}


def found(path: Path, names: list[str] | None = None) -> Tensors:
    """The tensors of a folder, each read whole and again in runs."""
    folder = open_folder(path)
    checkpoint = locate(folder, {name: name for name in names or folder.entries.tensors})
    stored = checkpoint.tensors
    reader = Reader(list(stored), list(stored.values()), checkpoint.files)
    result = {}
    with contextlib.closing(reader):
        for index, (name, place) in enumerate(stored.items()):
            whole = bytearray(place.nbytes)
            reader.read(index, place.offset, memoryview(whole))
            width = size_of(place.dtype)
            third = max(1, len(whole) // width // 3)
            for count, step in ((third, third), (2, 3)):  # some of the short ones begin in one part and end in another
                starts = range(1 if len(whole) > width * count else 0, len(whole) // width - count + 1, step)
                runs = bytearray(len(starts) * count * width)
                begins = (place.offset + width * start for start in starts)
                reader.read_runs(index, begins, width * count, memoryview(runs))
                assert bytes(runs) == b"".join(whole[at * width : (at + count) * width] for at in starts)
            flat = torch.frombuffer(whole, dtype=torch.uint8) if whole else torch.empty(0, dtype=torch.uint8)
            result[name] = flat.view(torch_dtype(place.dtype)).view(place.shape)
    return result


def middle_columns(path: Path, name: str) -> torch.Tensor:
    """Columns 1 and 2 of a matrix in a folder, read with what is between them."""
    checkpoint = locate(open_folder(path), {name: name})
    stored = checkpoint.tensors[name]
    assert stored.is_in_files
    (rows, columns), width = stored.shape, size_of(stored.dtype)
    runs = StridedRuns(stored.offset + width, 2 * width, ((rows, columns * width),))
    filled = bytearray(runs.nbytes)
    reader = Reader([name], [stored], checkpoint.files)
    with contextlib.closing(reader):
        read_block(reader, SourceBlock(0, runs, 0, True), memoryview(filled), memoryview(bytearray(STEP)))
    return torch.frombuffer(filled, dtype=torch_dtype(stored.dtype)).view(rows, 2)


# What torch saves.


PLACEMENTS: dict[str, Any] = {"rows": Shard(0), "columns": Shard(1), "both": Shard(1), "one": Shard(0)}


def save_sharded(rank: int, path: Path) -> None:
    """Saved by 1, 2 and 4 processes, in sizes that do not divide, and on a mesh of 2 by 2."""
    whole = values()
    for size in (1, 2, 4):
        group = dist.new_group(list(range(size)))
        if rank < size:
            mesh = DeviceMesh.from_group(group, "cpu")
            state: dict[str, Any] = {
                name: distribute_tensor(tensor, mesh, [PLACEMENTS.get(name, Replicate())])
                for name, tensor in whole.items()
            }
            state |= {"step": 7, "optimizer.exp_avg.rows": whole["rows"] * 2}
            dcp.save(state, checkpoint_id=path / str(size), process_group=group)
    mesh = init_device_mesh("cpu", (2, 2))
    state = {name: distribute_tensor(whole[name], mesh, [Shard(0), Shard(1)]) for name in MESHED}
    dcp.save(state, checkpoint_id=path / "mesh")


MESHED = ("rows", "columns", "both")


def test_what_torch_saves_from_1_2_and_4_processes_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = [result for result in run_ranks(4, save_sharded, tmp_path) if isinstance(result, Failed)]
    assert not failed, failed[0].text
    whole = values()
    for size in ("1", "2", "4"):
        entries = open_folder(tmp_path / size).entries
        assert set(entries.tensors) == {*whole, "optimizer.exp_avg.rows"}
        assert set(entries.objects) == {"step"}
        assert tensor_differences(found(tmp_path / size, list(whole)), whole) == []
    assert len(open_folder(tmp_path / "4").entries.tensors["columns"].chunks) == 4
    assert torch.equal(middle_columns(tmp_path / "4", "rows"), whole["rows"][:, 1:3])
    meshed = {name: whole[name] for name in MESHED}
    assert len(open_folder(tmp_path / "mesh").entries.tensors["both"].chunks) == 4
    for strip in (1 << 20, 1, 64, 4 * 20 * 3):  # what is read at once, as if rows were longer than that
        monkeypatch.setattr("crosswalk.runtime.dcp.parts._STRIP", strip)
        assert tensor_differences(found(tmp_path / "mesh"), meshed) == []


# What torch loads.


def write(path: Path, tensors: Tensors, size: int = 10**9, **options: Any) -> FileReport:
    path.mkdir(exist_ok=True)
    if not (path / "source.safetensors").exists():
        save_file(tensors, path / "source.safetensors")
    source = open_checkpoint(path / "source.safetensors")
    copies = [(s.name, s.name, (s.elements,), 0, (1,), 0, (1,), 0) for s in source.specs() if s.elements]
    plan = make_plan(source.specs(), source.specs(), copies)
    layout = folder_layout(lambda written: {"beside.txt": b"beside"}, size)
    progress = options.pop("on_progress", None)
    return write_checkpoint(
        plan, source, path / "out", layout=layout, options=EngineOptions(**options), on_progress=progress
    )


@pytest.mark.parametrize("size", [10**9, 300], ids=["one file", "several"])
def test_what_is_written_torch_loads(tmp_path: Path, size: int) -> None:
    tensors = {**values(), "bf16": torch.randn(6, 5).bfloat16(), "empty": torch.empty(0, 3)}
    report = write(tmp_path, tensors, size)
    assert (len(report.files) > 1) == (size == 300)
    loaded = {name: torch.full_like(tensor, 9) for name, tensor in tensors.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that it is not distributed
        dcp.load(loaded, checkpoint_id=tmp_path / "out", no_dist=True)
    assert tensor_differences(loaded, tensors) == []
    assert tensor_differences(found(tmp_path / "out"), tensors) == []


def test_what_is_written_torch_loads_in_shards(tmp_path: Path) -> None:
    write(tmp_path, values())
    failed = [result for result in run_ranks(2, load_sharded, tmp_path / "out") if isinstance(result, Failed)]
    assert not failed, failed[0].text


def load_sharded(rank: int, path: Path) -> None:
    mesh = init_device_mesh("cpu", (2,))
    whole = values()
    state: dict[str, Any] = {
        name: distribute_tensor(torch.zeros_like(whole[name]), mesh, [Shard(axis)])
        for name, axis in (("rows", 1), ("columns", 0), ("both", 2))
    }
    dcp.load(state, checkpoint_id=path)
    assert all(torch.equal(state[name].full_tensor(), whole[name]) for name in state)


@pytest.mark.parametrize("dtype", DTYPES)
def test_archives_are_those_of_torch(dtype: str) -> None:
    for shape in ((3, 4), (), (0,), (5,), (2, 1, 3)):
        tensor = torch.randint(0, 2, shape).to(torch_dtype(dtype))
        raw = tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        stream = io.BytesIO()
        torch.save(tensor, stream)
        before, after = frame(TensorSpec("w", shape, dtype))
        for data in (stream.getvalue(), before + raw + after):
            place = read_tensor(part_of(data), len(data))
            assert (place.dtype, place.shape) == (dtype, shape)
            assert data[place.offset : place.offset + len(raw)] == raw
        loaded = torch.load(io.BytesIO(data), weights_only=True)
        assert tensor_differences({"w": loaded}, {"w": tensor}) == []


def part_of(data: bytes) -> Callable[[int, int], bytes]:
    return lambda offset, size: data[offset : offset + size]


@pytest.mark.parametrize("size", [(1 << 32) - 700, (1 << 32) - 4, 1 << 32, (1 << 32) + 40])
def test_archives_of_more_than_4_gib(tmp_path: Path, size: int) -> None:
    """In a sparse file: torch maps it, and finds the last element."""
    spec = TensorSpec("w", (size // 4,), "I32")
    before, after = frame(spec)
    path = tmp_path / "w.pt"
    with open(path, "wb") as stream:
        stream.write(before)
        stream.seek(spec.nbytes - 4, os.SEEK_CUR)
        stream.write(b"\x07\0\0\0" + after)
    loaded = torch.load(path, weights_only=True, mmap=True)
    assert (loaded.shape, int(loaded[-1])) == ((size // 4,), 7)
    with open(path, "rb") as stream:
        read = read_tensor(lambda offset, count: os.pread(stream.fileno(), count, offset), path.stat().st_size)
    assert read.offset == len(before)


def test_an_interrupted_folder_is_continued(tmp_path: Path) -> None:
    def stop(done: int, total: int, name: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, values(), 300, resume=True, on_progress=stop)
    assert not (tmp_path / "out").exists()
    report = write(tmp_path, values(), 300, resume=True)
    assert set(report.resumed) == set(report.files)  # the data was there, and only the end was missing
    assert tensor_differences(found(tmp_path / "out"), values()) == []


# Hostile folders.


class Runs:
    """Unpickled, it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def codes(path: Path) -> set[str]:
    with pytest.raises(CrosswalkError) as error:
        found(path)
    return {problem.code for problem in error.value.diagnostics}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, values())
    return tmp_path / "out"


def change(folder: Path, edit: Callable[[Any], object]) -> None:
    """Let torch's own classes write the metadata again, changed."""
    path = folder / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    edit(metadata)
    path.write_bytes(pickle.dumps(metadata))


def test_nothing_in_metadata_is_run(folder: Path, tmp_path: Path) -> None:
    change(folder, lambda metadata: setattr(metadata, "planner_data", Runs(tmp_path / "ran")))
    with pytest.raises(CrosswalkError, match=r"names `posix.system`, which torch.distributed.checkpoint never writes"):
        open_folder(folder)
    (folder / ".metadata").write_bytes(pickle.dumps(Runs(tmp_path / "ran")))
    assert codes(folder) == {"dcp/global"}
    assert not (tmp_path / "ran").exists()


def test_nothing_in_an_archive_is_run(folder: Path, tmp_path: Path) -> None:
    stream = io.BytesIO()
    torch.save(Runs(tmp_path / "ran"), stream)
    with pytest.raises(ArchiveError, match=r"it names `posix\.system`"):
        read_tensor(part_of(stream.getvalue()), len(stream.getvalue()))
    assert not (tmp_path / "ran").exists()


def set_chunk(metadata: Any, **fields: Any) -> None:
    chunk = metadata.state_dict_metadata["rows"].chunks[0]
    for name, value in fields.items():
        setattr(chunk, name, torch.Size(value))


def set_size(metadata: Any, *sizes: int) -> None:
    """Another size of a tensor, and of its one chunk."""
    metadata.state_dict_metadata["rows"].size = torch.Size(sizes)
    set_chunk(metadata, sizes=sizes)


@pytest.mark.parametrize(
    ("edit", "code"),
    [
        (lambda m: set_size(m, 1 << 59, 7), "dcp/differs"),
        (lambda m: set_size(m, 1 << 62, 7), "dcp/metadata"),
        (lambda m: set_chunk(m, sizes=(12, 7)), "dcp/parts"),
        (lambda m: set_chunk(m, sizes=(14, 7)), "dcp/metadata"),
        (lambda m: set_chunk(m, offsets=(1, 0), sizes=(12, 7)), "dcp/metadata"),
        (lambda m: set_chunk(m, sizes=(13,)), "dcp/metadata"),
        (lambda m: m.state_dict_metadata["rows"].chunks.append(m.state_dict_metadata["rows"].chunks[0]), "dcp/parts"),
        (lambda m: setattr(m.state_dict_metadata["rows"].properties, "dtype", torch.bfloat16), "dcp/differs"),
        (lambda m: setattr(m.state_dict_metadata["rows"].properties, "dtype", torch.complex64), "dcp/parts"),
        (lambda m: m.state_dict_metadata.update(step=BytesStorageMetadata()), "dcp/missing"),
        (lambda m: m.storage_data.clear(), "dcp/metadata"),
        (lambda m: setattr(m, "storage_data", None), "dcp/metadata"),
        (lambda m: setattr(next(iter(m.storage_data.values())), "relative_path", "../x.distcp"), "dcp/file-name"),
        (lambda m: setattr(next(iter(m.storage_data.values())), "relative_path", "gone.distcp"), "dcp/missing-file"),
        (lambda m: setattr(next(iter(m.storage_data.values())), "offset", 1 << 40), "dcp/cut-off"),
        (lambda m: setattr(next(iter(m.storage_data.values())), "offset", 3), "dcp/archive"),
        (lambda m: setattr(next(iter(m.storage_data.values())), "offset", -1), "dcp/metadata"),
        (
            lambda m: setattr(next(iter(m.storage_data.values())), "transform_descriptors", ["zstd"]),
            "dcp/transformed",
        ),
    ],
)
def test_metadata_that_is_wrong_is_refused(folder: Path, edit: Callable[[Any], object], code: str) -> None:
    change(folder, edit)
    assert codes(folder) == {code}


def test_files_that_are_cut_off_or_lead_elsewhere(folder: Path, tmp_path: Path) -> None:
    data = folder / "__0_0.distcp"
    os.rename(data, tmp_path / "elsewhere")
    data.symlink_to(tmp_path / "elsewhere")
    assert codes(folder) == {"source/link"}
    data.unlink()
    assert codes(folder) == {"dcp/missing-file"}
    data.mkdir()
    assert codes(folder) == {"dcp/unreadable"}
    data.rmdir()
    data.write_bytes((tmp_path / "elsewhere").read_bytes()[:-9])
    assert codes(folder) == {"dcp/cut-off"}
    (folder / ".metadata").write_bytes((folder / ".metadata").read_bytes()[:-9])
    assert codes(folder) == {"dcp/metadata"}


def test_a_folder_that_was_not_finished(folder: Path) -> None:
    """torch writes ``.metadata`` last."""
    os.rename(folder / ".metadata", folder / ".metadata.tmp")
    with pytest.raises(CrosswalkError, match=r"there is none here, only parts.*\[dcp/metadata\]\n.*let the save end"):
        crosswalk.check(folder, layout="torchtitan", native_config={"dim": 6})


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x04\x82\x01.",  # numbers that stand for classes
        b"\x80\x04(cos\nsystem\n\x8c\x02lso.",  # other ways to call something
        b"\x80\x04(\x8c\x02lsios\nsystem\n.",
        b"\x80\x04\x8c\x05torch\x8c\x04Size\x93)R)R.",  # what was called is called
        b"\x80\x02]r\xff\xff\xff\xff.",  # a place to remember far from all others
    ],
)
def test_what_a_pickle_of_torch_has_not_is_refused(data: bytes) -> None:
    with pytest.raises(PickleError):
        read_pickle(data, allowed_in_metadata)


def test_an_entry_is_read_up_to_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dcp.save({"rows": torch.ones(3), "step": list(range(99))}, checkpoint_id=tmp_path, no_dist=True)
    folder = open_folder(tmp_path)
    assert folder.read_object("step")[1] > 99
    monkeypatch.setattr("crosswalk.runtime.dcp.folder._MAX_OBJECT", 98)
    with pytest.raises(CrosswalkError, match=r"entry `step` is larger than .*\[dcp/object\]"):
        folder.read_object("step")


def bombs() -> Iterator[bytes]:
    yield b"\x80\x02]" + b"2a" * 10**5 + b"."  # a list in itself
    nested = b"\x80\x02)" + b"\x85" * 10**5 + b"."
    yield nested  # a tuple in a tuple, a hundred thousand times
    yield b"\x80\x02}" + nested[2:-1] + b"Nsb."  # as a key
    yield b"\x80\x02" + b"\x8a\xff" + b"\x01" * 255 + b"."  # an integer of 255 bytes
    yield b"\x80\x04\x8d" + (1 << 62).to_bytes(8, "little") + b"."  # a text of 4 EiB
    yield b"\x80\x02" + b"t" * 10
    yield b"\x80\x02j\xff\xff\xff\xff."
    yield b"\x80\x02(lp0\nI1\naI2\na."  # protocol 0
    yield b""


@pytest.mark.parametrize("data", list(bombs()))
def test_pickles_that_would_be_costly(data: bytes) -> None:
    with contextlib.suppress(PickleError):
        read_pickle(data, lambda name: False)


def test_no_damage_is_more_than_a_diagnostic(folder: Path) -> None:
    draw = random.Random(11)
    files = {name: (folder / name).read_bytes() for name in (".metadata", "__0_0.distcp")}
    for _ in range(150):
        name = draw.choice(list(files))
        data = bytearray(files[name])
        for _ in range(draw.choice((1, 1, 2, 8))):
            data[draw.randrange(len(data))] = draw.choice((0, 255, draw.randrange(256)))
        (folder / name).write_bytes(data[: draw.choice((len(data), len(data), draw.randrange(len(data))))])
        with contextlib.suppress(CrosswalkError):
            found(folder)
        (folder / name).write_bytes(files[name])
