"""Sharding by the axes of the layout: boxes against brute force, several ranks against files, and errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import shard_cases
import torch
from golden_cases import Case, cases
from hypothesis import assume, given
from hypothesis import strategies as st
from native_llama import LLAMA, Tree, assert_equal, blank, native_state
from oracles import make_checkpoint
from ranks import Failed, run_ranks
from sharded_models import MODELS, Axes, Model, acting, arange, local_of

import crosswalk
from crosswalk.compiler.layout.axis_shards import held_parameters
from crosswalk.compiler.layout.scope import Scope
from crosswalk.jobs.formats import catalog
from crosswalk.runtime.errors import CrosswalkError
from crosswalk.runtime.training.placement import Shards, place


def codes(error: pytest.ExceptionInfo[CrosswalkError]) -> list[str]:
    return sorted(diagnostic.code for diagnostic in error.value.diagnostics)


def config_of(checkpoint: Path) -> dict[str, Any]:
    return crosswalk.import_config(json.loads((checkpoint / "config.json").read_text()))


def sharded(model: Model, state: dict[str, Any], axes: Axes) -> dict[str, torch.Tensor | Shards]:
    return crosswalk.shards(state, model.config, axes, model.root, model.layout)


def assert_holds(value: Any, local: torch.Tensor, whole: torch.Tensor) -> None:
    """``value`` says where in ``whole``, whose elements all differ, those of ``local`` are, in the memory of it."""
    placed = place(value)
    assert placed.shape == tuple(whole.shape)
    assert sum(part.tensor.numel() for part in placed.parts) == local.numel()
    for part in placed.parts:
        assert torch.equal(part.tensor, whole[tuple(slice(start, stop) for start, stop in part.box)])
        assert part.tensor.untyped_storage().data_ptr() == local.untyped_storage().data_ptr()


# Boxes


@pytest.mark.parametrize("rank", range(4))
def test_branches_are_cut_each_for_itself(rank: int) -> None:
    """11 indices in 4 shards are 3, 3, 3 and 2."""
    gate, up = torch.arange(22 * 13).view(2, 11, 13)
    local = torch.cat([gate[3 * rank : 3 * rank + 3], up[3 * rank : 3 * rank + 3]])
    name = "decoder.0.mlp.layer_1.weight"
    state = sharded(MODELS["attention"], {name: local}, {"intermediate": (rank, 4)})
    stop = min(3 * rank + 3, 11)
    assert [box for box, _ in state[name].parts] == [
        ((3 * rank, stop), (0, 13)),
        ((11 + 3 * rank, 11 + stop), (0, 13)),
    ]
    assert_holds(state[name], local, torch.arange(22 * 13).view(22, 13))


def test_an_axis_inside_a_product_is_cut_in_every_index_of_what_is_outside() -> None:
    """Each of 7 experts has two matrices of 11 rows, of which the second of three shards has 4 to 7."""
    whole = torch.arange(7 * 2 * 11 * 13).view(7, 2, 11, 13)
    local = whole[:, :, 4:8].reshape(-1, 13)
    name = "decoder.0.mlp.layer_1.weight"
    state = sharded(MODELS["experts"], {name: local}, {"intermediate": (1, 3)})
    assert len(state[name].parts) == 14
    assert_holds(state[name], local, whole.view(-1, 13))
    mine = whole[4:].reshape(-1, 13)
    state = sharded(MODELS["experts"], {name: mine}, {"expert": (1, 2)})
    assert [box for box, _ in state[name].parts] == [((4 * 22, 7 * 22), (0, 13))]


def test_heads_are_cut_by_themselves_or_by_their_groups() -> None:
    """15 heads in 5 groups. Two ranks for each half of the groups: 8 and 7 heads, but 3 and 2 groups."""
    query, key_value = "decoder.0.mixer.query.weight", "decoder.0.mixer.key_value.weight"
    heads = torch.arange(15 * 6 * 13).view(15, 6, 13)
    key, value = torch.arange(2 * 5 * 6 * 13).view(2, 5, 6, 13)
    pair = torch.cat([key[3:], value[3:]]).reshape(-1, 13)
    local = {query: heads[8:].reshape(-1, 13), key_value: pair}
    state = sharded(MODELS["attention"], local, {"head": (1, 2), "group": (1, 2)})
    assert_holds(state[query], local[query], heads.view(-1, 13))
    assert_holds(state[key_value], pair, torch.cat([key, value]).view(-1, 13))
    local = {query: heads[9:].reshape(-1, 13), key_value: pair}
    state = sharded(MODELS["attention"], local, {"group": (1, 2)})
    assert_holds(state[query], local[query], heads.view(-1, 13))


@pytest.mark.parametrize("name", MODELS)
@given(data=st.data())
def test_boxes_of_any_axes(name: str, data: st.DataObject) -> None:
    model = MODELS[name]
    shard = st.integers(1, 5).flatmap(lambda count: st.tuples(st.integers(0, count - 1), st.just(count)))
    axes = data.draw(st.dictionaries(st.sampled_from(sorted(model.sizes)), shard, max_size=3))
    wholes = {key: arange(pattern, model.sizes) for key, pattern in model.patterns.items()}
    locals_ = {key: local_of(wholes[key], pattern, model.sizes, axes) for key, pattern in model.patterns.items()}
    assume(acting(model.patterns.values(), model.sizes, axes) == axes.keys())
    state = sharded(model, locals_, axes)
    for key, local in locals_.items():
        assert_holds(state[key], local, wholes[key])


@pytest.mark.parametrize("name", MODELS)
def test_ranks_together_hold_everything(name: str) -> None:
    model = MODELS[name]
    for axis in model.sizes:
        for key, pattern in model.patterns.items():
            whole = arange(pattern, model.sizes)
            found = torch.full(whole.shape, 0)
            for rank in range(3):
                local = local_of(whole, pattern, model.sizes, {axis: (rank, 3)})
                for part in place(sharded(model, {key: local}, {axis: (rank, 3)})[key]).parts:
                    found[tuple(slice(start, stop) for start, stop in part.box)] += 1
            # Once, or by every rank: what does not have the axis, some branches included.
            assert {*found.unique().tolist()} <= {1, 3}, (axis, key)


@pytest.mark.parametrize("case", cases("fast_llm_config.yaml", "fast_llm.safetensors"), ids=lambda case: case.name)
def test_every_parameter_of_the_trainer_is_known(case: Case) -> None:
    """Names and shapes are those that the trainer itself wrote, and a whole model is one of one shard."""
    tensors = case.native_tensors()
    layout = catalog().layout("fast_llm")
    config = crosswalk.normalize_native(case.native_config(), case.root)
    held = held_parameters(Scope(layout, layout.types[case.root], config), {})
    assert {name: held[name].shape for name in tensors} == {name: tuple(t.shape) for name, t in tensors.items()}
    found = crosswalk.shards(tensors, config, {"hidden": (0, 1), "vocab": (0, 1)}, case.root)
    for name, tensor in tensors.items():
        ((box, part),) = [(part.box, part.tensor) for part in place(found[name]).parts]
        assert box == tuple((0, size) for size in tensor.shape)
        assert torch.equal(part, tensor)


def test_what_is_no_local_tensor_stays_as_it_is() -> None:
    model = MODELS["attention"]
    given_ = Shards((17, 13), [], torch.float32)
    state = {"head.output_weights": given_, "decoder.0.norm_1.weight": torch.zeros(13), "of no layout": torch.zeros(3)}
    found = sharded(model, state, {"vocab": (0, 2)})
    assert all(found[name] is value for name, value in state.items())


# Checkpoints


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Checkpoints, and what one process without shards saves."""
    configs = {f"{groups} groups": {**shard_cases.DENSE, "num_key_value_heads": groups} for groups in (1, 2, 3)}
    result = {}
    for name, config in {**configs, "experts": shard_cases.EXPERTS}.items():
        path = tmp_path_factory.mktemp("shards")
        make_checkpoint(path / "hf", config)
        state = shard_cases.experts_state(path / "hf") if name == "experts" else native_state(path / "hf")
        loaded = crosswalk.load(path / "hf", blank(state))
        crosswalk.save(state, loaded.config, path / "saved", loaded.format, max_shard_size="100KB")
        result[name] = path / "hf", path / "saved"
    return result


