"""What ranks do with live models of transformers that are spread over them: by the classes' own parallelism, by
fully_shard with replicas and parameters on the host, and by modules that only some of the ranks have."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import class_cases as cases
import torch
from publisher_cases import apply, counted

import crosswalk
from crosswalk.runtime.errors import CrosswalkError
from crosswalk.runtime.training.placement import place

MOE, TIED, SPARSE, BUFFERS, PLAIN, TOWERS = (
    "Qwen3MoeForCausalLM", "Gemma3ForCausalLM", "MixtralForCausalLM", "DeepseekV3ForCausalLM", "LlamaForCausalLM",
    "LlavaForConditionalGeneration",
)  # fmt: skip
#: Way to spread a model over 4 ranks -> class, and sizes of its own parallelism (transformers' DistributedConfig).
OWN: dict[str, tuple[str, dict[str, Any]]] = {
    "tensor": (BUFFERS, {"tp_size": 2, "fsdp_size": 2}),
    "tensor, tied": (TIED, {"tp_size": 4}),
    "tensor, packed": (MOE, {"tp_size": 4}),
    "experts": (SPARSE, {"tp_size": 2, "ep_size": 2, "fsdp_size": 2}),
    "replicas": (MOE, {"dp_replicate_size": 2, "fsdp_size": 2}),
    "replicas on the host": (TIED, {"dp_replicate_size": 2, "fsdp_size": 2, "fsdp_cpu_offload": True}),
    "stages": (MOE, {"pp_size": 4}),
}
#: Changes of the configs: what each way has to divide.
SIZES = {SPARSE: {"num_local_experts": 6}}


def made(name: str) -> Any:
    """A model that a process has for itself."""
    return towers() if name == TOWERS else cases.made(name, **SIZES.get(name, {}))


def towers() -> Any:
    """A model of pictures and text, whose files name its parts otherwise than its memory."""
    import transformers

    text = transformers.LlamaConfig(**cases.CLASSES[PLAIN])
    sizes = {"hidden_size": 20, "intermediate_size": 27, "num_attention_heads": 5, "projection_dim": 14}
    vision = transformers.CLIPVisionConfig(**sizes, num_hidden_layers=2, image_size=9, patch_size=3)
    torch.manual_seed(11)
    config = transformers.LlavaConfig(text_config=text, vision_config=vision)
    model = transformers.LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape) * 0.3)
    return model


def empty(name: str, checkpoint: Path) -> Any:
    import transformers
    from transformers.initialization import no_tie_weights

    kind = getattr(transformers, name)
    with torch.device("meta"), no_tie_weights():
        return kind(kind.config_class.from_pretrained(checkpoint)).eval()


def spread(checkpoint: Path, way: str) -> Any:
    """A model without memory, spread as its class does it when it loads a checkpoint itself."""
    from transformers.distributed import DistributedConfig

    name, sizes = OWN[way]
    model = empty(name, checkpoint)
    config, _, mesh = type(model).prepare_distribute_model(DistributedConfig(**sizes))
    model = type(model).maybe_distribute_model(model, config, mesh)
    model.tie_weights()
    return model


def on_ranks(rank: int, home: Path, out: Path) -> dict[str, Any]:
    """Of each way, what is wrong, and the bytes that this rank wrote, holds, received and sent."""
    found: dict[str, Any] = {}
    for way, (name, _) in OWN.items():
        found[way] = through(rank, home / name, spread(home / name, way), made(name), out / way)
    for way, name in (("towers", TOWERS), ("experts by rank", MOE)):
        model = empty(name, home / name)
        PARTS[way](model, rank)
        found[way] = through(rank, home / name, model, made(name), out / way)
    found["nobody"] = nobody(rank, home / TOWERS, out / "nobody")
    return found


def loaded_by_its_class(rank: int, checkpoint: Path, out: Path, sizes: dict[str, Any]) -> list[str]:
    """What is wrong with what is sent of a model that transformers loads and spreads; it is also saved."""
    from transformers import AutoModelForCausalLM
    from transformers.distributed import DistributedConfig

    model = AutoModelForCausalLM.from_pretrained(checkpoint, distributed_config=DistributedConfig(**sizes))
    expected = cases.files(checkpoint)
    crosswalk.save(model, model.config, out)
    sent = _all(crosswalk.publisher(model, model.config).buckets(to=1))
    wrong = cases.differences(sent, expected) if rank == 1 else list(sent)
    return wrong + cases.differences(_all(crosswalk.stream(model, model.config)), expected)


def local(parameter: torch.Tensor) -> torch.Tensor:
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter  # type: ignore[no-any-return]


def through(rank: int, checkpoint: Path, model: Any, whole: Any, out: Path) -> dict[str, Any]:
    """Load, send to all and to one, save, and send what has changed. ``whole``: the model as one process has it."""
    expected, memory = cases.files(checkpoint), whole.state_dict()
    loaded = crosswalk.load(checkpoint, model)
    wrong: list[Any] = []
    for name, value in model.state_dict().items():  # of every replica
        parts = place(value).parts
        inside = [memory[name][tuple(slice(start, stop) for start, stop in part.box)] for part in parts]
        wrong += [] if all(torch.equal(part.tensor, one) for part, one in zip(parts, inside, strict=True)) else [name]
    wrong += cases.differences(_all(crosswalk.stream(model, loaded)), expected)
    report = crosswalk.save(model, loaded, out)
    publisher = crosswalk.publisher(model, loaded, bucket_bytes=50_000)
    with counted() as counts:
        mine = _all(publisher.buckets(to=0))
    wrong += cases.differences(mine, expected) if rank == 0 else list(mine)
    with counted() as halved:
        mine = _all(crosswalk.publisher(model, loaded, dtype="bfloat16").buckets(to=0))
    halves = {name: tensor.bfloat16() for name, tensor in expected.items()}
    wrong += cases.differences(mine, halves) if rank == 0 else list(mine)
    snapshot = publisher.snapshot()
    engine = {name: tensor.clone() for name, tensor in expected.items()}
    with torch.no_grad():
        for parameter in model.parameters():
            local(parameter).mul_(torch.where(local(parameter) > 0.5, 2, 1))
    now = _all(publisher.buckets())
    sparse = apply(engine, publisher.delta(snapshot).patches(to=None))
    wrong += cases.differences(engine, now) + ([] if sparse > 100 else ["nothing was sparse"])
    held = {local(t).data_ptr(): local(t).nbytes for t in model.state_dict().values()}
    return {
        "wrong": wrong,
        "written": report.bytes_written,
        "held": sum(held.values()),
        "bytes": counts,
        "halved": halved,
    }


def _all(buckets: Iterable[list[tuple[str, torch.Tensor]]]) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in itertools.chain.from_iterable(buckets)}


def tower_of(model: Any, rank: int) -> None:
    """Rank 0 has the pictures, rank 1 what joins both, ranks 2 and 3 a half of the text each."""
    inner = model.model
    text = inner.language_model
    has: list[list[tuple[Any, str]]] = [
        [(inner, "vision_tower")],
        [(inner, "multi_modal_projector")],
        [(text, "embed_tokens"), (text.layers, "0")],
        [(text.layers, "1"), (text, "norm"), (model, "lm_head")],
    ]
    for other, parts in enumerate(has):
        for parent, key in parts if other != rank else ():
            parent._modules[key] = None


def experts_of(model: Any, rank: int) -> None:
    """Of 5 experts, each rank has those of its number, and all else; parameters that say so."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (4,))
    for module in model.modules():
        if type(module).__name__.endswith("Experts"):
            for key, parameter in module._parameters.items():
                module._parameters[key] = torch.nn.Parameter(distribute_tensor(parameter, mesh, [Shard(0)]))


PARTS: dict[str, Callable[[Any, int], None]] = {"towers": tower_of, "experts by rank": experts_of}


def nobody(rank: int, checkpoint: Path, out: Path) -> list[Any]:
    """A module that no rank has, and one that rank 2 has: the codes, and what the first message is about."""
    model = towers()
    model.model.language_model._modules["norm"] = None
    if rank != 2:
        model.model._modules["vision_tower"] = None
    actions: list[Callable[[], Any]] = [
        lambda: crosswalk.load(checkpoint, model),
        lambda: crosswalk.save(model, model.config, out),
        lambda: crosswalk.publisher(model, model.config),
        lambda: list(crosswalk.stream(model, model.config)),
    ]
    return [refusal(action) for action in actions]


def refusal(action: Callable[[], Any]) -> list[tuple[str, str]]:
    """The code and the name in each message of an error."""
    try:
        action()
    except CrosswalkError as error:
        return [(d.code, d.message.split("`")[1 if d.code == "class/unexpected" else 3]) for d in error.diagnostics]
    return []
