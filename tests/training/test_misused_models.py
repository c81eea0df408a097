"""What people pass in place of a plain model of a class: looked through, or refused by name with what to do."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import class_cases as cases
import pytest
import torch
import transformers
from torch.nn.utils import prune

import crosswalk
from crosswalk.runtime.errors import CrosswalkError

pytestmark = pytest.mark.skipif(
    int(transformers.__version__.split(".")[0]) < 5, reason="classes say their rules since 5"
)

UP = "model.layers.1.mlp.up_proj"


def model() -> Any:
    return cases.made("LlamaForCausalLM")


def published(model: Any, config: Any) -> dict[str, torch.Tensor]:
    return dict(itertools.chain.from_iterable(crosswalk.publisher(model, config).buckets()))


def refusal(function: Callable[[], Any]) -> dict[str, str]:
    """The codes of what is refused, each with all that is said of it."""
    with pytest.raises(CrosswalkError) as caught:
        function()
    found: dict[str, list[str]] = {}
    for problem in caught.value.diagnostics:
        found.setdefault(problem.code, []).append(str(problem))
    return {code: "\n".join(texts) for code, texts in found.items()}


@pytest.mark.parametrize("wrap", [torch.optim.swa_utils.AveragedModel, torch.nn.DataParallel])
def test_wrappers_with_one_module_do_not_show(wrap: Any) -> None:
    inner = model()
    outer = torch.compile(wrap(inner))
    assert cases.differences(published(outer, inner.config), dict(inner.state_dict())) == []


def test_a_wrapper_with_more_in_it_is_refused() -> None:
    outer = torch.nn.Module()
    outer.module, outer.value_head = model(), torch.nn.Linear(24, 1)
    found = refusal(lambda: published(outer, outer.module.config))
    assert found.keys() == {"class/wrapped"}
    assert "at `module`" in found["class/wrapped"]


@pytest.mark.parametrize("made", [lambda m: list(m.parameters()), lambda m: m.named_parameters(), lambda m: None, type])
def test_what_is_no_model_is_refused(made: Callable[[Any], Any], tmp_path: Path) -> None:
    one = model()
    for use in (
        lambda: crosswalk.publisher(made(one), one.config),
        lambda: crosswalk.save(made(one), one.config, tmp_path / "out"),
        lambda: crosswalk.load(tmp_path, made(one)),
    ):
        assert refusal(use).keys() == {"live/model"}


def test_tensors_do_not_say_their_class() -> None:
    one = model()
    found = refusal(lambda: published(one.state_dict(), one.config))
    assert "a dict of tensors does not say of which class it is" in found["format/needed"]
    traced = torch.fx.GraphModule(one, torch.fx.Graph())
    found = refusal(lambda: published(traced, one.config.to_dict()))
    assert "a `GraphModule` does not say" in found["format/needed"]


def test_another_config_than_that_of_the_model_is_refused(tmp_path: Path) -> None:
    one = model()
    for given, said in ((str(tmp_path), "`str`"), (transformers.MixtralConfig(), "one of `mixtral`"), (None, "None")):
        assert said in refusal(lambda given=given: published(one, given))["class/config"]
    assert cases.differences(published(one, one.config.to_dict()), dict(one.state_dict())) == []


def test_what_stands_in_the_place_of_a_parameter_is_named() -> None:
    one, other, quantised = model(), model(), model()
    torch.nn.utils.parametrizations.weight_norm(one.get_submodule(UP))
    prune.l1_unstructured(other.get_submodule(UP), "weight", 0.3)
    linear = quantised.get_submodule(UP)
    del linear.weight
    linear.register_buffer("qweight", torch.zeros(6, 37, dtype=torch.int32))
    for changed, name in ((one, "parametrizations.weight.original0"), (other, "weight_"), (quantised, "qweight")):
        found = refusal(lambda changed=changed: published(changed, changed.config))
        assert found.keys() == {"class/replaced"}
        assert f"has `{UP}.weight`, and the model has `{UP}.{name}" in found["class/replaced"]


def test_shapes_that_the_config_does_not_make_are_refused() -> None:
    """A parameter whose elements are elsewhere, a part of one as a plain tensor, and a head of another size."""
    one, part, head = model(), model(), model()
    for parameter in one.parameters():
        parameter.data = torch.empty(0)
    said = refusal(lambda: published(one, one.config))["class/shape"]
    assert "`model.layers.{0..1}.mlp.up_proj.weight` is [0] in the model" in said
    linear = part.get_submodule(UP)
    linear.weight = torch.nn.Parameter(linear.weight[:19].detach().clone())
    said = refusal(lambda: published(part, part.config))["class/shape"]
    assert f"`{UP}.weight` is [19, 24] in the model, and `LlamaForCausalLM` makes it [37, 24]" in said
    head.lm_head = torch.nn.Linear(24, 5, bias=False)
    assert "`lm_head.weight` is [5, 24]" in refusal(lambda: published(head, head.config))["class/shape"]


def test_what_hooks_keep_elsewhere_is_refused(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    one = model()
    accelerate.cpu_offload(one, execution_device=torch.device("cpu"))
    assert "AlignDevicesHook" in refusal(lambda: published(one, one.config))["class/hook"]
    with torch.device("meta"):
        empty = type(one)(one.config)
    assert "crosswalk.load" in refusal(lambda: published(empty, empty.config))["live/meta"]


class Adapted(torch.nn.Module):
    """What adapters put in the place of a layer, which they keep."""

    def __init__(self, base_layer: torch.nn.Module) -> None:
        super().__init__()
        self.base_layer, self.lora_A = base_layer, torch.nn.Linear(24, 3, bias=False)


def adapt(one: Any) -> None:
    one.model.layers[1].mlp.up_proj = Adapted(one.get_submodule(UP))


def grow(one: Any) -> None:
    one.get_submodule(UP).probe = torch.nn.Linear(3, 5)


def lose(one: Any) -> None:
    del one.lm_head


def rename(one: Any) -> None:
    layers = one.model.layers
    layers._modules["3"] = layers._modules.pop("1")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (adapt, f"`{UP}.lora_A.weight` [3, 24], which the plan does not have"),
        (grow, f"`{UP}.probe.weight` [5, 3], which the plan does not have"),
        (lose, "parameter `lm_head.weight` is gone"),
        (rename, "`model.layers.3.mlp.up_proj.weight`"),
    ],
)
def test_modules_that_come_go_or_move_make_a_publisher_stale(change: Callable[[Any], None], said: str) -> None:
    one = model()
    publisher = crosswalk.publisher(one, one.config)
    change(one)
    assert said in refusal(publisher.buckets)["publisher/stale"]


def test_a_module_in_the_place_of_another_is_followed() -> None:
    """Of the same shape: what is published is of the new one, and no longer of the old."""
    one = model()
    publisher = crosswalk.publisher(one, one.config)
    one.lm_head = torch.nn.Linear(24, 71, bias=False)
    found = dict(itertools.chain.from_iterable(publisher.buckets()))
    assert torch.equal(found["lm_head.weight"], one.lm_head.weight)


def test_what_a_config_says_of_files_may_differ_between_ranks(tmp_path: Path) -> None:
    """One rank has saved the model, which sets keys of its config."""
    one, other = model(), model()
    one.save_pretrained(tmp_path)
    one.config._name_or_path = str(tmp_path)
    assert one.config.to_dict() != other.config.to_dict()
    asked = [crosswalk.publisher(m, m.config)._export.asked for m in (one, other)]
    assert asked[0] == asked[1]
    other.config.rms_norm_eps = 0.125
    assert crosswalk.publisher(other, other.config)._export.asked != asked[0]
