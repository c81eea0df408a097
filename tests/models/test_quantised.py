"""Quantised checkpoints, real ones in small: imported bit for bit as what they mean, exported as floats, refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import rank_cases as cases
import torch
import torch.distributed.checkpoint as dcp
from comparing import tensor_differences
from hypothesis import given
from hypothesis import strategies as st
from native_llama import LLAMA as EVEN_LLAMA
from native_llama import assert_equal, blank, native_state
from oracles import logits, make_checkpoint
from quantised import fp8_checkpoint, misread
from ranks import run_ranks
from safetensors.torch import save_file
from small_checkpoints import (
    LLAMA,
    LLAVA,
    MIXTRAL,
    CommandLine,
    assert_refused,
    config_of,
    contents,
    edit_config,
    edit_tensors,
    lines,
    make,
    refuse,
    shard,
    tensors_of,
)
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

import crosswalk
from crosswalk.compiler.tensors.encoded import read_encodings
from crosswalk.jobs.formats import catalog
from crosswalk.runtime.errors import CrosswalkError
from crosswalk.runtime.plan.encodings import check_encodings
from crosswalk.runtime.plan.model import TensorSpec, make_plan

QWEN3 = {key: value for key, value in LLAMA.items() if key != "mlp_bias"} | {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "use_sliding_window": False,
}
LAYER = "model.layers.1.self_attn"


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(capsys)


def source(tmp_path: Path, base: dict[str, Any] = LLAMA, **options: Any) -> Path:
    return fp8_checkpoint(make(tmp_path / "base", base, dtype="bfloat16"), tmp_path / "fp8", **options)


def decoded(path: Path) -> Path:
    return path.with_name(f"{path.name}-decoded")


# ---- there, and back as floats ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [(8, 16), (128, 128), (1, 7), None])
@pytest.mark.parametrize("base", [LLAMA, QWEN3, MIXTRAL, LLAVA], ids=lambda base: base["model_type"])
def test_any_format_imports_what_its_fp8_checkpoint_means(
    base: dict[str, Any], block: tuple[int, int] | None, tmp_path: Path
) -> None:
    """As converting the decoded checkpoint does, in every bit of every tensor; and so does exporting again."""
    path = source(tmp_path, base, block=block)
    report = crosswalk.convert(path, tmp_path / "native")
    plain = crosswalk.convert(decoded(path), tmp_path / "plain")
    assert tensor_differences(tensors_of(tmp_path / "native"), tensors_of(tmp_path / "plain")) == []
    count = sum(tensor.dtype == torch.float8_e4m3fn for tensor in tensors_of(path).values())
    what = f"FP8 blocks of {block[0]} x {block[1]}" if block else "FP8 with one scale each"
    assert f"{count} tensors decoded from {what}" in report.verdict
    assert plain.verdict == "bijective"
    crosswalk.verify(path, tmp_path / "native")
    crosswalk.convert(tmp_path / "native", tmp_path / "back")
    crosswalk.convert(tmp_path / "plain", tmp_path / "plain-back")
    assert tensor_differences(tensors_of(tmp_path / "back"), tensors_of(decoded(path))) == []
    assert config_of(tmp_path / "back") == config_of(decoded(path)) == config_of(tmp_path / "plain-back")
    crosswalk.verify(tmp_path / "native", tmp_path / "back")
    assert torch.equal(logits(tmp_path / "back"), logits(decoded(path)))


@pytest.mark.parametrize("scales", [torch.float32, torch.bfloat16])
def test_scales_of_either_dtype_in_shards(scales: torch.dtype, tmp_path: Path) -> None:
    """A payload and its scales may be in different files."""
    path = source(tmp_path, scales=scales)
    shard(path)
    crosswalk.convert(path, tmp_path / "native")
    crosswalk.convert(decoded(path), tmp_path / "plain")
    assert tensor_differences(tensors_of(tmp_path / "native"), tensors_of(tmp_path / "plain")) == []


@pytest.mark.parametrize(("asked", "dtype"), [("float32", torch.float32), ("float16", torch.float16)])
def test_a_dtype_that_is_asked_for_is_decoded_to_at_once(asked: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Rounded once: by way of bfloat16 it would be other values."""
    path = source(tmp_path, decoded=dtype)
    crosswalk.convert(path, tmp_path / "native", dtype=asked)
    crosswalk.convert(decoded(path), tmp_path / "plain", dtype=asked)
    assert tensor_differences(tensors_of(tmp_path / "native"), tensors_of(tmp_path / "plain")) == []
    crosswalk.verify(path, tmp_path / "native")
    crosswalk.convert(tmp_path / "native", tmp_path / "back")
    assert config_of(tmp_path / "back")["dtype"] == asked
    assert {tensor.dtype for tensor in tensors_of(tmp_path / "back").values()} == {dtype}


