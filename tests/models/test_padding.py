"""Vocabularies that are padded on the way to the trainer and cut again on the way back: against torch's own padding and
slicing, through files and the command line."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import oracles
import pytest
import torch
import transformers
from budgets import half
from comparing import differences, shapes, stored_as, tensor_differences
from formats import CONFIGS
from golden_cases import CASES
from hypothesis import given
from hypothesis import strategies as st
from random_checkpoints import random_tensors
from safetensors.torch import load_file, save_file
from small_checkpoints import (
    LLAVA,
    CommandLine,
    config_of,
    contents,
    lines,
    make,
    tensors_of,
)

import crosswalk
from crosswalk.runtime import execute
from crosswalk.runtime.plan.model import Plan
from crosswalk.runtime.records import replace

needs_transformers_5 = pytest.mark.skipif(oracles.TRANSFORMERS_MAJOR < 5, reason="config.json of transformers 5")
WHAT_IS_PADDED = "bijective but for 2 tensors padded with 3,420 elements"
HOW = "axis `vocab` is padded from 71 to 128 with zeros"
EMBEDDINGS, HEAD = "embeddings.word_embeddings_weight", "head.output_weights"


def with_vocabulary(config: dict[str, Any], size: int) -> dict[str, Any]:
    result = copy.deepcopy(config)
    result.get("text_config", result)["vocab_size"] = size
    return result


def grown(tensors: dict[str, torch.Tensor], wanted: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Zeros after the last row and column of every tensor that is to be larger."""
    result = {}
    for name, tensor in tensors.items():
        widths = [m - n for n, m in zip(tensor.shape, wanted[name], strict=True)]
        pad = [part for width in reversed(widths) for part in (0, width)]
        result[name] = torch.nn.functional.pad(tensor, pad)
    return result


def bf16(plan: Plan) -> Plan:
    return stored_as(plan, "BF16")


# ---- every format ----------------------------------------------------------------------------------------------------


@needs_transformers_5
@pytest.mark.parametrize("format", CONFIGS)
@half()
@given(data=st.data())
def test_every_format_is_padded_as_torch_pads_it(format: str, data: st.DataObject) -> None:
    """The padded plan does what the plan of the larger model does with tensors that torch has padded."""
    config = data.draw(CONFIGS[format])
    size = config.get("text_config", config)["vocab_size"]
    multiple = data.draw(st.sampled_from([2, 16, 64, 128]))
    whole = math.ceil(size / multiple) * multiple
    larger = with_vocabulary(config, whole)
    plan = bf16(crosswalk.compile_plan(config, format, "fast_llm", pad={"vocab": multiple}))
    reference = bf16(crosswalk.compile_plan(larger, format, "fast_llm"))
    assert shapes(plan.sources) == shapes(bf16(crosswalk.compile_plan(config, format, "fast_llm")).sources)
    assert shapes(plan.targets) == shapes(reference.targets)
    tensors = random_tensors(shapes(plan.sources))
    padded = dict(execute(plan, tensors))
    wanted = dict(execute(reference, grown(tensors, shapes(reference.sources))))
    assert tensor_differences(padded, wanted) == []

    verdict = plan.verify()
    assert verdict.reversible
    assert verdict.padded.tensors == sum(whole in t.shape for t in plan.targets if t.name in (EMBEDDINGS, HEAD))

    # And back, after training has changed what was padding.
    native_config = crosswalk.import_config(config, format, pad={"vocab": multiple})
    assert native_config["embeddings"]["vocab_size"] == whole
    back = bf16(crosswalk.compile_plan(native_config, format, "hf", truncate={"vocab": size}))
    assert back.digest == plan.inverse().digest
    assert plan.digest == back.inverse().digest
    for name in {EMBEDDINGS, HEAD} & padded.keys():
        padded[name][size:] = 7
    assert tensor_differences(dict(execute(back, padded)), tensors) == []
    again = crosswalk.export_config(native_config, format, truncate={"vocab": size})
    assert differences(again, crosswalk.export_config(crosswalk.import_config(config, format), format)) == []
    assert differences(
        crosswalk.export_config(native_config, format),
        crosswalk.export_config(crosswalk.import_config(larger, format), format),
    ) == []  # fmt: skip


@needs_transformers_5
def test_torchtitan_and_from_one_padded_trainer_to_another() -> None:
    """Padding of one trainer is left out, that of the other made: the two sizes have nothing to do with each other."""
    config = CASES["llama_gqa"].hf_config()
    size = config["vocab_size"]
    out = crosswalk.compile_plan(
        crosswalk.import_config(config, pad={"vocab": 96}), "llama", "hf", truncate={"vocab": size}
    )
    onward = crosswalk.compile_plan(config, to="torchtitan", pad={"vocab": 160})
    assert out.targets == tuple(replace(t, dtype=out.targets[0].dtype) for t in onward.sources)
    plan = bf16(out).compose(bf16(onward))
    verdict = plan.verify()
    heads = 1 if config.get("tie_word_embeddings") else 2
    assert not verdict.problems
    assert (verdict.padded.tensors, verdict.truncated.tensors) == (heads, heads)
    tensors = random_tensors(shapes(plan.sources))
    found = dict(execute(plan, tensors))["tok_embeddings.weight"]
    assert found.shape[0] % 160 == 0
    assert torch.equal(found[:size].view(torch.int16), tensors[EMBEDDINGS][:size].view(torch.int16))
    assert not found[size:].any()


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_there_and_back_every_file_is_the_same(command: CommandLine, tmp_path: Path, tied: bool, dtype: str) -> None:
    source = make(tmp_path / "source", dtype=dtype, tie_word_embeddings=tied)
    assert command("convert", source, tmp_path / "native", "--pad", "vocab=64").code == 0
    found = tensors_of(tmp_path / "native")
    original = tensors_of(source)
    for ours, theirs in ((EMBEDDINGS, "model.embed_tokens.weight"), (HEAD, "lm_head.weight"))[: 2 - tied]:
        tensor = found[f"{ours}/weights"]
        assert tensor.shape == (128, 30)
        assert torch.equal(tensor, torch.nn.functional.pad(original[theirs], (0, 0, 0, 128 - 71)))
    assert (f"{HEAD}/weights" in found) == (not tied)
    assert command("verify", source, tmp_path / "native").code == 0
    assert command("convert", tmp_path / "native", tmp_path / "back").code == 0
    assert command("verify", tmp_path / "native", tmp_path / "back").code == 0
    assert contents(tmp_path / "back") == contents(source)


