"""Sharing extents, on a file system that is made up: it shares whole blocks by copying them, and counts."""

from __future__ import annotations

import builtins
import errno
import fcntl
import os
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from crosswalk.runtime.checkpoint.extents import BLOCK, is_served, share
from crosswalk.runtime.checkpoint.output import hugging_face_layout, native_layout
from crosswalk.runtime.checkpoint.source import open_checkpoint
from crosswalk.runtime.files.convert import EngineOptions, checksum_checkpoint, write_checkpoint
from crosswalk.runtime.plan.model import TensorSpec, make_plan

ROWS, WIDTH = 101, 4096  # 808 KiB of bf16 each: whole blocks, and not whole steps of 1 MiB


class Sharing:
    """Stands in for ``FICLONERANGE``; refuses what Linux refuses."""

    def __init__(self) -> None:
        self.shared = 0

    def ioctl(self, target: int, request: int, argument: bytes) -> int:
        assert request == 0x4020940D
        source, offset, nbytes, place = struct.unpack("qQQQ", argument)
        if offset % BLOCK or nbytes % BLOCK or place % BLOCK or not nbytes:
            raise OSError(errno.EINVAL, "not whole blocks")
        assert os.pwrite(target, os.pread(source, nbytes, offset), place) == nbytes
        self.shared += nbytes
        return 0


@pytest.fixture
def sharing(monkeypatch: pytest.MonkeyPatch) -> Sharing:
    system = Sharing()
    monkeypatch.setattr(fcntl, "ioctl", system.ioctl)
    return system


@pytest.mark.parametrize("checksum", ["none", "xxh3"])
@pytest.mark.parametrize("in_phase", [True, False])
def test_what_can_be_shared_is_and_the_rest_is_copied(
    checksum: str, in_phase: bool, sharing: Sharing, tmp_path: Path
) -> None:
    """Gate and up become one tensor; the short vector, which would shift what follows it, comes last."""
    tensors = {name: torch.randn(ROWS, WIDTH).bfloat16() for name in ("down", "gate", "up")}
    tensors["vector"] = torch.randn(77).bfloat16()
    (tmp_path / "in").mkdir()
    save_file(tensors, tmp_path / "in" / "model.safetensors")
    specs = {name: TensorSpec(name, tuple(tensor.shape), "BF16") for name, tensor in tensors.items()}
    size = ROWS * WIDTH
    plan = make_plan(
        specs.values(),
        [specs["vector"], specs["down"], TensorSpec("layer_1", (2 * ROWS, WIDTH), "BF16")],
        [
            ("vector", "vector", (77,), 0, (1,), 0, (1,), 0),
            ("down", "down", (size,), 0, (1,), 0, (1,), 0),
            ("gate", "layer_1", (size,), 0, (1,), 0, (1,), 0),
            ("up", "layer_1", (size,), 0, (1,), size, (1,), 0),
        ],
    )
    checkpoint = open_checkpoint(tmp_path / "in")
    layout = native_layout(lambda written: {}) if in_phase else hugging_face_layout()
    options = EngineOptions(workers=2, checksum=checksum)
    report = write_checkpoint(plan, checkpoint, tmp_path / "out", layout=layout, options=options)

    found = load_file(tmp_path / "out" / layout.file_name(0, 1))
    suffix = layout.key_suffix
    assert torch.equal(found["layer_1" + suffix], torch.cat([tensors["gate"], tensors["up"]]))
    assert torch.equal(found["down" + suffix], tensors["down"])
    assert torch.equal(found["vector" + suffix], tensors["vector"])
    if checksum != "none":
        written = checksum_checkpoint(open_checkpoint(tmp_path / "out"))
        assert written == {name + suffix: found for name, found in report.checksums.items()}
    if in_phase:
        # All but the block at each edge of the three ranges, which do not begin where blocks do.
        assert sharing.shared == 3 * (2 * size - BLOCK)
        first = min(stored.offset for stored in open_checkpoint(tmp_path / "out").tensors.values())
        assert first % BLOCK == checkpoint.tensors["down"].offset % BLOCK != 0
    else:
        assert sharing.shared == 0


