"""Folders of megatron-core's own ``dist_checkpointing``, and sharded GPTModels on its ranks, on a CPU.

    pip install --no-deps megatron-core==0.19.2 triton einops
    python tests/with_megatron/folders.py

For each model and parallelism: a checkpoint of transformers is converted to a folder, which ``dist_checkpointing``
loads into the GPTModels of all ranks. They must hold what ``crosswalk.load`` gives the same ranks; ``crosswalk.stream``
and ``crosswalk.save`` must give the checkpoint, and so must the conversion of the folder that ``dist_checkpointing``
saves. Every tensor is compared bit for bit.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import re
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset
from models import CASES, gpt, run_on_a_cpu
from originals import original
from safetensors.torch import load_file, save_file

import crosswalk

Tensors = dict[str, torch.Tensor]
#: What ranks may be parallel in, by the names of its functions.
SHORT = {
    "tp": "tensor_model_parallel_size",
    "pp": "pipeline_model_parallel_size",
    "ep": "expert_model_parallel_size",
    "etp": "expert_tensor_parallel_size",
}
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, a group on two ranks": ("Llama", {"num_key_value_heads": 1}),
    "llama, four layers, tied": ("Llama", {"num_hidden_layers": 4, "tie_word_embeddings": True}),
    "gpt_oss, six experts": ("GptOss", {"num_local_experts": 6, "num_experts_per_tok": 2, "head_dim": 10}),
    "qwen3_moe, six experts": (
        "Qwen3Moe",
        {"num_hidden_layers": 4, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 22},
    ),
}  # fmt: skip
#: With a layer more, which predicts a further token: no class of transformers saves it, so it is put into the file.
FURTHER = "deepseek_v3, a further layer"
MORE[FURTHER] = (CASES["deepseek_v3"][0], {**CASES["deepseek_v3"][1], "num_hidden_layers": 4})
RUNS: list[tuple[str, dict[str, int]]] = [
    *((name, {}) for name in CASES),
    ("llama", {"tp": 2}),
    ("llama, tied, llama3 rotary, heads of 14", {"tp": 2}),
    ("llama, all biases, linear rotary", {"tp": 2}),
    ("llama, a group on two ranks", {"tp": 2}),
    ("llama, four layers, tied", {"pp": 2}),
    ("qwen2", {"tp": 2}),
    ("qwen3", {"tp": 2}),
    ("mixtral", {"tp": 2}),
    ("gpt_oss, six experts", {"tp": 2, "ep": 2, "etp": 1}),  # experts with biases are not cut
    ("glm4_moe, two shared experts", {"tp": 2}),
    ("deepseek_v3", {"tp": 2}),
    ("qwen3_moe, six experts", {"pp": 2}),
    ("qwen3_moe, six experts", {"ep": 2}),
    ("glm4_moe", {"ep": 2}),
    ("deepseek_v3", {"ep": 2}),
    (FURTHER, {}),
    (FURTHER, {"pp": 2}),
    (FURTHER, {"tp": 2}),
    (FURTHER, {"ep": 2}),
    ("llama, four layers, tied", {"tp": 2, "pp": 2}),
    ("qwen3_moe, six experts", {"tp": 2, "pp": 2}),
    ("qwen3_moe, six experts", {"tp": 2, "ep": 2, "etp": 1}),
]


class Rank:
    """A rank of a run: its model, and what its tensors are of the whole one."""

    def __init__(self, native: dict[str, Any], sizes: dict[str, int]) -> None:
        self.native, self.sizes = native, sizes
        self.tp, self.ep = sizes.get("tp", 1), sizes.get("ep", 1)
        self.etp = sizes.get("etp", self.tp)
        self.model = gpt(native, **{SHORT[key]: size for key, size in sizes.items()}, pipeline_dtype=torch.float32)
        for value in self.tensors().values():
            value.fill_(torch.nan)

    def tensors(self) -> Tensors:
        return {k: v for k, v in self.model.state_dict().items() if isinstance(v, torch.Tensor) and "_extra" not in k}

    def axes(self) -> dict[str, tuple[int, int]]:
        """The axes of the layout that Megatron's parallelism cuts."""
        rank, experts = parallel_state.get_tensor_model_parallel_rank(), self.native["num_moe_experts"]
        found = {"vocab": (rank, self.tp)}
        if self.native["multi_latent_attention"]:
            rows = ("linear_q_down_proj.weight[0]", "linear_kv_down_proj.weight[0]")
            found |= dict.fromkeys(("head", *rows), (rank, self.tp))
        elif self.native["num_query_groups"] % self.tp:
            found |= dict.fromkeys(("head", "linear_qkv.weight[0]"), (rank, self.tp))
        else:
            found["group"] = rank, self.tp
        kinds = self.native["layers"].get("blocks", {"": self.native["layers"].get("block")}).values()
        if not all(kind["moe"] for kind in kinds):
            found["ffn"] = rank, self.tp
        if experts:
            found["expert"] = parallel_state.get_expert_model_parallel_rank(), self.ep
            found["expert_ffn"] = parallel_state.get_expert_tensor_parallel_rank(), self.etp
        if self.native["mtp_num_layers"] and self.tp > 1:
            found["eh_proj.weight[0]"] = rank, self.tp
        if self.native["moe_shared_expert_intermediate_size"]:
            found["shared_ffn"] = rank, self.tp
        return found

    def state(self) -> dict[str, Any]:
        """As crosswalk takes it: layers with the numbers of the whole model, and what this rank has of each tensor."""
        first = get_transformer_layer_offset(self.model.config)
        numbered = {
            re.sub(r"^decoder\.layers\.(\d+)", lambda m: f"decoder.layers.{int(m[1]) + first}", name): value
            for name, value in self.tensors().items()
        }
        return crosswalk.shards(numbered, self.native, self.axes(), layout="megatron")

    def sharded(self, like_te: bool) -> dict[str, Any]:
        """For ``dist_checkpointing``. ``like_te``: under the names that Transformer Engine's spec has for it."""
        for layer in self.model.decoder.layers if like_te else ():
            if hasattr(layer.mlp, "router"):
                names = layer.submodules_config.sharded_state_dict_keys_map
                layer.submodules_config.sharded_state_dict_keys_map = {
                    key: value for key, value in names.items() if not key.startswith("pre_mlp")
                }
        return {"model": self.model.sharded_state_dict()}


