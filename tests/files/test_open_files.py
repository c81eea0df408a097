"""A checkpoint of many shards needs few open files, and a file is not opened again for every block of it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import safetensors.torch
import torch

from crosswalk.runtime.checkpoint.descriptors import Descriptors

SHARDS = 100

CONVERT = """
import resource
from pathlib import Path

resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

from crosswalk.runtime.checkpoint.output import hugging_face_layout
from crosswalk.runtime.checkpoint.source import open_checkpoint
from crosswalk.runtime.files.convert import EngineOptions, verify_checkpoint, write_checkpoint
from crosswalk.runtime.plan.model import TensorSpec, make_plan

source = open_checkpoint(Path("in"))
specs = sorted(source.specs(), key=lambda spec: spec.name)
targets = [TensorSpec(f"new.{spec.name}", (17, 31), spec.dtype) for spec in specs]
copies = [(s.name, f"new.{s.name}", (17, 31), 0, (1, 17), 0, (31, 1), 0) for s in specs]
plan = make_plan(specs, targets, copies)
for checksum in ("none", "xxh3", "sha256"):
    options = EngineOptions(workers=4, checksum=checksum)
    report = write_checkpoint(plan, source, Path(checksum), layout=hugging_face_layout(3000), options=options)
    verify_checkpoint(plan, source, open_checkpoint(Path(checksum)), options=options)
    print(len(report.files))
"""


def test_a_hundred_shards_in_and_out_with_64_descriptors(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    tensors = {f"{n:03}.weight": torch.randn(31, 17, generator=generator) for n in range(SHARDS)}
    (tmp_path / "in").mkdir()
    weight_map = {}
    for n, (name, tensor) in enumerate(tensors.items(), 1):
        file = f"model-{n:05}-of-{SHARDS:05}.safetensors"
        safetensors.torch.save_file({name: tensor}, tmp_path / "in" / file)
        weight_map[name] = file
    index = f'{{"metadata": {{}}, "weight_map": {weight_map}}}'.replace("'", '"')
    (tmp_path / "in" / "model.safetensors.index.json").write_text(index)
    ran = subprocess.run([sys.executable, "-c", CONVERT], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout.split(), ran.stderr) == (0, [str(SHARDS)] * 3, "")
    for kind in ("none", "xxh3", "sha256"):
        files = sorted((tmp_path / kind).glob("*.safetensors"))
        written = {k: t for file in files for k, t in safetensors.torch.load_file(file).items()}
        assert written.keys() == {f"new.{name}" for name in tensors}
        assert all(torch.equal(written[f"new.{name}"], tensor.T) for name, tensor in tensors.items())


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    for n in range(9):
        (tmp_path / str(n)).write_text(str(n))
    return sorted(tmp_path.iterdir())


def test_what_was_used_last_stays_open(files: list[Path]) -> None:
    opened: list[Path] = []
    closed: list[Path] = []

    def opening(path: Path) -> int:
        opened.append(path)
        return os.open(path, os.O_RDONLY)

    pool = Descriptors(opening, lambda path, descriptor: closed.append(path), most=3)
    for n in (0, 1, 2, 0, 0, 3, 0, 1):
        with pool.opened(files[n]) as descriptor:
            assert os.pread(descriptor, 9, 0) == str(n).encode()
    assert opened == [files[n] for n in (0, 1, 2, 3, 1)]
    assert closed == [files[n] for n in (1, 2)]
    pool.close()


def test_a_file_in_use_is_not_closed(files: list[Path]) -> None:
    pool = Descriptors(lambda path: os.open(path, os.O_RDONLY), lambda path, descriptor: None, most=2)

    def read(number: int) -> None:
        for n in range(200):
            with pool.opened(files[(number * n) % len(files)]) as descriptor:
                right.append(os.pread(descriptor, 9, 0) == str((number * n) % len(files)).encode())

    right: list[bool] = []
    threads = [threading.Thread(target=read, args=(number,)) for number in (1, 2, 4, 5, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 1000
    pool.close()
