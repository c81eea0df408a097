"""What is sent or saved again is not planned again as long as nothing has changed; what has changed is planned anew."""

from __future__ import annotations

import gc
import itertools
import json
import weakref
from pathlib import Path
from typing import Any

import class_cases as cases
import pytest
import torch
import transformers
from native_llama import LLAMA, Tree, native_state
from oracles import make_checkpoint

import crosswalk
from crosswalk.classes import live
from crosswalk.jobs import prepare, train

classes = pytest.mark.skipif(int(transformers.__version__.split(".")[0]) < 5, reason="classes say their rules since 5")


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was planned, in either of the two ways."""
    made: list[Any] = []
    for kind in (train.Export, train.ClassExport):

        def plan(self: Any, there: Any, plan: Any = kind.plan) -> Any:
            made.append(self)
            return plan(self, there)

        monkeypatch.setattr(kind, "plan", plan)
    return made


def sent(model: Any, config: Any, **options: Any) -> dict[str, torch.Tensor]:
    pairs = itertools.chain.from_iterable(crosswalk.stream(model, config, **options))
    return {name: tensor.clone() for name, tensor in pairs}


@classes
def test_a_class_is_planned_once(plans: list[Any], tmp_path: Path) -> None:
    model = cases.made("Qwen3MoeForCausalLM")
    before = sent(model, model.config)
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
        model.model.norm.weight.data = model.model.norm.weight.data.clone()  # memory that has moved
    for _ in range(2):
        now = sent(model, model.config)
        assert cases.differences(now, before) == ["lm_head.weight"]
        crosswalk.save(model, model.config, tmp_path / f"{len(plans)}", overwrite=True)
    assert len(plans) == 2
    assert cases.differences(cases.files(tmp_path / "2"), now) == []
    for change in (
        lambda: model.resize_token_embeddings(83),
        lambda: setattr(model.config, "rms_norm_eps", 3e-5),
        lambda: setattr(model.lm_head, "weight", model.model.embed_tokens.weight),
    ):
        count = len(plans)
        change()
        now = sent(model, model.config)
        assert len(plans) == count + 1
        model.save_pretrained(tmp_path / f"theirs-{count}")
        assert cases.differences(now, cases.files(tmp_path / f"theirs-{count}")) == []
    for dtype in ("bfloat16", "float16", "bfloat16", "float16"):
        sent(model, model.config, dtype=dtype)
    assert len(plans) == count + 3


def test_a_layout_is_planned_once_and_nothing_keeps_the_model(plans: list[Any], tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "hf", LLAMA)
    state = native_state(tmp_path / "hf")
    model = Tree(state)
    config = dict(crosswalk.load(tmp_path / "hf", model).config)
    expected = cases.files(tmp_path / "hf")
    for _ in range(2):
        assert cases.differences(sent(model, config, format="llama"), expected) == []
    assert len(plans) == 1
    config["hidden_size"] += 1  # the same object says something else
    with pytest.raises(crosswalk.CrosswalkError):
        sent(model, config, format="llama")
    config["hidden_size"] -= 1
    for _ in range(2):  # what sends a dict would hold it
        assert cases.differences(sent(state, config, format="llama"), expected) == []
    assert len(plans) == 4
    gone = weakref.ref(model)
    buckets = crosswalk.stream(model, config, "llama")
    del model
    assert cases.differences(dict(itertools.chain.from_iterable(buckets)), expected) == []
    del buckets
    assert gone() is None


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ways into models that were made, in either of the two ways."""
    made: list[str] = []
    for module, name in ((prepare, "import_checkpoint"), (live, "import_plan")):
        function = getattr(module, name)

        def make(*arguments: Any, function: Any = function, name: str = name) -> Any:
            made.append(name)
            return function(*arguments)

        monkeypatch.setattr(module, name, make)
    return made


def emptied(state: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor.zero_() for name, tensor in state.items()}


def test_a_load_into_a_dict_is_planned_once_and_nothing_keeps_its_tensors(ways: list[str], tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "hf", LLAMA)
    expected = native_state(tmp_path / "hf")
    state = {name: torch.zeros_like(tensor) for name, tensor in expected.items()}
    first = crosswalk.load(tmp_path / "hf", state, "llama")
    config = json.loads(json.dumps(first.config))
    first.config["hidden_size"] = 1  # whoever gets it may change it
    assert cases.differences(state, expected) == []
    for _ in range(2):
        found = crosswalk.load(tmp_path / "hf", emptied(state), "llama")
        assert (cases.differences(state, expected), found.config) == ([], config)
    assert len(ways) == 1
    options = {"pad": {"vocab": 1}}
    for size, count in ((1, 2), (1, 2), (97, 3)):  # the same object says something else
        options["pad"]["vocab"] = size
        crosswalk.load(tmp_path / "hf", emptied(state), "llama", **options)
        assert (len(ways), cases.differences(state, expected)) == (count, [])
    file = tmp_path / "hf/config.json"
    file.write_text(json.dumps({**LLAMA, "rms_norm_eps": 3e-5}))
    assert crosswalk.load(tmp_path / "hf", state, "llama").config != config
    assert len(ways) == 4
    other = {name: tensor.to(torch.float64) for name, tensor in state.items()}
    crosswalk.load(tmp_path / "hf", other, "llama")
    assert len(ways) == 5
    crosswalk.save(other, config, tmp_path / "saved", "llama")
    gone = [weakref.ref(tensor) for tensor in (*state.values(), *other.values())]
    del state, other, found, first
    gc.collect()
    assert not any(reference() is not None for reference in gone)


@classes
def test_a_load_into_a_class_is_planned_once(ways: list[str], tmp_path: Path) -> None:
    source = cases.made("Qwen3MoeForCausalLM")
    source.save_pretrained(tmp_path / "hf")
    model = cases.made("Qwen3MoeForCausalLM")
    for _ in range(3):
        emptied({name: parameter.data for name, parameter in model.named_parameters()})
        crosswalk.load(tmp_path / "hf", model)
        assert cases.differences(model.state_dict(), source.state_dict()) == []
    assert len(ways) == 1
    model.lm_head.weight = model.model.embed_tokens.weight
    with pytest.raises(crosswalk.CrosswalkError):  # they are tied now, and the files hold two
        crosswalk.load(tmp_path / "hf", model)
    assert len(ways) > 1
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
