"""Random models of transformers, and GPTModels of megatron-core of the same configs, built on a CPU.

Every script here imports it first: it needs megatron-core, which is no part of the tests that run with every change.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

warnings.simplefilter("ignore")
logging.disable(logging.WARNING)

import torch  # noqa: E402
from megatron.core import parallel_state  # noqa: E402
from megatron.core.activations import fast_gelu  # noqa: E402
from megatron.core.fusions.fused_bias_geglu import quick_gelu  # noqa: E402
from megatron.core.models.gpt import GPTModel  # noqa: E402
from megatron.core.models.gpt.gpt_layer_specs import (  # noqa: E402
    get_gpt_decoder_block_spec,
    get_gpt_mtp_block_spec,
)
from megatron.core.tensor_parallel.random import CudaRNGStatesTracker  # noqa: E402
from megatron.core.transformer import dot_product_attention  # noqa: E402
from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig  # noqa: E402
from torch.overrides import TorchFunctionMode  # noqa: E402

import crosswalk  # noqa: E402

sys.path.append(str(Path(__file__).parents[1] / "support"))
import originals  # noqa: E402

FUNCTIONS = {
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "quick_gelu": quick_gelu,
    "fast_gelu": fast_gelu,
}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 40.0, "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 0.7,
        "mscale_all_dim": 0.9, "original_max_position_embeddings": 16}  # fmt: skip
EXPERTS = {"n_routed_experts": 8, "moe_intermediate_size": 14, "num_experts_per_tok": 4, "first_k_dense_replace": 1,
           "n_group": 4, "topk_group": 2, "num_nextn_predict_layers": 0}  # fmt: skip
LATENT = {**originals.LATENT, **EXPERTS}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama, tied, llama3 rotary, heads of 14": (
        "Llama",
        {"tie_word_embeddings": True, "rope_parameters": LLAMA3, "head_dim": 14},
    ),
    "gemma": ("Gemma", {"head_dim": 10, "tie_word_embeddings": True}),
    "gemma, not tied": ("Gemma", {"num_key_value_heads": 1, "head_dim": 8, "tie_word_embeddings": False}),
    "llama, all biases, linear rotary": (
        "Llama",
        {
            "attention_bias": True,
            "mlp_bias": True,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
        },
    ),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral, window": ("Mistral", {"sliding_window": 7}),
    "qwen2": ("Qwen2", {}),
    "qwen2, window on some layers": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", {"head_dim": 10}),
    "qwen3, yarn": ("Qwen3", {"head_dim": 10, "rope_parameters": YARN}),
    "mixtral": ("Mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2}),
    "qwen3_moe": (
        "Qwen3Moe",
        {
            "num_experts": 5,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 22,
            "norm_topk_prob": True,
            "head_dim": 8,
        },
    ),
    "qwen3_moe, not normalised": (
        "Qwen3Moe",
        {"num_experts": 5, "num_experts_per_tok": 3, "moe_intermediate_size": 22, "norm_topk_prob": False},
    ),
    "qwen3_moe, some layers dense, window": (
        "Qwen3Moe",
        {
            "num_experts": 5,
            "num_experts_per_tok": 2,
            "mlp_only_layers": [1],
            "use_sliding_window": True,
            "sliding_window": 6,
            "moe_intermediate_size": 22,
        },
    ),
    "gpt_oss": (
        "GptOss",
        {"num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": 4, "head_dim": 10},
    ),
    "glm4_moe": ("Glm4Moe", {**EXPERTS, "use_qk_norm": True, "attention_bias": True, "head_dim": 12}),
    "glm4_moe, two shared experts": ("Glm4Moe", {**EXPERTS, "n_group": 1, "topk_group": 1, "n_shared_experts": 2}),
    "deepseek_v3": ("DeepseekV3", LATENT),
    "deepseek_v3, yarn": ("DeepseekV3", {**LATENT, "rope_parameters": YARN}),
}


def gpt(native: dict[str, Any], **settings: Any) -> GPTModel:
    """What this rank has of the GPTModel of a config of the layout, built from fields of the same names; ``settings``
    of the run take their place."""
    rope = native["rope"]
    kind = MLATransformerConfig if native["multi_latent_attention"] else TransformerConfig
    said = crosswalk.native_forms(native, layout="megatron")["run_config.yaml"]["model"]
    fields = {key: value for key, value in said.items() if key in kind.__dataclass_fields__}
    fields |= {
        "activation_func": FUNCTIONS[native["activation_func"]],
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "moe_token_dispatcher_type": "allgather",
        "moe_grouped_gemm": False,
        "use_cpu_initialization": True,
        "perform_initialization": False,
        "gradient_accumulation_fusion": False,
        "layernorm_zero_centered_gamma": False,  # norms of torch cannot: see ``add_one``
    } | settings
    config = kind(**fields)
    for key in rope:
        if key.startswith("yarn_"):  # no fields of the class, which looks for them nevertheless
            setattr(config, key, rope[key])
    last = parallel_state.is_pipeline_last_stage()
    spec = get_gpt_decoder_block_spec(config, use_transformer_engine=False)
    further = get_gpt_mtp_block_spec(config, spec, False) if config.mtp_num_layers and last else None
    model = GPTModel(
        config,
        spec,
        native["vocab_size"],
        64,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=last,
        share_embeddings_and_output_weights=native["share_embeddings_and_output_weights"],
        mtp_block_spec=further,
        **{key: rope[key] for key in ("position_embedding_type", "rotary_percent", "rotary_base", "rope_scaling")},
        rope_scaling_factor=rope["rope_scaling_factor"],
        seq_len_interpolation_factor=rope["seq_len_interpolation_factor"],
    ).eval()
    if native["layernorm_zero_centered_gamma"]:
        add_one(model)
    if native["scale_embeddings"] and model.pre_process:  # as Megatron-Bridge's class for Gemma does
        model.embedding.register_forward_hook(lambda module, given, found: found * config.hidden_size**0.5)
    return model


def add_one(model: GPTModel) -> None:
    """Let norms compute with their weights and one, as those of Transformer Engine do."""
    for module in model.modules():
        if isinstance(module, torch.nn.RMSNorm):
            module.forward = lambda x, of=module: torch.nn.functional.rms_norm(
                x, of.normalized_shape, of.weight + 1, of.eps
            )


class Here(TorchFunctionMode):
    """What asks for a device is made on the CPU."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = dict(kwargs or {})
        if options.get("device") == "cuda":
            options["device"] = "cpu"
        return function(*args, **options)


def run_on_a_cpu(**sizes: int) -> None:
    """Ranks of the parallelisms of ``sizes`` without random states of devices, of which dropout would fork one; and let
    the attention of the spec ``local`` ignore the two arguments of latent attention, which it does not know."""
    parallel_state.initialize_model_parallel(**sizes)
    CudaRNGStatesTracker.fork = lambda self, name="": contextlib.nullcontext()
    torch.cuda.current_device = lambda: torch.device("cpu")
    torch.cuda.synchronize = lambda device=None: None
    torch.Tensor.cuda = lambda self, *args, **options: self
    attention = dot_product_attention.DotProductAttention
    before = attention.__init__

    def init(self: Any, *args: Any, k_channels: Any = None, v_channels: Any = None, **options: Any) -> None:
        before(self, *args, **options)
        if v_channels is not None:
            self.hidden_size_per_partition = v_channels * self.num_attention_heads_per_partition

    attention.__init__ = init