@pytest.mark.parametrize(
    ("source_offset", "target_offset", "nbytes", "expected"),
    [
        (0, BLOCK, 2 * BLOCK, (0, 2 * BLOCK)),
        (8, 8 + BLOCK, 3 * BLOCK, (BLOCK - 8, 3 * BLOCK - 8)),
        (BLOCK - 8, 5 * BLOCK - 8, BLOCK + 8, (8, BLOCK + 8)),
        (8, 16, 9 * BLOCK, (0, 0)),
        (8, 8, BLOCK, (0, 0)),
        (8, 8, 0, (0, 0)),
    ],
)
def test_whole_blocks_are_shared(
    source_offset: int, target_offset: int, nbytes: int, expected: tuple[int, int], sharing: Sharing, tmp_path: Path
) -> None:
    data = os.urandom(10 * BLOCK)
    (tmp_path / "a").write_bytes(data)
    with open(tmp_path / "a", "rb") as source, open(tmp_path / "b", "w+b") as target:
        start, stop = share(source.fileno(), source_offset, target.fileno(), target_offset, nbytes)
        assert (start, stop) == expected
        target.seek(target_offset + start)
        assert target.read() == data[source_offset + start : source_offset + stop]


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EXDEV, errno.ENOTTY, errno.EINVAL])
def test_files_that_cannot_share_are_copied(number: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = []

    def ioctl(target: int, request: int, argument: bytes) -> int:
        calls.append(request)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    tensors = {f"t{n}": torch.randn(ROWS, WIDTH).bfloat16() for n in range(5)}
    (tmp_path / "in").mkdir()
    save_file(tensors, tmp_path / "in" / "model.safetensors", {"format": "pt"})  # the header that is written too
    specs = [TensorSpec(name, (ROWS, WIDTH), "BF16") for name in tensors]
    plan = make_plan(specs, specs, [(s.name, s.name, (ROWS * WIDTH,), 0, (1,), 0, (1,), 0) for s in specs])
    write_checkpoint(plan, open_checkpoint(tmp_path / "in"), tmp_path / "out", options=EngineOptions(workers=1))
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert len(calls) == (5 if number == errno.EINVAL else 1)  # a range that is refused says nothing of the next


def test_the_system_copies_where_a_server_does_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Only without checksums, for which the bytes have to be read; and on a local disk never."""
    calls = []
    copy = os.copy_file_range

    def copy_file_range(source: int, target: int, count: int, offset: int, place: int) -> int:
        calls.append(count)
        return copy(source, target, count, offset, place)

    monkeypatch.setattr(os, "copy_file_range", copy_file_range)
    tensors = {"a": torch.randn(ROWS, WIDTH).bfloat16()}
    (tmp_path / "in").mkdir()
    save_file(tensors, tmp_path / "in" / "model.safetensors")
    specs = [TensorSpec("a", (ROWS, WIDTH), "BF16")]
    plan = make_plan(specs, specs, [("a", "a", (ROWS * WIDTH,), 0, (1,), 0, (1,), 0)])
    for served, checksum, number in ((False, "none", 0), (True, "xxh3", 0), (True, "none", 1)):
        monkeypatch.setattr("crosswalk.runtime.files.sinks.is_served", lambda descriptor, served=served: served)
        out = tmp_path / f"{served}-{checksum}"
        write_checkpoint(
            plan, open_checkpoint(tmp_path / "in"), out, options=EngineOptions(workers=1, checksum=checksum)
        )
        assert len(calls) == number
        assert torch.equal(load_file(out / "model.safetensors")["a"], tensors["a"])


def test_where_a_file_lies_is_read_from_the_mounts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    device = os.stat(tmp_path / "file").st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    mounts = tmp_path / "mountinfo"
    real = builtins.open
    monkeypatch.setattr(
        builtins, "open", lambda path, *a, **k: real(mounts if "mountinfo" in str(path) else path, *a, **k)
    )
    with real(tmp_path / "file") as file:
        for kind, served in (("nfs4", True), ("ext4", False), ("smb3", True), ("tmpfs", False)):
            mounts.write_text(
                f"22 27 0:21 / /proc rw shared:1 - nfs4 proc rw\n36 35 {number} / {tmp_path} rw,noatime - {kind} x rw\n"
            )
            assert is_served(file.fileno()) is served
        mounts.unlink()
        assert not is_served(file.fileno())