def test_what_is_protected_is_decoded_to_its_own_dtype(tmp_path: Path) -> None:
    path = source(tmp_path)
    crosswalk.convert(path, tmp_path / "native", dtype="float32", protect=("decoder.1.mixer.dense*",))
    found = tensors_of(tmp_path / "native")
    assert {n for n, t in found.items() if t.dtype == torch.bfloat16} == {"decoder.1.mixer.dense.weight/weights"}
    expected = tensors_of(decoded(path))[f"{LAYER}.o_proj.weight"]
    assert torch.equal(found["decoder.1.mixer.dense.weight/weights"], expected)
    crosswalk.verify(path, tmp_path / "native")


@pytest.mark.parametrize("stated", ["float32", None])
def test_the_dtype_that_the_config_states_is_decoded_to(stated: str | None, tmp_path: Path) -> None:
    path = source(tmp_path)
    edit_config(path, lambda config: config.update(dtype=stated) if stated else config.pop("dtype"))
    crosswalk.convert(path, tmp_path / "native")
    found = tensors_of(tmp_path / "native")["decoder.1.mixer.dense.weight/weights"]
    assert found.dtype == (torch.float32 if stated else torch.bfloat16)
    crosswalk.convert(tmp_path / "native", tmp_path / "back")
    main = max(tensors_of(tmp_path / "back").values(), key=lambda tensor: tensor.nbytes).dtype
    assert config_of(tmp_path / "back")["dtype"] == str(main).removeprefix("torch.")
    assert "quantization_config" not in config_of(tmp_path / "back")


def test_eight_bits_are_no_dtype_to_decode_to(tmp_path: Path) -> None:
    path = source(tmp_path)
    edit_config(path, lambda config: config.update(dtype="float8_e4m3fn"))
    crosswalk.convert(path, tmp_path / "native")
    crosswalk.convert(tmp_path / "native", tmp_path / "back")
    assert config_of(tmp_path / "back") == config_of(decoded(path))


