"""Classes of transformers whose files are made of their memory in ways of their own, against what they write and read.

By default one of each way; every class that an auto class names with ``python tests/support/class_census.py``, which
writes docs/transformers.md.
"""

from __future__ import annotations

from pathlib import Path

import class_census as census
import pytest
import transformers

pytestmark = pytest.mark.skipif(
    int(transformers.__version__.split(".")[0]) < 5, reason="classes say their rules since 5"
)
#: Type of config, or class -> what is between memory and files.
SAMPLE = {
    "nemotron_h": "experts without a gate, and another prefix",
    "gte": "queries, keys and values joined, and up before gate",
    "inkling2_text": "rows of gate and up that alternate, rows of zeros, moved numbers",
    "ernie4_5_vl_moe": "one list of experts over two stacks of different widths, and a transpose",
    "qwen4_exp_text": "numbered shards of one matrix",
    "kimi_k25": "rows in the order of a rotation, inside of what is joined",
    "llava": "towers under other prefixes",
    "bart": "ties of three embeddings, and a buffer",
    "MarianMTModel": "positions that the class does not save, and computes",
}


@pytest.mark.parametrize("kind", SAMPLE)
def test_names_and_values_are_those_of_the_class(kind: str, tmp_path: Path) -> None:
    job = next(job for job in census.jobs() if kind in (job.type, job.name))
    assert census.checked(census.made(job), tmp_path) == (census.EQUAL, [])
