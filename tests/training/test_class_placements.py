"""Live models of transformers spread over ranks: by their own parallelism, with replicas, on the host, in parts."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import class_cases as cases
import class_placements as placements
import pytest
import transformers
from ranks import Failed, run_ranks

pytestmark = pytest.mark.skipif(
    int(transformers.__version__.split(".")[0]) < 5, reason="classes are spread by their own rules since 5"
)
WAYS = {**{way: name for way, (name, _) in placements.OWN.items()},
        "towers": placements.TOWERS, "experts by rank": placements.MOE}  # fmt: skip


def test_every_way_to_spread_a_class_over_ranks(tmp_path: Path) -> None:
    """What is loaded, sent, saved and patched is the checkpoint; every byte is written once, and rank 0 is sent what it
    lacks and the others nothing."""
    for name in set(WAYS.values()):
        placements.made(name).save_pretrained(tmp_path / name)
    found = run_ranks(4, placements.on_ranks, tmp_path, tmp_path / "out", limit=300)
    for rank in found:
        assert not isinstance(rank, Failed), rank.text
    for way, name in WAYS.items():
        expected = cases.files(tmp_path / name)
        total = sum(tensor.nbytes for tensor in expected.values())
        ranks = [rank[way] for rank in found]
        assert [rank["wrong"] for rank in ranks] == [[]] * 4, way
        assert cases.differences(cases.files(tmp_path / "out" / way), expected) == [], way
        assert sum(rank["written"] for rank in ranks) == total, way
        assert [rank["bytes"][0] for rank in ranks] == [total - ranks[0]["held"], 0, 0, 0], way
        assert [2 * rank["halved"][0] for rank in ranks] == [rank["bytes"][0] for rank in ranks], way  # cast, then sent
        config = json.loads((tmp_path / "out" / way / "config.json").read_text())
        assert config == json.loads((tmp_path / name / "config.json").read_text()), way
    absent = [("class/absent", "model.language_model.norm.weight")]
    loading = [("class/unexpected", "language_model.model.norm.weight")]
    assert [rank["nobody"] for rank in found] == [[loading, absent, absent, absent]] * 4


@pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="transformers spreads with accelerate only")
@pytest.mark.parametrize("sizes", [{"tp_size": 2}, {"fsdp_size": 2}, {"tp_size": 2, "ep_size": 2}])
def test_what_transformers_has_loaded_and_spread_itself(sizes: dict[str, int], tmp_path: Path) -> None:
    placements.made(placements.SPARSE).save_pretrained(tmp_path / placements.SPARSE)
    for found in run_ranks(2, placements.loaded_by_its_class, tmp_path / placements.SPARSE, tmp_path / "out", sizes):
        assert not isinstance(found, Failed), found.text
        assert found == []
    expected = cases.files(tmp_path / placements.SPARSE)
    assert cases.differences(cases.files(tmp_path / "out"), expected) == []
