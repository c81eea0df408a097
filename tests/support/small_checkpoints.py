"""Small real checkpoints to break, and the command line called as a function."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import oracles
import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file

from crosswalk.cli.build import command as compile_command
from crosswalk.cli.commands import cli, run_command
from crosswalk.jobs.formats import catalog

Tensors = dict[str, torch.Tensor]
Damage = Callable[[Path], object]

#: Sizes that are all different, so that no two can be mixed up.
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 71,
    "hidden_size": 30,
    "intermediate_size": 37,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 14,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 23456.0},
    "max_position_embeddings": 513,
    "bos_token_id": 3,
    "eos_token_id": 5,
    "dtype": "float32",
}
MIXTRAL: dict[str, Any] = {
    key: value for key, value in LLAMA.items() if key not in ("attention_bias", "mlp_bias")
} | {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "num_local_experts": 8,
    "num_experts_per_tok": 3,
    "num_hidden_layers": 2,
    "sliding_window": None,
}  # fmt: skip
LLAVA: dict[str, Any] = {
    "architectures": ["LlavaForConditionalGeneration"],
    "model_type": "llava",
    "image_token_index": 69,
    "projector_hidden_act": "gelu_pytorch_tanh",
    "multimodal_projector_bias": True,
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "full",
    "text_config": {key: value for key, value in LLAMA.items() if key not in ("architectures", "dtype")},
    "vision_config": {
        "model_type": "pixtral",
        "hidden_size": 36,
        "intermediate_size": 41,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "head_dim": 12,
        "num_channels": 3,
        "patch_size": 5,
        "image_size": 40,
        "hidden_act": "gelu_pytorch_tanh",
        "attention_dropout": 0.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
}


@functools.cache
def _made(text: str, dtype: str) -> Path:
    config = json.loads(text)
    directory = Path(_folder().name) / f"{config['model_type']}-{abs(hash((text, dtype)))}"
    oracles.make_checkpoint(directory, config, dtype=dtype)
    return directory


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="checkpoints-")


def make(directory: Path, base: Mapping[str, Any] = LLAMA, dtype: str = "float32", **changes: Any) -> Path:
    """A checkpoint of the real class, every tensor random, at ``directory``. Made once, copied from then on."""
    shutil.copytree(_made(json.dumps({**base, **changes}, sort_keys=True), dtype), directory)
    return directory


def tensors_of(directory: Path) -> Tensors:
    """All tensors of the safetensors files in a directory, by their stored names."""
    found: Tensors = {}
    for file in sorted(directory.glob("*.safetensors")):
        found |= load_file(file)
    return found


def edit_tensors(directory: Path, edit: Callable[[Tensors], object]) -> None:
    """Change the tensors of a checkpoint of one file in place."""
    (file,) = directory.glob("*.safetensors")
    tensors = load_file(file)
    edit(tensors)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, file, {"format": "pt"})


def config_of(directory: Path) -> dict[str, Any]:
    config = json.loads((directory / "config.json").read_text())
    assert isinstance(config, dict)
    return config


def edit_config(directory: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    config = config_of(directory)
    edit(config)
    (directory / "config.json").write_text(json.dumps(config, indent=2))


def shard(directory: Path, count: int = 3) -> dict[str, str]:
    """Turn a checkpoint of one file into ``count`` shards with an index; its weight map."""
    file = directory / "model.safetensors"
    tensors = load_file(file)
    file.unlink()
    weight_map = {}
    for number in range(count):
        names = sorted(tensors)[number::count]
        name = f"model-{number + 1:05}-of-{count:05}.safetensors"
        save_file({key: tensors[key] for key in names}, directory / name, {"format": "pt"})
        weight_map |= dict.fromkeys(names, name)
    write_index(directory, weight_map)
    return weight_map


def write_index(directory: Path, weight_map: Mapping[str, str]) -> None:
    index = {"metadata": {}, "weight_map": dict(weight_map)}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def contents(directory: Path) -> dict[str, bytes]:
    """Every file below a directory with its bytes."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@dataclass(frozen=True)
class Ran:
    """What a command printed, and its exit code. ``problems`` are the paragraphs on stderr, one each."""

    code: int
    out: str
    err: str

    @property
    def problems(self) -> list[str]:
        return [paragraph for paragraph in self.err.strip().split("\n\n") if paragraph]


class CommandLine:
    """Runs commands in this process, which has the folders of mappings afterwards that it had before."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *arguments: object) -> Ran:
        return self._run(cli, arguments)

    def compile(self, *arguments: object) -> Ran:
        return self._run(compile_command, arguments)

    def _run(self, command: Any, arguments: tuple[object, ...]) -> Ran:
        self.capsys.readouterr()
        before = dict(os.environ)
        with patch.dict(os.environ):
            code = run_command(command, [str(argument) for argument in arguments])
            changed = dict(os.environ) != before
        if changed:
            catalog.cache_clear()
        out, err = self.capsys.readouterr()
        return Ran(code, out, err)


def assert_refused(ran: Ran, *expected: str, code: int = 1) -> None:
    """One problem for each expected text, in any order, and nothing else on either stream. ``[code]`` is no text of its
    own: one of the problems has that code."""
    assert ran.code == code, ran
    assert ran.out == ""
    assert "Traceback" not in ran.err
    texts = [text for text in expected if not re.fullmatch(r"\[[a-z]+/[\w-]+\]", text)]
    for text in texts:
        assert sum(text in problem for problem in ran.problems) == 1, f"{text!r} in\n{ran.err}"
    assert len(ran.problems) == len(texts), ran.err
    assert all(text in ran.err for text in expected), ran.err


@contextlib.contextmanager
def nothing_written(directory: Path) -> Iterator[None]:
    before = contents(directory)
    yield
    assert contents(directory).keys() == before.keys()
    assert contents(directory) == before


def refuse(crosswalk: CommandLine, source: Path, *expected: str, arguments: tuple[str, ...] = ()) -> None:
    """Neither ``check`` nor ``convert`` accept the source, for the same reasons, and nothing is left behind."""
    for command in (("check", source), ("convert", source, source.with_name("out"))):
        with nothing_written(source.parent):
            assert_refused(crosswalk(*command, *arguments), *expected)


def cut(name: str, size: int) -> Damage:
    return lambda path: os.truncate(path / name, size)


def native(directory: Path, crosswalk: CommandLine) -> Path:
    assert crosswalk("convert", make(directory / "source"), directory / "native").code == 0
    return directory / "native"


def metadata(*keys: str, **changes: Any) -> Damage:
    """Change entries of the mapping at ``keys``; one that becomes ``...`` is removed."""

    def damage(path: Path) -> None:
        yaml = YAML(typ="safe", pure=True)
        yaml.default_flow_style = False
        document = target = yaml.load((path / "metadata.yaml").read_text())
        for key in keys:
            target = target[key]
        for key, value in changes.items():
            target[key] = value
            if value is ...:
                del target[key]
        with (path / "metadata.yaml").open("w") as stream:
            yaml.dump(document, stream)

    return damage


#: Where the parts of a native config stand in its metadata.
BASE = ("config", "base_model")
MIXER = (*BASE, "decoder", "block", "mixer")


def lines(text: str) -> list[list[str]]:
    """The rows of printed tables, as words; what is indented belongs to the row above."""
    return [line.split() for line in text.replace("\n    ", "  ").splitlines() if line.strip()]
