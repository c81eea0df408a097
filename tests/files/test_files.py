"""Plans executed from file to file: shards, indices, ties, checksums, memory, and what is refused."""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
import xxhash
from moved_files import (
    Tensors,
    convert,
    dense,
    dense_sources,
    expert_sources,
    experts,
    load,
    moved,
    noise,
    same,
    save,
    spec,
)
from peak_memory import MEMORY
from small_buffers import shrink

from crosswalk.runtime.checkpoint.checksum import CHUNK
from crosswalk.runtime.checkpoint.output import Written, hugging_face_layout, native_layout
from crosswalk.runtime.checkpoint.source import open_checkpoint
from crosswalk.runtime.errors import CrosswalkError
from crosswalk.runtime.files import workers as engine
from crosswalk.runtime.files.convert import EngineOptions, checksum_checkpoint, verify_checkpoint, write_checkpoint
from crosswalk.runtime.plan.model import Exemption, Plan, TensorSpec, make_plan


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch)


def test_shards_and_index(tmp_path: Path) -> None:
    sources = dense_sources()
    plan = moved(sources, dense)
    checkpoint = open_checkpoint(save(sources, tmp_path / "in"))
    write_checkpoint(
        plan,
        checkpoint,
        tmp_path / "out",
        layout=hugging_face_layout(max_shard_bytes=5000),
        extra={"config.json": b"{}"},
        carried={"tokenizer.json": tmp_path / "in" / "model.safetensors.index.json"},
    )
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(target.nbytes for target in plan.targets)
    assert index["weight_map"].keys() == {target.name for target in plan.targets}
    assert len(set(index["weight_map"].values())) > 1
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *index["weight_map"].values(),
        "model.safetensors.index.json",
        "config.json",
        "tokenizer.json",
    }
    expected = dense(sources)
    for file in set(index["weight_map"].values()):
        with safetensors.safe_open(tmp_path / "out" / file, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}
            assert set(opened.keys()) == {name for name, where in index["weight_map"].items() if where == file}
            total = sum(expected[name].numel() * 2 for name in opened.keys())  # noqa: SIM118
            assert total <= 5000 or len(opened.keys()) == 1
    assert {t.name: t for t in open_checkpoint(tmp_path / "out").specs()} == {t.name: t for t in plan.targets}


def test_native_layout_gets_the_index_and_the_checksums(tmp_path: Path) -> None:
    sources = dense_sources()
    seen: list[Written] = []

    def finish(written: Written) -> dict[str, bytes]:
        seen.append(written)
        assert not (tmp_path / "out").exists()
        return {"metadata.yaml": b"x: 1\n", "ok": b""}

    plan = moved(sources, dense)
    checkpoint = open_checkpoint(save(sources, tmp_path / "in"))
    report = write_checkpoint(plan, checkpoint, tmp_path / "out", layout=native_layout(finish, 5000))
    (written,) = seen
    assert written.weight_map.keys() == {f"{target.name}/weights" for target in plan.targets}
    assert set(written.weight_map.values()) == {f"model_{k}.safetensors" for k in range(len(report.files))}
    assert written.checksums == {f"{name}/weights": value for name, value in report.checksums.items()}
    output = open_checkpoint(tmp_path / "out", written.weight_map)
    verify_checkpoint(plan, checkpoint, output.select({f"{t.name}/weights": t.name for t in plan.targets}))


