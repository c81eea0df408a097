"""The conversions that are measured: plans over real shapes, cut to about 2 GB, and random weights for them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from crosswalk.runtime.checkpoint.header import build_header
from crosswalk.runtime.plan.model import Plan, RawCopy, TensorSpec, make_plan

HIDDEN, INTERMEDIATE, QUERY, KEY = 4096, 14336, 4096, 1024  # Llama-3.1-8B
MOE_HIDDEN, MOE_INTERMEDIATE, EXPERTS = 2048, 768, 128  # Qwen3-30B-A3B


@dataclass(frozen=True)
class Workload:
    """A plan, and the same conversion as anyone would write it with torch."""

    name: str
    text: str
    plan: Plan
    by_hand: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]


def whole(source: TensorSpec, target: TensorSpec, at: int = 0) -> RawCopy:
    """A tensor as it is, from element ``at`` of the target on."""
    return source.name, target.name, (source.elements,), 0, (1,), at, (1,), 0


def turned(source: TensorSpec, target: TensorSpec, at: int = 0) -> RawCopy:
    """A matrix transposed, from element ``at`` of the target on."""
    rows, columns = source.shape
    return source.name, target.name, (columns, rows), 0, (1, columns), at, (rows, 1), 0


def spread(source: TensorSpec, target: TensorSpec, at: int, step: int) -> RawCopy:
    """The rows of a matrix, each ``step`` elements after the one before."""
    rows, columns = source.shape
    return source.name, target.name, (rows, columns), 0, (columns, 1), at, (step, 1), 0


def dense(transposed: bool, layers: int = 5) -> tuple[list[TensorSpec], list[TensorSpec], list[RawCopy]]:
    sources, targets, copies = [], [], []
    for n in range(layers):
        old, new = f"model.layers.{n}", f"decoder.{n}"

        def spec(name: str, *shape: int, prefix: str = old) -> TensorSpec:
            return TensorSpec(f"{prefix}.{name}.weight", shape, "BF16")

        q, k, v = (spec(f"self_attn.{x}_proj", m, HIDDEN) for x, m in zip("qkv", (QUERY, KEY, KEY), strict=True))
        o, gate, up = (
            spec("self_attn.o_proj", HIDDEN, QUERY),
            *(spec(f"mlp.{x}_proj", INTERMEDIATE, HIDDEN) for x in ("gate", "up")),
        )
        down = spec("mlp.down_proj", HIDDEN, INTERMEDIATE)
        norms = [spec(x, HIDDEN) for x in ("input_layernorm", "post_attention_layernorm")]
        qkv = spec("mixer.qkv", QUERY + 2 * KEY, HIDDEN, prefix=new)
        dense_o = spec("mixer.dense", HIDDEN, QUERY, prefix=new)
        gate_up = spec("mlp.layer_1", 2 * INTERMEDIATE, HIDDEN, prefix=new)
        layer_2 = spec("mlp.layer_2", *(down.shape[::-1] if transposed else down.shape), prefix=new)
        new_norms = [spec(x, HIDDEN, prefix=new) for x in ("norm_1", "norm_2")]
        sources += [q, k, v, o, gate, up, down, *norms]
        targets += [qkv, dense_o, gate_up, layer_2, *new_norms]
        copies += [whole(q, qkv), whole(k, qkv, q.elements), whole(v, qkv, q.elements + k.elements)]
        copies += [whole(o, dense_o), whole(gate, gate_up), whole(up, gate_up, gate.elements)]
        copies.append(turned(down, layer_2) if transposed else whole(down, layer_2))
        copies += [whole(a, b) for a, b in zip(norms, new_norms, strict=True)]
    return sources, targets, copies


def dense_by_hand(tensors: dict[str, torch.Tensor], transposed: bool) -> dict[str, torch.Tensor]:
    result = {}
    for n in range(sum(name.endswith("down_proj.weight") for name in tensors)):
        old, new = f"model.layers.{n}", f"decoder.{n}"

        def get(name: str, prefix: str = old) -> torch.Tensor:
            return tensors[f"{prefix}.{name}.weight"]

        result[f"{new}.mixer.qkv.weight"] = torch.cat([get(f"self_attn.{x}_proj") for x in "qkv"])
        result[f"{new}.mixer.dense.weight"] = get("self_attn.o_proj")
        result[f"{new}.mlp.layer_1.weight"] = torch.cat([get("mlp.gate_proj"), get("mlp.up_proj")])
        down = get("mlp.down_proj")
        result[f"{new}.mlp.layer_2.weight"] = down.t().contiguous() if transposed else down
        result[f"{new}.norm_1.weight"] = get("input_layernorm")
        result[f"{new}.norm_2.weight"] = get("post_attention_layernorm")
    return result


def moe(kind: str, layers: int = 2) -> tuple[list[TensorSpec], list[TensorSpec], list[RawCopy]]:
    """Experts stacked: ``stack`` (gate above up), ``interleave`` (gate and up rows in turn), ``transpose`` (each)."""
    sources, targets, copies = [], [], []
    up_shape, down_shape = (MOE_INTERMEDIATE, MOE_HIDDEN), (MOE_HIDDEN, MOE_INTERMEDIATE)
    size = MOE_INTERMEDIATE * MOE_HIDDEN
    for n in range(layers):
        prefix = f"model.layers.{n}.mlp.experts"
        if kind == "transpose":
            stacked = {
                x: TensorSpec(f"decoder.{n}.mlp.{x}", (EXPERTS, *shape[::-1]), "BF16")
                for x, shape in (("gate", up_shape), ("up", up_shape), ("down", down_shape))
            }
        else:
            stacked = {
                "gate_up": TensorSpec(f"decoder.{n}.mlp.gate_up", (EXPERTS, 2 * MOE_INTERMEDIATE, MOE_HIDDEN), "BF16"),
                "down": TensorSpec(f"decoder.{n}.mlp.down", (EXPERTS, *down_shape), "BF16"),
            }
        targets += stacked.values()
        for e in range(EXPERTS):
            gate, up = (TensorSpec(f"{prefix}.{e}.{x}_proj.weight", up_shape, "BF16") for x in ("gate", "up"))
            down = TensorSpec(f"{prefix}.{e}.down_proj.weight", down_shape, "BF16")
            sources += [gate, up, down]
            at = e * 2 * size
            if kind == "transpose":
                parts = (("gate", gate), ("up", up), ("down", down))
                copies += [turned(part, stacked[x], e * size) for x, part in parts]
            elif kind == "interleave":
                copies += [
                    spread(gate, stacked["gate_up"], at, 2 * MOE_HIDDEN),
                    spread(up, stacked["gate_up"], at + MOE_HIDDEN, 2 * MOE_HIDDEN),
                    whole(down, stacked["down"], e * size),
                ]
            else:
                copies += [
                    whole(gate, stacked["gate_up"], at),
                    whole(up, stacked["gate_up"], at + size),
                    whole(down, stacked["down"], e * size),
                ]
    return sources, targets, copies


def moe_by_hand(tensors: dict[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor]:
    result = {}
    for n in range(len(tensors) // EXPERTS // 3):

        def get(x: str, layer: int = n) -> list[torch.Tensor]:
            return [tensors[f"model.layers.{layer}.mlp.experts.{e}.{x}_proj.weight"] for e in range(EXPERTS)]

        gate, up, down = get("gate"), get("up"), get("down")
        if kind == "transpose":
            for x, parts in (("gate", gate), ("up", up), ("down", down)):
                result[f"decoder.{n}.mlp.{x}"] = torch.stack([part.t() for part in parts])
            continue
        if kind == "interleave":
            both = [torch.stack([a, b], 1).flatten(0, 1) for a, b in zip(gate, up, strict=True)]
        else:
            both = [torch.cat([a, b]) for a, b in zip(gate, up, strict=True)]
        result[f"decoder.{n}.mlp.gate_up"] = torch.stack(both)
        result[f"decoder.{n}.mlp.down"] = torch.stack(down)
    return result


def cast(layers: int = 3) -> tuple[list[TensorSpec], list[TensorSpec], list[RawCopy]]:
    sources = dense(False, layers)[0]
    targets = [TensorSpec(f"decoder.{spec.name}", spec.shape, "F32") for spec in sources]
    return sources, targets, [whole(a, b) for a, b in zip(sources, targets, strict=True)]


def workloads() -> list[Workload]:
    """W1 to W6, forward; the inverse of each plan is the other direction."""
    result = [
        Workload("W1", "rename and concatenate", make_plan(*dense(False)), lambda t: dense_by_hand(t, False)),
        Workload("W2", "W1 with down_proj transposed", make_plan(*dense(True)), lambda t: dense_by_hand(t, True)),
    ]
    for name, kind, text in (
        ("W3", "stack", "experts stacked"),
        ("W4", "interleave", "experts stacked, gate and up rows interleaved"),
        ("W5", "transpose", "every expert transposed and stacked"),
    ):
        result.append(Workload(name, text, make_plan(*moe(kind)), lambda t, kind=kind: moe_by_hand(t, kind)))
    text = "bf16 to fp32"
    widen = Workload("W6", text, make_plan(*cast()), lambda t: {f"decoder.{k}": v.float() for k, v in t.items()})
    return [*result, widen]


def write_random(specs: Iterable[TensorSpec], path: Path, seed: int = 0) -> None:
    """A safetensors file of normally distributed weights, in the given order; from a small pool, as making them all
    would take longer than everything that is measured."""
    specs = list(specs)
    generator = torch.Generator().manual_seed(seed)
    pool = torch.randn(1 << 24, generator=generator).bfloat16()
    with open(path, "wb") as stream:
        stream.write(build_header(specs, {"format": "pt"}))
        for number, spec in enumerate(specs):
            left, at = spec.elements, number * 7919 % 65536
            while left:
                part = pool[at : at + left]
                stream.write(memoryview(part.view(torch.uint8).numpy()))
                left, at = left - len(part), 0
        stream.flush()
        os.fsync(stream.fileno())
