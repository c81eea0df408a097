"""Convert random models of transformers into GPTModels of megatron-core and compare what both compute, on a CPU.

    pip install --no-deps megatron-core==0.19.2 triton einops
    python tests/with_megatron/check.py

Each model is saved by its class of transformers, loaded into a GPTModel of the spec ``local`` by ``crosswalk.load``,
run beside the original, saved by ``crosswalk.save``, and its tensors compared bit for bit. Prints one line for each,
and fails if logits differ by more than 1e-5.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed
import transformers
from models import CASES, Here, gpt, run_on_a_cpu
from originals import SIZES, original
from safetensors.torch import load_file

import crosswalk

MOST = 1e-5


def check(name: str, folder: Path) -> float:
    """The largest difference of two logits. Raises ``AssertionError`` if a tensor does not come back."""
    source = original(*CASES[name])
    source.save_pretrained(folder / "hf")
    config = source.config.to_dict() | {"architectures": [type(source).__name__]}
    model = gpt(crosswalk.import_config(config, to="megatron"))
    loaded = crosswalk.load(folder / "hf", model, layout="megatron")
    ids = torch.randint(0, SIZES["vocab_size"], (2, 23), generator=torch.Generator().manual_seed(2))
    positions = torch.arange(23).expand(2, -1)
    mask = torch.ones(1, 1, 23, 23, dtype=torch.bool).triu(1)
    with torch.no_grad(), Here():
        here, there = model(ids, positions, mask), source(ids).logits
    crosswalk.save(model, loaded, folder / "back")
    before, after = (load_file(folder / part / "model.safetensors") for part in ("hf", "back"))
    assert before.keys() == after.keys(), before.keys() ^ after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    return float((here - there).abs().max())


def main() -> int:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    run_on_a_cpu()
    failed = False
    transformers.utils.logging.disable_progress_bar()
    for name in CASES:
        with tempfile.TemporaryDirectory() as folder:
            difference = check(name, Path(folder))
        failed |= not difference <= MOST
        print(f"{name:45} {difference:.1e}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
