"""Every entry of every shipped mapping is needed: without it, renamed, or swapped with its neighbour, a check fails.

A mutant is caught if it does not compile, or if for one of the examples of a format that uses the file it
refuses the config, imports something else than the second opinion, exports another meaning, does not name the tensors
that the real class has, moves the tensors of the reference to another place, or misreads how published checkpoints are
stored. By default a sample of the mutants is tried; all of them with ``--hypothesis-profile=thorough``.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import native_oracle
import oracles
import pytest
import torch
from comparing import differences, shapes, stored_as, tensor_differences
from formats import CONFIGS, normalized
from golden_cases import cases, read_yaml
from hypothesis import HealthCheck, Phase, given, settings
from mutants import Mutant, MutantCatalog, mutants
from quantised import misread
from semantics import meaning
from variants import REFUSED, VARIANTS

from crosswalk.compiler.config.dialects import choose_dialects
from crosswalk.compiler.config.write import export_config
from crosswalk.compiler.pipeline import import_model
from crosswalk.compiler.relations.tree import CompiledMapping
from crosswalk.jobs.options import Options
from crosswalk.jobs.plans import plan_for
from crosswalk.runtime import execute
from crosswalk.runtime.errors import CrosswalkError

Config = dict[str, Any]

pytestmark = pytest.mark.skipif(oracles.TRANSFORMERS_MAJOR < 5, reason="drawn configs are read by transformers 5")

#: Formats that use a mapping file, by the name of the file; a format uses its own.
USERS = {
    "huggingface": ("diffusion_llama", "llama"),
    "pixtral": ("llava",),
    "apriel2_vision": ("apriel2",),
    "llava_llama": ("llava",),
    "mistral": ("mistral", "llava"),
}
THOROUGH = settings().max_examples > 100
STRIDE = 1 if THOROUGH else 11

#: Keys without meaning for the trainer: carried beside its checkpoint, so absent from what is exported from memory.
CARRIED = (
    "bos_token_id", "eos_token_id", "pad_token_id", "mask_token_id", "initializer_range", "use_cache", "dtype",
    "transformers_version", "max_position_embeddings", "pretraining_tp", "router_aux_loss_coef", "router_jitter_noise",
    "output_router_logits", "vocab_size_per_layer_input", "use_bidirectional_attention", "image_seq_length",
    "image_size", "embeddings", "auto_map", "architectures", "use_mrope", "layer_types", "linear_attn_config",
    "ssm_cfg", "num_experts", "top_k_experts", "moe_intermediate_size", "tie_word_embeddings_of_root", "type",
)  # fmt: skip


#: Formats without a reference: pairs of a tensor and its parameter that have the shape of others.
COPIES = {
    "qwen3": [
        (f"model.layers.0.self_attn.{x}_norm.weight", f"decoder.0.mixer.{name}_norm.weight")
        for x, name in (("q", "query"), ("k", "key"))
    ],
}


@dataclass(frozen=True)
class Example:
    """A config with all that is known of it from elsewhere."""

    config: Config
    native: Config
    shapes: oracles.Shapes
    said: Config
    tensors: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]] | None = None


@functools.cache
def examples(format: str) -> list[Example]:
    """The references of the format, and drawn configs."""
    found = []
    for case in cases("hf_config.json", "fast_llm_config.yaml"):
        if case.format == format:
            files = case.has("hf.safetensors")
            tensors = (case.hf_tensors(), case.native_tensors()) if files else None
            found.append(_example(format, case.hf_config(), tensors))
    found += [_example(format, variant, full=full) for full, variant in VARIANTS.get(format, [])]
    return [*found, *(_example(format, config) for config in covering(_drawn(format, 80)))]


def _example(format: str, config: Config, tensors: Any = None, full: Config | None = None) -> Example:
    """``full``: a config of the same meaning that the oracles understand, where they do not understand this one."""
    known = config if full is None else full
    native = normalized(native_oracle.BY_FORMAT[format](known), format)
    return Example(config, native, oracles.names_and_shapes(known), _said(known), tensors)


def _drawn(format: str, count: int) -> list[Config]:
    configs: list[Config] = []

    @settings(
        max_examples=count, database=None, derandomize=True, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(CONFIGS[format])
    def collect(config: Config) -> None:
        configs.append(copy.deepcopy(config))

    collect()
    return configs


def covering(configs: list[Config]) -> list[Config]:
    """A few of the configs that have, together, every option of all of them: each flag and word, each key absent."""
    options = [dict(_options(config)) for config in configs]
    paths = {path for option in options for path in option}
    open_sets = [{(path, option.get(path, "absent")) for path in paths} for option in options]
    wanted = set().union(*open_sets)
    chosen = []
    while wanted:
        best = max(range(len(configs)), key=lambda i: len(open_sets[i] & wanted))
        chosen.append(configs[best])
        wanted -= open_sets[best]
    return chosen


def _options(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _options(item, f"{path}.{key}")
    elif isinstance(value, list):
        yield path, tuple(sorted(set(map(str, value))))
    else:
        yield path, value if isinstance(value, bool | str | None) else "number"


def judge(mapping: CompiledMapping, format: str, example: Example) -> str | None:
    """What is wrong with a compiled mapping, by one example; None if nothing is."""
    try:
        native = import_model(mapping, example.config, Options())
        wrong = differences(normalized(native, format), example.native)
        if wrong:
            return f"import: {wrong[0]}"
        for dialect in (None, *(["transformers-4"] if "transformers_4" in mapping.source.dialects else [])):
            exported, _ = export_config(mapping, native, choose_dialects(mapping, dialect))
            wrong = differences(_said(exported), example.said)
            if wrong:
                return f"export: {wrong[0]}"
        plan = stored_as(plan_for(mapping, example.config, Options()), "BF16")
        wrong = differences(shapes(plan.sources), example.shapes)
        if wrong:
            return f"tensors: {wrong[0]}"
        if example.tensors is not None:
            hf, ours = example.tensors
            wrong = tensor_differences(dict(execute(plan, hf)), ours)
            if wrong:
                return f"values: {wrong[0]}"
        return _renamed(mapping, format, example, native)
    except CrosswalkError as error:
        return f"error: {error.diagnostics[0].message}"


def _renamed(mapping: CompiledMapping, format: str, example: Example, native: Config) -> str | None:
    """The names that the class has in memory, and tensors of one shape that only their names tell apart."""
    if format in ("llava", "mixtral") and oracles.TRANSFORMERS_MAJOR >= 5:
        plan = plan_for(mapping, native, Options(to="hf", dialect="in-memory"))
        wrong = differences(shapes(plan.targets), oracles.names_and_shapes(example.config, in_memory=True))
        if wrong:
            return f"names: {wrong[0]}"
    if format in COPIES:
        plan = plan_for(mapping, example.config, Options())
        found = {(plan.sources[c.source].name, plan.targets[c.target].name) for c in plan.copies}
        missing = [pair for pair in COPIES[format] if pair not in found]
        if missing:
            return f"copies: {missing[0]}"
    return None


def refused(mapping: CompiledMapping, format: str) -> str | None:
    """What a mapping reads that it must not read; None if there is nothing."""
    for config, word in REFUSED.get(format, []):
        try:
            import_model(mapping, config, Options())
        except CrosswalkError as error:
            if word not in str(error):
                return f"refused, but not for {word}: {error}"
        else:
            return f"accepted: {word}"
    return None


_ATTENTION = (
    "num_attention_heads", "num_key_value_heads", "head_dim", "attention_dropout", "sliding_window", "rope_parameters",
    "rope_theta", "rope_scaling",
)  # fmt: skip


def _said(config: Mapping[str, Any]) -> Config:
    """What of a config an export from memory says, in canonical form: without what is carried, and without the keys of
    kinds of layers that there are none of."""
    text = dict(config.get("text_config", config))
    if "t" not in text.get("hybrid_block_layout", "t"):
        unused = {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 2, "rope_theta": 1.0}
        text = {key: value for key, value in text.items() if key not in _ATTENTION} | unused
    text.setdefault("max_position_embeddings", 0)
    if "text_config" in config and text["model_type"] == "llama" and not (text["attention_bias"] or text["mlp_bias"]):
        # A Llama without biases is a Mistral without a window; memory alone cannot tell which of them it was.
        text = {key: value for key, value in text.items() if key not in ("attention_bias", "mlp_bias")}
        text |= {"model_type": "mistral", "sliding_window": None}
    said = meaning({**config, "text_config": text} if "text_config" in config else text)
    if "layers" in said:  # these hold the sizes of every layer
        del said["head_dim"], said["num_key_value_heads"]
        if "sliding_attention" not in said["layer_types"]:
            said.pop("sliding_window", None)
            said["rope_parameters"].pop("sliding_attention", None)
    result = _strip(said)
    assert isinstance(result, dict)
    return result


def _strip(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _strip(item) for key, item in value.items() if key not in CARRIED}
    return value


def _documents() -> Iterator[tuple[str, Config]]:
    folder = Path(str(resources.files("crosswalk.mappings")))
    for file in sorted(folder.glob("*.yaml")):
        document = read_yaml(file)
        if not file.stem.startswith(("torchtitan", "megatron")):
            yield file.stem, document


DOCUMENTS = dict(_documents())
#: Those that have a second opinion; the others are held against their classes in test_families.
WITH_MUTANTS = [
    name
    for name, document in DOCUMENTS.items()
    if (name in USERS or name in CONFIGS) and any(True for _ in mutants(document))
]


def _users(name: str) -> tuple[str, ...]:
    return USERS.get(name, (name,))


@pytest.mark.parametrize("format", list(CONFIGS))
def test_the_mappings_themselves_pass_every_check(format: str) -> None:
    mapping = MutantCatalog().compiled(format)
    assert refused(mapping, format) is None
    assert [problem for example in examples(format) if (problem := judge(mapping, format, example))] == []


@pytest.mark.parametrize("name", WITH_MUTANTS)
def test_no_entry_of_a_mapping_can_change_unnoticed(name: str) -> None:
    sample = list(mutants(DOCUMENTS[name]))[::STRIDE]
    survivors = [mutant.name for mutant in sample if _survives(name, mutant)]
    assert [survivor for survivor in survivors if survivor not in EQUIVALENT.get(name, {})] == []


def _survives(name: str, mutant: Mutant) -> bool:
    for format in _users(name):
        try:
            mapping = MutantCatalog(texts={name: mutant.text}).compiled(format)
        except CrosswalkError:
            return False
        if (
            refused(mapping, format)
            or misread(mapping.source)
            or any(judge(mapping, format, example) for example in examples(format))
        ):
            return False
    return True


_RESTATED = "says again what the file that it extends says"
_ABSENT = "says what an absent key means: see test_class_defaults.py"
_CLASS = "what only the class of the format writes: see test_class_defaults.py"
_REFUSED = "says which value is no matter: see test_refusals.py"
_DEFAULT = "says the default of the trainer, which silence means as well"

#: Mutants that mean the same, or that other tests catch, each with the reason.
EQUIVALENT: dict[str, dict[str, str]] = {
    "llama": {
        "drop attention.tensors.rotary_emb.inv_freq": "a tensor that need not be there: see test_plan.py",
        "rename attention.tensors.rotary_emb.inv_freq": "a tensor that need not be there: see test_plan.py",
        "drop base_model.tensors.model.rotary_emb.inv_freq": "a tensor that need not be there: see test_cli.py",
        "rename base_model.tensors.model.rotary_emb.inv_freq": "a tensor that need not be there: see test_cli.py",
        "drop Sequence.config.num_hidden_layers": _ABSENT,
    },
    "mistral": {"drop mlp.config.intermediate_size": _ABSENT},
    "dream": {"drop base_model.config.vocab_size": _ABSENT},
    "huggingface": {"drop enums.activation.gelu": "only says why it is refused: see test_bad_configs.py"},
    "mixtral": {"drop moe.sets.routing": _DEFAULT, "drop rms_norm.config.rms_norm_eps": _ABSENT},
    "qwen2": {
        "drop Sequence.count": _RESTATED,
        "drop Sequence.kinds.full_attention.attention.sets.window_size": _DEFAULT,
    },
    "qwen3": {
        "drop Sequence.count": _RESTATED,
        "drop Sequence.kinds.full_attention.attention.sets.window_size": _DEFAULT,
    },
    "pixtral": {
        "drop Rotary.by": "the kind meant without a rope_type is the same model",
        "drop Rotary.cases.default.config.rope_theta": _RESTATED,
    },
    "apriel2_vision": {
        "drop Sequence.by": "says by which name another type is refused: see test_multimodal.py",
        "drop Rotary.by": _RESTATED,
        "drop vision_encoder.config.adapter.add_linear_biases": _ABSENT,
        "drop vision_encoder.config.adapter.activation": _ABSENT,
    },
    "apriel_hybrid_ssm": {
        "drop Sequence.count": _RESTATED,
        "drop Sequence.kinds.t.block.sets.mixer": _RESTATED,
        "drop gdn.sets.normalization.epsilon": _DEFAULT,
        "drop kda.sets.normalization.epsilon": _DEFAULT,
    },
    "gemma4": {
        "drop mlp.config.intermediate_size": _ABSENT,
        "rename dialects.transformers_5_5": "asked for by its name in test_golden.py",
        "drop Sequence.count": _RESTATED,
        "drop Sequence.kinds.sliding_attention.attention.sets.shared_key_value": _DEFAULT,
        "drop Sequence.kinds.full_attention.attention.sets.window_size": _DEFAULT,
        "drop block.cases.False.sets.mlp": _RESTATED,
        "drop attention.config.rope_parameters": "the kinds relate it each for itself",
        "rename attention.config.rope_parameters": "the kinds relate it each for itself",
    },
    "apriel2_text": {
        "drop block.config.normalization.epsilon": _ABSENT,
        **{
            f"{change} {line}": _CLASS
            for change in ("drop", "rename")
            for line in (
                "kda.config.normalization.activation",
                "stochastic.config.sampling_weights",
            )
        },
        **{
            f"{change} {line}": _REFUSED
            for change in ("drop", "rename")
            for line in (
                "attention.config.causal",
                "attention.config.cross_document_attention",
                "gdn.config.convolution_layer.activation",
            )
        },
        "swap attention.config.causal with cross_document_attention": _REFUSED,
        "drop dialects.transformers_4": "its keys are refused in either case",
        "rename dialects.transformers_4": "its keys are refused in either case",
    },
    "llava_llama": {
        "drop attention.config.sliding_window": "says why: an unknown key is refused as well",
        "rename attention.config.sliding_window": "says why: an unknown key is refused as well",
    },
    "llava": {
        "rename dialects.in_memory": "asked for by its name",
        "rename dialects.image_token_id": "only ever read",
    },
}
