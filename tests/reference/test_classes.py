"""The reference on a converted checkpoint computes what the class of transformers computes on the original."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import oracles
import pytest
import torch
import transformers
from golden_cases import cases, load_tensors
from native_cases import relative
from real_configs import CONFIGS, GPT2

import crosswalk
from crosswalk.compiler.catalog import Catalog
from crosswalk.compiler.config.read import import_config
from crosswalk.jobs.options import Options
from crosswalk.jobs.plans import plan_for
from crosswalk.reference import ForwardOutput, forward
from crosswalk.runtime import execute

TOLERANCE = 1e-5
DOCS = Path(__file__).parents[2] / "docs"


def _inputs(config: dict[str, Any]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """What ``oracles.logits`` gives to the class."""
    tokens = (torch.arange(17) * 7 + 3) % (config.get("text_config", config)["vocab_size"] - 2)
    if "vision_config" not in config:
        return tokens, []
    size = config["vision_config"]["patch_size"]
    tokens[1:7] = config["image_token_index"]
    return tokens, [torch.randn(3, 2 * size, 3 * size, generator=torch.Generator().manual_seed(1))]


def _reference(directory: Path) -> ForwardOutput:
    config = json.loads((directory / "config.json").read_text())
    plan = crosswalk.compile_plan(config, to="fast_llm")
    parameters = dict(execute(plan, load_tensors(directory / "model.safetensors")))
    return forward(crosswalk.import_config(config), parameters, *_inputs(config))


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_the_class(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    if not hasattr(transformers, config["architectures"][0]):
        pytest.skip(f"this transformers has no {config['architectures'][0]}")
    oracles.make_checkpoint(tmp_path, config)
    assert relative(_reference(tmp_path).logits, oracles.logits(tmp_path)[0]) < TOLERANCE


#: Files in the dialect of transformers 5, which transformers 4 misreads.
_GOLDEN = [
    case
    for case in cases("hf_config.json", "hf.safetensors", "trainer.safetensors")
    if oracles.available(case.format) and oracles.TRANSFORMERS_MAJOR >= 5
]


@pytest.mark.parametrize("case", _GOLDEN, ids=[case.name for case in _GOLDEN])
def test_logits_of_the_references_checkpoints_are_those_of_the_class(case: Any, tmp_path: Path) -> None:
    """The same files as the trainer read: the class, the trainer and this agree."""
    (tmp_path / "config.json").write_text(json.dumps(case.hf_config()))
    (tmp_path / "model.safetensors").write_bytes((case.path / "hf.safetensors").read_bytes())
    assert relative(_reference(tmp_path).logits, oracles.logits(tmp_path)[0]) < TOLERANCE


@pytest.mark.parametrize("name", GPT2)
def test_the_example_of_the_guide_is_the_same_model(name: str, tmp_path: Path) -> None:
    """GPT-2: learned positions, layer norms, biases, the tanh form of gelu."""
    oracles.make_checkpoint(tmp_path, GPT2[name])
    mapping = Catalog().compiled("gpt2")
    config = json.loads((tmp_path / "config.json").read_text())
    tensors = load_tensors(tmp_path / "model.safetensors")
    parameters = dict(execute(plan_for(mapping, config, Options()), tensors))
    tokens = (torch.arange(11) * 7 + 3) % config["vocab_size"]
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = model(tokens[None]).logits[0]
    assert relative(forward(import_config(mapping, config)[0], parameters, tokens).logits, expected) < TOLERANCE
