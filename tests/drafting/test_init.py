"""``init``: drafts of families whose mappings are shipped, made without them."""

from __future__ import annotations

import json
from pathlib import Path

import oracles
import pytest
import transformers
from family_cases import CONFIGS
from real_configs import CONFIGS as OLDER
from safetensors.torch import load_file, save_file
from small_checkpoints import make

import crosswalk
from crosswalk.cli.commands import cli, run_command
from crosswalk.compiler.catalog import Catalog
from crosswalk.drafting.draft import Draft, written
from crosswalk.drafting.init import init
from crosswalk.jobs.formats import catalog
from crosswalk.runtime.errors import CrosswalkError

pytestmark = pytest.mark.skipif(oracles.TRANSFORMERS_MAJOR < 5, reason="classes of transformers 5")


#: Formats that a draft may extend here, and of which it takes words; others may come.
AMONG = (
    "llama", "mistral", "mixtral", "qwen2", "qwen3", "smollm3", "gemma3_text", "gemma4", "nemotron", "granite", "gpt2",
    "helium", "phi3", "ernie4_5", "glm4", "stablelm", "arcee", "exaone4", "starcoder2", "qwen3_moe",
)  # fmt: skip
OTHERS = [name for name in catalog().formats() if name not in AMONG]
#: A model, the formats that are not to be extended, the one that is then, and the keys that are asked about.
DRAFTS = [
    ("starcoder2", ["starcoder2", "qwen2", "arcee"], "llama", []),
    ("starcoder2-window-tied", ["starcoder2"], "mistral", []),
    ("qwen3_moe", ["qwen3_moe"], "qwen3", ["norm_topk_prob"]),
    # Layers of two kinds, by number; their texts are all one, and the class takes no other.
    ("smollm3", ["smollm3"], "llama", ["layer_types"]),
]


@pytest.mark.parametrize(("model", "without", "base", "asked"), DRAFTS)
def test_a_draft_is_the_model_when_its_questions_are_answered(
    model: str,
    without: list[str],
    base: str,
    asked: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Left as they are, they refuse what is not decided, so the draft holds this model."""
    source, file = tmp_path / "source", tmp_path / "mappings" / f"my_{model}.yaml"
    oracles.make_checkpoint(source, {**OLDER, **CONFIGS}[model])
    file.parent.mkdir()
    assert (
        run_command(
            cli,
            [
                "init",
                str(source),
                "-o",
                str(file),
                *[part for name in (*without, *OTHERS) for part in ("--without", name)],
            ],
        )
        == 0
    )
    out = capsys.readouterr().out
    assert f"extends `{base}`" in out
    questions = [line for line in out.splitlines() if line.startswith("  ")]
    assert [line for line in questions if not any(f"`{key}`" in line for key in asked)] == []
    assert len(questions) == len(asked)
    assert file.read_text().count("# ? ") == len(asked)
    if model == "smollm3":  # a null is something else to the class than an absent key
        text = "num_attention_heads if has('num_key_value_heads') else 4"
        assert f'num_key_value_heads: {{is: head_groups, default: "= {text}"}}' in file.read_text()
    monkeypatch.setenv("CROSSWALK_MAPPINGS", str(file.parent))
    catalog.cache_clear()
    try:
        found = crosswalk.compare(source, format=file.stem, tokens=19, tolerance=1e-5)
        assert found.same, found
        report = crosswalk.check(source, format=file.stem)
        assert "bijective" in str(report)
        has = transformers.AutoConfig.from_pretrained(source).to_dict()
        sizes, biases = (
            [key for key in keys if key in has]
            for keys in (("num_key_value_heads", "moe_intermediate_size"), ("use_bias", "attention_bias"))
        )
        proof = crosswalk.prove(file, source, keys=sizes)
        assert proof.holds, proof.findings
        # Mistral has no biases in its attention, and this checkpoint has none: the draft has them where it has some.
        assert crosswalk.prove(file, source, keys=biases).findings == []
    finally:
        catalog.cache_clear()


def test_experts_in_one_tensor_are_drafted(tmp_path: Path) -> None:
    """The class is run beside the draft: where it computed something else, that would be a question."""
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"architectures": ["GraniteMoeForCausalLM"], "model_type": "granitemoe"}))
    draft = init(file, without=OTHERS)
    assert draft.questions == []
    assert draft.header["extends"] == "granite"
    assert draft.sections["block"] == {"sets": {"mlp": "moe"}, "tensors": {"block_sparse_moe": "mlp"}}
    assert draft.sections["moe"]["tensors"] == {
        "input_linear.weight": {"is": "layer_1.weight", "axes": "expert ([gate|up] intermediate) hidden"},
        "output_linear.weight": {"is": "layer_2.weight", "axes": "expert output intermediate"},
        "router.layer": "router",
    }
    assert draft.sections["moe"]["config"] == {
        "num_local_experts": {"is": "experts", "default": 8},
        "num_experts_per_tok": {"is": "experts_per_token", "default": 2},
    }


def test_what_cannot_be_told_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor that is like none, and a key that nobody knows, of a class that is not installed."""
    source = tmp_path / "source"
    oracles.make_checkpoint(source, CONFIGS["starcoder2"])
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.0.self_attn.sinks"] = tensors["model.norm.weight"][:6].clone()
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    config |= {"architectures": ["MineForCausalLM"], "model_type": "mine", "sinks": "sometimes"}
    (source / "config.json").write_text(json.dumps(config))
    draft = init(source, without=OTHERS)
    assert draft.header["extends"] == "starcoder2"
    assert "what is the tensor `model.layers.#.self_attn.sinks` [6]?" in draft.questions
    assert [question for question in draft.questions if "`sinks`: what does it change" in question]
    Catalog(texts={"mine": draft.text()}).compiled("mine")


def test_what_a_draft_cannot_be_made_of_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"model_type": "mine"}))
    with pytest.raises(CrosswalkError, match=r"`architectures` and `model_type` must be there.*\[init/class\]"):
        init(file)
    file.write_text(json.dumps({"model_type": "mine", "architectures": ["MineForCausalLM"]}))
    with pytest.raises(CrosswalkError, match=r"neither tensors nor a class of transformers.*\[init/tensors\]"):
        init(tmp_path)
    assert run_command(cli, ["init", str(tmp_path), "-o", str(file)]) == 1
    assert "the file exists [init/exists]" in capsys.readouterr().err


