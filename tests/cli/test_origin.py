"""What the trainer has no place for comes back from the original Hugging Face directory, or its loss is said."""

import itertools
import json
import os
from pathlib import Path
from typing import Any

import oracles
import pytest
import torch
import torch.distributed.checkpoint as dcp
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file
from small_checkpoints import LLAMA, LLAVA, CommandLine, config_of, contents, edit_config, make, tensors_of

import crosswalk
from crosswalk.jobs.formats import catalog, format_named

FORMATS = {name: format_named(name) for name in catalog().formats()}


def original(path: Path, **changes: Any) -> Path:
    """A llama with all that the trainer has no place for."""
    made = make(path, **{"pad_token_id": 7, "max_position_embeddings": 777, **changes})
    (made / "tokenizer.json").write_text('{"version": "1.0"}')
    (made / "generation_config.json").write_text('{"temperature": 0.6}')
    return made


def trained(source: Path, path: Path, pad: dict[str, int] | None = None, change: bool = True) -> Path:
    """The native checkpoint as the trainer writes it after training: its own metadata, other values, no other files."""
    crosswalk.convert(source, path, pad=pad)
    for file in path.iterdir():
        if file.name not in ("metadata.yaml", "ok") and file.suffix != ".safetensors":
            file.unlink()
    document = YAML(typ="safe").load(path / "metadata.yaml")
    document["metadata"] = {"state_index": document["metadata"]["state_index"]}
    with (path / "metadata.yaml").open("w") as stream:
        YAML(typ="safe").dump(document, stream)
    for file in path.glob("*.safetensors"):
        tensors = {name: tensor + (0.5 if change else 0.0) for name, tensor in load_file(file).items()}
        save_file(tensors, file, {"format": "pt"})
    return path


def edit_native(path: Path, *keys: str, value: Any) -> None:
    document = YAML(typ="safe").load(path / "metadata.yaml")
    inner = document["config"]["base_model"]
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    with (path / "metadata.yaml").open("w") as stream:
        YAML(typ="safe").dump(document, stream)


# ---- convert --like -------------------------------------------------------------------------------------------------


def test_what_training_loses_comes_from_the_original(tmp_path: Path) -> None:
    source = original(tmp_path / "hf")
    native = trained(source, tmp_path / "native")
    report = crosswalk.convert(native, tmp_path / "out", like=source)
    assert report.format == "llama"
    assert report.defaults == {}
    assert report.config == "exact"
    assert crosswalk.verify(native, tmp_path / "out", like=source).config == "exact"
    ours, theirs = contents(tmp_path / "out"), contents(source)
    assert ours.keys() == theirs.keys()
    assert {name for name in ours if ours[name] != theirs[name]} == {"model.safetensors"}
    for name, tensor in tensors_of(source).items():
        assert torch.equal(tensors_of(tmp_path / "out")[name], tensor + 0.5), name


def test_an_original_without_weights_will_do(tmp_path: Path) -> None:
    source = original(tmp_path / "hf")
    native = trained(source, tmp_path / "native")
    (source / "model.safetensors").unlink()
    crosswalk.convert(native, tmp_path / "out", like=source)
    assert (tmp_path / "out" / "config.json").read_bytes() == (source / "config.json").read_bytes()


def test_a_padded_vocabulary_is_cut_to_that_of_the_original(tmp_path: Path) -> None:
    source = original(tmp_path / "hf")
    native = trained(source, tmp_path / "native", {"vocab": 64})
    report = crosswalk.convert(native, tmp_path / "out", like=source)
    assert "axis `vocab` is cut from 128 to 71: the last 57 are left out, unread" in report.notes
    assert {n: t.shape for n, t in tensors_of(tmp_path / "out").items()} == {
        n: t.shape for n, t in tensors_of(source).items()
    }
    assert config_of(tmp_path / "out")["vocab_size"] == 71
    crosswalk.verify(native, tmp_path / "out", like=source)
    crosswalk.convert(native, tmp_path / "whole", like=source, truncate={"vocab": 128})
    assert config_of(tmp_path / "whole")["vocab_size"] == 128
    assert config_of(tmp_path / "whole")["pad_token_id"] == 7


