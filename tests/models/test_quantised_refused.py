"""Quantised checkpoints that are refused, and what the refusal says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from quantised import fp8_checkpoint
from small_checkpoints import (
    LLAMA,
    CommandLine,
    edit_config,
    edit_tensors,
    make,
    refuse,
)

import crosswalk
from crosswalk.compiler.tensors.encoded import read_encodings
from crosswalk.jobs.formats import catalog
from crosswalk.runtime.errors import CrosswalkError
from crosswalk.runtime.plan.encodings import check_encodings
from crosswalk.runtime.plan.model import TensorSpec, make_plan

LAYER = "model.layers.1.self_attn"


def source(tmp_path: Path, base: dict[str, Any] = LLAMA, **options: Any) -> Path:
    return fp8_checkpoint(make(tmp_path / "base", base, dtype="bfloat16"), tmp_path / "fp8", **options)


# ---- refused ---------------------------------------------------------------------------------------------------------

O_PROJ = f"{LAYER}.o_proj.weight"
GRID = f"{O_PROJ}_scale_inv"


def said(**changes: Any) -> Callable[[Path], object]:
    """Change keys of ``quantization_config``; one that becomes ``...`` is removed."""

    def damage(path: Path) -> None:
        def edit(config: dict[str, Any]) -> None:
            config["quantization_config"].update(changes)
            for key in [key for key, value in changes.items() if value is ...]:
                del config["quantization_config"][key]

        edit_config(path, edit)

    return damage


def tensors(edit: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    return lambda path: edit_tensors(path, edit)


def without_scales(found: dict[str, torch.Tensor]) -> None:
    for name in [name for name in found if name.endswith("k_proj.weight_scale_inv")]:
        del found[name]


REFUSED: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "unknown method": (
        said(quant_method="gptq", bits=4),
        ('`quantization_config.quant_method` must be fp8 or mxfp4, it is "gptq"',),
    ),
    "no method": (
        said(quant_method=...),
        ("`quantization_config.quant_method` must be fp8 or mxfp4, it is absent",),
    ),
    "no object": (
        lambda path: edit_config(path, lambda c: c.update(quantization_config=8)),
        ("`quantization_config` must be an object, it is 8",),
    ),
    "unknown keys and values": (
        said(bits=8, fmt="e5m2", activation_scheme="none", weight_block_siz=[8, 16]),
        (
            "`quantization_config.bits` = 8 has no counterpart in mapping `llama`",
            '`quantization_config.fmt` must be "e4m3", it is "e5m2"',
            '`quantization_config.activation_scheme` must be "dynamic" or "static", it is "none"',
            "did you mean `weight_block_size`?",
        ),
    ),
    "block is text": (
        said(weight_block_size="8x16"),
        ("`quantization_config.weight_block_size` must be null or the sizes of a block, it is", "[config/value]",),
    ),
    "another block": (
        said(weight_block_size=[16, 16]),
        *[tuple(f"`model.layers.{{0..2}}.{m}.weight_scale_inv` has the shape" for m in (
            "mlp.down_proj", "mlp.gate_proj", "mlp.up_proj", "self_attn.o_proj", "self_attn.q_proj",
            "self_attn.k_proj", "self_attn.v_proj",
        ))],
    ),
    "a payload without scales": (
        tensors(without_scales),
        (
            "`model.layers.{0..2}.self_attn.k_proj.weight` (3 in all) is encoded, and its scales"
            " `{name}.weight_scale_inv` are missing",
        ),
    ),
    "scales without a payload": (
        tensors(lambda found: found.pop(O_PROJ)),
        (
            f"`{GRID}` (1 in all) holds scales, and their payload `{{name}}.weight` is missing",
            f"`{O_PROJ}` [30, 84] is missing",
        ),
    ),
    "a payload that is none": (
        tensors(lambda found: found.update({O_PROJ: found[O_PROJ].to(torch.bfloat16)})),
        (f"`{O_PROJ}` has the dtype BF16, not F8_E4M3",),
    ),
    "scales of whole numbers": (
        tensors(lambda found: found.update({GRID: found[GRID].to(torch.int32)})),
        (f"`{GRID}` has the dtype I32, not F32 or BF16",),
    ),
    "a wrong shape": (
        tensors(lambda found: found.update({O_PROJ: found[O_PROJ][:24].clone(), GRID: found[GRID][:3].clone()})),
        (f"tensor `{O_PROJ}` is [24, 84] in the file, [30, 84] by the config",),
    ),
    "not declared": (
        lambda path: edit_config(path, lambda config: config.pop("quantization_config")),
        tuple(
            f"`model.layers.{{0..2}}.{m}.weight` (3 in all) has scales, and config.json has no `quantization_config`"
            for m in ("mlp.down_proj", "mlp.gate_proj", "mlp.up_proj", "self_attn.o_proj", "self_attn.q_proj",
                      "self_attn.k_proj", "self_attn.v_proj")
        ),
    ),
    "everything at once": (
        lambda path: (said(fmt="e5m2")(path), edit_tensors(path, lambda found: found.pop(GRID)),
                      edit_config(path, lambda config: config.update(foo=1))),
        ('must be "e4m3"', "its scales `{name}.weight_scale_inv` are missing", "`foo` = 1"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, command: CommandLine, tmp_path: Path) -> None:
    damage, expected = REFUSED[name]
    (tmp_path / "work").mkdir()
    path = source(tmp_path / "work")
    damage(path)
    refuse(command, path, *expected)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KEYS = ["quant_method", "fmt", "weight_block_size", "scale_fmt", "modules_to_not_convert", "bits"]
SAID = st.dictionaries(st.sampled_from(KEYS), JSON | st.sampled_from(["fp8", "mxfp4", "e4m3"]) | st.just([2, 3]))
NAMES = [f"{a}{b}" for a in ("", "a", "a.b") for b in ("", ".weight", "_blocks", "_scales", ".weight_scale_inv")]
SPECS = st.dictionaries(
    st.sampled_from(NAMES),
    st.tuples(st.lists(st.integers(0, 20), max_size=4).map(tuple), st.sampled_from(["F8_E4M3", "U8", "F32", "BF16"])),
)


@given(said=JSON | SAID, specs=SPECS)
def test_nothing_in_the_files_makes_reading_fail(said: Any, specs: dict[str, tuple[tuple[int, ...], str]]) -> None:
    """And where there is no problem, what is read makes a plan whose encodings hold."""
    found = [TensorSpec(name, shape, dtype) for name, (shape, dtype) in specs.items()]
    read = read_encodings(catalog().mapping("llama"), {"quantization_config": said}, found)
    if not read.problems:
        assert list(check_encodings(make_plan(read.specs.values(), [], [], encodings=read.encodings))) == []


def test_an_encoded_output_is_no_conversion(tmp_path: Path) -> None:
    path = source(tmp_path)
    crosswalk.convert(path, tmp_path / "native")
    with pytest.raises(CrosswalkError, match=r"21 tensors of the output are encoded.*\[verify/encoded\]"):
        crosswalk.verify(tmp_path / "native", path)


def test_the_hint_says_what_to_do_with_other_quantised_checkpoints(command: CommandLine, tmp_path: Path) -> None:
    path = source(tmp_path)
    said(quant_method="awq")(path)
    hint = "hint: a checkpoint that is quantised in another way has to be dequantised first"
    assert hint in command("check", path).err


def test_problems_stand_at_their_keys(command: CommandLine, tmp_path: Path) -> None:
    path = source(tmp_path)
    edit_config(path, lambda config: config["quantization_config"].update(bits=8))
    line = next(i for i, text in enumerate((path / "config.json").read_text().splitlines(), 1) if '"bits"' in text)
    assert f"config.json:{line}:" in command("check", path).err
    assert json.loads((path / "config.json").read_text())["quantization_config"]["bits"] == 8