def test_a_draft_is_written_so_that_every_reader_reads_it() -> None:
    values = {"a": 1e-05, "b": 1e-5 * 3, "c": 1e20, "d": None, "e": ["no", "x: y", "= a + b"], "f": {"{a|b}": True}}
    draft = Draft({"extends": "llama", "architecture": "A", "model_type": "a", "class_defaults": values})
    from ruamel.yaml import YAML

    assert YAML(typ="safe").load(draft.text())["class_defaults"] == values
    assert written(1e-05) == "1.0e-05"


def test_what_is_not_seen_to_mean_nothing_is_not_kept(tmp_path: Path) -> None:
    """A key that kernels of attention alone look at."""
    oracles.make_checkpoint(tmp_path / "gemma", CONFIGS["gemma"])
    draft = init(tmp_path / "gemma", without=["gemma", *OTHERS])
    assert json.loads((tmp_path / "gemma" / "config.json").read_text())["use_bidirectional_attention"] is None
    assert "use_bidirectional_attention" not in draft.text()


def test_a_family_of_models_of_another_is_read_by_its_own_config_class(tmp_path: Path) -> None:
    named = {"architectures": ["LlamaForCausalLM"], "model_type": "internlm3"}
    config = {**CONFIGS["arcee"], **named, "attention_bias": False, "mlp_bias": False, "hidden_act": "silu"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    draft = init(tmp_path, without=OTHERS)
    assert draft.header["config_class"] == "transformers.InternLM3Config"
    assert "num_hidden_layers: {default: 48}" in draft.text()
    assert not draft.questions


def test_a_format_to_do_without_that_there_is_not_is_named(tmp_path: Path) -> None:
    with pytest.raises(CrosswalkError, match=r"--without: error: there is no format `lama` \[usage/format\]"):
        init(make(tmp_path / "llama"), without=["lama"])
