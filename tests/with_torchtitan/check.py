"""Convert random models of transformers into checkpoints of torchtitan and compare what both compute, on a CPU.

    pip install torch==2.13.0 transformers
    pip install --no-deps torchtitan==0.3.0 triton==3.7.0 spmd_types==0.2.3 tyro einops torchdata datasets tokenizers \\
        torch_checkpointing docstring_parser typeguard shtab
    python tests/with_torchtitan/check.py

Each model is saved by its class of transformers, converted into a folder by ``crosswalk.convert``, loaded from there
into the model of torchtitan by torch's own ``dcp.load``, and run beside the original, by hand and by
``crosswalk.compare``. torchtitan's adapter must make of
its state dict the tensors that transformers saved. What ``dcp.save`` writes of it is converted back, and its tensors
are compared bit for bit. Prints the largest difference of two logits of each, and what the adapter does not do; fails
if logits differ by more than 1e-5.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

warnings.simplefilter("ignore")
logging.disable(logging.WARNING)

import torch  # noqa: E402
import torch.distributed.checkpoint as dcp  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from torchtitan.models.deepseek_v3 import DeepSeekV3StateDictAdapter  # noqa: E402
from torchtitan.models.gpt_oss import GptOssStateDictAdapter  # noqa: E402
from torchtitan.models.llama3 import Llama3StateDictAdapter  # noqa: E402
from torchtitan.models.qwen3.state_dict_adapter import Qwen3StateDictAdapter  # noqa: E402

import crosswalk  # noqa: E402
from crosswalk.models.titan import logits  # noqa: E402
from crosswalk.models.titan_configs import config_of  # noqa: E402

sys.path.append(str(Path(__file__).parents[1] / "support"))
from originals import LATENT, SIZES  # noqa: E402
from originals import original as random_original  # noqa: E402

MOST = 1e-5
ADAPTERS = {
    "llama3": Llama3StateDictAdapter,
    "qwen3": Qwen3StateDictAdapter,
    "deepseek_v3": DeepSeekV3StateDictAdapter,
    "gpt_oss": GptOssStateDictAdapter,
}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 4.0, "low_freq_factor": 1.25, "high_freq_factor": 3.5,
          "original_max_position_embeddings": 32}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "beta_fast": 30.0, "beta_slow": 1.5,
        "original_max_position_embeddings": 16}  # fmt: skip
MIXED = {"num_experts": 5, "num_experts_per_tok": 3, "moe_intermediate_size": 22, "norm_topk_prob": True, "head_dim": 8}
SINKS = {"num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": 4, "head_dim": 10}
#: Name -> class of transformers, its config, and the type of the layout. Odd ones are fused in torchtitan.
CASES: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama3": ("Llama", {}, "llama3"),
    "llama3, tied, llama3 rotary, heads of 14": (
        "Llama", {"tie_word_embeddings": True, "rope_parameters": LLAMA3, "head_dim": 14}, "llama3",
    ),
    "llama3, a group for each head": ("Llama", {"num_key_value_heads": 6}, "llama3"),
    "llama3, yarn": ("Llama", {"rope_parameters": {**YARN, "attention_factor": 1.0}}, "llama3"),
    "qwen3": ("Qwen3", {"head_dim": 10}, "qwen3"),
    "qwen3, tied": ("Qwen3", {"head_dim": 10, "tie_word_embeddings": True}, "qwen3"),
    "qwen3, yarn": (
        "Qwen3", {"head_dim": 10, "rope_parameters": {**YARN, "attention_factor": 1.0, "truncate": False}}, "qwen3",
    ),
    "qwen3_moe": ("Qwen3Moe", MIXED, "qwen3"),
    "qwen3_moe, not normalised": ("Qwen3Moe", {**MIXED, "norm_topk_prob": False}, "qwen3"),
    "qwen3_moe, some layers dense": ("Qwen3Moe", {**MIXED, "mlp_only_layers": [1]}, "qwen3"),
    "deepseek_v3": ("DeepseekV3", LATENT, "deepseek_v3"),
    "deepseek_v3, yarn": (
        "DeepseekV3", {**LATENT, "rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.7}}, "deepseek_v3",
    ),
    "deepseek_v3, queries not compressed, one group": (
        "DeepseekV3", {**LATENT, "q_lora_rank": None, "n_group": 1, "topk_group": 1, "n_shared_experts": 1},
        "deepseek_v3",
    ),
    "deepseek_v3, all layers dense": ("DeepseekV3", {**LATENT, "first_k_dense_replace": 3}, "deepseek_v3"),
    "gpt_oss": ("GptOss", {**SINKS, "rope_parameters": {**YARN, "truncate": False}}, "gpt_oss"),
    "gpt_oss, window on one layer": (
        "GptOss",
        {**SINKS, "layer_types": ["full_attention", "full_attention", "sliding_attention"]},
        "gpt_oss",
    ),
}  # fmt: skip


def check(name: str, folder: Path) -> tuple[float, str]:
    """The largest difference of two logits, and what the adapter does not make. Raises ``AssertionError`` if a tensor
    does not come back."""
    kind = CASES[name][2]
    original = random_original(*CASES[name][:2])
    original.save_pretrained(folder / "hf")
    crosswalk.convert(folder / "hf", folder / "titan", to="torchtitan")
    native = crosswalk.import_config(
        original.config.to_dict() | {"architectures": [type(original).__name__]}, to="torchtitan"
    )
    fuse = bool(list(CASES).index(name) % 2)
    config = config_of(native, kind, fuse)
    model = config.build().eval()
    state = model.state_dict()
    dcp.load(state, checkpoint_id=folder / "titan", no_dist=True)
    model.load_state_dict(state)
    stock(config, folder / "titan")
    ids = torch.randint(0, SIZES["vocab_size"], (2, 23), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        difference = float((logits(model, ids)[0] - original(ids).logits).abs().max())
    compared = crosswalk.compare(folder / "titan", folder / "hf", tokens=23, tolerance=MOST)
    assert compared.same, compared
    assert compared.by == f"`{kind}` of torchtitan", compared
    before = load_file(folder / "hf" / "model.safetensors")
    made = ADAPTERS[kind](config, None).to_hf(dict(model.state_dict()))
    assert made.keys() <= before.keys(), made.keys() - before.keys()
    assert all(torch.equal(value, before[key]) for key, value in made.items())
    missing = sorted({key.rpartition("experts.")[2] for key in before.keys() - made.keys()})
    dcp.save(model.state_dict(), checkpoint_id=folder / "saved", no_dist=True)
    crosswalk.convert(folder / "saved", folder / "back", layout="torchtitan", like=folder / "hf")
    after = load_file(folder / "back" / "model.safetensors")
    assert before.keys() == after.keys(), before.keys() ^ after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    return difference, f"  not by the adapter: {', '.join(missing)}" if missing else ""


def stock(config: Any, folder: Path) -> None:
    """Load the folder into the same model with balanced routers, as torchtitan builds them unless told otherwise."""
    layers = [layer for layer in config.layers if layer.moe is not None]
    before = [layer.moe.load_balance_coeff for layer in layers]
    for layer in layers:
        layer.moe.load_balance_coeff = 0.001
    state = config.build().state_dict()
    for value in state.values():
        value.fill_(7)
    dcp.load(state, checkpoint_id=folder, no_dist=True)
    found = [value for key, value in state.items() if key.endswith("expert_bias_E")]
    assert len(found) >= len(layers)
    assert any(before) or not any(value.any() for value in found)
    for layer, value in zip(layers, before, strict=True):
        layer.moe.load_balance_coeff = value


def main() -> int:
    failed = False
    transformers.utils.logging.disable_progress_bar()
    for name in CASES:
        with tempfile.TemporaryDirectory() as folder:
            difference, said = check(name, Path(folder))
        failed |= not difference <= MOST
        print(f"{name:48} {difference:.1e}{said}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
