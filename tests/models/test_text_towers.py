"""The text tower of a multimodal checkpoint, converted alone: what it is, what stays behind, and who is told so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import oracles
import pytest
import torch
import transformers
from golden_cases import CASES
from safetensors.torch import load_file, save_file
from small_checkpoints import LLAVA, CommandLine, Tensors, config_of, make, tensors_of

import crosswalk
from crosswalk.runtime.errors import CrosswalkError

needs_gemma4 = pytest.mark.skipif(not oracles.available("gemma4"), reason="this transformers has no Gemma 4")

TEXT: dict[str, Any] = {
    "vocab_size": 71,
    "hidden_size": 30,
    "intermediate_size": 37,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 14,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "per_layer_config": {"2": {"head_dim": 22}},
    "sliding_window": 9,
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": 71,
    "max_position_embeddings": 513,
}
VISION: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 12,
}


@pytest.fixture(scope="module")
def gemma4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``whole``: what Gemma4ForConditionalGeneration saves; ``text``: its language model, saved by its own class."""
    from transformers import Gemma4Config, Gemma4ForCausalLM, Gemma4ForConditionalGeneration

    folder = tmp_path_factory.mktemp("gemma4")
    torch.manual_seed(7)
    config = Gemma4Config(text_config=TEXT, vision_config=VISION, audio_config=None)
    whole = Gemma4ForConditionalGeneration(config).eval()
    whole.save_pretrained(folder / "whole")
    text = Gemma4ForCausalLM(whole.config.text_config)
    text.model.load_state_dict(whole.model.language_model.state_dict())
    text.tie_weights()
    text.save_pretrained(folder / "text")
    return folder


def _llava(folder: Path, kind: str = "llama") -> Path:
    """A Llava whose text model is of that type, with the names of files."""
    return make(folder / "llava", LLAVA | {"text_config": LLAVA["text_config"] | {"model_type": kind}})


def _same(found: Tensors, expected: Tensors) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


@needs_gemma4
def test_the_tower_of_the_class_is_the_text_model_saved_alone(gemma4: Path, tmp_path: Path) -> None:
    assert any(name.startswith("model.vision_tower.") for name in tensors_of(gemma4 / "whole"))
    report = crosswalk.convert(gemma4 / "whole", tmp_path / "native", text_only=True)
    crosswalk.convert(gemma4 / "text", tmp_path / "expected")
    assert report.format == "gemma4"
    assert _same(tensors_of(tmp_path / "native"), tensors_of(tmp_path / "expected"))
    crosswalk.verify(gemma4 / "whole", tmp_path / "native")


