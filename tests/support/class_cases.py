"""Small models of classes of transformers, and what ranks do with them."""

from __future__ import annotations

import gc
import itertools
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import crosswalk
from crosswalk.runtime.errors import CrosswalkError

TEXT: dict[str, Any] = {
    "vocab_size": 71, "hidden_size": 24, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 14, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
_MOE: dict[str, Any] = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 19}
#: Class -> config: memory that is the file, experts that are split, other names too, ties, buffers, a tower.
CLASSES: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": TEXT,
    "Qwen3MoeForCausalLM": {**TEXT, **_MOE, "decoder_sparse_step": 1, "mlp_only_layers": [1]},
    "MixtralForCausalLM": {**TEXT, "num_local_experts": 5, "num_experts_per_tok": 2},
    "Gemma3ForCausalLM": {**TEXT, "tie_word_embeddings": True, "layer_types": ["sliding_attention", "full_attention"]},
    "DeepseekV3ForCausalLM": {
        **TEXT, "head_dim": 8, "num_key_value_heads": 6, "moe_intermediate_size": 19, "n_routed_experts": 4,
        "n_group": 2,
        "topk_group": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1, "q_lora_rank": 10, "kv_lora_rank": 12,
        "qk_rope_head_dim": 8, "qk_nope_head_dim": 6, "v_head_dim": 10,
    },
    "BambaForCausalLM": {
        **TEXT, "mamba_n_heads": 4, "mamba_d_head": 12, "mamba_n_groups": 1, "mamba_d_state": 8,
        "attn_layer_indices": [1],
    },
}  # fmt: skip


def made(name: str, **changes: Any) -> Any:
    """A model of the class with values of its own in every parameter and buffer that files hold."""
    import transformers

    kind = getattr(transformers, name)
    torch.manual_seed(3)
    model = kind(kind.config_class(**{**CLASSES[name], **changes})).eval()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape) * 0.3)
    return model


def blank(model: Any) -> Any:
    """Another one of the same class, without memory."""
    with torch.device("meta"):
        return type(model)(model.config).eval()


def files(path: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(path.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def differences(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> list[str]:
    wrong = sorted(found.keys() ^ expected.keys())
    return wrong + [n for n in found.keys() & expected.keys() if not torch.equal(found[n], expected[n])]


def on_ranks(rank: int, home: Path, out: Path) -> list[Any]:
    """What is wrong with sharded models, and with two stages of one."""
    moe, tied = "Qwen3MoeForCausalLM", "Gemma3ForCausalLM"
    found = sharded(rank, home / moe, out / "sharded", moe) + sharded(rank, home / tied, out / "tied", tied)
    found += sharded(rank, home / "LlamaForCausalLM", out / "offloaded", "LlamaForCausalLM", offloaded=True)
    found += wrapped(home / "LlamaForCausalLM", "LlamaForCausalLM")
    found += stages(rank, home / moe, out / "stages", moe) + stages(rank, home / tied, out / "tied stages", tied)
    return found + planned_again(rank)


def wrapped(checkpoint: Path, name: str) -> list[Any]:
    """What wrappers put around a model, and around its layers, does not show."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
    from torch.nn.parallel import DistributedDataParallel

    model = made(name)
    for index, layer in enumerate(model.model.layers):
        model.model.layers[index] = checkpoint_wrapper(layer)
    for parameter in model.parameters():
        parameter.data.zero_()
    outer = DistributedDataParallel(torch.compile(model))
    loaded = crosswalk.load(checkpoint, outer)
    return differences(dict(itertools.chain.from_iterable(crosswalk.stream(outer, loaded))), files(checkpoint))


def stages(rank: int, checkpoint: Path, out: Path, name: str) -> list[Any]:
    """Two stages of a pipeline: each loads, publishes and saves with what it has. Of what is tied the last one has a
    copy, which has to be equal."""
    import transformers

    kind = getattr(transformers, name)
    with torch.device("meta"):
        model = kind(kind.config_class.from_pretrained(checkpoint))
    gone = [(model.model.layers, "1"), (model.model, "norm"), (model, "lm_head")]
    for parent, key in gone if rank == 0 else [(model.model.layers, "0"), (model.model, "embed_tokens")]:
        parent._modules[key] = None
    loaded = crosswalk.load(checkpoint, model)
    expected = files(checkpoint)
    mine = dict(itertools.chain.from_iterable(crosswalk.publisher(model, loaded).buckets(to=1)))
    crosswalk.save(model, loaded, out)
    crosswalk.save(model, model.config, out.with_name(f"{out.name} again"))
    wrong: list[Any] = differences(mine, expected) if rank == 1 else list(mine)
    if model.config.tie_word_embeddings:
        if rank == 1:
            model.lm_head.weight.data[5] += 1
        with pytest.raises(CrosswalkError, match=r"\[tie/differs\]"):
            crosswalk.publisher(model, loaded)
    return wrong + [tensor for tensor in model.state_dict().values() if tensor.is_meta]


def sharded(rank: int, checkpoint: Path, out: Path, name: str, offloaded: bool = False) -> list[Any]:
    """FSDP2 around a model without memory: load, publish, save, and send what has changed. ``offloaded``: with a
    dimension of replicas, and parameters kept on the host."""
    import transformers
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

    kind = getattr(transformers, name)
    with torch.device("meta"):
        model = kind(kind.config_class.from_pretrained(checkpoint))
    mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("replicas", "shards"))
    mesh = mesh if offloaded else mesh["shards"]
    policy = CPUOffloadPolicy(pin_memory=False) if offloaded else OffloadPolicy()
    for part in (*model.model.layers, model):
        fully_shard(part, mesh=mesh, offload_policy=policy)
    loaded = crosswalk.load(checkpoint, model)
    expected = files(checkpoint)
    wrong: list[Any] = [tensor for tensor in model.buffers() if tensor.is_meta]
    wrong += differences(dict(itertools.chain.from_iterable(crosswalk.stream(model, loaded))), expected)
    crosswalk.save(model, loaded, out)
    publisher = crosswalk.publisher(model, loaded)
    snapshot = publisher.snapshot()
    with torch.no_grad():
        next(model.parameters()).mul_(2)
    found = {patch.name: patch for patch in publisher.delta(snapshot).patches(to=0)}
    if rank == 0:
        wrong += [f"patches {list(found)}"] if list(found) != ["model.embed_tokens.weight"] else []
        wrong += (
            []
            if torch.equal(found["model.embed_tokens.weight"].values, expected["model.embed_tokens.weight"] * 2)
            else ["values"]
        )
    return wrong


def planned_again(rank: int) -> list[Any]:
    """What is sent of a sharded model again is planned once; again on all ranks when one has changed; and nothing of it
    outlives the model."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from crosswalk.jobs import train

    planned: list[int] = []
    plan = train.ClassExport.plan
    model = made("LlamaForCausalLM")
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)), ignored_params=set(model.lm_head.parameters()))
    counts: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.ClassExport, "plan", lambda self, there: planned.append(rank) or plan(self, there))
        for step in range(3):
            if step == 2 and rank == 1:
                model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().t().contiguous().t())
            found = dict(itertools.chain.from_iterable(crosswalk.stream(model, model.config)))
            counts.append(len(planned))
            counts += differences(found, expected)
    gone = weakref.ref(model)
    del model, found
    gc.collect()
    return [] if counts == [1, 1, 2] and gone() is None else [counts, gone() is None]