def test_mixed_dtypes_are_aligned(tmp_path: Path) -> None:
    sources = {"a": noise(3, dtype=torch.uint8), "b": noise(5), "c": noise(7, dtype=torch.int64), "d": noise(1)}
    plan = moved(sources, lambda t: {f"new.{name}": tensor for name, tensor in t.items()})
    write_checkpoint(plan, open_checkpoint(save(sources, tmp_path / "in")), tmp_path / "out")
    assert {name: same(t, sources[name[4:]]) for name, t in load(tmp_path / "out").items()} == dict.fromkeys(
        ["new.a", "new.b", "new.c", "new.d"], True
    )
    for stored in open_checkpoint(tmp_path / "out").tensors.values():
        assert stored.offset % (stored.nbytes // math.prod(stored.shape)) == 0


def tied_plan(sources: Tensors) -> Plan:
    specs = [spec(name, tensor) for name, tensor in sources.items()]
    size = sources["embed"].numel()
    return make_plan(
        specs,
        [TensorSpec("out", tuple(sources["embed"].shape), "BF16")],
        [("embed", "out", (size,), 0, (1,), 0, (1,), 0)],
        exemptions=[Exemption("tied", "head", "embed")],
    )


def test_ties_are_compared(tmp_path: Path) -> None:
    embed = noise(1300, 1100)
    sources = {"embed": embed, "head": embed.clone()}
    write_checkpoint(tied_plan(sources), open_checkpoint(save(sources, tmp_path / "in")), tmp_path / "out")
    sources["head"].view(torch.uint8)[1299, 2199] ^= 1
    broken = open_checkpoint(save(sources, tmp_path / "broken"))
    with pytest.raises(CrosswalkError, match="tensor `head` is not equal to `embed`, which the config ties it to"):
        write_checkpoint(tied_plan(sources), broken, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_verify_names_every_difference(tmp_path: Path) -> None:
    sources = expert_sources()
    plan = moved(sources, experts)
    checkpoint = open_checkpoint(save(sources, tmp_path / "in"))
    write_checkpoint(plan, checkpoint, tmp_path / "out")
    output = open_checkpoint(tmp_path / "out")
    raw = bytearray((tmp_path / "out" / "model.safetensors").read_bytes())
    for name, place in {"down": 7, "router": 100, "gate_up": 4000}.items():
        raw[output.tensors[name].offset + place] ^= 255
    (tmp_path / "out" / "model.safetensors").write_bytes(raw)
    with pytest.raises(CrosswalkError) as error:
        verify_checkpoint(plan, checkpoint, open_checkpoint(tmp_path / "out"))
    assert {diagnostic.code for diagnostic in error.value.diagnostics} == {"verify/differs"}
    messages = sorted(diagnostic.message for diagnostic in error.value.diagnostics)
    assert [(m.split("`")[1], m.split()[-2]) for m in messages] == [
        ("down", "7"),
        ("gate_up", "4000"),
        ("router", "100"),
    ]


def test_a_source_that_is_not_what_the_plan_reads(tmp_path: Path) -> None:
    sources = dense_sources()
    plan = moved(sources, dense)
    sources["norm"] = noise(34)
    sources["up"] = noise(67, 33, dtype=torch.float16)
    sources["more"] = sources.pop("gate")
    with pytest.raises(CrosswalkError) as error:
        write_checkpoint(plan, open_checkpoint(save(sources, tmp_path / "in")), tmp_path / "out")
    assert sorted((d.code, d.message.split("`")[1]) for d in error.value.diagnostics) == [
        ("checkpoint/missing-tensor", "gate"),
        ("checkpoint/tensor-differs", "norm"),
        ("checkpoint/tensor-differs", "up"),
        ("checkpoint/unexpected-tensor", "more"),
    ]
    assert not (tmp_path / "out").exists()


def test_a_plan_that_is_no_bijection_is_refused(tmp_path: Path) -> None:
    sources = {"a": noise(9)}
    plan = make_plan(
        [spec("a", sources["a"])], [TensorSpec("b", (9,), "BF16")], [("a", "b", (8,), 0, (1,), 0, (1,), 0)]
    )
    with pytest.raises(CrosswalkError):
        write_checkpoint(plan, open_checkpoint(save(sources, tmp_path / "in")), tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (EngineOptions(workers=0), "options/workers"),
        (EngineOptions(checksum="md5"), "options/checksum"),
        (EngineOptions(memory=1000), "options/memory"),
        (EngineOptions(resume=True, checksum="none"), "options/resume"),
    ],
)
def test_options_that_make_no_sense(tmp_path: Path, options: EngineOptions, code: str) -> None:
    sources = {"a": noise(9)}
    plan = moved(sources, lambda t: {"b": t["a"]})
    with pytest.raises(CrosswalkError) as error:
        write_checkpoint(plan, open_checkpoint(save(sources, tmp_path / "in")), tmp_path / "out", options=options)
    assert [diagnostic.code for diagnostic in error.value.diagnostics] == [code]


@pytest.mark.parametrize("name", ["../x", "/x", "a/../x", "model.safetensors", "", "./x"])
def test_output_names(tmp_path: Path, name: str) -> None:
    sources = {"a": noise(9)}
    plan = moved(sources, lambda t: {"b": t["a"]})
    with pytest.raises(CrosswalkError) as error:
        write_checkpoint(plan, open_checkpoint(save(sources, tmp_path / "in")), tmp_path / "out", extra={name: b""})
    assert [diagnostic.code for diagnostic in error.value.diagnostics] == ["output/file-name"]


def test_a_file_to_carry_that_is_gone(tmp_path: Path) -> None:
    source = open_checkpoint(save({"a": noise(9)}, tmp_path / "in"))
    plan = moved({"a": noise(9)}, lambda t: {"b": t["a"]})
    gone = {"notes.txt": tmp_path / "notes.txt"}
    with pytest.raises(CrosswalkError, match=r"the file to carry as `notes.txt` is missing \[output/carry\]"):
        write_checkpoint(plan, source, tmp_path / "out", carried=gone)


def test_checksum_definition(tmp_path: Path) -> None:
    """The checksum can be computed by anyone, by its definition."""
    tensor = noise(3 * CHUNK // 2 + 5)
    safetensors.torch.save_file({"a": tensor}, tmp_path / "model.safetensors")
    raw = tensor.view(torch.uint8).numpy().tobytes()
    digests = [xxhash.xxh3_128_digest(raw[i : i + CHUNK]) for i in range(0, len(raw), CHUNK)]
    expected = xxhash.xxh3_128_hexdigest(b"".join(digests))
    assert len(digests) == 4
    assert checksum_checkpoint(open_checkpoint(tmp_path)) == {"a": expected}


def test_sha256_is_that_of_the_bytes_of_a_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copied, transposed, cast or empty, written by one worker or by several: what hashlib says of it."""
    shrink(monkeypatch)
    sources = {"copied": noise(70, 121), "turned": noise(75, 103), "cast": noise(71, 97), "none": noise(0, 3)}
    plan = moved(
        sources,
        lambda t: {"a": t["copied"], "b": t["turned"].T, "c": t["cast"], "d": t["none"]},
        {"c": torch.bfloat16},
    )
    source = open_checkpoint(save(sources, tmp_path / "in"))
    report = write_checkpoint(plan, source, tmp_path / "out", options=EngineOptions(workers=3, checksum="sha256"))
    written = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    expected = {
        name: hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
        for name, tensor in written.items()
    }
    assert report.checksums == expected
    assert checksum_checkpoint(open_checkpoint(tmp_path / "out"), "sha256") == expected


def test_progress(tmp_path: Path) -> None:
    sources = {f"{i}": noise(512, 1024) for i in range(40)}
    plan = renamed(sources)
    calls: list[tuple[int, int, str]] = []
    checkpoint = open_checkpoint(save(sources, tmp_path / "in"))
    write_checkpoint(plan, checkpoint, tmp_path / "out", on_progress=lambda *call: calls.append(call))
    total = 40 * 512 * 1024 * 2
    assert calls[-1][:2] == (total, total)
    assert [call[0] for call in calls] == sorted(call[0] for call in calls)
    assert all(call[2].startswith("new.") for call in calls)


def renamed(sources: Tensors) -> Plan:
    return make_plan(
        [spec(name, tensor) for name, tensor in sources.items()],
        [spec(f"new.{name}", tensor) for name, tensor in sources.items()],
        [(name, f"new.{name}", (t.numel(),), 0, (1,), 0, (1,), 0) for name, t in sources.items()],
    )


def test_memory_is_bounded_whatever_the_model(tmp_path: Path) -> None:
    """A sparse model of 2 GB, all transposed or cast, within the stated memory, enforced by the system."""
    rows, columns, count = 4096, 8192, 12
    names = [f"{i}" for i in range(count)]
    specs = [TensorSpec(name, (rows, columns), "F32") for name in names]
    from crosswalk.runtime.checkpoint.header import build_header

    header = build_header(specs, {})
    (tmp_path / "in").mkdir()
    with open(tmp_path / "in" / "model.safetensors", "wb") as stream:
        stream.write(header)
        stream.truncate(len(header) + count * rows * columns * 4)
    targets, copies = [], []
    size = rows * columns
    for name in names[:2]:
        targets.append(TensorSpec(name, (columns, rows), "F32"))
        copies.append((name, name, (columns, rows), 0, (1, columns), 0, (rows, 1), 0))
    for name in names[2:]:
        targets.append(TensorSpec(name, (rows, columns), "BF16"))
        copies.append((name, name, (size,), 0, (1,), 0, (1,), 0))
    (tmp_path / "plan.json").write_text(make_plan(specs, targets, copies).to_json())
    arguments = [str(tmp_path / name) for name in ("plan.json", "in", "out")]
    done = subprocess.run([sys.executable, "-c", MEMORY, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    used, stated = map(int, done.stdout.split())
    assert used <= stated, f"{used >> 20} of {stated >> 20} MiB"
    assert engine.peak_memory(4) < 300 << 20
    for file in (tmp_path / "out").iterdir():
        os.unlink(file)


def test_random_plans(tmp_path: Path, small: None) -> None:
    """Shuffled stacks of rows from several tensors, of any size."""
    generator = random.Random(5)
    for case in range(8):
        sources = {f"{i}": noise(generator.randrange(1, 40), 13) for i in range(4)}
        total = sum(len(tensor) for tensor in sources.values())
        order = list(range(total))
        if case % 2:
            generator.shuffle(order)

        def build(t: Tensors, order: list[int] = order, cut: int = total // 3) -> Tensors:
            rows = torch.cat(list(t.values()))[order]
            return {"a": rows[:cut], "b": rows[cut:]}

        (tmp_path / str(case)).mkdir()
        convert(tmp_path / str(case), sources, build)