def same_files(one: Path, other: Path) -> bool:
    names = sorted(path.name for path in one.iterdir())
    return names == sorted(path.name for path in other.iterdir()) and all(
        (one / name).read_bytes() == (other / name).read_bytes() for name in names
    )


def results(size: int, function: Any, *arguments: Any) -> list[Any]:
    found = run_ranks(size, function, *arguments)
    failures = [result.text for result in found if isinstance(result, Failed)]
    assert not failures, "\n".join(failures)
    return found


@pytest.mark.parametrize(("size", "groups"), [(2, 1), (2, 2), (4, 1), (4, 2), (4, 3)])
def test_tensor_parallel_with_few_groups(size: int, groups: int, made: Any, tmp_path: Path) -> None:
    checkpoint, saved = made[f"{groups} groups"]
    written = results(size, shard_cases.tensor_parallel, size, groups, checkpoint, tmp_path / "out")
    assert max(written) <= 1.3 * sum(written) / size
    assert same_files(tmp_path / "out", saved)


def test_experts_on_ranks_that_each_have_a_part_of_them(made: Any, tmp_path: Path) -> None:
    checkpoint, saved = made["experts"]
    results(4, shard_cases.expert_parallel, checkpoint, tmp_path / "out")
    assert same_files(tmp_path / "out", saved)


