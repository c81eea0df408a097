"""What users wait for beside the moving of bytes: start-up, planning of large models, whole processes beside ``cp``.

    python benchmarks/planning.py --tmpfs /dev/shm --rounds 5 --results planning.json
    python benchmarks/planning.py --parts whole --whole 24 --rounds 3
    python benchmarks/planning.py --parts whole --whole 29 --rounds 3 --disk DIRECTORY

Everything runs in processes of its own, with the command line as users call it. Sources of the growing models are
sparse files: only their headers are read. Writes JSON, and beside it the tables of docs/performance.md (``.md``) and,
of all parts, their picture (``.svg``). Of a model that is converted whole, two copies are there at a time: 24 layers
(11 GB) fit into the memory of a machine of 24 GiB. With ``--disk`` the sources lie in that directory, evicted, and only
what is made of them on tmpfs, as ``cp`` and Crosswalk do alike: 29 layers (13 GB).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import plot_planning
from media import evict

Shapes = dict[str, tuple[int, ...]]
#: Layers and experts of a Mixtral: 10^3 to 10^5 tensors.
GROWTH = ((4, 80), (16, 200), (61, 256), (61, 384), (64, 520))
FORMATS = (10, 30, 100)
#: Layers of a Llama of the widths of 8B with a small vocabulary: 1.4 and 3.6 GB. Two copies must fit into memory.
WHOLE = (2, 7)
PARTS = ("startup", "growth", "formats", "whole")
_PLAN = """
import gc, json, sys, time
gc.disable()
from pathlib import Path
import crosswalk
from crosswalk.runtime.checkpoint.source import open_checkpoint
config, specs = json.loads(Path(sys.argv[1], "config.json").read_text()), open_checkpoint(Path(sys.argv[1])).specs()
crosswalk.compile_plan({**config, "num_hidden_layers": 1, "num_local_experts": 2})  # what is loaded once
times = [time.process_time()]
for do in (lambda: crosswalk.compile_plan(config), lambda: plan.verify(), lambda: plan.digest, lambda: plan.to_json()):
    found = do()
    plan = found if len(times) == 1 else plan
    times.append(time.process_time())
print(json.dumps([b - a for a, b in zip(times, times[1:])] + [len(found), len(plan.sources)]))
"""


def mixtral(layers: int, experts: int) -> tuple[dict[str, Any], Shapes]:
    """A Mixtral with so many layers and experts that is small otherwise."""
    width, inner, vocab = 64, 96, 128
    config = {
        "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "vocab_size": vocab, "hidden_size": width,
        "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "rope_theta": 10000.0, "max_position_embeddings": 512,
        "torch_dtype": "bfloat16", "num_local_experts": experts, "num_experts_per_tok": 2, "sliding_window": None,
        "hidden_act": "silu",
    }  # fmt: skip
    shapes: Shapes = _attention(layers, width, vocab, width // 2)
    for layer in range(layers):
        moe = f"model.layers.{layer}.block_sparse_moe"
        shapes[f"{moe}.gate.weight"] = (experts, width)
        for expert in range(experts):
            for name, shape in (("w1", (inner, width)), ("w2", (width, inner)), ("w3", (inner, width))):
                shapes[f"{moe}.experts.{expert}.{name}.weight"] = shape
    return config, shapes


def llama(layers: int, width: int = 4096, inner: int = 14336, vocab: int = 32000) -> tuple[dict[str, Any], Shapes]:
    """A Llama of 32 heads."""
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocab, "hidden_size": width,
        "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": 32, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "rope_theta": 500000.0, "max_position_embeddings": 8192,
        "torch_dtype": "bfloat16", "attention_bias": False, "mlp_bias": False, "hidden_act": "silu",
    }  # fmt: skip
    shapes = _attention(layers, width, vocab, width // 4)
    for layer in range(layers):
        for name, shape in (("gate", (inner, width)), ("up", (inner, width)), ("down", (width, inner))):
            shapes[f"model.layers.{layer}.mlp.{name}_proj.weight"] = shape
    return config, shapes


def _attention(layers: int, width: int, vocab: int, keys: int) -> Shapes:
    shapes: Shapes = {"model.embed_tokens.weight": (vocab, width), "lm_head.weight": (vocab, width)}
    shapes["model.norm.weight"] = (width,)
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        shapes[f"{prefix}.input_layernorm.weight"] = shapes[f"{prefix}.post_attention_layernorm.weight"] = (width,)
        for name, rows in (("q", width), ("k", keys), ("v", keys), ("o", width)):
            shapes[f"{prefix}.self_attn.{name}_proj.weight"] = (rows, width)
    return shapes


def write(directory: Path, config: Mapping[str, Any], shapes: Shapes, filled: bool = False) -> int:
    """A checkpoint in one file, sparse unless it is to be ``filled`` with random bytes; its size."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with open(directory / "model.safetensors", "wb") as stream:
        stream.write(struct.pack("<Q", len(raw)) + raw)
        block = os.urandom(1 << 24) if filled else b""
        for begin in range(0, end if filled else 0, 1 << 24):
            stream.write(block[: end - begin])
        stream.truncate(8 + len(raw) + end)
    return 8 + len(raw) + end


