"""The command line on real checkpoints: what every command prints, writes and restores."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import oracles
import pytest
import torch
from golden_cases import CASES, cases
from golden_differences import NATIVE_DIFFERENCES
from ruamel.yaml import YAML
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_checkpoints import (
    BASE,
    LLAMA,
    MIXER,
    MIXTRAL,
    CommandLine,
    config_of,
    contents,
    edit_config,
    edit_tensors,
    lines,
    make,
    metadata,
    native,
    shard,
    tensors_of,
)

from crosswalk.runtime.plan.model import Plan

ROOT = Path(__file__).parents[2]
ATTENTION = "model.layers.1.self_attn"


@pytest.fixture
def crosswalk(capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(capsys)


def convert(crosswalk: CommandLine, source: Path, target: Path, *options: object) -> Path:
    ran = crosswalk("convert", source, target, *options)
    assert (ran.code, ran.err) == (0, ""), ran.err
    return target


def metadata_of(directory: Path) -> Any:
    return YAML(typ="safe", pure=True).load((directory / "metadata.yaml").read_text())


def equal_tensors(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


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
    assert out.splitlines() == [
        "decoder.1.mixer.key_value.weight  [56, 30]  F32  (target)",
        "",
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
    extra = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_tensors(source, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"], extra: torch.ones(7)}))
    assert "lm_head.weight is tied: model.embed_tokens.weight" in crosswalk("explain", source, "lm_head.weight").out
    assert f"{extra} is dropped: not needed" in crosswalk("explain", source, extra).out


def test_formats(crosswalk: CommandLine) -> None:
    out = crosswalk("formats").out
    rows = {row[0]: row for row in lines(out)}
    assert rows["llama"][1:4] == ["llama", "LlamaForCausalLM", "transformers.LlamaConfig"]
    for name in ("mistral", "mixtral", "qwen2", "mtp_llama", "dream", "diffusion_llama"):
        assert rows[name][2].endswith(("ForCausalLM", "Model")), rows[name]
    out = crosswalk("formats", "mixtral").out
    assert out.splitlines()[0] == "mixtral: mixtral <- mistral <- llama <- huggingface"
    rows = lines(out)
    assert any(
        row[:4] == ["-", "sliding_window", "->", "window_size"] and row[4][:12] == "mistral.yaml" for row in rows
    )
    assert any(
        row[:4] == ["+", "sliding_window", "->", "window_size"] and row[4][:12] == "mixtral.yaml" for row in rows
    )
    assert out.splitlines()[1:3] == [
        "dialects: transformers-5, transformers-4, in-memory",
        "written without a source: transformers-5, transformers-4",
    ]
    assert crosswalk("formats", "gemma4").out.splitlines()[1] == "dialects: transformers-5, transformers-5-5"
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


# ---- help ------------------------------------------------------------------------------------------------------------

HEAVY = ("torch", "transformers", "ruamel", "jsonschema", "jinja2", "safetensors", "numpy")


def test_help_of_every_command_imports_nothing_heavy() -> None:
    script = f"""
import io, sys
from contextlib import redirect_stdout
from crosswalk.cli.commands import cli, run_command
from crosswalk.cli.build import command
texts = []
for arguments in ([], *([name] for name in cli.commands)):
    with redirect_stdout(io.StringIO()) as out:
        assert run_command(cli, [*arguments, "--help"]) == 0
    texts.append(out.getvalue())
with redirect_stdout(io.StringIO()) as out:
    assert run_command(command, ["-h"]) == 0
texts.append(out.getvalue())
assert all(text.startswith("Usage:") and len(text) > 150 for text in texts)
print(len(texts), sorted(cli.commands))
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    names = ["check", "compare", "convert", "explain", "formats", "init", "plan", "prove", "verify"]
    assert done.stdout.splitlines() == [f"{len(names) + 2} {names}", "[]"]


