"""Checkpoints as they come: in shards, pickled, written or changed by the trainer, biased, tied, with leftovers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import oracles
import pytest
import torch
from converted import convert, equal_tensors, metadata_of
from golden_cases import CASES, cases
from golden_differences import NATIVE_DIFFERENCES
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_checkpoints import (
    BASE,
    LLAMA,
    MIXER,
    MIXTRAL,
    CommandLine,
    config_of,
    contents,
    edit_config,
    edit_tensors,
    lines,
    make,
    metadata,
    native,
    shard,
    tensors_of,
)

# ---- sources and outputs in several files ----------------------------------------------------------------------------


def test_a_source_in_shards_as_save_pretrained_writes_them(crosswalk: CommandLine, tmp_path: Path) -> None:
    import transformers

    source = make(tmp_path / "source")
    model = transformers.AutoModelForCausalLM.from_pretrained(source)
    model.save_pretrained(tmp_path / "shards", max_shard_size="40kB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    target = convert(crosswalk, tmp_path / "shards", tmp_path / "native")
    assert equal_tensors(tensors_of(target), tensors_of(convert(crosswalk, source, tmp_path / "whole")))
    assert equal_tensors(tensors_of(convert(crosswalk, target, tmp_path / "back")), tensors_of(source))


def test_output_in_shards(crosswalk: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    target = convert(crosswalk, source, tmp_path / "native", "--max-shard-size", "50kB")
    files = sorted(path.name for path in target.glob("*.safetensors"))
    assert files == [f"model_{number}.safetensors" for number in range(len(files))]
    assert len(files) > 2
    index = metadata_of(target)["metadata"]["state_index"]
    assert index == {name: file for file in files for name in load_file(target / file)}
    back = convert(crosswalk, target, tmp_path / "back", "--max-shard-size", "40KiB")
    document = json.loads((back / "model.safetensors.index.json").read_text())
    count = len(list(back.glob("*.safetensors")))
    assert count > 2
    assert set(document["weight_map"].values()) == {f"model-{k + 1:05}-of-{count:05}.safetensors" for k in range(count)}
    for name, file in document["weight_map"].items():
        with safe_open(back / file, "pt") as stored:
            assert name in stored.keys()  # noqa: SIM118
            assert stored.metadata() == {"format": "pt"}
    expected = tensors_of(source)
    assert document["metadata"]["total_size"] == sum(tensor.nbytes for tensor in expected.values())
    for path in back.glob("*.safetensors"):
        sizes = [tensor.nbytes for tensor in load_file(path).values()]
        assert sum(sizes) <= 40 * 1024 or len(sizes) == 1
    assert equal_tensors(tensors_of(back), expected)
    assert torch.equal(oracles.logits(back), oracles.logits(source))


def test_a_source_that_is_a_pickle(crosswalk: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source", dtype="bfloat16")
    expected = tensors_of(convert(crosswalk, source, tmp_path / "expected"))
    torch.save(load_file(source / "model.safetensors"), source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()
    target = convert(crosswalk, source, tmp_path / "native")
    assert equal_tensors(tensors_of(target), expected)
    assert not (target / "pytorch_model.bin").exists()


def test_a_tied_pickle_shares_its_bytes(crosswalk: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source", tie_word_embeddings=True)
    expected = contents(source)
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    torch.save(tensors, source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()
    target = convert(crosswalk, source, tmp_path / "native")
    assert contents(convert(crosswalk, target, tmp_path / "back")) == expected


# ---- native checkpoints of the trainer, and changed ones -------------------------------------------------------------


def as_the_trainer_writes_it(directory: Path) -> None:
    """Without anything that a conversion adds: no origin, no carried files, a config with the sections of a training
    run, and the state of an optimizer beside the weights."""
    metadata("metadata", crosswalk=...)(directory)
    metadata("config", distributed={"training_dtype": "float32"}, optimizer={"learning_rate": {"base": 1e-4}})(
        directory
    )
    state = {f"{name.removesuffix('/weights')}/exp_avg": tensor + 1 for name, tensor in tensors_of(directory).items()}
    save_file(state, directory / "model_1.safetensors")
    metadata("metadata", "state_index", **dict.fromkeys(state, "model_1.safetensors"))(directory)
    metadata(shards=["weights", "exp_avg"])(directory)
    for name in ("ok", "generation_config.json"):
        (directory / name).unlink()


def test_a_checkpoint_that_the_trainer_wrote(crosswalk: CommandLine, tmp_path: Path) -> None:
    target = native(tmp_path, crosswalk)
    as_the_trainer_writes_it(target)
    ran = crosswalk("convert", target, tmp_path / "back")
    assert ran.code == 1
    assert "this checkpoint does not say which format it came from" in ran.err
    assert "pass --format" in ran.err
    back = convert(crosswalk, target, tmp_path / "back", "--format", "llama")
    assert equal_tensors(tensors_of(back), tensors_of(tmp_path / "source"))
    found, original = config_of(back), config_of(tmp_path / "source")
    # Without the original nothing is known of token ids; what is known agrees.
    assert found.keys() <= original.keys() | {"dtype", "rope_theta"}
    assert {key: original[key] for key in found.keys() - {"rope_theta"}} | {"rope_theta": 23456.0} == found
    assert "bos_token_id" not in found
    assert torch.equal(oracles.logits(back), oracles.logits(tmp_path / "source"))


@pytest.mark.parametrize("name", [case.name for case in cases("fast_llm_metadata.yaml", "hf.safetensors")])
def test_metadata_of_the_trainer_itself(name: str, crosswalk: CommandLine, tmp_path: Path) -> None:
    case = CASES[name]
    target = tmp_path / "native"
    target.mkdir()
    text = (case.path / "fast_llm_metadata.yaml").read_text()
    if case.format in NATIVE_DIFFERENCES:  # trained as a model that its class is not, until its metadata says so
        text = text.replace("causal: true", "causal: false")
    (target / "metadata.yaml").write_text(text)
    save_file({f"{key}/weights": value for key, value in case.native_tensors().items()}, target / "model_0.safetensors")
    code = tmp_path / "code"
    code.mkdir()
    for word in crosswalk("formats", case.format).out.split("dialects:")[0].split():
        if word.rstrip(",").endswith(".py"):
            (code / word.rstrip(",")).write_text("")
    back = convert(crosswalk, target, tmp_path / "back", "--format", case.format, "--model-files", code)
    assert equal_tensors(tensors_of(back), case.hf_tensors())
    assert crosswalk("verify", back, target).code == 0


def test_a_changed_native_config_is_exported_anew_with_the_rest_restored(
    crosswalk: CommandLine, tmp_path: Path
) -> None:
    target = native(tmp_path, crosswalk)
    metadata(*MIXER, "rotary", theta=77777.0)(target)
    back = convert(crosswalk, target, tmp_path / "back")
    original = config_of(tmp_path / "source")
    expected = {**original, "rope_parameters": {"rope_theta": 77777.0, "rope_type": "default"}}
    assert config_of(back) == expected
    assert (original["bos_token_id"], original["eos_token_id"], original["max_position_embeddings"]) == (3, 5, 513)
    assert (back / "generation_config.json").read_bytes() == (
        tmp_path / "source" / "generation_config.json"
    ).read_bytes()


def test_training_settings_are_no_reason_for_a_new_config(crosswalk: CommandLine, tmp_path: Path) -> None:
    """The trainer may write its own defaults and settings; the model is the same, and so is its config.json."""
    target = native(tmp_path, crosswalk)
    metadata(*BASE, "decoder", "block", "mlp", recompute_level="full")(target)
    back = convert(crosswalk, target, tmp_path / "back")
    assert contents(back) == contents(tmp_path / "source")


# ---- ties, biases, leftovers -----------------------------------------------------------------------------------------


def test_biased_models(crosswalk: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source", attention_bias=True, mlp_bias=True)
    target = convert(crosswalk, source, tmp_path / "native")
    hf, ours = tensors_of(source), tensors_of(target)
    assert torch.equal(
        ours["decoder.1.mlp.layer_1.bias/weights"],
        torch.cat([hf[f"model.layers.1.mlp.{part}_proj.bias"] for part in ("gate", "up")]),
    )
    assert contents(convert(crosswalk, target, tmp_path / "back")) == contents(source)


def test_mixtral(crosswalk: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source", MIXTRAL)
    target = convert(crosswalk, source, tmp_path / "native")
    ours = tensors_of(target)["decoder.1.mlp.layer_2.weight/weights"]
    hf = tensors_of(source)
    expected = torch.cat([hf[f"model.layers.1.block_sparse_moe.experts.{e}.w2.weight"].T for e in range(8)])
    assert torch.equal(ours, expected)
    assert contents(convert(crosswalk, target, tmp_path / "back")) == contents(source)


def test_tied_models(crosswalk: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source", tie_word_embeddings=True)
    assert "lm_head.weight" not in tensors_of(source)
    target = convert(crosswalk, source, tmp_path / "native")
    assert "head.output_weights/weights" not in tensors_of(target)
    back = convert(crosswalk, target, tmp_path / "back")
    assert contents(back) == contents(source)


def test_a_tied_head_that_is_stored_too(crosswalk: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source", tie_word_embeddings=True)
    expected = contents(source)
    edit_tensors(source, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"]}))
    assert ["tensors", "bijective", "but", "for", "1", "tied", "tensor"] in lines(crosswalk("check", source).out)
    target = convert(crosswalk, source, tmp_path / "native")
    assert "head.output_weights/weights" not in tensors_of(target)
    assert contents(convert(crosswalk, target, tmp_path / "back")) == expected
    edit_tensors(source, lambda t: t["lm_head.weight"][70, 29].add_(1))
    ran = crosswalk("convert", source, tmp_path / "out")
    assert (ran.code, len(ran.problems)) == (1, 1)
    assert "`lm_head.weight` is not equal to `model.embed_tokens.weight`" in ran.err
    assert not (tmp_path / "out").exists()


def test_buffers_of_old_checkpoints_are_dropped(crosswalk: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    expected = contents(source)
    edit_tensors(
        source,
        lambda t: t.update({f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.rand(7) for i in range(3)}),
    )
    assert ["tensors", "bijective", "but", "for", "3", "dropped", "tensors"] in lines(crosswalk("check", source).out)
    target = convert(crosswalk, source, tmp_path / "native")
    assert crosswalk("verify", source, target).code == 0
    assert contents(convert(crosswalk, target, tmp_path / "back")) == expected


def test_model_code_is_carried_or_given(crosswalk: CommandLine, tmp_path: Path) -> None:
    """A format with code of its own cannot be loaded without: it travels along, or is asked for."""
    case = CASES["dream_base"]
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(case.hf_config()))
    save_file(case.hf_tensors(), source / "model.safetensors")
    ran = crosswalk("convert", convert(crosswalk, source, tmp_path / "bare"), tmp_path / "back")
    assert (ran.code, len(ran.problems)) == (1, 1)
    assert "format `dream` needs its model files" in ran.err
    assert "[files/model-code]" in ran.err
    assert "hint: pass --model-files DIR" in ran.err
    code = tmp_path / "code"
    code.mkdir()
    needed = ran.err.split("needs its model files ")[1].split(":")[0].split(", ")
    assert "modeling_dream.py" in needed
    for name in needed:
        (code / name).write_text(f"# {name}")
    back = convert(crosswalk, tmp_path / "bare", tmp_path / "back", "--model-files", code)
    assert {name: (back / name).read_text() for name in needed} == {name: f"# {name}" for name in needed}
    again = convert(crosswalk, convert(crosswalk, back, tmp_path / "native"), tmp_path / "again")
    assert contents(again) == contents(back)


def test_an_index_of_some_of_the_files(crosswalk: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    expected = tensors_of(source)
    shard(source, 4)
    shutil.copy(source / "model-00001-of-00004.safetensors", source / "consolidated.safetensors")
    back = convert(crosswalk, convert(crosswalk, source, tmp_path / "native"), tmp_path / "back")
    assert equal_tensors(tensors_of(back), expected)
    assert not (back / "consolidated.safetensors").exists()


def test_a_config_of_another_class_of_the_same_model(crosswalk: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    edit_config(source, lambda config: config.update(architectures=["LlamaForSequenceClassification"]))
    ran = crosswalk("check", source)
    assert ran.code == 1
    assert '`architectures` must be ["LlamaForCausalLM"]' in ran.err


def test_what_is_read_is_the_file_not_the_class(crosswalk: CommandLine, tmp_path: Path) -> None:
    """A minimal file, as many on the hub are, comes back as it was: no defaults of a class are put in."""
    source = make(tmp_path / "source")
    minimal = {key: value for key, value in LLAMA.items() if key not in ("dtype", "attention_bias", "mlp_bias")}
    (source / "config.json").write_text(json.dumps(minimal))
    target = convert(crosswalk, source, tmp_path / "native")
    assert contents(convert(crosswalk, target, tmp_path / "back")) == contents(source)
