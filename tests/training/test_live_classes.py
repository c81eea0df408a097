"""Live models of transformers: filled from their files, published and saved under the names that they have there."""

from __future__ import annotations

import importlib.util
import itertools
import json
from pathlib import Path
from typing import Any

import class_cases as cases
import pytest
import torch
import transformers
from ranks import Failed, run_ranks
from safetensors.torch import load_file, save_file

import crosswalk
from crosswalk.runtime.errors import CrosswalkError

pytestmark = pytest.mark.skipif(
    int(transformers.__version__.split(".")[0]) < 5, reason="classes say their rules since 5"
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of each class, as the class writes it."""
    path = tmp_path_factory.mktemp("classes")
    for name in cases.CLASSES:
        cases.made(name).save_pretrained(path / name)
    return path


def tensors(model: Any) -> dict[str, torch.Tensor]:
    """Everything that the model computes with, what no file holds too."""
    return dict(itertools.chain(model.named_parameters(), model.named_buffers()))


@pytest.mark.parametrize("name", cases.CLASSES)
def test_a_class_is_loaded_streamed_and_saved_under_its_own_names(name: str, home: Path, tmp_path: Path) -> None:
    """Values, buffers and files are those of the class itself, and so are its logits."""
    theirs = getattr(transformers, name).from_pretrained(home / name).eval()
    model = cases.blank(theirs)
    loaded = crosswalk.load(home / name, model)
    assert cases.differences(tensors(model), tensors(theirs)) == []
    assert any(buffer.endswith("inv_freq") for buffer in loaded.report.recomputed)
    tokens = torch.arange(3, 30)[None]
    for one in (model, theirs):
        one.set_experts_implementation("eager")
    assert torch.equal(model(tokens).logits, theirs(tokens).logits)
    expected = cases.files(home / name)
    assert cases.differences(dict(itertools.chain.from_iterable(crosswalk.stream(model, loaded))), expected) == []
    crosswalk.save(model, loaded, tmp_path / "out")
    assert cases.differences(cases.files(tmp_path / "out"), expected) == []
    again = getattr(transformers, name).from_pretrained(tmp_path / "out")
    assert cases.differences(tensors(again), tensors(theirs)) == []


@pytest.mark.parametrize("name", ["Qwen3MoeForCausalLM", "MixtralForCausalLM", "Gemma3ForCausalLM"])
def test_a_class_that_was_never_loaded_is_saved_as_it_saves_itself(name: str, home: Path, tmp_path: Path) -> None:
    model = cases.made(name)
    crosswalk.save(model, model.config, tmp_path / "out", dtype="bfloat16")
    expected = {key: tensor.bfloat16() for key, tensor in cases.files(home / name).items()}
    assert cases.differences(cases.files(tmp_path / "out"), expected) == []
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == json.loads((home / name / "config.json").read_text()) | {"dtype": "bfloat16"}


def test_sharded_classes_and_stages_of_a_pipeline(home: Path, tmp_path: Path) -> None:
    for found in run_ranks(2, cases.on_ranks, home, tmp_path, limit=300):
        assert not isinstance(found, Failed), found.text
        assert found == []
    saved = {"sharded": "Qwen3MoeForCausalLM", "tied": "Gemma3ForCausalLM", "stages": "Qwen3MoeForCausalLM",
             "offloaded": "LlamaForCausalLM", "tied stages": "Gemma3ForCausalLM"}  # fmt: skip
    saved |= {f"{out} again": saved[out] for out in ("stages", "tied stages")}
    for out, name in saved.items():
        assert cases.differences(cases.files(tmp_path / out), cases.files(home / name)) == [], out


def test_files_keep_the_names_that_they_had(home: Path, tmp_path: Path) -> None:
    """A checkpoint with the prefix of another class, and with a copy of the tied embedding, goes back as it came."""
    name = "Gemma3ForCausalLM"
    state = load_file(home / name / "model.safetensors")
    text = (home / name / "config.json").read_text()
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text(text)
    renamed = {key.removeprefix("model."): tensor for key, tensor in state.items()}
    save_file(renamed, tmp_path / "hf" / "model.safetensors")
    model = cases.made(name)
    loaded = crosswalk.load(tmp_path / "hf", model)
    assert torch.equal(model.model.norm.weight, state["model.norm.weight"])
    assert cases.differences(dict(itertools.chain.from_iterable(crosswalk.stream(model, loaded))), renamed) == []
    with pytest.raises(CrosswalkError, match=r"or `lm_head.weight`, and the files have neither \[publisher/ties\]"):
        crosswalk.publisher(model, loaded, ties="both")
    copies = {**state, "lm_head.weight": state["model.embed_tokens.weight"].clone()}
    both = crosswalk.publisher(model, model.config, ties="both").buckets()
    assert cases.differences(dict(itertools.chain.from_iterable(both)), copies) == []
    save_file(copies, tmp_path / "hf" / "model.safetensors")
    crosswalk.load(tmp_path / "hf", model)
    copies["lm_head.weight"] += 1
    save_file(copies, tmp_path / "hf" / "model.safetensors")
    with pytest.raises(CrosswalkError) as caught:
        crosswalk.load(tmp_path / "hf", model)
    assert [d.code for d in caught.value.diagnostics] == ["tie/differs"]


def test_what_is_not_of_the_class_is_refused_by_name(home: Path, tmp_path: Path) -> None:
    def codes(path: Path, model: Any, **options: Any) -> set[tuple[str, str]]:
        with pytest.raises(CrosswalkError) as caught:
            crosswalk.load(path, model, **options)
        return {(d.code, d.message.split("`")[1]) for d in caught.value.diagnostics}

    model = cases.made("LlamaForCausalLM", mlp_bias=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert ("class/missing", "model.layers.{0..1}.mlp.gate_proj.bias") in codes(home / "LlamaForCausalLM", model)
    base = transformers.LlamaModel(cases.made("LlamaForCausalLM").config)
    assert codes(home / "LlamaForCausalLM", base) == {("class/unexpected", "lm_head.weight")}
    crosswalk.load(home / "LlamaForCausalLM", base, allow_lossy=True)
    wider = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**{**cases.CLASSES["LlamaForCausalLM"], "vocab_size": 73})
    )
    assert ("class/shape", "lm_head.weight") in codes(home / "LlamaForCausalLM", wider)
    assert codes(home / "LlamaForCausalLM", model, format="llama") == {("class/option", "format")}
    model._hf_peft_config_loaded = model.is_quantized = True
    refused = {"class/adapter", "class/quantised"}
    assert {code for code, _ in codes(home / "LlamaForCausalLM", model)} == refused
    assert cases.differences(dict(model.state_dict()), before) == []


def test_a_class_that_cannot_be_followed_is_refused(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rules compute or fail, hooks move its parameters, or its version of transformers has no rules."""
    from transformers import conversion_mapping
    from transformers.core_model_loading import ConversionOps, WeightConverter

    class Negated(ConversionOps):
        def convert(self, tensors: dict[str, Any], *arguments: Any, **options: Any) -> dict[str, Any]:
            return {
                target: -found[0] for target, found in zip(options["target_patterns"], tensors.values(), strict=True)
            }

    class Broken(ConversionOps):
        def convert(self, tensors: dict[str, Any], *arguments: Any, **options: Any) -> dict[str, Any]:
            raise ZeroDivisionError("nothing to divide by")

    def refused() -> str:
        with pytest.raises(CrosswalkError) as caught:
            crosswalk.load(home / name, model)
        return str(caught.value)

    name = "LlamaForCausalLM"
    model = cases.made(name)
    for operation, reason in (
        (Negated(), "more than moving elements: `aten.neg.default` computes"),
        (Broken(), "in transformers fails: ZeroDivisionError: nothing to divide by"),
    ):
        rule = WeightConverter("mlp.up_proj.weight", "mlp.up_proj.weight", [operation])
        monkeypatch.setattr(conversion_mapping, "get_model_conversion_mapping", lambda model, rule=rule: [rule])
        assert f"{reason} [class/conversion]" in refused()
    monkeypatch.undo()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "[class/version]" in refused()
    monkeypatch.undo()
    hook = type("AlignDevicesHook", (), {"offload": True})()
    model.model._hf_hook = type("SequentialHook", (), {"hooks": (hook,)})()
    assert "[class/hook]" in refused()


class Scored(transformers.LlamaForCausalLM):
    """A class that is not made of its config alone."""

    def __init__(self, config: Any, scores: int) -> None:
        super().__init__(config)
        self.score = torch.nn.Linear(config.hidden_size, scores, bias=False)


def test_a_model_that_is_not_what_its_class_saves_is_refused_or_published_as_saved(tmp_path: Path) -> None:
    """Wrappers in any order are looked through; what the class would write wrongly, or not at all, is named."""

    def published(model: Any, config: Any) -> dict[str, torch.Tensor]:
        return dict(itertools.chain.from_iterable(crosswalk.publisher(model, config).buckets()))

    def code(model: Any) -> list[str]:
        with pytest.raises(CrosswalkError) as caught:
            published(model, model.config)
        return [d.code for d in caught.value.diagnostics]

    model = cases.made("Gemma3ForCausalLM")
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() + 1)  # no longer tied
    model.resize_token_embeddings(83)
    model.model.norm.double()
    model.save_pretrained(tmp_path / "theirs")
    expected = cases.files(tmp_path / "theirs")
    for index, layer in enumerate(model.model.layers):
        model.model.layers[index] = torch.compile(layer)
    assert cases.differences(published(torch.compile(model), model.config), expected) == []
    model = cases.made("LlamaForCausalLM")
    wrapper = torch.nn.Module()
    wrapper.base_model, wrapper.config = model, model.config
    assert code(wrapper) == ["class/wrapped"]
    model.model.layers[1].mlp = model.model.layers[0].mlp
    assert code(model) == ["class/shared"]
    model = Scored(model.config, 3)
    assert "score.weight" in published(model, model.config)
    model = cases.made("LlamaForCausalLM")
    model.lm_head.weight = torch.nn.Parameter(torch.ones(71, 24, dtype=torch.int8), requires_grad=False)
    assert code(model) == ["class/quantised"]


