"""Folders as people have them: more than one checkpoint, leftovers of other tools, downloads that are not whole."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_checkpoints import (
    CommandLine,
    assert_refused,
    contents,
    edit_config,
    edit_tensors,
    make,
    shard,
    tensors_of,
    write_index,
)

import crosswalk
from crosswalk.runtime.errors import CrosswalkError

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 4\n"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make(tmp_path / "source")


def native(directory: Path, target: Path, **options: object) -> dict[str, torch.Tensor]:
    """Converted: the tensors of the trainer, without suffix."""
    crosswalk.convert(directory, target, **options)  # type: ignore[arg-type]
    return {name.removesuffix("/weights"): tensor for name, tensor in tensors_of(target).items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def refused(directory: Path) -> str:
    with pytest.raises(CrosswalkError) as caught:
        crosswalk.check(directory)
    assert len(caught.value.diagnostics) == 1, caught.value
    return str(caught.value)


def test_the_files_of_transformers_are_taken_before_the_original_ones(source: Path, tmp_path: Path) -> None:
    whole = native(source, tmp_path / "whole")
    shard(source)
    save_file({"tok_embeddings.weight": torch.ones(3, 5)}, source / "consolidated-00001-of-00001.safetensors")
    index = {"weight_map": {"tok_embeddings.weight": "consolidated-00001-of-00001.safetensors"}}
    (source / "consolidated.safetensors.index.json").write_text(json.dumps(index))
    (note,) = crosswalk.check(source).notes
    assert "the checkpoint is `model.safetensors.index.json`" in note
    assert "`consolidated.safetensors.index.json`" in note
    assert "`consolidated-00001-of-00001.safetensors`" in note
    assert equal(native(source, tmp_path / "out"), whole)
    assert equal(native(source / "model.safetensors.index.json", tmp_path / "named"), whole)


def test_one_file_is_taken_before_an_index_and_said_so(source: Path, tmp_path: Path) -> None:
    stray = load_file(source / "model.safetensors")
    shard(source)
    save_file({name: tensor + 1 for name, tensor in stray.items()}, source / "model.safetensors", {"format": "pt"})
    report = crosswalk.check(source)
    assert any(
        "the checkpoint is `model.safetensors`; left out: `model.safetensors.index.json`" in n for n in report.notes
    )
    written = native(source, tmp_path / "out")
    assert torch.equal(written["embeddings.word_embeddings_weight"], stray["model.embed_tokens.weight"] + 1)


def test_an_adapter_beside_a_merged_model_is_left_whole(source: Path, tmp_path: Path) -> None:
    (source / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    save_file({"base_model.model.q.lora_A.weight": torch.ones(2, 3)}, source / "adapter_model.safetensors")
    report = crosswalk.convert(source, tmp_path / "out")
    assert any("adapter" in note and "`adapter_config.json`" in note for note in report.notes)
    crosswalk.convert(tmp_path / "out", tmp_path / "back")
    assert not [name for name in contents(tmp_path / "back") if "adapter" in name]


def test_an_adapter_alone_is_no_model(source: Path) -> None:
    (source / "model.safetensors").rename(source / "adapter_model.safetensors")
    (source / "adapter_config.json").write_text("{}")
    assert "[source/adapter]" in refused(source)
    assert "an adapter and no model" in refused(source)
    assert "merge" in refused(source)


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module.{name}",
        lambda name: f"module.module.{name}",
        lambda name: f"base_model.model.{name}",
        lambda name: f"model.{name}",
        lambda name: name.replace("layers.1.", "layers.1._fsdp_wrapped_module._checkpoint_wrapped_module."),
    ],
)
def test_what_wrappers_add_to_names_is_left_out_and_said(source: Path, tmp_path: Path, wrapped) -> None:
    whole = native(source, tmp_path / "whole")
    edit_tensors(source, lambda tensors: [tensors.update({wrapped(n): tensors.pop(n)}) for n in list(tensors)])
    report = crosswalk.check(source)
    assert any("which a wrapper of the model left" in note for note in report.notes)
    assert equal(native(source, tmp_path / "out"), whole)


def test_an_unknown_prefix_is_one_sentence(source: Path) -> None:
    edit_tensors(source, lambda tensors: [tensors.update({f"student.{n}": tensors.pop(n)}) for n in list(tensors)])
    assert "begin with `student.`" in refused(source)


def test_names_without_the_prefix_of_a_base_model_are_one_sentence(source: Path) -> None:
    def bare(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["lm_head.weight"]
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)

    edit_tensors(source, bare)
    assert "[tensors/prefix]" in refused(source)
    assert "lack `model.`" in refused(source)
    assert "AutoModel" in refused(source)


def test_a_tied_head_that_differs_is_found_by_check_and_may_be_left_out(
    source: Path, tmp_path: Path, command: CommandLine
) -> None:
    edit_config(source, lambda config: config.update(tie_word_embeddings=True))
    for ran in (command("check", source), command("convert", source, tmp_path / "out")):
        assert_refused(ran, "`lm_head.weight` is not equal to `model.embed_tokens.weight`")
        assert "--take-tied" in ran.err
        assert "tie_word_embeddings: false" in ran.err
    report = crosswalk.convert(source, tmp_path / "out", take_tied=True)
    assert any(note.startswith("`lm_head.weight` is left out: tied to") for note in report.notes)
    embedding = tensors_of(source)["model.embed_tokens.weight"]
    assert torch.equal(tensors_of(tmp_path / "out")["embeddings.word_embeddings_weight/weights"], embedding)
    assert crosswalk.verify(source, tmp_path / "out", take_tied=True).targets == report.targets


@pytest.mark.parametrize("inside", [False, True])
def test_only_a_checkpoint_is_replaced(source: Path, tmp_path: Path, command: CommandLine, inside: bool) -> None:
    taken = tmp_path / "taken"
    if inside:
        crosswalk.convert(source, taken)
    (taken / "thesis").mkdir(parents=True)
    (taken / "thesis" / "a.tex").write_text("years of work")
    before = contents(taken)
    ran = command("convert", source, taken, "--overwrite")
    assert_refused(ran, "would be lost: `thesis`")
    assert contents(taken) == before


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_pointer_of_git_lfs_is_named_as_one(source: Path, name: str) -> None:
    (source / name).write_text(LFS)
    message = refused(source)
    assert f"{name}: error: this is a pointer of Git LFS" in message
    assert "[source/lfs]" in message
    assert "git lfs pull" in message


@pytest.mark.parametrize("name", ["model.safetensors.index.json", "model-00002-of-00003.safetensors"])
def test_a_pointer_in_the_place_of_an_index_or_of_a_shard_too(source: Path, name: str) -> None:
    write_index(source, shard(source))
    (source / name).write_text(LFS)
    assert f"{name}: error: this is a pointer of Git LFS" in refused(source)


def test_a_file_of_the_index_whose_name_no_file_system_takes_is_named_with_the_index(source: Path) -> None:
    shards = shard(source)
    write_index(source, {name: "x" * 300 if file.startswith("model-00002") else file for name, file in shards.items()})
    message = refused(source)
    assert message.startswith(f"{source}/model.safetensors.index.json: error: the file {'x' * 120}… with ")
    assert "is missing: File name too long [index/missing-file]" in message


def test_a_download_that_is_not_finished_is_no_model(source: Path) -> None:
    (source / "model.safetensors").rename(source / "model.safetensors.incomplete")
    message = refused(source)
    assert "only downloads that are not finished: `model.safetensors.incomplete` [source/unfinished]" in message
    assert "download the checkpoint again" in message


@pytest.mark.parametrize("name", ["model.safetensors.bak", "model.safetensors.old", "model.bin~", "m.safetensors.part"])
def test_copies_of_weights_and_unfinished_downloads_are_no_small_files(source: Path, tmp_path: Path, name: str) -> None:
    (source / name).write_bytes(b"0" * 4000)
    (source / "tokenizer.json").write_text("{}")
    assert crosswalk.convert(source, tmp_path / "out").carried == ("generation_config.json", "tokenizer.json")


def test_shards_without_an_index_say_what_is_missing(source: Path) -> None:
    shard(source)
    (source / "model.safetensors.index.json").unlink()
    assert "[source/no-index]" in refused(source)
    assert "no index" in refused(source)
    assert "*.index.json" in refused(source)


def test_a_link_to_nothing_is_a_download_that_is_not_whole(source: Path) -> None:
    shard(source)
    (source / "model-00002-of-00003.safetensors").unlink()
    os.symlink("../../blobs/0123", source / "model-00002-of-00003.safetensors")
    assert "a link to a file that is not there" in refused(source)
    assert "fetch it again" in refused(source)


def test_the_name_of_a_model_on_the_hub_is_recognised(command: CommandLine) -> None:
    ran = command("check", "some-people/Some-Model-3B")
    assert_refused(ran, "there is no such directory")
    assert "on the hub" in ran.err
    assert "download it first" in ran.err


def test_other_frameworks_are_named(source: Path) -> None:
    (source / "model.safetensors").rename(source / "model-q4.gguf")
    assert "GGUF" in refused(source)


def test_several_files_that_nothing_tells_apart_are_ambiguous(source: Path) -> None:
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    for name in ("one", "other"):
        save_file(tensors, source / f"{name}.safetensors", {"format": "pt"})
    assert "`one.safetensors`, `other.safetensors`" in refused(source)
    assert crosswalk.check(source / "other.safetensors").format == "llama"


def test_the_index_may_be_named(source: Path) -> None:
    write_index(source, shard(source))
    assert crosswalk.check(source / "model.safetensors.index.json").format == "llama"
