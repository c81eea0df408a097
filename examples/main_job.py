"""The main job on a real checkpoint: Hugging Face to the trainer's layout and back, checked at every step.

Makes a small Llama with the transformers class, then runs what a user would run on the command line. Exits with an
error if anything differs.
"""

from __future__ import annotations

import filecmp
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from crosswalk.cli.commands import cli, run_command


def make_checkpoint(directory: Path) -> None:
    """A real Llama with grouped-query attention; no two sizes are equal, so that no mix-up can hide."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1009,
        hidden_size=120,
        intermediate_size=331,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=22,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 512,
        },
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)


def logits(directory: Path) -> torch.Tensor:
    model = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.arange(1, 40)[None]).logits


def crosswalk(*arguments: str | Path) -> None:
    words = [str(argument) for argument in arguments]
    print(f"\n$ crosswalk {' '.join(words)}", flush=True)
    code = run_command(cli, words)
    if code:
        sys.exit(code)


def main() -> None:
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="crosswalk-") as name:
        work = Path(name)
        os.chdir(work)
        make_checkpoint(Path("llama"))
        crosswalk("check", "llama")
        crosswalk("plan", "llama")
        crosswalk("convert", "llama", "llama-fast_llm")
        crosswalk("explain", "llama", "decoder.1.mixer.key_value.weight")
        crosswalk("convert", "llama-fast_llm", "llama-again")
        crosswalk("verify", "llama", "llama-fast_llm")
        crosswalk("verify", "llama-fast_llm", "llama-again")
        crosswalk("convert", "llama-fast_llm", "step-0", "--to", "torchtitan")
        same = all(filecmp.cmp(Path("llama", f), Path("llama-again", f), False) for f in os.listdir("llama"))
        equal = torch.equal(logits(Path("llama")), logits(Path("llama-again")))
        print(f"\nfiles byte-identical: {same}\nlogits equal: {equal}")
        os.chdir("/")
        if not (same and equal):
            sys.exit("the checkpoint that came back is not the one that was converted")


if __name__ == "__main__":
    main()
