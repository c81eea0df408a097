"""No input makes the readers fail otherwise than by a diagnostic, and nothing that safetensors rejects is accepted."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crosswalk.runtime.checkpoint.header import parse_header, parse_json
from crosswalk.runtime.checkpoint.source import open_checkpoint
from crosswalk.runtime.errors import CrosswalkError

#: Inputs of the fast loops; raise it to search longer.
INPUTS = int(os.environ.get("CROSSWALK_FUZZ", "20000"))

sizes = st.one_of(st.integers(-2, 9), st.integers(2**31 - 1, 2**31 + 1), st.integers(2**63 - 1, 2**64), st.integers())
scalars = st.one_of(st.none(), st.booleans(), sizes, st.floats(), st.text(max_size=4))
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner)
)
entries = st.one_of(
    anything,
    st.fixed_dictionaries(
        {
            "dtype": st.one_of(st.sampled_from(["U8", "BF16", "F32", "F8_E4M3", "bf16", ""]), anything),
            "shape": st.one_of(st.lists(st.integers(0, 4), max_size=3), st.lists(sizes, max_size=3), anything),
            "data_offsets": st.one_of(st.tuples(st.integers(0, 40), st.integers(0, 40)), anything),
        }
    ),
)


def parse(raw: bytes, data: bytes) -> dict[str, Any] | None:
    """The tensors of a header, None if it is refused; they are checked to lie in the data without overlap."""
    try:
        tensors, metadata = parse_header(raw, len(data), Path("x"))
    except CrosswalkError as error:
        str(error).encode()
        return None
    position = 8 + len(raw)
    for stored in tensors.values():
        assert stored.offset == position
        position += stored.nbytes
    assert position == 8 + len(raw) + len(data)
    assert all(isinstance(value, str) for value in metadata.values())
    return dict(tensors)


def accepted_by_safetensors(raw: bytes, data: bytes) -> dict[str, Any]:
    return dict(safetensors.deserialize(len(raw).to_bytes(8, "little") + raw + data))


@given(st.dictionaries(st.text(max_size=4) | st.just("__metadata__"), entries, max_size=4), st.integers(0, 40))
@settings(max_examples=250, deadline=None)
def test_structured_headers(document: dict[str, Any], size: int) -> None:
    raw, data = json.dumps(document).encode(), bytes(size)
    tensors = parse(raw, data)
    if tensors is not None:
        found = accepted_by_safetensors(raw, data)
        assert {name: list(stored.shape) for name, stored in tensors.items()} == {
            n: t["shape"] for n, t in found.items()
        }


@given(st.lists(st.tuples(st.sampled_from(["U8", "BF16", "F32"]), st.lists(st.integers(0, 3), max_size=3)), max_size=5))
@settings(max_examples=100, deadline=None)
def test_valid_headers_are_accepted(shapes: list[tuple[str, list[int]]]) -> None:
    dtypes = {"U8": torch.uint8, "BF16": torch.bfloat16, "F32": torch.float32}
    tensors = {f"t{i}": torch.zeros(shape, dtype=dtypes[dtype]) for i, (dtype, shape) in enumerate(shapes)}
    whole = safetensors.torch.save(tensors)
    length = int.from_bytes(whole[:8], "little")
    found = parse(whole[8 : 8 + length], whole[8 + length :])
    assert found is not None
    assert {name: stored.shape for name, stored in found.items()} == {n: tuple(t.shape) for n, t in tensors.items()}


def mutate(generator: random.Random, seed: bytes) -> bytes:
    """A few random edits: flips, cuts, repeats, and pieces of JSON that mean something."""
    raw = bytearray(seed)
    for _ in range(generator.randrange(1, 5)):
        at = generator.randrange(len(raw) + 1)
        kind = generator.randrange(5)
        if kind == 0 and raw:
            raw[at % len(raw)] = generator.randrange(256)
        elif kind == 1:
            del raw[at : at + generator.randrange(9)]
        elif kind == 2:
            raw[at:at] = raw[generator.randrange(len(raw) + 1) :][: generator.randrange(40)]
        elif kind == 3:
            raw[at:at] = generator.choice(
                [
                    b"{",
                    b"}",
                    b"[",
                    b"]",
                    b",",
                    b":",
                    b'"',
                    b"-",
                    b"e9",
                    b"null",
                    b"1e999",
                    b"\\ud800",
                    b"NaN",
                    b"[[" * 50,
                ]
            )
        else:
            digits = [i for i, c in enumerate(raw) if 48 <= c < 58]
            if digits:
                raw[generator.choice(digits)] = 48 + generator.randrange(10)
    return bytes(raw)


def fuzz(seed: bytes, check: Callable[[bytes], object], count: int) -> None:
    generator = random.Random(17)
    corpus = [seed]
    for _ in range(count):
        raw = mutate(generator, generator.choice(corpus))
        started = time.process_time()
        check(raw)
        assert time.process_time() - started < 5, raw
        if len(raw) < 2000 and generator.random() < 0.01:
            corpus.append(raw)


def test_mutated_headers() -> None:
    tensors = {
        "a.weight": torch.zeros(3, 5, dtype=torch.bfloat16),
        "b.bias": torch.zeros(7, dtype=torch.uint8),
        "c": torch.zeros(0, 2),
        "d": torch.zeros((), dtype=torch.float64),
    }
    whole = safetensors.torch.save(tensors, {"format": "pt"})
    length = int.from_bytes(whole[:8], "little")
    seed, data = whole[8 : 8 + length].rstrip(), whole[8 + length :]
    accepted = 0

    def check(raw: bytes) -> None:
        nonlocal accepted
        if parse(raw, data) is not None:
            accepted += 1
            accepted_by_safetensors(raw, data)

    fuzz(seed, check, INPUTS)
    assert accepted, "some harmless edits must get through, or nothing is tested"


def test_mutated_indexes() -> None:
    seed = json.dumps({"metadata": {"total_size": 12}, "weight_map": {"a": "x.safetensors", "b": "y.safetensors"}})

    def check(raw: bytes) -> None:
        try:
            parse_json(raw, Path("x"))
        except CrosswalkError as error:
            str(error).encode()

    fuzz(seed.encode(), check, INPUTS)


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"])
def test_mutated_files(name: str, tmp_path: Path) -> None:
    """Whole files, through the public function."""
    tensors = {"a": torch.arange(15, dtype=torch.float32), "b": torch.zeros(3, 5, dtype=torch.bfloat16)}
    path = tmp_path / name
    if name.endswith(".bin"):
        torch.save(tensors, path)
    elif name.endswith(".json"):
        safetensors.torch.save_file(tensors, tmp_path / "x.safetensors")
        path.write_text(json.dumps({"weight_map": {"a": "x.safetensors", "b": "x.safetensors"}}))
    else:
        safetensors.torch.save_file(tensors, path)

    def check(raw: bytes) -> None:
        path.write_bytes(raw)
        try:
            checkpoint = open_checkpoint(tmp_path)
        except CrosswalkError as error:
            str(error).encode()
            return
        for stored in checkpoint.tensors.values():
            assert stored.offset + stored.nbytes <= stored.file.stat().st_size

    seed = path.read_bytes()
    check(seed)  # what is imported for the first file is not counted as its time
    fuzz(seed, check, INPUTS // 40)
