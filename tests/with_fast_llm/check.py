"""Let the trainer Fast-LLM itself load what Crosswalk writes, and compare what both compute, on a CPU.

    pip install torch==2.13.0 transformers triton requests pybind11 pyyaml    # Python 3.12, as the trainer needs it
    pip install --no-deps --editable .
    PYTHONPATH=FAST-LLM python tests/with_fast_llm/check.py [NUMBER [SEED]]

First each reference conversion: the Hugging Face checkpoint is converted by the command line, loaded by the trainer's
own loader, and run by its own model. Then NUMBER native models (100) that are like those of the tests but for one to
three fields, with random weights. Prints a line for each, and fails where the trainer refuses what was written, or its
logits differ from those of ``crosswalk.reference`` by more than 1e-5.

Kernels that the trainer has on GPUs only are replaced by their definitions: Mamba's scan, and zero-centred norms.
Models with images are loaded and not run: what they compute is in ``tests/golden``.
"""

from __future__ import annotations

import argparse
import copy
import logging
import os
import random
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

os.environ["CUDA_VISIBLE_DEVICES"], os.environ["TORCHDYNAMO_DISABLE"] = "", "1"
TESTS = Path(__file__).parents[1]
sys.path += [str(TESTS / "support"), str(TESTS / "reference")]

import fast_llm.layers.common.normalization.normalization as norms  # noqa: E402
import fast_llm.layers.ssm.mamba as mamba  # noqa: E402
import fast_llm.models.auto  # noqa: E402, F401
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
import yaml  # noqa: E402
from changing import files_of  # noqa: E402
from fast_llm.engine.checkpoint.config import CheckpointLoadConfig, FastLLMCheckpointFormat  # noqa: E402
from fast_llm.models.gpt.huggingface import HuggingfaceGPTModelForCausalLM  # noqa: E402
from fast_llm.models.multimodal.huggingface import HuggingfaceMultiModalModelForCausalLM  # noqa: E402
from golden_cases import CASES  # noqa: E402
from native_bases import BASES, LAYOUT, changes, put, scope_of  # noqa: E402
from native_cases import FOLDERS, inputs, native, relative  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

import crosswalk  # noqa: E402
from crosswalk.checkpoints.native import metadata_yaml  # noqa: E402
from crosswalk.compiler.layout.natives import Native, natives_of  # noqa: E402
from crosswalk.compiler.layout.scope import Scope  # noqa: E402
from crosswalk.reference import forward  # noqa: E402
from crosswalk.runtime.errors import CrosswalkError  # noqa: E402

logging.disable(logging.CRITICAL)
MOST = 1e-5
#: Elements of the models that are drawn: larger ones take too long.
LARGEST = 3_000_000
Config = dict[str, Any]