def test_a_null_says_that_nothing_is_encoded(tmp_path: Path) -> None:
    path = make(tmp_path / "plain")
    edit_config(path, lambda config: config.update(quantization_config=None))
    report = crosswalk.convert(path, tmp_path / "native")
    assert report.verdict == "bijective"
    crosswalk.convert(tmp_path / "native", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(path)


def test_the_memory_of_the_source_is_a_checkpoint_of_floats(tmp_path: Path) -> None:
    path = source(tmp_path)
    crosswalk.convert(path, tmp_path / "native")
    text = (tmp_path / "native" / "metadata.yaml").read_text()
    assert "quant" not in text.replace("fp8_", "")
    assert crosswalk.import_config(config_of(path)) == crosswalk.import_config(config_of(decoded(path)))
    assert crosswalk.compile_plan(config_of(path)).encodings == ()


def test_commands_speak_of_it(command: CommandLine, tmp_path: Path) -> None:
    path = source(tmp_path)
    checked = command("check", path)
    assert (checked.code, checked.err) == (0, "")
    assert "bijective but for 21 tensors decoded from FP8 blocks of 8 x 16" in checked.out
    explained = command("explain", path, f"{LAYER}.o_proj.weight").out
    assert f"{LAYER}.o_proj.weight is stored as {LAYER}.o_proj.weight (F8_E4M3 [30, 84])" in explained
    of_scales = command("explain", path, f"{LAYER}.o_proj.weight_scale_inv").out
    assert lines(of_scales) == lines(explained)[1:]
    assert "21 tensors decoded" in command("plan", path).out


def test_the_format_is_found_by_the_tensors_that_are_meant(tmp_path: Path) -> None:
    path = source(tmp_path, MIXTRAL)
    edit_config(path, lambda config: (config.pop("model_type"), config.pop("architectures")))
    assert crosswalk.check(path).format == "mixtral"


def test_scales_of_activations_are_dropped_and_named(tmp_path: Path) -> None:
    path = source(tmp_path, block=None)
    plan = crosswalk.check(path)
    assert "21 dropped tensors" in plan.verdict


@pytest.mark.parametrize("format", crosswalk.formats())
def test_every_format_reads_what_published_checkpoints_say(format: str) -> None:
    assert misread(catalog().mapping(format)) == []


# ---- into live models ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fp8_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("live") / "base"
    make_checkpoint(base, EVEN_LLAMA)
    return fp8_checkpoint(base, base.with_name("fp8"), block=(11, 7), decoded=torch.float32)


@pytest.mark.parametrize("size", [2, 4])
def test_sharded_models_load_what_it_means(size: int, fp8_llama: Path) -> None:
    for shards in run_ranks(size, cases.loaded_as, size, fp8_llama, decoded(fp8_llama)):
        assert shards, shards


def test_dcp_loads_what_it_means(fp8_llama: Path) -> None:
    expected = native_state(decoded(fp8_llama))
    state = blank(expected)
    dcp.load(state, storage_reader=crosswalk.reader(fp8_llama), no_dist=True)
    assert_equal(state, expected)


def test_carried_configs_lose_what_is_not_written(fp8_llama: Path, tmp_path: Path) -> None:
    state = blank(native_state(decoded(fp8_llama)))
    loaded = crosswalk.load(fp8_llama, state)
    crosswalk.save(state, loaded.config, tmp_path / "out", "llama", carry_from=fp8_llama)
    assert config_of(tmp_path / "out") == config_of(decoded(fp8_llama))
    assert tensor_differences(tensors_of(tmp_path / "out"), tensors_of(decoded(fp8_llama))) == []


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
        ("`quantization_config.quant_method` must be fp8 or mxfp4, it is 'gptq'",),
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
            "`quantization_config.fmt` must be 'e4m3', it is 'e5m2'",
            "`quantization_config.activation_scheme` must be 'dynamic' or 'static', it is 'none'",
            "did you mean `weight_block_size`?",
        ),
    ),
    "block is text": (
        said(weight_block_size="8x16"),
        ("`quantization_config.weight_block_size` must be null or the sizes of a block, it is '8x16'",),
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
        ("must be 'e4m3'", "its scales `{name}.weight_scale_inv` are missing", "`foo` = 1"),
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
    with pytest.raises(CrosswalkError, match="21 tensors of the output are encoded"):
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


# ---- MXFP4, by a mapping of a test -----------------------------------------------------------------------------------

#: As gpt-oss keeps its experts: in bfloat16 inputs first, with gate and up interleaved; encoded, outputs first.
EXPERTS = """crosswalk: 1
extends: mixtral
architecture: StackedForCausalLM
model_type: stacked
moe:
  tensors:
    experts.gate_up_proj:
      is: layer_1.weight
      axes: expert hidden (intermediate [gate|up])
      encoded: expert (intermediate [gate|up]) hidden
    experts.down_proj:
      is: layer_2.weight
      axes: expert intermediate output
      encoded: expert output intermediate
"""
STACKED = MIXTRAL | {
    "architectures": ["StackedForCausalLM"],
    "model_type": "stacked",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_local_experts": 5,
}
EXPERT_SHAPES = {"gate_up_proj": (5, 2 * 96, 64), "down_proj": (5, 64, 96)}


@pytest.fixture
def stacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An MXFP4 checkpoint of a format that only this test has, and the bfloat16 one that transformers makes of it."""
    torch.manual_seed(0)
    (tmp_path / "mappings").mkdir()
    (tmp_path / "mappings" / "stacked.yaml").write_text(EXPERTS)
    monkeypatch.setenv("CROSSWALK_MAPPINGS", str(tmp_path / "mappings"))
    catalog.cache_clear()
    rest = crosswalk.compile_plan({**STACKED, "dtype": "bfloat16"}, "stacked").sources
    tensors = {s.name: torch.randn(s.shape).bfloat16() for s in rest if ".experts." not in s.name}
    floats = dict(tensors)
    for layer in range(2):
        for name, (*outer, inputs) in EXPERT_SHAPES.items():
            blocks = torch.randint(0, 256, (*outer, inputs // 32, 16), dtype=torch.uint8)
            scales = torch.randint(100, 140, (*outer, inputs // 32), dtype=torch.uint8)
            key = f"model.layers.{layer}.block_sparse_moe.experts.{name}"
            tensors |= {f"{key}_blocks": blocks, f"{key}_scales": scales}
            floats[key] = convert_moe_packed_tensors(blocks, scales)
    for path, found, said in (
        (tmp_path / "mxfp4", tensors, {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}),
        (tmp_path / "mxfp4-decoded", floats, None),
    ):
        path.mkdir()
        save_file(found, path / "model.safetensors", {"format": "pt"})
        config = {**STACKED, "dtype": "bfloat16"} | ({"quantization_config": said} if said else {})
        (path / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    yield tmp_path / "mxfp4"
    catalog.cache_clear()


def test_experts_in_mxfp4_are_turned_by_the_axes_of_the_mapping(stacked: Path, tmp_path: Path) -> None:
    report = crosswalk.convert(stacked, tmp_path / "native")
    assert "4 tensors decoded from MXFP4 groups of 32" in report.verdict
    crosswalk.convert(decoded(stacked), tmp_path / "plain")
    assert tensor_differences(tensors_of(tmp_path / "native"), tensors_of(tmp_path / "plain")) == []
    crosswalk.convert(tmp_path / "native", tmp_path / "back")
    assert tensor_differences(tensors_of(tmp_path / "back"), tensors_of(decoded(stacked))) == []
    assert config_of(tmp_path / "back") == config_of(decoded(stacked))
    crosswalk.verify(stacked, tmp_path / "native")


def test_a_tensor_stands_in_the_files_once(stacked: Path, command: CommandLine) -> None:
    name = "model.layers.1.block_sparse_moe.experts.down_proj"
    edit_tensors(stacked, lambda found: found.update({name: torch.zeros(5, 96, 64, dtype=torch.bfloat16)}))
    assert_refused(command("check", stacked), f"`{name}` stands in the files twice, as it is and encoded as `{name}_b")


def test_a_payload_of_another_shape_is_refused(stacked: Path, command: CommandLine) -> None:
    name = "model.layers.1.block_sparse_moe.experts.down_proj"
    edit_tensors(stacked, lambda found: found.update({f"{name}_blocks": found[f"{name}_blocks"].flatten()}))
    assert_refused(
        command("check", stacked),
        f"`{name}_blocks` has the shape [15360], which no payload",
        f"`{name}` [5, 96, 64] is m",
    )


def test_mxfp4_that_does_not_fit_is_refused(stacked: Path, command: CommandLine) -> None:
    def spoil(found: dict[str, torch.Tensor]) -> None:
        names = sorted(name for name in found if name.endswith("_scales"))
        found[names[0]] = found[names[0]][:, :-1].clone()
        del found[names[1]]

    edit_tensors(stacked, spoil)
    assert_refused(
        command("check", stacked),
        "down_proj_scales` has the shape [5, 63, 3]; MXFP4 groups of 32 have [5, 64, 3]",
        "gate_up_proj_blocks` (1 in all) is encoded, and its scales `{name}_scales` are missing",
    )
