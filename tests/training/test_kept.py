"""Host memory that is used again: by whom, and that nobody sees what another left in it."""

from __future__ import annotations

from pathlib import Path

import torch
from native_llama import assert_equal, blank, native_state
from safetensors.torch import load_file

import crosswalk
from crosswalk.runtime import kept
from crosswalk.runtime.kept import KeptMemory


def test_the_largest_that_are_given_back_are_handed_out_again() -> None:
    memory = KeptMemory(2)
    small, middle, large = (memory.take(size) for size in (10, 20, 30))
    for buffer in (large, small, middle):
        memory.give_back(buffer)
    assert memory.take(15) is middle
    assert memory.take(15) is large
    assert memory.take(5) is not small, "only two are kept"
    memory.give_back(middle)
    assert memory.take(21).numel() == 21
    assert memory.take(20) is not middle, "what was too small is not kept beside what was made instead"


def test_saves_in_the_background_share_memory_and_nothing_else(checkpoint: Path, tmp_path: Path) -> None:
    state = native_state(checkpoint)
    loaded = crosswalk.load(checkpoint, blank(state))
    original = load_file(checkpoint / "model.safetensors")
    kept.SNAPSHOT.free()
    places, saves = [], []
    for number in (1, 2, 3, 4):
        given = {name: tensor * number for name, tensor in state.items()}
        saves.append(crosswalk.save(given, loaded, tmp_path / f"{number}", blocking=False))
        if number > 1:  # the first two are under way at the same time
            for save in saves:
                save.result()
            memory = kept.SNAPSHOT.take(1)
            places.append(memory.data_ptr())
            kept.SNAPSHOT.give_back(memory)
    assert len(set(places)) == 1
    for number in (1, 2, 3, 4):
        written = load_file(tmp_path / f"{number}" / "model.safetensors")
        assert_equal(written, {name: tensor * number for name, tensor in original.items()})

    crosswalk.save(state, loaded, tmp_path / "waited")
    assert not kept.SNAPSHOT._free, "who waits keeps nothing"
    assert_equal(load_file(tmp_path / "waited" / "model.safetensors"), original)


def test_a_load_reads_into_what_the_one_before_used(checkpoint: Path) -> None:
    expected = native_state(checkpoint)
    for _ in range(2):
        state = blank(expected)
        crosswalk.load(checkpoint, state)
        assert_equal(state, expected)
    assert 1 <= len(kept.WORKERS._free) <= 4
    assert all(buffer.dtype == torch.uint8 for buffer in kept.WORKERS._free)