def test_zeros_are_verified_like_everything_else(command: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    command("convert", source, tmp_path / "native", "--pad", "vocab=128")
    (file,) = (tmp_path / "native").glob("*.safetensors")
    tensors = load_file(file)
    tensors[f"{HEAD}/weights"][71, 0] = 1e-30
    save_file(tensors, file)
    ran = command("verify", source, tmp_path / "native")
    assert ran.code == 1
    assert f"tensor `{HEAD}` of the output is not the conversion of the source" in ran.err


@needs_transformers_5
def test_a_multimodal_model_is_padded_in_its_text(command: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source", LLAVA)
    assert command("convert", source, tmp_path / "native", "--pad", "vocab=50").code == 0
    assert tensors_of(tmp_path / "native")[f"{EMBEDDINGS}/weights"].shape[0] == 100
    assert command("convert", tmp_path / "native", tmp_path / "back").code == 0
    assert contents(tmp_path / "back") == contents(source)


@pytest.mark.parametrize("tied", [False, True])
def test_the_padded_model_gives_the_same_logits(tmp_path: Path, tied: bool) -> None:
    """The padded model as a Hugging Face checkpoint of its own: its logits are those of the model, then zeros."""
    source = make(tmp_path / "source", tie_word_embeddings=tied)
    crosswalk.convert(source, tmp_path / "native", pad={"vocab": 100})
    crosswalk.convert(tmp_path / "native", tmp_path / "large", truncate={"vocab": 100})
    assert config_of(tmp_path / "large") == {**config_of(source), "vocab_size": 100}
    crosswalk.verify(tmp_path / "native", tmp_path / "large")
    expected = oracles.logits(source)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "large", attn_implementation="eager")
    ids = (torch.arange(17) * 7 + 3) % 69
    with torch.no_grad():
        found = model.eval()(input_ids=ids[None], use_cache=False).logits
    assert found.shape[-1] == 100
    torch.testing.assert_close(found[..., :71], expected, rtol=1e-5, atol=1e-5)
    assert not found[..., 71:].any()


def test_what_training_made_of_the_padding_is_left_out(tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    crosswalk.convert(source, tmp_path / "native", pad={"vocab": 128})
    (file,) = (tmp_path / "native").glob("*.safetensors")
    tensors = load_file(file)
    tensors[f"{EMBEDDINGS}/weights"][71:] = math.nan
    save_file(tensors, file)
    report = crosswalk.convert(tmp_path / "native", tmp_path / "back")
    assert report.verdict == "bijective but for 2 tensors truncated by 3,420 elements"
    assert report.notes == ("axis `vocab` is cut from 128 to 71: the last 57 are left out, unread",)
    assert tensor_differences(tensors_of(tmp_path / "back"), tensors_of(source)) == []


def test_a_size_that_fits_is_not_padded(command: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source", vocab_size=96)
    for name, options in (("plain", ()), ("padded", ("--pad", "vocab=32"))):
        assert command("convert", source, tmp_path / name, *options).code == 0
    assert contents(tmp_path / "plain") == contents(tmp_path / "padded")


def test_what_a_user_sees(command: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    rows = lines(command("check", source, "--pad", "vocab=128").out)
    assert ["tensors", *WHAT_IS_PADDED.split()] in rows
    assert ["note", *HOW.split()] in rows
    shown = lines(command("plan", source, "--pad", "vocab=128").out)
    assert [row for row in shown if row[:1] == ["zeros"]] == [
        ["zeros", "->", EMBEDDINGS, "6.84", "kB"],
        ["zeros", "->", HEAD, "6.84", "kB"],
    ]
    plan = Plan.from_json(command("plan", source, "--json", "--pad", "vocab=128").out)
    assert str(plan.verify()) == WHAT_IS_PADDED
    shown = lines(command("explain", source, HEAD, "--pad", "vocab=128").out)
    (zeros,) = [row for row in shown if row[:1] == ["zeros"]]
    assert zeros[:12] == ["zeros", "->", HEAD, "extents", "[1710]", "target", "[128,", "30]", "at", "2130", "+", "[1]"]
    command("convert", source, tmp_path / "native", "--pad", "vocab=128")
    shown = lines(command("explain", tmp_path / "native", HEAD).out)
    (cut,) = [row for row in shown if row[:4] == [HEAD, "->", "left", "out"]]
    assert cut[4:13] == ["extents", "[1710]", "source", "[128,", "30]", "at", "2130", "+", "[1]"]
