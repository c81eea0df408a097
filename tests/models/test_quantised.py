"""Quantised checkpoints, real ones in small: imported bit for bit as what they mean, and exported as floats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import rank_cases as cases
import torch
import torch.distributed.checkpoint as dcp
from budgets import sample
from comparing import tensor_differences
from native_llama import LLAMA as EVEN_LLAMA
from native_llama import assert_equal, blank, native_state
from oracles import logits, make_checkpoint
from quantised import fp8_checkpoint, misread
from ranks import run_ranks
from small_checkpoints import (
    LLAMA,
    LLAVA,
    MIXTRAL,
    CommandLine,
    config_of,
    contents,
    edit_config,
    lines,
    make,
    shard,
    tensors_of,
)

import crosswalk
from crosswalk.jobs.formats import catalog

QWEN3 = {key: value for key, value in LLAMA.items() if key != "mlp_bias"} | {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "use_sliding_window": False,
}
LAYER = "model.layers.1.self_attn"


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


@pytest.mark.parametrize("size", sample([2, 4], [4]))
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
