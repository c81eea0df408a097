"""Configs in the forms that Megatron has, by its own parser of arguments and its own YAML, on a CPU.

    pip install --no-deps megatron-core==0.19.2 triton einops omegaconf antlr4-python3-runtime==4.9.3
    python tests/with_megatron/configs.py

For each model: what a folder says of it as arguments, and as ``run_config.yaml``, must give Megatron the same
TransformerConfig and GPTModelConfig, field by field. All arguments of its parser with these in place, pickled, and that
TransformerConfig as its own code dumps it, must be read as the config that they were made of.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
import tempfile
import typing
from pathlib import Path
from typing import Any

if not hasattr(typing, "override"):  # of Python 3.12
    typing.override = lambda function: function  # type: ignore[attr-defined]

import torch
import transformers
import yaml
from megatron.training import checkpointing, global_vars
from megatron.training.argument_utils import gpt_config_from_args
from megatron.training.arguments import add_megatron_arguments
from megatron.training.config.instantiate_utils import instantiate
from megatron.training.config.yaml_utils import safe_yaml_representers
from models import CASES
from originals import original

import crosswalk

CONFIG = "megatron.core.transformer.transformer_config"
#: What no file of arguments has, since Megatron-Bridge's class does it.
NO_ARGUMENTS = ("gemma", "gemma, not tied")


def parsed(given: dict[str, Any]) -> argparse.Namespace:
    """All arguments of Megatron's parser, with the given ones."""
    found = add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False)).parse_args([])
    settings = {"params_dtype": torch.float32, "apply_rope_fusion": False, "gradient_accumulation_fusion": False}
    for key, value in {**given, **settings}.items():
        setattr(found, key, tuple(value) if key == "window_size" and value else value)
    return found


def as_run_config(config: Any) -> str:
    """A GPTModelConfig as ``run_config.yaml`` has one, by Megatron's own code."""
    fields = {f.name: getattr(config.transformer, f.name) for f in dataclasses.fields(config.transformer)}
    fields |= {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name != "transformer"}
    extra = {key: value for key, value in vars(config.transformer).items() if key.startswith("yarn_")}
    with safe_yaml_representers():
        text: str = yaml.safe_dump({"model": {"_target_": "megatron.bridge.models.gpt_provider.GPTModelProvider",
                                              **fields, **extra}})  # fmt: skip
    return text


def check(name: str, folder: Path) -> None:
    source = original(*CASES[name])
    source.save_pretrained(folder / "hf")
    crosswalk.convert(folder / "hf", folder / "run", to="megatron")
    release = folder / "run" / "release"
    common = torch.load(release / "common.pt", weights_only=False)
    said = yaml.safe_load((release / "run_config.yaml").read_text())["model"]
    if name in NO_ARGUMENTS:
        assert "args" not in common
        assert said["_target_"].endswith("GemmaModelProvider")
        return
    arguments = parsed(vars(common["args"]))
    config = gpt_config_from_args(arguments)
    fields = {f.name for f in dataclasses.fields(config.transformer)}
    kind = type(config.transformer).__name__
    one = {key: value for key, value in said.items() if key in fields} | {
        "apply_rope_fusion": False, "gradient_accumulation_fusion": False,
    }  # fmt: skip
    found = instantiate({"_target_": f"{CONFIG}.{kind}", **one})
    for key in said.keys() - {"_target_"}:
        theirs = getattr(config, key)
        mine = getattr(found, key) if key in fields else said[key]
        theirs = list(theirs) if isinstance(theirs, tuple) else theirs  # there is none in YAML
        assert theirs == mine or key.startswith("yarn_mscale"), (name, key, theirs, mine)
    read_again(folder, arguments, config)
    loaded_by_megatron(folder / "run", common["args"])


def read_again(folder: Path, arguments: argparse.Namespace, config: Any) -> None:
    """What Megatron makes of the forms is the config that they were made of."""
    wanted = crosswalk.import_config(json.loads((folder / "hf" / "config.json").read_text()), to="megatron")
    torch.save({"args": arguments, "iteration": 7}, folder / "common.pt")
    (folder / "run_config.yaml").write_text(as_run_config(config))
    for file in ("common.pt", "run_config.yaml"):
        out = folder / f"from-{file}"
        (folder / "run" / "release" / "crosswalk.yaml").unlink(missing_ok=True)
        report = crosswalk.convert(folder / "run", out, native_config=folder / file, format=wanted_format(folder))
        again = crosswalk.import_config(json.loads((out / "config.json").read_text()), to="megatron")
        one, other = (crosswalk.export_config(native, f"megatron_{report.format}") for native in (again, wanted))
        assert one == other, (file, [key for key, value in other.items() if one.get(key) != value], report.notes)


def wanted_format(folder: Path) -> str:
    return str(json.loads((folder / "hf" / "config.json").read_text())["model_type"])


def loaded_by_megatron(run: Path, wanted: argparse.Namespace) -> None:
    """``--use-checkpoint-args``: what Megatron takes from the folder."""
    arguments = parsed({"load": str(run), "ckpt_format": "torch_dist", "use_dist_ckpt": True, "num_layers": None})
    global_vars.set_args(arguments)
    with contextlib.redirect_stdout(None):
        found, there = checkpointing.load_args_from_checkpoint(arguments)
    for key in ("num_layers", "hidden_size", "padded_vocab_size", "swiglu", "num_experts", "moe_layer_freq"):
        assert getattr(found, key) == getattr(there, key) == getattr(wanted, key), key


def main() -> int:
    transformers.utils.logging.disable_progress_bar()
    only = sys.argv[1] if len(sys.argv) > 1 else ""
    for name in (case for case in CASES if only in case):
        with tempfile.TemporaryDirectory() as folder:
            check(name, Path(folder))
        print(f"{name:45} the same config", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