def one(folder: Path, sizes: dict[str, int], native: dict[str, Any]) -> None:
    """What every rank does in one run."""
    first, second = Rank(native, sizes), Rank(native, sizes)
    there = dist_checkpointing.load(first.sharded(not as_local(native)), str(folder / "run" / "release"))
    missing = first.model.load_state_dict(there["model"], strict=False)
    assert not missing.unexpected_keys, missing
    state = second.state()
    loaded = crosswalk.load(folder / "hf", state, layout="megatron", pad={"vocab": 2 * first.tp})
    for name, value in second.tensors().items():
        same(name, value, first.tensors()[name])
    source = load_file(folder / "hf" / "model.safetensors")
    streamed = dict(itertools.chain.from_iterable(crosswalk.stream(state, loaded, bucket_bytes=20_000)))
    assert streamed.keys() == source.keys(), streamed.keys() ^ source.keys()
    for name, value in streamed.items():
        same(name, value, source[name])
    crosswalk.save(state, loaded, folder / "out")
    (folder / "saved" / "iter_0000003").mkdir(parents=True, exist_ok=True)
    dist.barrier()
    dist_checkpointing.save(second.sharded(False), str(folder / "saved" / "iter_0000003"))


def same(name: str, found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape, (name, found.shape, expected.shape)
    assert torch.equal(found, expected), name


def work(rank: int, size: int, store: str, jobs: list[tuple[Path, dict[str, int], dict[str, Any]]], ended: Any) -> None:
    """A process that is a rank in every run of so many."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    for folder, sizes, native in jobs:
        try:
            run_on_a_cpu(**{SHORT[key]: value for key, value in sizes.items()})
            one(folder, sizes, native)
            ended.put((rank, None))
        except Exception:
            ended.put((rank, traceback.format_exc()))
            raise
        parallel_state.destroy_model_parallel()


def prepare(folder: Path, name: str, sizes: dict[str, int]) -> dict[str, Any]:
    """The checkpoint of transformers, the folder made of it, and the config of the GPTModel."""
    source = original(*{**CASES, **MORE}[name])
    source.save_pretrained(folder / "hf")
    if name == FURTHER:
        add_further(folder / "hf")
    multiple = 2 * sizes.get("tp", 1)
    (folder / "saved").mkdir()
    (folder / "saved" / "latest_checkpointed_iteration.txt").write_text("3")
    native = crosswalk.import_config(json.loads((folder / "hf" / "config.json").read_text()), to="megatron")
    native["vocab_size"] = -(-native["vocab_size"] // multiple) * multiple
    given = native | {"transformer_impl": "local"} if as_local(native) else None
    crosswalk.convert(folder / "hf", folder / "run", to="megatron", pad={"vocab": multiple}, native_config=given)
    return native


def add_further(folder: Path) -> None:
    """Put a layer that predicts a further token into a checkpoint: another last one, with what it has beside."""
    config, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    count, width = config["num_hidden_layers"], config["hidden_size"]
    last, new = f"model.layers.{count - 1}.", f"model.layers.{count}."
    draw = torch.Generator().manual_seed(5)
    further = {new + name.removeprefix(last): value for name, value in tensors.items() if name.startswith(last)}
    further = {name: torch.randn(value.shape, generator=draw) for name, value in further.items()}
    further |= {
        f"{new}{name}.weight": torch.randn(width, generator=draw) for name in ("enorm", "hnorm", "shared_head.norm")
    }
    further[f"{new}eh_proj.weight"] = torch.randn(width, 2 * width, generator=draw)
    save_file({**tensors, **further}, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config | {"num_nextn_predict_layers": 1}))


def as_local(native: dict[str, Any]) -> bool:
    """Whether a folder has the names of the spec ``local``, those of which in latent attention are too many to rename
    here; others have those of Transformer Engine."""
    return bool(native["multi_latent_attention"])


def compare(folder: Path) -> None:
    """What was saved in both ways is what it was made of."""
    crosswalk.convert(folder / "saved", folder / "back", layout="megatron", like=folder / "hf")
    before = load_file(folder / "hf" / "model.safetensors")
    for part in ("out", "back"):
        after = load_file(folder / part / "model.safetensors")
        assert before.keys() == after.keys(), before.keys() ^ after.keys()
        for name, value in before.items():
            same(name, value, after[name])


def run(size: int, folder: Path, only: str) -> bool:
    """All runs of so many ranks; whether one failed."""
    chosen = [(name, sizes) for name, sizes in RUNS if only in name and ranks(sizes) == size]
    jobs = []
    for number, (name, sizes) in enumerate(chosen):
        place = folder / f"{size}-{number}"
        place.mkdir()
        jobs.append((place, sizes, prepare(place, name, sizes)))
    context = multiprocessing.get_context("spawn")
    ended = context.SimpleQueue()
    processes = [context.Process(target=work, args=(r, size, f"{folder}/{size}", jobs, ended)) for r in range(size)]
    for process in processes:
        process.start()
    failed = False
    for (name, sizes), (place, _, _) in zip(chosen, jobs, strict=True):
        said = " ".join(f"{key}{value}" for key, value in sizes.items()) or "one process"
        text = next((text for _, text in (ended.get() for _ in range(size)) if text is not None), None)
        if text is not None:  # the other ranks may wait for that one
            print(f"{name:45} {said:12} FAILED\n{text}", flush=True)
            failed = True
            break
        compare(place)
        print(f"{name:45} {said:12} equal", flush=True)
    for process in processes:
        if not failed:
            process.join()
        process.kill()
    return failed


def ranks(sizes: dict[str, int]) -> int:
    return sizes.get("pp", 1) * max(sizes.get("tp", 1), sizes.get("ep", 1) * sizes.get("etp", sizes.get("tp", 1)))


def main() -> int:
    transformers.utils.logging.disable_progress_bar()
    only = sys.argv[1] if len(sys.argv) > 1 else ""
    with tempfile.TemporaryDirectory() as folder:
        return sum(run(size, Path(folder), only) for size in (1, 2, 4))


if __name__ == "__main__":
    sys.exit(main())
