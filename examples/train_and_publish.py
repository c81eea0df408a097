"""Start a sharded training job from a Hugging Face checkpoint, train, and publish Hugging Face checkpoints on the way.

    torchrun --nproc-per-node 2 examples/train_and_publish.py

The model below is a plain torch Llama whose parameters are those of the fast_llm layout: one matrix for keys and
values, one for gate and up, and a transposed down projection. It is sharded with FSDP2 while it has no memory; ``load``
gives it memory and lets every rank read its own bytes. Every few steps ``save`` copies the parameters and writes them
in the background, every rank its own bytes. In the end transformers loads what was published, and must give the same
logits.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F

import crosswalk

TEXT = Path(__file__).with_name("gettysburg.txt")
CONTEXT = 64


class Weight(nn.Module):
    """A parameter named ``weight`` of the given shape."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape))


class Attention(nn.Module):
    def __init__(self, config: Mapping[str, Any], hidden: int) -> None:
        super().__init__()
        self.size, self.groups = config["head_size"], config["head_groups"]
        self.theta = config["rotary"]["theta"]
        width = config["heads"] * self.size
        self.query = Weight(width, hidden)
        self.key_value = Weight(2 * self.groups * self.size, hidden)  # keys, then values
        self.dense = Weight(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def heads(y: torch.Tensor) -> torch.Tensor:
            return y.unflatten(-1, (-1, self.size)).transpose(1, 2)

        query = heads(F.linear(x, self.query.weight))
        key, value = (heads(y) for y in F.linear(x, self.key_value.weight).chunk(2, -1))
        query, key = self.rotate(query), self.rotate(key)
        y = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        return F.linear(y.transpose(1, 2).flatten(2), self.dense.weight)

    def rotate(self, x: torch.Tensor) -> torch.Tensor:
        frequencies = self.theta ** (-torch.arange(0, self.size, 2, device=x.device) / self.size)
        angles = torch.outer(torch.arange(x.shape[2], device=x.device), frequencies).repeat(1, 2)
        first, second = x.chunk(2, -1)
        return x * angles.cos() + torch.cat((-second, first), -1) * angles.sin()


class Mlp(nn.Module):
    def __init__(self, config: Mapping[str, Any], hidden: int) -> None:
        super().__init__()
        size = config["intermediate_size"]
        self.layer_1 = Weight(2 * size, hidden)  # gate, then up
        self.layer_2 = Weight(size, hidden)  # transposed

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = F.linear(x, self.layer_1.weight).chunk(2, -1)
        return (F.silu(gate) * up) @ self.layer_2.weight


class Block(nn.Module):
    def __init__(self, config: Mapping[str, Any], hidden: int) -> None:
        super().__init__()
        self.epsilon = config["normalization"]["epsilon"]
        self.norm_1, self.norm_2 = Weight(hidden), Weight(hidden)
        self.mixer, self.mlp = Attention(config["mixer"], hidden), Mlp(config["mlp"], hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.mixer(F.rms_norm(x, x.shape[-1:], self.norm_1.weight, self.epsilon))
        return x + self.mlp(F.rms_norm(x, x.shape[-1:], self.norm_2.weight, self.epsilon))


class Model(nn.Module):
    """``config`` is a native base-model config, as ``crosswalk.import_config`` returns it."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        hidden, vocabulary = config["hidden_size"], config["embeddings"]["vocab_size"]
        decoder = config["decoder"]
        self.epsilon = config["head"]["normalization"]["epsilon"]
        self.embeddings = nn.Module()
        self.embeddings.word_embeddings_weight = nn.Parameter(torch.empty(vocabulary, hidden))
        self.decoder = nn.ModuleList(Block(decoder["block"], hidden) for _ in range(decoder["num_blocks"]))
        self.head = nn.Module()
        self.head.final_norm = Weight(hidden)
        self.head.output_weights = (
            self.embeddings.word_embeddings_weight
            if config["tied_embedding_weight"]
            else nn.Parameter(torch.empty(vocabulary, hidden))
        )

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = F.embedding(tokens, self.embeddings.word_embeddings_weight)
        for block in self.decoder:
            x = block(x)
        x = F.rms_norm(x, x.shape[-1:], self.head.final_norm.weight, self.epsilon)
        return F.linear(x, self.head.output_weights)


def make_checkpoint(path: Path) -> None:
    """A small Llama on bytes, with random weights, as transformers saves it."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=256, hidden_size=96, intermediate_size=160, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=CONTEXT,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(path)


def batch(data: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
    starts = torch.randint(len(data) - CONTEXT - 1, (size,), generator=generator)
    return torch.stack([data[start : start + CONTEXT + 1] for start in starts.tolist()])


def check(path: Path, tokens: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference between the logits of what was published and those of the live model."""
    import transformers

    published = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    with torch.no_grad():
        return float((published(tokens).logits - expected).abs().max())


def sharded(config: dict[str, Any], device: str, size: int) -> Model:
    """The model on ``size`` ranks, without memory until it is loaded."""
    with torch.device("meta"):
        model = Model(config)
    mesh = init_device_mesh(device, (size,))
    for block in model.decoder:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="a Hugging Face checkpoint of a Llama; by default a new one")
    parser.add_argument("--output", type=Path, help="where to publish; by default a temporary directory")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--publish-every", type=int, default=10)
    arguments = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    directories = [tempfile.mkdtemp() if rank == 0 else None]
    dist.broadcast_object_list(directories)
    scratch = Path(str(directories[0]))
    checkpoint, output = arguments.checkpoint or scratch / "initial", arguments.output or scratch / "published"
    if arguments.checkpoint is None and rank == 0:
        make_checkpoint(checkpoint)
    dist.barrier()

    config = crosswalk.import_config(json.loads((checkpoint / "config.json").read_text()))
    model = sharded(config, device, size)
    loaded = crosswalk.load(checkpoint, model)
    read, held = loaded.report.bytes_read, loaded.report.bytes_held
    print(f"rank {rank}: read {read:,} bytes, holds {held:,}", flush=True)

    text = torch.tensor(list(TEXT.read_bytes()))
    generator = torch.Generator().manual_seed(rank)
    probe = text[:CONTEXT][None].to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    published = []
    for step in range(1, arguments.steps + 1):
        tokens = batch(text, 8, generator).to(device)
        logits = model(tokens[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % arguments.publish_every == 0:
            with torch.no_grad():
                live = model(probe).cpu()
            path = output / f"step-{step}"
            saving = crosswalk.save(model, loaded, path, blocking=False)
            published.append((path, live, saving))
            if rank == 0:
                print(f"step {step}: loss {loss.item():.3f}, publishing {path}", flush=True)

    for path, live, saving in published:
        report = saving.result()
        if rank == 0:
            difference = check(path, probe.cpu(), live)
            waited = f"{report.blocked:.3f} s of {report.seconds:.3f} s waited"
            print(f"{path.name}: {waited}; logits differ by {difference:.1e}")
            assert difference < 1e-4, "the published model is not the live one"
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