def test_check_and_plan_import_no_torch(tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    script = f"""
import io, sys
from contextlib import redirect_stdout
from crosswalk.cli.commands import cli, run_command
for command in ("check", "plan"):
    with redirect_stdout(io.StringIO()):
        assert run_command(cli, [command, {str(source)!r}]) == 0
print([name for name in ("torch", "transformers") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_the_installed_commands_run(tmp_path: Path) -> None:
    for name in ("crosswalk", "compile-mappings"):
        program = Path(sys.executable).with_name(name)
        if not program.exists():
            pytest.skip("the commands are not installed")
        done = subprocess.run([program, "--help"], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0
        assert done.stdout.startswith(f"Usage: {name} ")


# ---- sources and outputs in several files ----------------------------------------------------------------------------


def test_a_source_in_shards_as_save_pretrained_writes_them(crosswalk: CommandLine, tmp_path: Path) -> None:
    import transformers

    source = make(tmp_path / "source")
    model = transformers.AutoModelForCausalLM.from_pretrained(source)
    model.save_pretrained(tmp_path / "shards", max_shard_size="40kB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    target = convert(crosswalk, tmp_path / "shards", tmp_path / "native")
    assert equal_tensors(tensors_of(target), tensors_of(convert(crosswalk, source, tmp_path / "whole")))
    assert equal_tensors(tensors_of(convert(crosswalk, target, tmp_path / "back")), tensors_of(source))


def test_output_in_shards(crosswalk: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    target = convert(crosswalk, source, tmp_path / "native", "--max-shard-size", "50kB")
    files = sorted(path.name for path in target.glob("*.safetensors"))
    assert files == [f"model_{number}.safetensors" for number in range(len(files))]
    assert len(files) > 2
    index = metadata_of(target)["metadata"]["state_index"]
    assert index == {name: file for file in files for name in load_file(target / file)}
    back = convert(crosswalk, target, tmp_path / "back", "--max-shard-size", "40KiB")
    document = json.loads((back / "model.safetensors.index.json").read_text())
    count = len(list(back.glob("*.safetensors")))
    assert count > 2
    assert set(document["weight_map"].values()) == {f"model-{k + 1:05}-of-{count:05}.safetensors" for k in range(count)}
    for name, file in document["weight_map"].items():
        with safe_open(back / file, "pt") as stored:
            assert name in stored.keys()  # noqa: SIM118
            assert stored.metadata() == {"format": "pt"}
    expected = tensors_of(source)
    assert document["metadata"]["total_size"] == sum(tensor.nbytes for tensor in expected.values())
    for path in back.glob("*.safetensors"):
        sizes = [tensor.nbytes for tensor in load_file(path).values()]
        assert sum(sizes) <= 40 * 1024 or len(sizes) == 1
    assert equal_tensors(tensors_of(back), expected)
    assert torch.equal(oracles.logits(back), oracles.logits(source))


def test_a_source_that_is_a_pickle(crosswalk: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source", dtype="bfloat16")
    expected = tensors_of(convert(crosswalk, source, tmp_path / "expected"))
    torch.save(load_file(source / "model.safetensors"), source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()
    target = convert(crosswalk, source, tmp_path / "native")
    assert equal_tensors(tensors_of(target), expected)
    assert not (target / "pytorch_model.bin").exists()


def test_a_tied_pickle_shares_its_bytes(crosswalk: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source", tie_word_embeddings=True)
    expected = contents(source)
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    torch.save(tensors, source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()
    target = convert(crosswalk, source, tmp_path / "native")
    assert contents(convert(crosswalk, target, tmp_path / "back")) == expected


# ---- options ---------------------------------------------------------------------------------------------------------


def test_dtype_and_protect(crosswalk: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    options = ("--dtype", "bfloat16", "--protect", "decoder.1.*", "--protect", "head.final_norm.weight")
    target = convert(crosswalk, source, tmp_path / "native", *options)
    whole = tensors_of(convert(crosswalk, source, tmp_path / "whole"))
    found = tensors_of(target)
    kept = {name for name in found if name.startswith(("decoder.1.", "head.final_norm"))}
    assert {name for name, tensor in found.items() if tensor.dtype == torch.float32} == kept
    assert all(torch.equal(tensor, whole[name].to(tensor.dtype)) for name, tensor in found.items())
    proved = lines(crosswalk("verify", source, target).out)
    assert all(row in proved for row in lines(crosswalk("check", source, *options).out))
    back = convert(crosswalk, target, tmp_path / "back")
    assert config_of(back) == {**config_of(source), "dtype": "bfloat16"}
    assert tensors_of(back)["model.layers.1.mlp.up_proj.weight"].dtype == torch.float32
    rows = lines(crosswalk("plan", source, *options).out)
    assert next(row for row in rows if row[0] == "tensors")[1:4] == ["bijective", "but", "for"]


@pytest.mark.parametrize("name", ["bfloat16", "bf16", "BF16", "torch.bfloat16"])
def test_names_of_dtypes(name: str, crosswalk: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    plan = Plan.from_json(crosswalk("plan", source, "--dtype", name, "--json").out)
    assert {tensor.dtype for tensor in plan.targets} == {"BF16"}


def test_a_wider_dtype_is_undone_exactly(crosswalk: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source", dtype="bfloat16")
    target = convert(crosswalk, source, tmp_path / "native", "--dtype", "float32")
    assert crosswalk("verify", source, target).code == 0
    wide = convert(crosswalk, target, tmp_path / "wide")
    assert config_of(wide) == {**config_of(source), "dtype": "float32"}
    back = convert(crosswalk, target, tmp_path / "back", "--dtype", "bfloat16")
    assert contents(back) == contents(source)


OLD_KEYS, NEW_KEYS = {"rope_theta"}, {"rope_parameters"}


@pytest.mark.parametrize(
    ("dialect", "keys"),
    [
        ("transformers-4", OLD_KEYS),
        ("transformers_4", OLD_KEYS),
        ("transformers-5", NEW_KEYS),
        ("newest", NEW_KEYS),
        ("transformers-4,transformers-5", OLD_KEYS | NEW_KEYS),
        ("transformers-5, transformers-4", OLD_KEYS | NEW_KEYS),
    ],
)
def test_dialects(dialect: str, keys: set[str], crosswalk: CommandLine, tmp_path: Path) -> None:
    target = native(tmp_path, crosswalk)
    back = convert(crosswalk, target, tmp_path / "back", "--dialect", dialect)
    found = config_of(back)
    assert found.keys() & (OLD_KEYS | NEW_KEYS) == keys
    original = config_of(tmp_path / "source")
    # The version of transformers that wrote the file is not left in one that only another version reads.
    changed = NEW_KEYS if keys >= NEW_KEYS else NEW_KEYS | {"transformers_version"}
    assert {k: v for k, v in found.items() if k not in keys} == {k: v for k, v in original.items() if k not in changed}
    assert found.get("rope_theta", 23456.0) == 23456.0
    assert found.get("rope_parameters", original["rope_parameters"]) == original["rope_parameters"]
    assert crosswalk("verify", target, back).code == 0
    assert crosswalk("check", back).code == 0


def test_overwrite_replaces_all_of_the_destination(crosswalk: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    target = tmp_path / "native"
    target.mkdir()
    (target / "old").write_text("old")
    assert crosswalk("convert", source, target).code == 1
    assert crosswalk("convert", source, target, "--overwrite").code == 1  # this is no checkpoint
    assert (target / "old").read_text() == "old"
    (target / "model.safetensors").write_bytes(b"")
    convert(crosswalk, source, target, "--overwrite")
    assert contents(target) == contents(convert(crosswalk, source, tmp_path / "fresh"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fresh", "native", "source"]


def test_resume_of_nothing_is_a_conversion(crosswalk: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    target = convert(crosswalk, source, tmp_path / "native", "--resume")
    assert contents(target) == contents(convert(crosswalk, source, tmp_path / "fresh"))


@pytest.mark.parametrize("checksum", ["none", "xxh3", "sha256"])
def test_checksums(checksum: str, crosswalk: CommandLine, tmp_path: Path) -> None:
    target = convert(crosswalk, make(tmp_path / "source"), tmp_path / "native", "--checksum", checksum)
    found = metadata_of(target)["metadata"]["crosswalk"]["checksums"]
    assert found.keys() == (set() if checksum == "none" else tensors_of(target).keys())
    assert {len(text) for text in found.values()} == {"none": set(), "xxh3": {32}, "sha256": {64}}[checksum]


def test_quiet_where_there_is_no_terminal(crosswalk: CommandLine, tmp_path: Path) -> None:
    ran = crosswalk("convert", make(tmp_path / "source"), tmp_path / "native", "--workers", "2", "--memory", "200MiB")
    assert (ran.code, ran.err) == (0, "")
    assert "\x1b" not in ran.out
    assert "\r" not in ran.out


# ---- native checkpoints of the trainer, and changed ones -------------------------------------------------------------


def as_the_trainer_writes_it(directory: Path) -> None:
    """Without anything of ours: no origin, no carried files, a config with the sections of a training run, and the
    state of an optimizer beside the weights."""
    metadata("metadata", crosswalk=...)(directory)
    metadata("config", distributed={"training_dtype": "float32"}, optimizer={"learning_rate": {"base": 1e-4}})(
        directory
    )
    state = {f"{name.removesuffix('/weights')}/exp_avg": tensor + 1 for name, tensor in tensors_of(directory).items()}
    save_file(state, directory / "model_1.safetensors")
    metadata("metadata", "state_index", **dict.fromkeys(state, "model_1.safetensors"))(directory)
    metadata(shards=["weights", "exp_avg"])(directory)
    for name in ("ok", "generation_config.json"):
        (directory / name).unlink()


def test_a_checkpoint_that_the_trainer_wrote(crosswalk: CommandLine, tmp_path: Path) -> None:
    target = native(tmp_path, crosswalk)
    as_the_trainer_writes_it(target)
    ran = crosswalk("convert", target, tmp_path / "back")
    assert ran.code == 1
    assert "this checkpoint does not say which format it came from" in ran.err
    assert "pass --format" in ran.err
    back = convert(crosswalk, target, tmp_path / "back", "--format", "llama")
    assert equal_tensors(tensors_of(back), tensors_of(tmp_path / "source"))
    found, original = config_of(back), config_of(tmp_path / "source")
    # Without the original nothing is known of token ids; what is known agrees.
    assert found.keys() <= original.keys() | {"dtype", "rope_theta"}
    assert {key: original[key] for key in found.keys() - {"rope_theta"}} | {"rope_theta": 23456.0} == found
    assert "bos_token_id" not in found
    assert torch.equal(oracles.logits(back), oracles.logits(tmp_path / "source"))


@pytest.mark.parametrize("name", [case.name for case in cases("fast_llm_metadata.yaml", "hf.safetensors")])
def test_metadata_of_the_trainer_itself(name: str, crosswalk: CommandLine, tmp_path: Path) -> None:
    case = CASES[name]
    target = tmp_path / "native"
    target.mkdir()
    text = (case.path / "fast_llm_metadata.yaml").read_text()
    if case.format in NATIVE_DIFFERENCES:  # trained as a model that its class is not, until its metadata says so
        text = text.replace("causal: true", "causal: false")
    (target / "metadata.yaml").write_text(text)
    save_file({f"{key}/weights": value for key, value in case.native_tensors().items()}, target / "model_0.safetensors")
    code = tmp_path / "code"
    code.mkdir()
    needed = next(row for row in lines(crosswalk("formats").out) if row[0] == case.format)
    for word in needed:
        if word.rstrip(",").endswith(".py"):
            (code / word.rstrip(",")).write_text("")
    back = convert(crosswalk, target, tmp_path / "back", "--format", case.format, "--model-files", code)
    assert equal_tensors(tensors_of(back), case.hf_tensors())
    assert crosswalk("verify", back, target).code == 0


def test_a_changed_native_config_is_exported_anew_with_the_rest_restored(
    crosswalk: CommandLine, tmp_path: Path
) -> None:
    target = native(tmp_path, crosswalk)
    metadata(*MIXER, "rotary", theta=77777.0)(target)
    back = convert(crosswalk, target, tmp_path / "back")
    original = config_of(tmp_path / "source")
    expected = {**original, "rope_parameters": {"rope_theta": 77777.0, "rope_type": "default"}}
    assert config_of(back) == expected
    assert (original["bos_token_id"], original["eos_token_id"], original["max_position_embeddings"]) == (3, 5, 513)
    assert (back / "generation_config.json").read_bytes() == (
        tmp_path / "source" / "generation_config.json"
    ).read_bytes()


def test_training_settings_are_no_reason_for_a_new_config(crosswalk: CommandLine, tmp_path: Path) -> None:
    """The trainer may write its own defaults and settings; the model is the same, and so is its config.json."""
    target = native(tmp_path, crosswalk)
    metadata(*BASE, "decoder", "block", "mlp", recompute_level="full")(target)
    back = convert(crosswalk, target, tmp_path / "back")
    assert contents(back) == contents(tmp_path / "source")


# ---- ties, biases, leftovers -----------------------------------------------------------------------------------------


def test_biased_models(crosswalk: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source", attention_bias=True, mlp_bias=True)
    target = convert(crosswalk, source, tmp_path / "native")
    hf, ours = tensors_of(source), tensors_of(target)
    assert torch.equal(
        ours["decoder.1.mlp.layer_1.bias/weights"],
        torch.cat([hf[f"model.layers.1.mlp.{part}_proj.bias"] for part in ("gate", "up")]),
    )
    assert contents(convert(crosswalk, target, tmp_path / "back")) == contents(source)


def test_mixtral(crosswalk: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source", MIXTRAL)
    target = convert(crosswalk, source, tmp_path / "native")
    ours = tensors_of(target)["decoder.1.mlp.layer_2.weight/weights"]
    hf = tensors_of(source)
    expected = torch.cat([hf[f"model.layers.1.block_sparse_moe.experts.{e}.w2.weight"].T for e in range(8)])
    assert torch.equal(ours, expected)
    assert contents(convert(crosswalk, target, tmp_path / "back")) == contents(source)


def test_tied_models(crosswalk: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source", tie_word_embeddings=True)
    assert "lm_head.weight" not in tensors_of(source)
    target = convert(crosswalk, source, tmp_path / "native")
    assert "head.output_weights/weights" not in tensors_of(target)
    back = convert(crosswalk, target, tmp_path / "back")
    assert contents(back) == contents(source)


def test_a_tied_head_that_is_stored_too(crosswalk: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source", tie_word_embeddings=True)
    expected = contents(source)
    edit_tensors(source, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"]}))
    assert ["tensors", "bijective", "but", "for", "1", "tied", "tensor"] in lines(crosswalk("check", source).out)
    target = convert(crosswalk, source, tmp_path / "native")
    assert "head.output_weights/weights" not in tensors_of(target)
    assert contents(convert(crosswalk, target, tmp_path / "back")) == expected
    edit_tensors(source, lambda t: t["lm_head.weight"][70, 29].add_(1))
    ran = crosswalk("convert", source, tmp_path / "out")
    assert (ran.code, len(ran.problems)) == (1, 1)
    assert "`lm_head.weight`, tied to `model.embed_tokens.weight`, is not equal" in ran.err
    assert not (tmp_path / "out").exists()


def test_buffers_of_old_checkpoints_are_dropped(crosswalk: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    expected = contents(source)
    edit_tensors(
        source,
        lambda t: t.update({f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.rand(7) for i in range(3)}),
    )
    assert ["tensors", "bijective", "but", "for", "3", "dropped", "tensors"] in lines(crosswalk("check", source).out)
    target = convert(crosswalk, source, tmp_path / "native")
    assert crosswalk("verify", source, target).code == 0
    assert contents(convert(crosswalk, target, tmp_path / "back")) == expected


def test_model_code_is_carried_or_given(crosswalk: CommandLine, tmp_path: Path) -> None:
    """A format with code of its own cannot be loaded without: it travels along, or is asked for."""
    case = CASES["dream_base"]
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(case.hf_config()))
    save_file(case.hf_tensors(), source / "model.safetensors")
    ran = crosswalk("convert", convert(crosswalk, source, tmp_path / "bare"), tmp_path / "back")
    assert (ran.code, len(ran.problems)) == (1, 1)
    assert "format `dream` needs its model files" in ran.err
    assert "hint: pass --model-files DIR" in ran.err
    code = tmp_path / "code"
    code.mkdir()
    needed = ran.err.split("needs its model files ")[1].split(":")[0].split(", ")
    assert "modeling_dream.py" in needed
    for name in needed:
        (code / name).write_text(f"# {name}")
    back = convert(crosswalk, tmp_path / "bare", tmp_path / "back", "--model-files", code)
    assert {name: (back / name).read_text() for name in needed} == {name: f"# {name}" for name in needed}
    again = convert(crosswalk, convert(crosswalk, back, tmp_path / "native"), tmp_path / "again")
    assert contents(again) == contents(back)


def test_an_index_of_some_of_the_files(crosswalk: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    expected = tensors_of(source)
    shard(source, 4)
    shutil.copy(source / "model-00001-of-00004.safetensors", source / "consolidated.safetensors")
    back = convert(crosswalk, convert(crosswalk, source, tmp_path / "native"), tmp_path / "back")
    assert equal_tensors(tensors_of(back), expected)
    assert not (back / "consolidated.safetensors").exists()


def test_a_config_of_another_class_of_the_same_model(crosswalk: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    edit_config(source, lambda config: config.update(architectures=["LlamaForSequenceClassification"]))
    ran = crosswalk("check", source)
    assert ran.code == 1
    assert "`architectures` must be ['LlamaForCausalLM']" in ran.err


def test_what_is_read_is_the_file_not_the_class(crosswalk: CommandLine, tmp_path: Path) -> None:
    """A minimal file, as many on the hub are, comes back as it was: no defaults of a class are put in."""
    source = make(tmp_path / "source")
    minimal = {key: value for key, value in LLAMA.items() if key not in ("dtype", "attention_bias", "mlp_bias")}
    (source / "config.json").write_text(json.dumps(minimal))
    target = convert(crosswalk, source, tmp_path / "native")
    assert contents(convert(crosswalk, target, tmp_path / "back")) == contents(source)
