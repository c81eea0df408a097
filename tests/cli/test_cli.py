"""The command line on real checkpoints: what every command prints, writes and restores."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import oracles
import torch
from converted import convert, metadata_of
from small_checkpoints import (
    CommandLine,
    config_of,
    contents,
    edit_tensors,
    lines,
    make,
    tensors_of,
)

from crosswalk.runtime.plan.model import Plan

ROOT = Path(__file__).parents[2]
ATTENTION = "model.layers.1.self_attn"


# ---- each command on a real checkpoint -------------------------------------------------------------------------------


def test_check_states_the_facts_and_writes_nothing(crosswalk: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source", dtype="bfloat16")
    before = contents(tmp_path)
    ran = crosswalk("check", source)
    assert (ran.code, ran.err) == (0, "")
    size = sum(tensor.nbytes for tensor in tensors_of(source).values())
    rows = lines(ran.out)
    assert ["format", "llama", "->", "fast_llm"] in rows
    assert ["moved", "30", "->", "24", "tensors", "in", "30", "copies"] in rows
    assert ["bytes", f"{size / 1000:.2f}", "kB", "read,", f"{size / 1000:.2f}", "kB", "written"] in rows
    assert ["tensors", "bijective"] in rows
    assert ["carried", "generation_config.json"] in rows
    assert contents(tmp_path) == before


def test_plan_lists_every_rule_with_layers_folded(crosswalk: CommandLine, tmp_path: Path) -> None:
    out = crosswalk("plan", make(tmp_path / "source"), "--workers", "2", "-v").out
    assert "with 2 workers, whatever the model" in out
    for text in (
        "model.layers.{0..2}.self_attn.q_proj.weight",
        "decoder.{0..2}.mixer.key_value.weight",
        "llama: {gate|up}_proj: layer_1",
        place_in_llama('"{gate|up}_proj": layer_1'),
    ):
        assert text in out
    assert crosswalk("plan", tmp_path / "source", "--dtype", "bf16").out.count("cast F32 -> BF16 (lossy)") == 1


def test_plan_as_json_is_a_plan_by_the_schema(crosswalk: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    ran = crosswalk("plan", source, "--json")
    jsonschema.validate(json.loads(ran.out), json.loads((ROOT / "schema" / "plan.schema.json").read_text()))
    plan = Plan.from_json(ran.out)
    assert plan.to_json() == ran.out.rstrip("\n")
    assert str(plan.verify()) == "bijective"
    assert {t.name: t.shape for t in plan.sources} == oracles.names_and_shapes(config_of(source))
    digest = next(row[1] for row in lines(crosswalk("check", source).out) if row[0] == "plan")
    assert plan.digest == digest


def test_convert_there_and_back_is_byte_identical(crosswalk: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source", dtype="bfloat16")
    (source / "tokenizer.json").write_text('{"a": 1}')
    (source / "tokenizer.model").write_bytes(bytes(range(256)))
    (source / "flax_model.msgpack").write_bytes(b"weights of something else")
    target = convert(crosswalk, source, tmp_path / "native")
    assert {path.name for path in target.iterdir()} == {
        "metadata.yaml", "model_0.safetensors", "ok", "generation_config.json", "tokenizer.json", "tokenizer.model",
    }  # fmt: skip
    hf, ours = tensors_of(source), tensors_of(target)
    joined = torch.cat([hf[f"{ATTENTION}.{part}_proj.weight"] for part in "kv"])
    assert torch.equal(ours["decoder.1.mixer.key_value.weight/weights"], joined)
    assert torch.equal(ours["decoder.2.mlp.layer_2.weight/weights"], hf["model.layers.2.mlp.down_proj.weight"].T)
    stored = metadata_of(target)
    assert stored["metadata"]["state_index"] == dict.fromkeys(ours, "model_0.safetensors")
    assert stored["shards"] == ["weights"]
    assert stored["config"]["base_model"]["decoder"]["num_blocks"] == 3
    back = convert(crosswalk, target, tmp_path / "back")
    (source / "flax_model.msgpack").unlink()
    assert contents(back) == contents(source)
    for pair in ((source, target), (target, back), (target, source), (back, target)):
        assert crosswalk("verify", *pair).code == 0
    assert torch.equal(oracles.logits(back), oracles.logits(source))


def place_in_llama(line: str) -> str:
    """Where a line of the mapping stands, as messages say it."""
    lines = (ROOT / "mappings" / "llama.yaml").read_text().splitlines()
    (number,) = [number for number, text in enumerate(lines, 1) if text.strip() == line]
    return f"llama.yaml:{number}:{len(lines[number - 1]) - len(lines[number - 1].lstrip()) + 1}"


def test_explain_names_sources_and_the_line_of_the_mapping(crosswalk: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    out = crosswalk("explain", source, "decoder.1.mixer.key_value.weight").out
    rule = "    llama: {k|v}_proj: key_value  " + place_in_llama('"{k|v}_proj": key_value')
    # k fills the first 28 * 30 elements, v the rest
    assert out.splitlines()[0] == "decoder.1.mixer.key_value.weight  [56, 30]  F32  (target)"
    assert out.splitlines()[-10:] == [  # below the drawing
        f"{ATTENTION}.k_proj.weight -> decoder.1.mixer.key_value.weight",
        "    extents [840]",
        "    source [28, 30] at 0 + [1]",
        "    target [56, 30] at 0 + [1]",
        rule,
        f"{ATTENTION}.v_proj.weight -> decoder.1.mixer.key_value.weight",
        "    extents [840]",
        "    source [28, 30] at 0 + [1]",
        "    target [56, 30] at 840 + [1]",
        rule,
    ]
    assert lines(crosswalk("explain", source, f"{ATTENTION}.v_proj.weight").out)[0][-1] == "(source)"


def test_explain_says_what_is_tied_and_what_is_dropped(crosswalk: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source", tie_word_embeddings=True)
    extra = ("model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq")
    more = {"lm_head.weight": "model.embed_tokens.weight"}
    edit_tensors(source, lambda t: t.update({k: t[v] for k, v in more.items()} | {k: torch.ones(7) for k in extra}))
    assert "lm_head.weight is tied: model.embed_tokens.weight" in crosswalk("explain", source, "lm_head.weight").out
    for name in extra:
        assert f"{name} is dropped: not needed" in crosswalk("explain", source, name).out


def test_formats(crosswalk: CommandLine) -> None:
    out = crosswalk("formats").out
    rows = {row[0]: row for row in lines(out)}
    assert rows["layout:"] == ["layout:", "fast_llm", "megatron", "torchtitan"]
    assert rows["LlamaForCausalLM"] == ["LlamaForCausalLM", "llama", "llama", "llama3"]
    assert rows["GptOssForCausalLM"] == ["GptOssForCausalLM", "-", "gpt_oss", "gpt_oss"]
    assert rows["llama"] == ["llama", "llama", "LlamaForCausalLM", "transformers"]
    assert rows["dream"] == ["dream", "dream", "DreamModel", "its", "own"]
    for name in ("mistral", "mixtral", "qwen2", "mtp_llama", "dream", "diffusion_llama"):
        assert rows[name][2].endswith(("ForCausalLM", "Model")), rows[name]
    out = crosswalk("formats", "mixtral").out
    assert out.splitlines()[0] == "mixtral: mixtral <- mistral <- llama <- huggingface"
    rows = lines(out)
    window = [row for row in rows if row[1:2] == ["sliding_window"]]
    assert [row[0] + " ".join(row[2:-1]) for row in window] == [
        "-(default 4096) -> window_size",
        "+(default null) -> window_size",
    ]
    assert [row[-1].partition(":")[0] for row in window] == ["mistral.yaml", "mixtral.yaml"]
    assert out.splitlines()[1:4] == [
        "class: transformers.MixtralConfig",
        "dialects: transformers-5, transformers-4, in-memory",
        "written without a source: transformers-5, transformers-4",
    ]
    assert crosswalk("formats", "gemma4").out.splitlines()[2] == "dialects: transformers-5, transformers-5-5"
    assert "transformers-5-5" in crosswalk("convert", "--help").out


def test_compile_mappings(crosswalk: CommandLine, tmp_path: Path) -> None:
    ran = crosswalk.compile("-o", tmp_path / "compiled")
    assert (ran.code, ran.err) == (0, "")
    rows = {row[0]: row for row in lines(ran.out)}
    assert {"llama", "mistral", "mixtral", "qwen2", "mtp_llama", "dream", "diffusion_llama"} <= rows.keys()
    assert "huggingface" not in rows
    compiled = json.loads((tmp_path / "compiled" / "catalog.json").read_text())
    assert compiled["index"]["mistral"]["architecture"] == "MistralForCausalLM"
    assert {"mistral", "huggingface", "layouts/fast_llm"} <= compiled["documents"].keys()
    assert crosswalk.compile(ROOT / "mappings" / "qwen2.yaml", "mistral").code == 0


def test_compile_mappings_makes_the_plan_of_a_config(crosswalk: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source", dtype="bfloat16")
    plan_file = tmp_path / "plan.json"
    assert crosswalk.compile("llama", "--config", source / "config.json", "-o", plan_file).code == 0
    plan = Plan.from_json(plan_file.read_text())
    printed = crosswalk.compile("llama", "--config", source / "config.json").out
    assert Plan.from_json(printed) == plan
    # The dtypes are the config's, which are those of the files here.
    assert plan.sources == Plan.from_json(crosswalk("plan", source, "--json").out).sources
    assert {tensor.dtype for tensor in plan.targets} == {"BF16"}
    cast = crosswalk.compile("llama", "--config", source / "config.json", "--dtype", "float32").out
    assert {tensor.dtype for tensor in Plan.from_json(cast).targets} == {"F32"}
    ran = crosswalk.compile("llama", "mistral", "--config", source / "config.json")
    assert (ran.code, ran.out) == (2, "")
    assert "[usage/config]" in ran.err
