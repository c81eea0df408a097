"""What the real transformers classes say: tensor names and shapes on disk, tie state, checkpoints and logits.

Nothing here knows a mapping. Classes that transformers does not have are in ``custom_oracles.py``.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import custom_oracles
import torch
import transformers
from safetensors import safe_open
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

Shapes = dict[str, tuple[int, ...]]

#: Formats whose class transformers has, with the name of the class.
REAL_CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "gemma4": "Gemma4ForCausalLM",
    "llava": "LlavaForConditionalGeneration",
}
TRANSFORMERS_MAJOR = int(transformers.__version__.split(".")[0])


def available(format: str) -> bool:
    """Whether the installed transformers has the class of the format."""
    return format in REAL_CLASSES and hasattr(transformers, REAL_CLASSES[format])


def real_config(config: Mapping[str, Any]) -> Any:
    """The config as its own class reads it; raises whatever the class raises for a config that it refuses."""
    return CONFIG_MAPPING[config["model_type"]].from_dict(copy.deepcopy(dict(config)))


def as_saved(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json that the class writes after reading the given one: its defaults filled in, its own dialect."""
    with tempfile.TemporaryDirectory() as directory:
        real_config(config).save_pretrained(directory)
        saved = json.loads((Path(directory) / "config.json").read_text())
    assert isinstance(saved, dict)
    return saved


def real_model(config: Mapping[str, Any], device: str) -> Any:
    """An instance of the class that the config names, not loaded from anywhere."""
    with torch.device(device):
        return getattr(transformers, config["architectures"][0])(real_config(config)).eval()


def names_and_shapes(config: Mapping[str, Any], in_memory: bool = False) -> Shapes:
    """Every tensor that ``save_pretrained`` of the config's class writes, by its name on disk; ``in_memory``: by the
    names of the object, as transformers 5 saves with ``save_original_format=False``.

    A tied ``lm_head.weight`` is not among them. The custom classes are described by ``custom_oracles``.
    """
    custom = custom_oracles.BY_MODEL_TYPE.get(config["model_type"])
    if custom is not None:
        return custom(config)
    if TRANSFORMERS_MAJOR < 5:
        return _saved_names_and_shapes(config)
    # What save_pretrained does between the state dict and the file: transformers 5 fuses experts and moves prefixes in
    # memory, and undoes both when it saves.
    from transformers.core_model_loading import revert_weight_conversion
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    model = real_model(config, "meta")
    state = remove_tied_weights_from_state_dict(model.state_dict(), model)
    if not in_memory:
        state = revert_weight_conversion(model, state)
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _saved_names_and_shapes(config: Mapping[str, Any]) -> Shapes:
    with tempfile.TemporaryDirectory() as directory:
        real_model(config, "cpu").save_pretrained(directory)
        return header(Path(directory) / "model.safetensors")


def header(path: Path) -> Shapes:
    """Names and shapes in one safetensors file."""
    with safe_open(path, "pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def make_checkpoint(directory: Path, config: Mapping[str, Any], seed: int = 0, dtype: str = "float32") -> None:
    """Save a real model with every parameter and saved buffer random: norms, biases and scales too, so that no two
    tensors can be mistaken for each other."""
    model = real_model(config, "cpu").to(getattr(torch, dtype))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            centre = 1.0 if tensor.dim() == 1 and not name.endswith("bias") else 0.0
            tensor.copy_(centre + 0.2 * torch.randn(tensor.shape, generator=generator))
    model.save_pretrained(directory)


def logits(directory: Path, tokens: int = 17) -> torch.Tensor:
    """Logits (1, tokens, vocab) in fp32 of the checkpoint as ``from_pretrained`` loads it, for fixed inputs.

    Fails when the class misses a tensor or finds one that it does not know. A llava sees one image as well.
    """
    config = transformers.AutoConfig.from_pretrained(directory)
    # Plain loops in place of kernels: those of experts want aligned sizes.
    kernels = {"attn_implementation": "eager"}
    if TRANSFORMERS_MAJOR >= 5:
        kernels["experts_implementation"] = "eager"
    model, info = getattr(transformers, config.architectures[0]).from_pretrained(
        directory, dtype=torch.float32, output_loading_info=True, **kernels
    )
    assert not info["missing_keys"], info["missing_keys"]
    assert not info["unexpected_keys"], info["unexpected_keys"]
    assert not info["mismatched_keys"], info["mismatched_keys"]
    text = config.get_text_config()
    ids = (torch.arange(tokens) * 7 + 3) % (text.vocab_size - 2)
    inputs: dict[str, Any] = {"input_ids": ids[None], "use_cache": False}
    vision = getattr(config, "vision_config", None)
    if vision is not None:
        height, width = 2, 3  # in patches
        ids[1 : 1 + height * width] = config.image_token_index
        generator = torch.Generator().manual_seed(1)
        size = (height * vision.patch_size, width * vision.patch_size)
        inputs["pixel_values"] = torch.randn(1, vision.num_channels, *size, generator=generator)
        inputs["image_sizes"] = torch.tensor([size])
    with torch.no_grad():
        found = model.eval()(**inputs).logits
    assert isinstance(found, torch.Tensor)
    return found
