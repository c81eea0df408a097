"""Models of torchtitan from configs of the layout: its config dataclasses, field by field. Needs torchtitan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchtitan.models.common import ComplexRoPE, CosSinRoPE, Embedding, Linear, RMSNorm
from torchtitan.models.common.attention import FlexAttention, FusedQKVLinear, GQAttention, QKVLinear
from torchtitan.models.common.feed_forward import FeedForward
from torchtitan.models.common.moe import GroupedExperts, MoE, RoutedExperts, TokenChoiceTopKRouter
from torchtitan.models.common.token_dispatcher import LocalTokenDispatcher
from torchtitan.models.deepseek_v3.model import Attention as LatentAttention
from torchtitan.models.deepseek_v3.model import DeepSeekV3Model, DeepSeekV3TransformerBlock
from torchtitan.models.deepseek_v3.mtp import MTPTransformerBlock
from torchtitan.models.gpt_oss.model import Attention as SinkAttention
from torchtitan.models.gpt_oss.model import GptOssModel, GptOssTransformerBlock
from torchtitan.models.gpt_oss.moe import GptOssGroupedExperts, GptOssMoE
from torchtitan.models.llama3.model import Llama3Model, Llama3TransformerBlock
from torchtitan.models.qwen3.model import Qwen3Model, Qwen3TransformerBlock

Native = Mapping[str, Any]
#: By the type of the layout: class of the model, of its blocks, of their rotary embeddings.
CLASSES = {
    "llama3": (Llama3Model, Llama3TransformerBlock, ComplexRoPE),
    "qwen3": (Qwen3Model, Qwen3TransformerBlock, CosSinRoPE),
    "gpt_oss": (GptOssModel, GptOssTransformerBlock, CosSinRoPE),
    "deepseek_v3": (DeepSeekV3Model, DeepSeekV3TransformerBlock, ComplexRoPE),
}


def config_of(native: Native, kind: str, fuse: bool = False) -> Any:
    """The config of a model of the type ``kind``, with queries, keys and values fused or not."""
    model, block, rope = CLASSES[kind]
    dim, vocab = native["dim"], native["vocab_size"]
    stored = native["layers"]
    if stored["type"] == "fixed":
        blocks = [stored["block"]] * stored["num_blocks"]
    else:
        blocks = [stored["blocks"][name] for name in stored["pattern"]]
    parts = [_block_parts(one, dim, rope, fuse) for one in blocks]
    more: dict[str, Any] = {}
    if native.get("num_mtp_layers"):
        further = {key: _norm(native["norm"], dim) for key in ("enorm", "hnorm", "mtp_norm")}
        further["eh_proj"] = _linear(2 * dim, dim)
        more["mtp_layers"] = [
            MTPTransformerBlock.Config(**parts[-1], **further) for _ in range(native["num_mtp_layers"])
        ]
    return model.Config(
        dim=dim,
        vocab_size=vocab,
        enable_weight_tying=native["enable_weight_tying"],
        tok_embeddings=Embedding.Config(num_embeddings=vocab, embedding_dim=dim),
        norm=_norm(native["norm"], dim),
        lm_head=_linear(dim, vocab),
        layers=[block.Config(**one) for one in parts],
        **more,
    )


def _block_parts(native: Native, dim: int, rope: Any, fuse: bool) -> dict[str, Any]:
    return {
        "attention": _attention(native["attention"], dim, rope, fuse),
        "feed_forward": None if native["feed_forward"] is None else _feed_forward(native["feed_forward"], dim),
        "moe": None if native["moe"] is None else _experts(native["moe"], dim),
        "attention_norm": _norm(native["attention_norm"], dim),
        "ffn_norm": _norm(native["ffn_norm"], dim),
    }


def _linear(inputs: int, outputs: int, bias: bool = False) -> Any:
    return Linear.Config(in_features=inputs, out_features=outputs, bias=bias)


def _norm(native: Native, width: int) -> Any:
    return RMSNorm.Config(normalized_shape=width, eps=native["eps"])


def _feed_forward(native: Native, dim: int) -> Any:
    hidden = native["hidden_dim"]
    return FeedForward.Config(w1=_linear(dim, hidden), w2=_linear(hidden, dim), w3=_linear(dim, hidden))


def _attention(native: Native, dim: int, rope: Any, fuse: bool) -> Any:
    if native["type"] == "latent_attention":
        return _latent_attention(native, dim, rope)
    heads, size, bias = native["n_heads"], native["head_dim"], native["bias"]
    groups = native["n_kv_heads"] or heads
    if fuse:
        whole = _linear(dim, (heads + 2 * groups) * size, bias)
        qkv: Any = FusedQKVLinear.Config(head_dim=size, n_heads=heads, n_kv_heads=groups, wqkv=whole)
    else:
        parts = {"wq": _linear(dim, heads * size, bias), "wkv": _linear(dim, groups * size, bias)}
        qkv = QKVLinear.Config(head_dim=size, **parts)
    shared = {
        "n_heads": heads, "n_kv_heads": groups, "head_dim": size, "dim": dim, "qkv_linear": qkv,
        "wo": _linear(heads * size, dim, bias), "rope": rope.Config(dim=size, **native["rope"]),
        "inner_attention": FlexAttention.Config(),
    }  # fmt: skip
    if native["type"] == "sink_attention":
        return SinkAttention.Config(**shared, sliding_window_size=native["sliding_window_size"])
    return GQAttention.Config(**shared, qk_norm=None if native["qk_norm"] is None else _norm(native["qk_norm"], size))


def _latent_attention(native: Native, dim: int, rope: Any) -> Any:
    sizes = {key: native[key] for key in ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")}
    latent, plain, turned, value = sizes.values()
    heads, compressed = native["n_heads"], native["q_lora_rank"]
    queries: dict[str, Any] = {"wq": _linear(dim, heads * (plain + turned))}
    if compressed is not None:
        queries = {"wq_a": _linear(dim, compressed), "wq_b": _linear(compressed, heads * (plain + turned))}
    return LatentAttention.Config(
        **sizes,
        **queries,
        n_heads=heads,
        dim=dim,
        q_lora_rank=compressed or 0,
        q_norm=_norm(native["q_norm"], compressed or 1),
        kv_norm=_norm(native["kv_norm"], latent),
        wkv_a=_linear(dim, latent + turned),
        wkv_b=_linear(latent, heads * (plain + value)),
        wo=_linear(heads * value, dim),
        rope=rope.Config(dim=turned, **native["rope"]),
        inner_attention=FlexAttention.Config(),
        mscale=native["mscale"],
    )


def _experts(native: Native, dim: int) -> Any:
    count, inner, router = native["num_experts"], native["routed_experts"]["inner_experts"], dict(native["router"])
    sizes = {"dim": dim, "hidden_dim": inner["hidden_dim"], "num_experts": count}
    whole: Any = MoE
    if inner["type"] == "clamped_experts":
        whole, stack = GptOssMoE, GptOssGroupedExperts.Config(**sizes, swiglu_limit=inner["swiglu_limit"])
    else:
        stack = GroupedExperts.Config(**sizes)
    gate = _linear(dim, count, router.pop("bias"))
    shared = native["shared_experts"]
    return whole.Config(
        num_experts=count,
        load_balance_coeff=native["load_balance_coeff"],
        router=TokenChoiceTopKRouter.Config(num_experts=count, gate=gate, **router),
        routed_experts=RoutedExperts.Config(
            inner_experts=stack,
            token_dispatcher=LocalTokenDispatcher.Config(num_experts=count, top_k=router["top_k"]),
        ),
        shared_experts=None if shared is None else _feed_forward(shared, dim),
    )
