"""What is sent or saved again is not planned again as long as nothing has changed; what has changed is planned anew."""

from __future__ import annotations

import itertools
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
from crosswalk.jobs import train

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
    for _ in range(2):  # of a dict it cannot be told whether it is the same
        assert cases.differences(sent(state, config, format="llama"), expected) == []
    assert len(plans) == 4
    gone = weakref.ref(model)
    buckets = crosswalk.stream(model, config, "llama")
    del model
    assert cases.differences(dict(itertools.chain.from_iterable(buckets)), expected) == []
    del buckets
    assert gone() is None