def scan(
    u: torch.Tensor, delta: torch.Tensor, A: torch.Tensor, B: torch.Tensor, C: torch.Tensor, D: torch.Tensor,
    z: torch.Tensor, delta_bias: torch.Tensor | None = None, **_: Any,
) -> torch.Tensor:  # fmt: skip
    """The selective scan as it is defined; u, delta and z are (batch, channels, sequence)."""
    step = F.softplus(delta + (0 if delta_bias is None else delta_bias[:, None]))
    B, C = (x.repeat_interleave(u.shape[1] // x.shape[1], 1) for x in (B, C))
    state, outputs = torch.zeros(*u.shape[:2], A.shape[1]), []
    for t in range(u.shape[2]):
        now = step[:, :, t, None]
        state = torch.exp(now * A) * state + now * B[..., t] * u[:, :, t, None]
        outputs.append((state * C[..., t]).sum(-1))
    return (torch.stack(outputs, 2) + u * D[:, None]) * F.silu(z)


def layer_norm(self: Any, x: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], self.weight + self._config.zero_centered, self.bias, self._config.epsilon)


def rms_norm(self: Any, x: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(x, x.shape[-1:], self.weight + self._config.zero_centered, self._config.epsilon)


mamba.selective_scan_fn, mamba._mamba_available = scan, True
norms.LayerNormalization._forward_triton, norms.RMSNormalization._forward_triton = layer_norm, rms_norm


def differs(path: Path, tokens: torch.Tensor, logits: torch.Tensor) -> float | None:
    """How far the trainer's logits of a checkpoint are from ``logits``; none for models with images."""
    stored = yaml.safe_load((path / "metadata.yaml").read_text())
    images = stored["model"] == "multimodal"
    kind = HuggingfaceMultiModalModelForCausalLM if images else HuggingfaceGPTModelForCausalLM
    load = CheckpointLoadConfig(path=path, format=FastLLMCheckpointFormat)
    model = kind.from_pretrained(load, {("distributed", "use_cuda"): False})
    if images:
        return None
    with torch.no_grad():
        found = model(tokens[None], use_cache=False).logits[0]
    # It scales them in its losses only.
    return relative(found * stored["config"]["base_model"]["head"]["logits_scale_factor"], logits)


def drawn(
    random_: random.Random, bases: Mapping[str, tuple[str, Config]]
) -> tuple[str, str, Config, dict[str, Native]]:
    """Its changes in words, the type of the model, the complete config and its parameters."""
    while True:
        name = random_.choice(sorted(bases))
        root, config = bases[name]
        told = name
        try:
            for _ in range(random_.choice((1, 1, 2, 3))):
                scope = Scope(LAYOUT, LAYOUT.types[root], crosswalk.normalize_native(config, root=root))
                path, value = random_.choice(list(_sites(scope)))
                config = copy.deepcopy(dict(scope.config))
                put(config, path, value)
                told += f", {'.'.join(path)} = {value}"
            config = crosswalk.normalize_native(config, root=root)
            found = natives_of(Scope(LAYOUT, LAYOUT.types[root], config))
        except CrosswalkError:
            continue  # no such config
        if sum(torch.Size(parameter.shape).numel() for parameter in found.values()) < LARGEST:
            return told, root, config, found


def _sites(scope: Scope) -> Iterator[tuple[tuple[str, ...], Any]]:
    for path, inner in scope.walk():
        for name, field in inner.kind.fields.items():
            if field.group != "training" and name != "peft":
                yield from (((*path, name), value) for value in changes(field, inner.raw(name)))


def weights(found: Mapping[str, Native], seed: int) -> dict[str, torch.Tensor]:
    """Random ones of a size at which every part of the model is felt."""
    generator = torch.Generator().manual_seed(seed)
    result = {}
    for name, parameter in found.items():
        values = torch.randn(parameter.shape, generator=generator)
        if len(parameter.shape) > 1:
            result[name] = values / parameter.shape[-1] ** 0.5
        else:
            result[name] = 0.1 * values + (1 if "norm" in name and name.endswith("weight") else 0)
    return {name: result[parameter.tied_to or name] for name, parameter in found.items()}


def stored(path: Path) -> Config:
    """The complete native config of a checkpoint."""
    metadata = yaml.safe_load((path / "metadata.yaml").read_text())
    root = {"gpt": "base_model", "multimodal": "multimodal_model"}[metadata["model"]]
    return crosswalk.normalize_native(metadata["config"]["base_model"], root=root)


def converted(home: Path) -> Iterator[tuple[str, Path, torch.Tensor, torch.Tensor]]:
    for name, case in CASES.items():
        if case.has("hf_config.json") and case.has("hf.safetensors"):
            source = files_of(case, home / f"{name}-hf")
            crosswalk.convert(source, home / name)
            config, parameters = stored(home / name), native(name)[1]
            tokens, _ = inputs({**config, "vision_encoder": None})
            yield name, home / name, tokens, forward(config, parameters, tokens).logits


def changed(home: Path, number: int, seed: int) -> Iterator[tuple[str, Path, torch.Tensor, torch.Tensor]]:
    bases = {name: (scope_of(*base).kind.name, base[1]) for name, base in BASES.items()}
    bases |= {name: ("base_model", native(name)[0]) for name in FOLDERS if name not in bases}
    bases = {name: base for name, base in bases.items() if base[1].get("vision_encoder") is None}
    random_, made = random.Random(seed), 0
    while made < number:
        told, root, config, found = drawn(random_, bases)
        parameters = weights(found, seed + made)
        tokens, _ = inputs({**config, "vision_encoder": None})
        try:
            logits = forward(config, parameters, tokens).logits
        except CrosswalkError:
            continue  # not a model: a gated norm that nothing gates
        path = home / f"drawn-{made}"
        path.mkdir()
        own = {f"{name}/weights": parameters[name] for name, native in found.items() if native.tied_to is None}
        save_file(own, path / "model_0.safetensors")
        where = dict.fromkeys(own, "model_0.safetensors")
        (path / "metadata.yaml").write_bytes(metadata_yaml(LAYOUT, config, root, where, {}))
        made += 1
        yield told, path, tokens, logits


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("number", type=int, nargs="?", default=100)
    parser.add_argument("seed", type=int, nargs="?", default=0)
    options = parser.parse_args()
    wrong = 0
    with tempfile.TemporaryDirectory() as home:
        for models in (converted(Path(home)), changed(Path(home), options.number, options.seed)):
            for name, path, tokens, logits in models:
                try:
                    difference = differs(path, tokens, logits)
                except Exception as error:
                    print(f"WRONG {name}: {type(error).__name__}: {error}")
                    wrong += 1
                    continue
                good = difference is None or difference < MOST
                wrong += not good
                said = "loaded" if difference is None else f"{difference:.1e}"
                print(f"{said if good else f'WRONG {said}'}  {name}", flush=True)
    print(f"{wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