@pytest.mark.parametrize(
    ("changes", "field", "here", "there"),
    [
        ({"vocab_size": 73}, "embeddings.vocab_size", "71", "73"),
        ({"hidden_size": 36}, "hidden_size", "30", "36"),
        ({"num_hidden_layers": 2}, "decoder.num_blocks", "3", "2"),
        ({"intermediate_size": 39}, "decoder.block.mlp.intermediate_size", "37", "39"),
        ({"num_key_value_heads": 3}, "decoder.block.mixer.head_groups", "2", "3"),
        ({"tie_word_embeddings": True}, "tied_embedding_weight", "false", "true"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_an_original_of_another_size_is_refused_by_field_and_values(
    tmp_path: Path, changes: dict[str, Any], field: str, here: str, there: str
) -> None:
    native = trained(original(tmp_path / "hf"), tmp_path / "native")
    other = original(tmp_path / "other", **changes)
    with pytest.raises(crosswalk.CrosswalkError) as raised:
        crosswalk.convert(native, tmp_path / "out", like=other)
    (problem,) = raised.value.diagnostics
    assert problem.code == "like/differs"
    assert problem.message == f"`{field}` is {here}, and {there} in `{other}`: that is another model"
    assert problem.position is not None
    assert problem.position.file == str(native / "metadata.yaml")
    assert problem.position.line
    assert not (tmp_path / "out").exists()


def test_an_original_of_another_architecture_is_refused(tmp_path: Path) -> None:
    native = trained(original(tmp_path / "hf"), tmp_path / "native")
    other = make(tmp_path / "other", {**LLAMA, "architectures": ["MistralForCausalLM"], "model_type": "mistral",
                                      "sliding_window": 33})  # fmt: skip
    edit_config(other, lambda config: [config.pop(key, None) for key in ("attention_bias", "mlp_bias")])
    with pytest.raises(crosswalk.CrosswalkError, match=r"`decoder.block.mixer.window_size` is null, and 33 in"):
        crosswalk.convert(native, tmp_path / "out", like=other)
    with pytest.raises(crosswalk.CrosswalkError, match="model_type"):
        crosswalk.convert(native, tmp_path / "out", "hf", "llama", like=other)


def test_a_number_that_training_changed_is_written_and_said(tmp_path: Path) -> None:
    source = original(tmp_path / "hf")
    native = trained(source, tmp_path / "native")
    edit_native(native, "decoder", "block", "mixer", "rotary", "theta", value=500000.0)
    report = crosswalk.convert(native, tmp_path / "out", like=source)
    wanted = f"`decoder.block.mixer.rotary.theta` is 500000.0, and 23456.0 in `{source}`: 500000.0 is written"
    assert wanted in report.notes
    config = config_of(tmp_path / "out")
    assert (config["rope_parameters"]["rope_theta"], config["max_position_embeddings"]) == (500000.0, 777)


@pytest.mark.parametrize("dialect", ["transformers-4", "transformers-5"])
def test_another_dialect_that_is_asked_for_keeps_the_rest(tmp_path: Path, dialect: str) -> None:
    source = original(tmp_path / "hf")
    native = trained(source, tmp_path / "native")
    crosswalk.convert(native, tmp_path / "out", like=source, dialect=dialect)
    config = config_of(tmp_path / "out")
    assert ("rope_theta" in config) == (dialect == "transformers-4")
    assert (config["pad_token_id"], config["max_position_embeddings"]) == (7, 777)


def test_what_is_no_original_is_refused(tmp_path: Path) -> None:
    source = original(tmp_path / "hf")
    native = trained(source, tmp_path / "native")
    with pytest.raises(crosswalk.CrosswalkError, match=r"this is no Hugging Face checkpoint.*\[usage/like\]"):
        crosswalk.convert(native, tmp_path / "out", like=native)
    with pytest.raises(crosswalk.CrosswalkError, match=r"leave out --like"):
        crosswalk.convert(source, tmp_path / "out", like=source)
    edit_config(source, lambda config: config.update(hidden_dropout=0.25))
    with pytest.raises(crosswalk.CrosswalkError) as raised:
        crosswalk.convert(native, tmp_path / "out", like=source)
    assert [(d.code, str(d.position).startswith(f"{source}/config.json:")) for d in raised.value.diagnostics] == [
        ("config/unknown-key", True)
    ]


# ---- without an original --------------------------------------------------------------------------------------------


def test_without_an_original_what_the_class_will_take_is_listed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    native = trained(original(tmp_path / "hf"), tmp_path / "native")
    command = CommandLine(capsys)
    ran = command("convert", native, tmp_path / "out", "--format", "llama")
    assert ran.code == 0
    assert (
        "exact; left to the defaults of the class: max_position_embeddings = 2048, bos_token_id = 1, eos_token_id = 2,"
        " pad_token_id = null (--like DIR takes them from the original)"
    ) in " ".join(ran.out.split())
    ran = command("check", native, "--like", tmp_path / "hf")
    assert ["config", "exact"] in [line.split() for line in ran.out.splitlines()]


@pytest.mark.parametrize("name", [name for name in FORMATS if FORMATS[name].source.config_class])
def test_what_a_class_takes_is_what_the_mapping_says(name: str) -> None:
    import transformers

    module, _, kind = str(FORMATS[name].source.config_class).rpartition(".")
    found = getattr(transformers, kind, None)
    if module != "transformers" or found is None:
        pytest.skip("a class that this transformers does not have")
    declared = FORMATS[name].source.class_defaults
    assert "unknown" not in declared.values()
    assert {key: getattr(found(), key) for key in declared} == dict(declared)


def test_parts_are_listed_by_their_place(tmp_path: Path) -> None:
    native = trained(make(tmp_path / "hf", LLAVA), tmp_path / "native")
    report = crosswalk.convert(native, tmp_path / "out", "hf", "llava")
    assert config_of(tmp_path / "out")["text_config"]["model_type"] == "mistral"
    assert report.defaults["text_config.max_position_embeddings"] == 131072
    assert report.defaults["text_config.eos_token_id"] == 2
    assert not any(key.startswith("vision_config") for key in report.defaults)


# ---- training jobs --------------------------------------------------------------------------------------------------


def blank_state(source: Path) -> dict[str, torch.Tensor]:
    plan = crosswalk.compile_plan(config_of(source))
    return {spec.name: torch.zeros(spec.shape) for spec in plan.targets}


def test_what_was_loaded_is_carried_by_default(tmp_path: Path) -> None:
    source = original(tmp_path / "hf")
    state = blank_state(source)
    loaded = crosswalk.load(source, state)
    assert loaded.source == source
    report: Any = crosswalk.save(state, loaded, tmp_path / "out")
    assert report.defaults == {}
    assert contents(tmp_path / "out") == contents(source)
    dcp.save(state, storage_writer=crosswalk.writer(tmp_path / "dcp", loaded), no_dist=True)
    assert contents(tmp_path / "dcp") == contents(source)
    streamed = dict(itertools.chain.from_iterable(crosswalk.stream(state, loaded)))
    assert streamed.keys() == tensors_of(source).keys()


def test_padding_is_cut_off_by_default(tmp_path: Path) -> None:
    source = original(tmp_path / "hf")
    config = crosswalk.import_config(config_of(source), pad={"vocab": 64})
    plan = crosswalk.compile_plan(config_of(source), pad={"vocab": 64})
    state = {spec.name: torch.zeros(spec.shape) for spec in plan.targets}
    loaded = crosswalk.load(source, state, pad={"vocab": 64})
    assert loaded.config == config
    crosswalk.save(state, loaded, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(source)
    streamed = dict(itertools.chain.from_iterable(crosswalk.stream(state, loaded)))
    assert {name: tuple(t.shape) for name, t in streamed.items()} == {
        name: tuple(t.shape) for name, t in tensors_of(source).items()
    }


def test_a_config_alone_says_what_is_lost(tmp_path: Path) -> None:
    source = original(tmp_path / "hf")
    state = blank_state(source)
    loaded = crosswalk.load(source, state)
    report: Any = crosswalk.save(state, loaded.config, tmp_path / "out", loaded.format)
    assert report.defaults == {
        "max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None,
    }  # fmt: skip
    later: Any = crosswalk.save(state, loaded.config, tmp_path / "later", loaded.format, blocking=False)
    assert later.result().defaults == report.defaults
    with pytest.raises(crosswalk.CrosswalkError, match="pass `format`"):
        crosswalk.save(state, loaded.config, tmp_path / "never")


def test_the_original_of_a_save_is_compared_with_the_model(tmp_path: Path) -> None:
    source = original(tmp_path / "hf")
    state = blank_state(source)
    loaded = crosswalk.load(source, state)
    other = original(tmp_path / "other", intermediate_size=39)
    with pytest.raises(crosswalk.CrosswalkError, match=r"`decoder.block.mlp.intermediate_size` is 37, and 39 in"):
        crosswalk.save(state, loaded, tmp_path / "out", carry_from=other)


def test_a_carried_file_that_is_gone_is_missed(tmp_path: Path) -> None:
    source = original(tmp_path / "hf")
    state = blank_state(source)
    loaded = crosswalk.load(source, state)
    os.remove(source / "tokenizer.json")
    with pytest.raises(crosswalk.CrosswalkError, match=r"the carried file `tokenizer.json` is gone"):
        crosswalk.save(state, loaded, tmp_path / "out")


def test_the_published_model_is_that_of_the_class(tmp_path: Path) -> None:
    source = original(tmp_path / "hf")
    native = trained(source, tmp_path / "native", change=False)
    crosswalk.convert(native, tmp_path / "out", like=source)
    assert torch.equal(oracles.logits(tmp_path / "out"), oracles.logits(source))
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == {"temperature": 0.6}
