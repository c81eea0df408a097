"""Vocabularies that are padded on the way to the trainer and cut again on the way back: against torch's own padding and
slicing, through files and the command line, and what is refused."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path
from typing import Any

import oracles
import pytest
import torch
import transformers
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
    assert_refused,
    config_of,
    contents,
    lines,
    make,
    metadata,
    native,
    nothing_written,
    tensors_of,
)

import crosswalk
from crosswalk.runtime import execute
from crosswalk.runtime.errors import CrosswalkError
from crosswalk.runtime.plan.model import Plan

needs_transformers_5 = pytest.mark.skipif(oracles.TRANSFORMERS_MAJOR < 5, reason="config.json of transformers 5")
WHAT_IS_PADDED = "bijective but for 2 tensors padded with 3,420 elements"
HOW = "axis `vocab` is padded from 71 to 128 with zeros"
EMBEDDINGS, HEAD = "embeddings.word_embeddings_weight", "head.output_weights"


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(capsys)


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
    assert out.targets == tuple(dataclasses.replace(t, dtype=out.targets[0].dtype) for t in onward.sources)
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


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_wrong_axes_and_numbers_are_refused_together(command: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    wrong = ("--pad", "vocba=128", "--pad", "hidden=64", "--pad", "nothing=1", "--pad", "vocab=0")
    for name in ("check", "plan"):
        with nothing_written(tmp_path):
            assert_refused(
                command(name, source, *wrong),
                "there is no axis `vocba` that may be padded\n  hint: did you mean `vocab`?",
                "axis `hidden` may not be padded: the model would be another one\n  hint: axes that may be padded: ",
                "there is no axis `nothing` that may be padded\n  hint: axes that may be padded: vocab",
                "axis `vocab`: a multiple is a whole number from 1 on, not 0",
                code=2,
            )  # fmt: skip
    for number in (True, 1.5, "128", -1, 1 << 70):
        with pytest.raises(CrosswalkError, match="a multiple is a whole number from 1 on"):
            crosswalk.check(source, pad={"vocab": number})  # type: ignore[dict-item]
    with pytest.raises(CrosswalkError, match="there is no axis `3`"):
        crosswalk.check(source, pad={3: 128})  # type: ignore[dict-item]
    assert_refused(
        command(
            "check",
            source,
            "--pad",
            "vocab",
            "--pad",
            "vocab=x",
            "--pad",
            "vocab=1",
            "--pad",
            "vocab=2",
            "--pad",
            "vocab=" + 5000 * "9",
        ),
        "`--pad vocab=9999",
        "`--pad vocab` is not AXIS=NUMBER",
        "`--pad vocab=x` is not AXIS=NUMBER",
        "`--pad` names axis `vocab` twice",
        code=2,
    )
    assert_refused(
        command("check", source, "--truncate", "vocab=64"),
        "axes are truncated on the way to `hf`, and this is a conversion to a layout",
        code=2,
    )


def test_truncating_is_checked(command: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    command("convert", source, tmp_path / "native", "--pad", "vocab=128")
    path = tmp_path / "native"
    assert_refused(
        command("check", path, "--truncate", "vocab=129", "--truncate", "layers=2"),
        "axis `vocab` has the size 128: it cannot be truncated to 129",
        "there is no axis `layers` that may be truncated",
        code=2,
    )
    assert_refused(command("check", path, "--truncate", "vocab=0"), "a size is a whole number from 1 on", code=2)
    assert_refused(command("check", path, "--pad", "vocab=256"), "leave out --pad", code=2)
    assert_refused(
        command("check", path, "--truncate", "vocab=70"),
        "hint: cut it to 71 or more, or allow it with --allow-lossy",
    )
    assert command("check", path, "--truncate", "vocab=70", "--allow-lossy").code == 0
    # Less may be cut off, and nothing.
    for size in (71, 100, 128):
        out = tmp_path / f"out{size}"
        assert command("convert", path, out, "--truncate", f"vocab={size}").code == 0
        assert config_of(out)["vocab_size"] == size
        assert tensors_of(out)["lm_head.weight"].shape[0] == size
        assert command("verify", path, out).code == 0
    assert contents(tmp_path / "out71") == contents(source)


def test_without_what_it_remembers_nothing_is_cut_off(command: CommandLine, tmp_path: Path) -> None:
    """A checkpoint that was not padded, or no longer says so."""
    path = native(tmp_path, command)
    assert_refused(
        command("check", path, "--truncate", "vocab=64"),
        "7 of 71 are not known to be padding",
    )
    assert command("check", path, "--truncate", "vocab=64", "--allow-lossy").code == 0
    source = tmp_path / "source"
    command("convert", source, tmp_path / "padded", "--pad", "vocab=128")
    metadata("metadata", "crosswalk", padded=...)(tmp_path / "padded")
    assert command("convert", tmp_path / "padded", tmp_path / "all").code == 0
    assert config_of(tmp_path / "all")["vocab_size"] == 128
    assert_refused(
        command("verify", source, tmp_path / "padded"), "`embeddings.vocab_size` is 128, by the source it is 71"
    )


def test_a_vocabulary_that_was_changed_after_padding_is_asked_for(command: CommandLine, tmp_path: Path) -> None:
    """Tokens were added in training: how many of the rows are padding is not known."""
    command("convert", make(tmp_path / "source", vocab_size=96), tmp_path / "native")
    path = tmp_path / "native"
    metadata("metadata", "crosswalk", padded={"vocab": {"from": 71, "to": 80}})(path)
    assert_refused(
        command("check", path),
        "axis `vocab` has the size 96 by the config; it was padded from 71 to 80",
    )
    assert command("check", path, "--truncate", "vocab=96").code == 0
    assert_refused(command("check", path, "--truncate", "vocab=80"), "16 of 96 are not known to be padding")
    for size, options in ((96, ()), (80, ("--allow-lossy",))):
        out = tmp_path / f"out{size}"
        assert command("convert", path, out, "--truncate", f"vocab={size}", *options).code == 0
        assert command("verify", path, out, *options).code == 0


@pytest.mark.parametrize(
    "padded",
    [
        [],
        {"vocab": 71},
        {"vocab": {"from": 71}},
        {"vocab": {"from": 128, "to": 71}},
        {"vocab": {"from": "71", "to": 128}},
        {"vocab": {"from": True, "to": 128}},
    ],
)
def test_a_wrong_record_is_refused(command: CommandLine, tmp_path: Path, padded: Any) -> None:
    command("convert", make(tmp_path / "source"), tmp_path / "native", "--pad", "vocab=128")
    metadata("metadata", "crosswalk", padded=padded)(tmp_path / "native")
    assert_refused(
        command("check", tmp_path / "native"),
        "`metadata.crosswalk.padded` must be a mapping of axes to {from: size, to: larger size}",
    )


def test_a_record_of_another_axis_is_refused(command: CommandLine, tmp_path: Path) -> None:
    command("convert", make(tmp_path / "source"), tmp_path / "native", "--pad", "vocab=128")
    metadata("metadata", "crosswalk", padded={"hidden": {"from": 20, "to": 30}})(tmp_path / "native")
    assert_refused(command("check", tmp_path / "native"), "axis `hidden` is none that may be padded")


@pytest.mark.parametrize(
    ("padded", "problem"),
    [
        ({"hidden": {"from": 20, "to": 30}}, "is remembered as padded from 20 to 30, and may not be padded"),
        ({"vocab": {"from": 71, "to": 129}}, "to 129; its size is 71 by the source, and 128 by the config"),
        ({"vocab": {"from": 70, "to": 128}}, "from 70 to 128; its size is 71 by the source, and 128 by the config"),
    ],
)
def test_a_record_that_is_not_true_is_found(
    command: CommandLine, tmp_path: Path, padded: dict[str, Any], problem: str
) -> None:
    """The way back would go by it."""
    source = make(tmp_path / "source")
    command("convert", source, tmp_path / "native", "--pad", "vocab=128")
    metadata("metadata", "crosswalk", padded=padded)(tmp_path / "native")
    assert_refused(command("verify", source, tmp_path / "native"), problem)


def test_the_padding_of_another_checkpoint_is_told_apart(command: CommandLine, tmp_path: Path) -> None:
    command("convert", make(tmp_path / "source"), tmp_path / "native", "--pad", "vocab=80")
    other = make(tmp_path / "other", vocab_size=100)
    assert_refused(command("verify", other, tmp_path / "native"), "its size is 100 by the source, and 80 by the config")


def test_what_was_cut_off_beyond_the_padding_is_verified_as_allowed(command: CommandLine, tmp_path: Path) -> None:
    command("convert", make(tmp_path / "source"), tmp_path / "native", "--pad", "vocab=128")
    path, out = tmp_path / "native", tmp_path / "out"
    assert command("convert", path, out, "--truncate", "vocab=64", "--allow-lossy").code == 0
    assert_refused(command("verify", path, out), "`embeddings.vocab_size` is 64, by the source it is 71")
    assert "truncated by 3,840 elements" in command("verify", path, out, "--allow-lossy").out


def test_the_record_says_both_sizes(tmp_path: Path) -> None:
    crosswalk.convert(make(tmp_path / "source"), tmp_path / "native", pad={"vocab": 128})
    text = (tmp_path / "native" / "metadata.yaml").read_text()
    assert "    padded:\n      vocab:\n        from: 71\n        to: 128\n" in text