@pytest.mark.parametrize(("shard", "rows"), [((1, 3), slice(33, 66)), ((59, 60), slice(0))])
def test_a_module_and_its_ties(shard: tuple[int, int], rows: slice, tmp_path: Path) -> None:
    """The head has the memory of the embeddings, and the same shard of it, be it empty."""
    make_checkpoint(tmp_path / "hf", {**LLAMA, "tie_word_embeddings": True})
    expected = native_state(tmp_path / "hf")
    embeddings = "embeddings.word_embeddings_weight"
    expected[embeddings] = expected[embeddings][rows]
    model = Tree(blank(expected), {"head.output_weights": embeddings})
    state = crosswalk.shards(model, config_of(tmp_path / "hf"), {"vocab": shard})
    assert isinstance(state["head.output_weights"], Shards)
    crosswalk.load(tmp_path / "hf", state)
    found = model.state_dict()
    assert torch.equal(found.pop("head.output_weights"), expected[embeddings])
    assert_equal(found, expected)


# Errors


def whole_llama() -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    config = crosswalk.import_config(LLAMA)
    return config, {spec.name: torch.zeros(spec.shape) for spec in crosswalk.compile_plan(LLAMA).targets}


def test_everything_that_is_wrong_with_axes_is_said() -> None:
    config, state = whole_llama()
    axes: Any = {
        "heads": (0, 2),
        "expert": (0, 2),
        "nonsense": (0, 2),
        "head": (0, 1),
        "per_group": (0, 1),
        "vocab": (2, 2),
        "intermediate": 3,
    }
    with pytest.raises(CrosswalkError) as error:
        crosswalk.shards(state, config, axes)
    assert codes(error) == ["shards/axis"] * 4 + ["shards/index"] * 2
    text = str(error.value)
    assert "layout `fast_llm` has no axis `heads` [shards/axis]\n  hint: did you mean `head`?" in text
    assert "no parameter of this config has the axis `expert`" in text
    assert "no axis `nonsense` [shards/axis]\n  hint: axes of its parameters: group, half, head," in text
    assert "`per_group` shards nothing: wherever it is, an axis that is made of it is sharded itself" in text
    assert "axis `vocab`: (2, 2) is no shard of it" in text
    assert "axis `intermediate`: 3 is no shard of it" in text


def test_every_tensor_of_another_shape_is_said() -> None:
    config, state = whole_llama()
    state["embeddings.word_embeddings_weight"] = torch.zeros(49, 48)
    state["head.output_weights"] = torch.zeros(50, 48)
    with pytest.raises(CrosswalkError) as error:
        crosswalk.shards(state, config, {"intermediate": (1, 3)})
    assert codes(error) == ["shards/shape"] * 4
    text = str(error.value)
    assert (
        "the local tensor of `decoder.{0..2}.mlp.layer_1.weight` is [160, 48]: with shard 1 of 3 of `intermediate` it "
        "must be [54, 48], of [160, 48] in all, by its pattern `([gate|up] intermediate) <- hidden` [shards/shape]\n"
        "  hint: it is the whole parameter"
    ) in text
    assert "`head.output_weights` is [50, 48]: with none of its axes sharded it must be [97, 48]" in text
    assert "hint: say in `axes` which of them is: vocab, hidden" in text
    _, state = whole_llama()
    with pytest.raises(CrosswalkError, match="hint: each branch is cut for itself") as error:
        crosswalk.shards({"head.output_weights": state["head.output_weights"][:40]}, config, {"vocab": (1, 2)})


def test_configs_and_layouts_that_are_wrong() -> None:
    config, state = whole_llama()
    with pytest.raises(CrosswalkError, match="did you mean `hidden_size`"):
        crosswalk.shards(state, {**config, "hiden_size": 3}, {})
    with pytest.raises(CrosswalkError, match="did you mean `torchtitan`"):
        crosswalk.shards(state, config, {}, layout="torchtitn")
    with pytest.raises(CrosswalkError, match=r"\[native/root\]\n.*did you mean `base_model`"):
        crosswalk.shards(state, config, {}, "base_modl")


def test_shards_without_memory(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "hf", LLAMA)
    config, state = whole_llama()
    halves = {name: tensor[:49] if "vocab" in name else tensor for name, tensor in state.items()}
    halves["head.output_weights"] = torch.zeros(49, 48, device="meta")
    halves["embeddings.word_embeddings_weight"] = torch.zeros(49, 48)
    with pytest.raises(CrosswalkError, match=r"`head\.output_weights` is on the meta device") as error:
        crosswalk.load(tmp_path / "hf", crosswalk.shards(halves, config, {"vocab": (0, 2)}))
    assert codes(error) == ["live/meta"]
    state["head.output_weights"] = state["head.output_weights"].to("meta")
    for function in (crosswalk.stream, lambda *given: crosswalk.save(*given[:2], tmp_path / "out", given[2])):
        with pytest.raises(CrosswalkError, match=r"`head\.output_weights` is on the meta device"):
            list(function(state, config, "llama"))