def run(command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> dict[str, float]:
    """Seconds of a process, and of its CPU."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        list(map(str, command)), check=True, stdout=subprocess.DEVNULL, env={**os.environ, **(environment or {})}
    )
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "seconds": seconds,
        "user": after.ru_utime - before.ru_utime,
        "system": after.ru_stime - before.ru_stime,
    }


def median(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: statistics.median(found[key] for found in runs) for key in runs[0]}


def crosswalk(*arguments: str | Path) -> list[str | Path]:
    return [Path(sys.executable).with_name("crosswalk"), *arguments]


def startup(home: Path, rounds: int) -> dict[str, Any]:
    """A tiny model: what remains is start-up."""
    write(home / "tiny", *llama(2, 64, 96, 128), filled=True)
    found: dict[str, list[dict[str, float]]] = {}
    for _ in range(rounds + 1):  # the first one warms the caches, and does not count
        for name, command in (
            ("python -c pass", [sys.executable, "-c", "pass"]),
            ("check", crosswalk("check", home / "tiny")),
            ("convert", crosswalk("convert", home / "tiny", home / "native")),
            ("convert back", crosswalk("convert", home / "native", home / "back")),
        ):
            found.setdefault(name, []).append(run(command))
        shutil.rmtree(home / "native")
        shutil.rmtree(home / "back")
    return {name: median(runs[1:]) for name, runs in found.items()}


def growth(home: Path, rounds: int) -> list[dict[str, Any]]:
    """Mixtrals of more and more tensors: the command, and the CPU seconds of the parts of planning."""
    rows = []
    for layers, experts in GROWTH:
        source = home / f"mixtral-{layers}-{experts}"
        write(source, *mixtral(layers, experts))
        whole = median([run(crosswalk("check", source)) for _ in range(rounds)])
        parts = []
        for _ in range(rounds):
            child = subprocess.run(
                [sys.executable, "-c", _PLAN, str(source)], check=True, capture_output=True, text=True
            )
            parts.append(json.loads(child.stdout))
        *times, size, tensors = (statistics.median(column) for column in zip(*parts, strict=True))
        names = ("compile", "verify", "digest", "text")
        rows.append({"tensors": tensors, "check": whole, **dict(zip(names, times, strict=True)), "characters": size})
        shutil.rmtree(source)
    return rows


def formats(home: Path, rounds: int) -> list[dict[str, Any]]:
    """``check`` of a tiny model with more and more formats in a folder of one's own."""
    shipped = Path(__file__).parent.parent / "mappings"
    write(home / "own", *llama(2, 64, 96, 128), filled=True)
    rows = []
    for number in FORMATS:
        folder = home / f"formats-{number}"
        folder.mkdir()
        for copy in range(number):
            shutil.copy(shipped / "llama.yaml", folder / f"llama_{copy}.yaml")
        environment = {"CROSSWALK_MAPPINGS": str(folder), "XDG_CACHE_HOME": str(home / "cache")}
        command = crosswalk("check", home / "own", "--format", "llama")
        runs = [run(command, environment) for _ in range(rounds + 1)]
        rows.append({"formats": number, "first": runs[0], "then": median(runs[1:])})
    return rows


def whole(home: Path, rounds: int, sizes: Sequence[int], disk: Path | None) -> list[dict[str, Any]]:
    """Whole conversions against ``cp`` of their source in the same round. Sources are evicted if they lie on a disk."""
    rows = []
    sources = disk or home
    for layers in sizes:
        size = write(sources / "in", *llama(layers), filled=True)
        ratios: dict[str, list[float]] = {"import": [], "export": []}
        runs: dict[str, list[dict[str, float]]] = {}
        for _ in range(rounds):
            source = sources / "in"
            for way in ("import", "export"):
                taken = {}
                for name, command, made in (
                    (f"cp for {way}", ["cp", "-r"], home / "copy"),
                    (way, crosswalk("convert"), home / "made"),
                ):
                    if disk is not None:
                        evict(source)
                    taken[name] = run([*command, source, made])
                    runs.setdefault(name, []).append(taken[name])
                    shutil.rmtree(home / "copy", ignore_errors=True)
                ratios[way].append(taken[way]["seconds"] / taken[f"cp for {way}"]["seconds"])
                shutil.rmtree(source)
                source = sources / ("native" if way == "import" else "in")  # the same model again after both
                shutil.move(home / "made", source)
        shutil.rmtree(sources / "in")
        rows.append(
            {"gb": size / 1e9, **{name: median(found) for name, found in runs.items()}}
            | {f"{way} to cp": statistics.median(found) for way, found in ratios.items()}
        )
    return rows


def tables(results: Mapping[str, Any]) -> str:
    """The tables of docs/performance.md, of what was measured."""
    found = {
        "startup": ["| tiny model | seconds | CPU |", "|---|---|---|"],
        "growth": [
            "| tensors | `check`, seconds (CPU) | compile | verify | digest | text, seconds | text, kB |",
            "|---|---|---|---|---|---|---|",
        ],
        "formats": ["| formats of one's own | first `check`, seconds | then |", "|---|---|---|"],
        "whole": [
            "| GB | import: seconds, user, system | of `cp` | export: seconds, user, system | of `cp` |",
            "|---|---|---|---|---|",
        ],
    }
    for name, row in results.get("startup", {}).items():
        found["startup"].append(f"| `{name}` | {row['seconds']:.2f} | {row['user'] + row['system']:.2f} |")
    for row in results.get("growth", ()):
        check = f"{row['check']['seconds']:.2f} ({row['check']['user'] + row['check']['system']:.2f})"
        parts = " | ".join(f"{row[part]:.2f}" for part in ("compile", "verify", "digest", "text"))
        found["growth"].append(f"| {row['tensors']:,.0f} | {check} | {parts} | {row['characters'] / 1000:.1f} |")
    for row in results.get("formats", ()):
        seconds = f"{row['first']['seconds']:.2f} | {row['then']['seconds']:.2f}"
        found["formats"].append(f"| {row['formats']} | {seconds} |")
    for row in results.get("whole", ()):
        ways = (
            f"{row[way]['seconds']:.2f}, {row[way]['user']:.2f}, {row[way]['system']:.2f} | {row[f'{way} to cp']:.2f}"
            for way in ("import", "export")
        )
        found["whole"].append(f"| {row['gb']:.1f} | {' | '.join(ways)} |")
    return "\n\n".join("\n".join(lines) for part, lines in found.items() if part in results) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tmpfs", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what is measured")
    parser.add_argument("--whole", type=int, nargs="*", default=WHOLE, help="layers of the models that are converted")
    parser.add_argument("--disk", type=Path, help="where the sources of whole conversions are, if not on tmpfs")
    parser.add_argument("--results", type=Path, default=Path("planning.json"))
    options = parser.parse_args()
    name = f"crosswalk-planning-{os.getpid()}"
    home, disk = options.tmpfs / name, options.disk and options.disk / name
    home.mkdir()
    results: dict[str, Any] = {"machine": {"cores": os.cpu_count(), "load": os.getloadavg()[0]}}
    measure: dict[str, Callable[[], Any]] = {
        "startup": lambda: startup(home, options.rounds),
        "growth": lambda: growth(home, options.rounds),
        "formats": lambda: formats(home, options.rounds),
        "whole": lambda: whole(home, options.rounds, options.whole, disk),
    }
    try:
        results |= {part: measure[part]() for part in PARTS if part in options.parts}
    finally:
        for directory in (home, disk):
            shutil.rmtree(directory or home, ignore_errors=True)
    options.results.write_text(json.dumps(results, indent=1) + "\n")
    options.results.with_suffix(".md").write_text(tables(results))
    if all(part in results for part in PARTS):
        options.results.with_suffix(".svg").write_text(plot_planning.draw(results))
    print(tables(results))


if __name__ == "__main__":
    main()
