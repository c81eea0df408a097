"""Plans that read encoded tensors: execution, files, ties, algebra, text, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import safetensors.torch
import torch
from comparing import same_bytes
from encoded import fp8, fused, identity, stored

from crosswalk.compiler.catalog import schema
from crosswalk.runtime import execute
from crosswalk.runtime.checkpoint.source import open_checkpoint
from crosswalk.runtime.dtypes import DTYPES as KNOWN_DTYPES
from crosswalk.runtime.errors import CrosswalkError
from crosswalk.runtime.files.convert import EngineOptions, verify_checkpoint, write_checkpoint
from crosswalk.runtime.plan.encodings import KINDS
from crosswalk.runtime.plan.model import Encoding, Exemption, Plan, RawCopy, TensorSpec, make_plan
from crosswalk.runtime.records import replace


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_execute_decodes_what_is_given() -> None:
    plan, given, expected = fused()
    found = dict(execute(plan, given))
    assert found.keys() == expected.keys()
    assert all(same_bytes(found[name], expected[name]) for name in expected)
    with pytest.raises(CrosswalkError) as caught:
        execute(plan, {name: tensor for name, tensor in given.items() if name != "a_s"} | {"x": torch.ones(1)})
    assert [d.message for d in caught.value.diagnostics] == [
        "the plan needs the tensor `a_s`, which is not given",
        "the plan does not use the given tensor `x`",
    ]


@pytest.mark.parametrize("workers", [1, 3])
def test_files_are_decoded_on_the_way(workers: int, tmp_path: Path) -> None:
    plan, given, expected = fused()
    source = open_checkpoint(stored(tmp_path / "in", given))
    report = write_checkpoint(plan, source, tmp_path / "out", options=EngineOptions(workers=workers))
    assert report.total_size == sum(t.nbytes for t in expected.values())
    found = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    assert all(same_bytes(found[name], expected[name]) for name in expected)
    verify_checkpoint(plan, source, open_checkpoint(tmp_path / "out"))
    found["ab"].view(torch.int16)[5, 5] ^= 1
    (tmp_path / "out" / "model.safetensors").unlink()
    safetensors.torch.save_file(found, tmp_path / "out" / "model.safetensors")
    with pytest.raises(CrosswalkError, match=r"`ab`.*differs"):
        verify_checkpoint(plan, source, open_checkpoint(tmp_path / "out"))


def test_a_checkpoint_without_scales_does_not_match(tmp_path: Path) -> None:
    plan, given, _ = fused()
    del given["c_s"]
    with pytest.raises(CrosswalkError, match="there is no tensor `c_s`, which the plan reads"):
        write_checkpoint(plan, open_checkpoint(stored(tmp_path / "in", given)), tmp_path / "out")


def test_tied_duplicates_are_compared_as_they_are_decoded(tmp_path: Path) -> None:
    """One stored in other codes under another scale is equal all the same."""
    given = {"w": torch.tensor([[2.0, 4.0]]).to(torch.float8_e4m3fn), "s": torch.tensor([[3.0]])}
    given |= {"v": torch.tensor([[4.0, 8.0]]).to(torch.float8_e4m3fn), "t": torch.tensor([[1.5]])}
    specs = [TensorSpec(name, (1, 2), "BF16") for name in "wv"]

    def encoded(name: str, scales: str) -> Encoding:
        return Encoding(
            name, "fp8_blocks", (TensorSpec(name, (1, 2), "F8_E4M3"), TensorSpec(scales, (1, 1), "F32")), (8, 8)
        )

    encodings = [encoded("w", "s"), encoded("v", "t")]
    copy: RawCopy = ("w", "out", (2,), 0, (1,), 0, (1,), 0)
    target = TensorSpec("out", (1, 2), "BF16")
    plan = make_plan(specs, [target], [copy], (), [Exemption("tied", "v", "w")], encodings=encodings)
    assert dict(execute(plan, given))["out"].tolist() == [[6.0, 12.0]]
    write_checkpoint(plan, open_checkpoint(stored(tmp_path / "in", given)), tmp_path / "out")
    given["t"] += 1
    with pytest.raises(CrosswalkError, match="`v` differs from `w`"):
        execute(plan, given)
    with pytest.raises(CrosswalkError, match="`v` is not equal to `w`"):
        write_checkpoint(plan, open_checkpoint(stored(tmp_path / "in2", given)), tmp_path / "out2")


def test_the_verdict_counts_what_is_decoded() -> None:
    plan, given, _ = fused()
    verdict = plan.verify()
    assert verdict.ok
    assert not verdict.bijective
    assert str(verdict) == (
        "bijective but for 2 tensors decoded from FP8 blocks of 8 x 16, 1 tensor decoded from MXFP4 groups of 32; "
        "1 tensor cast BF16 -> F32 (exact)"
    )
    assert plan.summary()["bytes_read"] == sum(tensor.nbytes for tensor in given.values())


def test_algebra_is_of_the_decoded_tensors() -> None:
    plan, given, expected = fused()
    back = plan.inverse()
    assert back.encodings == ()
    assert {spec.name: spec.dtype for spec in back.targets} == dict.fromkeys(["a", "b", "c", "plain"], "BF16")
    there = plan.compose(back)
    assert there.encodings == plan.encodings
    again = dict(execute(there.compose(plan), given))
    assert all(same_bytes(again[name], expected[name]) for name in expected)
    part = plan.restrict(targets={"ab": ((30, 48), (0, 53))})
    assert [e.tensor for e in part.encodings] == ["a", "b"]
    used = {name: given[name] for name in ("a", "a_s", "b", "b_s")}
    assert same_bytes(dict(execute(part, used))["ab"], expected["ab"][30:])
    boxes = {"a": ((0, 5), (0, 53)), "b": ((0, 11), (0, 53))}
    assert [e.tensor for e in plan.restrict(sources=boxes).encodings] == ["b"]


def test_json_digest_and_schema() -> None:
    plan, _, _ = fused()
    text = plan.to_json()
    jsonschema.validate(json.loads(text), schema("plan"))
    assert Plan.from_json(text) == plan
    assert plan.digest != replace(plan, encodings=()).digest
    assert "encodings" not in json.loads(plan.inverse().to_json())
    assert schema("plan")["$defs"]["encoding"]["prefixItems"][1]["enum"] == list(KINDS)
    for wrong in ("F7", "F8"):
        with pytest.raises(CrosswalkError, match="unknown dtype"):
            Plan.from_json(text.replace("F8_E4M3", wrong))


def test_every_kind_is_documented_and_of_known_dtypes() -> None:
    page = (Path(__file__).parents[2] / "docs" / "plan.md").read_text(encoding="utf-8")
    for name, kind in KINDS.items():
        assert f"| `{name}` |" in page
        assert {*kind.payload, *kind.scales} <= set(KNOWN_DTYPES)


_SPEC = TensorSpec
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "kind": ({"kind": "fp9"}, "`fp9` is no kind of encoding; there are fp8_blocks, mxfp4"),
    "parts": ({"stored": (_SPEC("w", (37, 53), "F8_E4M3"),)}, "a payload and scales are stored, not 1 tensors"),
    "block": ({"block": (8,)}, "a block of sizes [8] is none of fp8_blocks"),
    "empty block": ({"block": (8, 0)}, "a block of sizes [8, 0] is none of fp8_blocks"),
    "dtype": (
        {"stored": (_SPEC("w", (37, 53), "U8"), _SPEC("s", (5, 4), "F32"))},
        "`w` has the dtype U8, not F8_E4M3",
    ),
    "grid": (
        {"stored": (_SPEC("w", (37, 53), "F8_E4M3"), _SPEC("s", (4, 5), "F32"))},
        "`s` has the shape [4, 5]; FP8 blocks of 8 x 16 have [5, 4]",
    ),
    "one scale": (
        {"block": ()},
        "`s` has the shape [5, 4]; FP8 with one scale each have [] or [1]",
    ),
    "vector": (
        {"stored": (_SPEC("w", (37,), "F8_E4M3"), _SPEC("s", (5,), "F32"))},
        "`w` has the shape [37], which no payload of FP8 blocks of 8 x 16 has",
    ),
    "shape": (
        {"stored": (_SPEC("w", (36, 53), "F8_E4M3"), _SPEC("s", (5, 4), "F32"))},
        "it has the shape [37, 53], and decoding gives [36, 53]",
    ),
    "mxfp4": (
        {"kind": "mxfp4", "block": (), "stored": (_SPEC("w", (37, 53), "U8"), _SPEC("s", (37,), "U8"))},
        "`w` has the shape [37, 53], which no payload of MXFP4 groups of 32 has",
    ),
    "no numbers": (
        {"stored": (_SPEC("w", (37, -1), "F8_E4M3"), _SPEC("s", (5, 4), "F32"))},
        "the shapes [[37, -1], [5, 4]] are none",
    ),
    "unknown": ({"tensor": "x"}, "the encoded `x` is not a source tensor"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_encoding_is_a_problem(name: str) -> None:
    changes, expected = WRONG[name]
    _, encoded = fp8((37, 53), (8, 16))
    problems = identity(encoded, **changes).verify().problems
    assert any(expected in problem.message and problem.code == "plan/encoding" for problem in problems), problems


def test_a_stored_tensor_belongs_to_one_encoding_and_is_no_source() -> None:
    plan, _, _ = fused()
    a, b, c = plan.encodings
    shared = replace(b, stored=(b.stored[0], replace(b.stored[1], name="a_s")))
    taken = replace(b, stored=(b.stored[0], replace(b.stored[1], name="plain")))
    for wrong, expected in (
        ((a, a, b, c), "source tensor `a` is encoded 2 times"),
        ((a, shared, c), "the stored `a_s` belongs to 2 encodings"),
        ((a, taken, c), "`plain` is stored for an encoded tensor, and a source itself"),
    ):
        messages = [p.message for p in replace(plan, encodings=wrong).verify().problems]
        assert expected in messages
    integer = replace(plan.sources[0], dtype="I16")
    problems = replace(plan, sources=(integer, *plan.sources[1:])).verify().problems
    assert any("decoded to I16, which is no float" in problem.message for problem in problems)