@needs_gemma4
def test_the_tower_is_published_as_a_model_of_its_own(gemma4: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    crosswalk.convert(gemma4 / "whole", tmp_path / "native", text_only=True)
    crosswalk.convert(tmp_path / "native", tmp_path / "back")
    assert _same(tensors_of(tmp_path / "back"), tensors_of(gemma4 / "text"))
    assert config_of(tmp_path / "back")["architectures"] == ["Gemma4ForCausalLM"]
    tokens = torch.tensor([[3, 1, 4, 15, 9, 26]])
    found, expected = (
        AutoModelForCausalLM.from_pretrained(path).eval()(tokens).logits
        for path in (tmp_path / "back", gemma4 / "text")
    )
    assert torch.equal(found, expected)


@needs_gemma4
def test_what_stays_behind_is_named_with_its_numbers(
    gemma4: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = tensors_of(gemma4 / "whole")
    vision = sum(name.startswith("model.vision_tower.") for name in names)
    (note,) = (n for n in crosswalk.check(gemma4 / "whole", text_only=True).notes if "left behind" in n)
    assert f"`model.vision_tower.*` ({vision})" in note
    assert "`model.embed_vision.*` (1)" in note
    assert "`vision_config`" in note
    assert "`image_token_id`" in note
    assert "text_config" not in note
    ran = CommandLine(capsys)("convert", gemma4 / "whole", tmp_path / "native", "--text-only")
    assert ran.code == 0
    assert "model.vision_tower.*" in "".join(ran.out.split("\n"))


@needs_gemma4
@pytest.mark.parametrize("options", [{}, {"format": "gemma4"}], ids=["detected", "named"])
def test_without_the_flag_the_error_names_it(gemma4: Path, options: dict[str, Any]) -> None:
    with pytest.raises(CrosswalkError, match=r"gemma4.*other towers") as caught:
        crosswalk.check(gemma4 / "whole", **options)
    (problem,) = caught.value.diagnostics
    assert problem.hint is not None
    assert "--text-only" in problem.hint
    assert "text_only=True" in problem.hint


@needs_gemma4
def test_problems_of_the_tower_are_at_its_keys(gemma4: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(gemma4 / "whole", tmp_path / "broken"))
    config = config_of(folder)
    config["text_config"]["twisted"] = True
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    lines = (folder / "config.json").read_text().split("\n")
    with pytest.raises(CrosswalkError, match="twisted") as caught:
        crosswalk.check(folder, text_only=True)
    (position,) = (d.position for d in caught.value.diagnostics)
    assert position is not None
    assert position.line is not None
    assert '"twisted"' in lines[position.line - 1]


@pytest.mark.parametrize("kind", ["llama", "mistral"])
@pytest.mark.parametrize("in_memory", [False, True])
def test_the_text_of_a_llava_is_a_model_of_its_type(kind: str, in_memory: bool, tmp_path: Path) -> None:
    source = _llava(tmp_path, kind)
    given = load_file(source / "model.safetensors")
    if in_memory:
        moved = {"language_model.lm_head": "lm_head", "language_model.model": "model.language_model"}
        renamed = {}
        for name, tensor in given.items():
            old = next((old for old in moved if name.startswith(old)), None)
            renamed[name.replace(old, moved[old], 1) if old else f"model.{name}"] = tensor
        save_file(renamed, source / "model.safetensors", {"format": "pt"})
    report = crosswalk.convert(source, tmp_path / "native", text_only=True)
    crosswalk.convert(tmp_path / "native", tmp_path / "back")
    text = {name.removeprefix("language_model."): t for name, t in given.items() if name.startswith("language_model.")}
    assert report.format == kind
    assert _same(tensors_of(tmp_path / "back"), text)
    assert config_of(tmp_path / "back")["model_type"] == kind
    group = "model.vision_tower.*" if in_memory else "vision_tower.*"
    assert any(f"`{group}` ({sum('vision_tower' in n for n in given)})" in note for note in report.notes)
    crosswalk.verify(source, tmp_path / "native")


def test_a_model_without_other_towers_has_none_to_take(tmp_path: Path) -> None:
    source = make(tmp_path / "llama")
    with pytest.raises(CrosswalkError, match=r'model_type "llama" is no model of which'):
        crosswalk.check(source, text_only=True)
    crosswalk.convert(source, tmp_path / "native")
    with pytest.raises(CrosswalkError, match=r"taken from a Hugging Face checkpoint.*\[usage/text-only\]"):
        crosswalk.check(tmp_path / "native", text_only=True)


def test_the_text_of_a_llava_without_a_model_type_is_that_of_the_class(tmp_path: Path) -> None:
    """The class takes it for a Llama, whose config has no window, whatever it is called beside."""
    case = CASES["llava_pixtral"]
    config = case.hf_config()
    del config["text_config"]["model_type"]
    del config["text_config"]["sliding_window"]
    assert transformers.LlavaConfig(**config).text_config.model_type == "llama"
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(config))
    save_file(case.hf_tensors(), source / "model.safetensors")
    report = crosswalk.check(source, text_only=True)
    assert report.format == "llama"


@pytest.mark.parametrize(
    ("kind", "name", "text"),
    [("mistral3", "Mistral3", "mistral"), ("llava_next", "LlavaNext", "llama"), ("smolvlm", "SmolVLM", "llama")],
)
def test_models_that_hold_a_text_model_of_several_kinds(kind: str, name: str, text: str, tmp_path: Path) -> None:
    """As their classes write them: the text model computes the same alone."""
    if not hasattr(transformers, f"{name}Config"):
        pytest.skip(f"this transformers has no {name}")
    inner = {key: LLAVA["text_config"][key] for key in (*_SIZES, "head_dim")} | {"model_type": text}
    tower = {"mistral3": "pixtral", "llava_next": "clip_vision_model", "smolvlm": "smolvlm_vision"}[kind]
    vision = {"model_type": tower, "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 1,
              "num_attention_heads": 2, "image_size": 32, "patch_size": 8}  # fmt: skip
    config = getattr(transformers, f"{name}Config")(text_config=inner, vision_config=vision, tie_word_embeddings=False)
    torch.manual_seed(7)
    whole = getattr(transformers, f"{name}ForConditionalGeneration")(config).eval()
    whole.save_pretrained(tmp_path / "whole")
    with pytest.raises(CrosswalkError, match=f"one of text, which is `{text}`") as caught:
        crosswalk.check(tmp_path / "whole")
    assert "--text-only" in str(caught.value)
    assert crosswalk.convert(tmp_path / "whole", tmp_path / "native", text_only=True).format == text
    crosswalk.convert(tmp_path / "native", tmp_path / "back")
    alone = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back").eval()
    tokens = torch.tensor([[3, 1, 4, 15, 9, 26]])
    assert torch.equal(alone(tokens).logits, whole(input_ids=tokens).logits)


_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
          "num_key_value_heads")  # fmt: skip