def test_parts_that_stay_wide_are_published_as_wide(home: Path, tmp_path: Path) -> None:
    """Loaded in 16 bits, the class keeps some tensors in 32, and saves them so; a policy says otherwise."""
    name = "DeepseekV3ForCausalLM"
    model = getattr(transformers, name).from_pretrained(home / name, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "theirs")
    expected = cases.files(tmp_path / "theirs")
    wide = {key for key, tensor in expected.items() if tensor.dtype == torch.float32}
    assert any(key.endswith("e_score_correction_bias") for key in wide)
    assert len(wide) < len(expected)
    crosswalk.save(model, model.config, tmp_path / "ours")
    for found in (
        dict(itertools.chain.from_iterable(crosswalk.publisher(model, model.config).buckets())),
        cases.files(tmp_path / "ours"),
    ):
        assert cases.differences(found, expected) == []
        assert {key for key, tensor in found.items() if tensor.dtype == torch.float32} == wide
    policy = {"*.mlp.gate.weight": "float32", "*": "bfloat16"}
    narrow = crosswalk.publisher(model, model.config, dtype=policy)
    assert {one.name for one in narrow.metadata if one.dtype == torch.float32} == {
        key for key in expected if key.endswith(".mlp.gate.weight")
    }


def test_the_text_of_a_larger_model_is_published_under_the_names_of_its_files(tmp_path: Path) -> None:
    """Loaded into the class of the text alone, which says that it does not want the rest."""
    text = {**cases.TEXT, "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2,
            "linear_num_value_heads": 4, "linear_key_head_dim": 6, "linear_value_head_dim": 10}  # fmt: skip
    vision = {"depth": 1, "hidden_size": 24, "intermediate_size": 29, "num_heads": 2, "out_hidden_size": 24}
    config = transformers.Qwen3_5Config(text_config=text, vision_config=vision)
    transformers.Qwen3_5ForConditionalGeneration(config).save_pretrained(tmp_path / "hf")
    expected = {key: tensor for key, tensor in cases.files(tmp_path / "hf").items() if ".visual." not in key}
    model = cases.blank(transformers.Qwen3_5ForCausalLM(config.text_config))
    loaded = crosswalk.load(tmp_path / "hf", model)
    assert "model.language_model.layers.0.linear_attn.in_proj_qkv.weight" in expected
    found = dict(itertools.chain.from_iterable(crosswalk.publisher(model, loaded).buckets()))
    assert cases.differences(found, expected) == []
