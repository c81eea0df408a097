"""Mistakes that people make in mapping files: each is found before any config is seen, where it is, with what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosswalk.compiler.catalog import Catalog
from crosswalk.compiler.notation.expressions import Expression
from crosswalk.compiler.relations.tree import CompiledMapping, Struct, nodes_of
from crosswalk.runtime.errors import CrosswalkError, Position
from crosswalk.runtime.records import Record

MISTAKES = (Path(__file__).parent / "mapping_mistakes.txt").read_text(encoding="utf-8")


def mistakes() -> Iterator[Any]:
    """The cases of ``mapping_mistakes.txt``: a mapping, and the diagnostics as they are printed."""
    for block in MISTAKES.split("\n=== ")[1:]:
        name, _, rest = block.partition("\n")
        text, _, expected = rest.partition("\n--->\n")
        yield pytest.param(f"{text}\n", expected.split("\n\n")[0].strip(), id=name)


def compiled(text: str) -> CompiledMapping:
    return Catalog(texts={"test": text, "other": "crosswalk: 1\nextends: test\n"}).compiled("test")


def said(error: CrosswalkError) -> str:
    """The message, with places in shipped files cut down to the name of the file: they move when those are edited."""
    return re.sub(r"/[\w./-]*/(\w+\.yaml)(:\d+:\d+)?", r"\1", str(error))


@pytest.mark.parametrize(("text", "expected"), list(mistakes()))
def test_mistake(text: str, expected: str) -> None:
    with pytest.raises(CrosswalkError) as error:
        compiled(text)
    assert said(error.value) == expected


def test_the_mistakes_are_of_many_kinds() -> None:
    codes = set(re.findall(r"\[(\w+/[\w-]+)\]$", MISTAKES, re.MULTILINE))
    assert len(codes) >= 40


def test_all_mistakes_of_a_file_are_reported_at_once() -> None:
    text = """crosswalk: 1
extends: llama
attention:
  config: {window: windw_size}
  sets: {causal: 1, query_norm: rms_nrm}
Rotary:
  cases: {lama3: {}}
"""
    with pytest.raises(CrosswalkError) as error:
        compiled(text)
    assert [str(found.position) for found in error.value.diagnostics] == [
        "test.yaml:4:20",
        "test.yaml:7:11",
        "test.yaml:5:33",
    ]


def test_a_mistake_in_a_base_is_reported_once_and_there() -> None:
    texts = {
        "test": "crosswalk: 1\nextends: other\n",
        "other": "crosswalk: 1\nextends: llama\nmlp: {sets: {gatd: 1}}\n",
    }
    with pytest.raises(CrosswalkError) as error:
        Catalog(texts=texts).compiled("test")
    (found,) = error.value.diagnostics
    assert (found.code, str(found.position)) == ("mapping/no-such-field", "other.yaml:3:14")


def test_a_base_may_have_sections_that_it_does_not_reach_itself() -> None:
    texts = {
        "test": "crosswalk: 1\nextends: other\nblock: {sets: {mlp: moe}}\n",
        "other": "crosswalk: 1\nabstract: true\nextends: llama\n"
        "moe: {same: [experts, experts_per_token], tensors: {'*': same}}\n",
    }
    assert "experts" in {".".join(path) for path in Catalog(texts=texts).compiled("test").claims}


# ---- nothing misspelt passes ----------------------------------------------------------------------------------------


def words_of(name: str) -> tuple[str, list[re.Match[str]]]:
    """The text of a shipped mapping and its words, without those of comments."""
    text = Path(Catalog().mapping(name).file).read_text(encoding="utf-8")
    code = re.sub(r"#.*", lambda comment: " " * len(comment[0]), text)
    return text, [word for word in re.finditer(r"[A-Za-z_]{3,}", code) if word[0] not in ("true", "false", "null")]


WORDS = {name: words_of(name) for name in ("llama", "mixtral", "pixtral", "mtp_llama", "apriel2_text", "llava")}


@given(st.sampled_from(sorted(WORDS)), st.randoms(use_true_random=False))
def test_a_misspelt_word_is_an_error_or_a_name_of_theirs(name: str, random: Random) -> None:
    """A word of a shipped file, misspelt once: it cannot be told from right only where it names a key, a tensor or a
    class on the Hugging Face side."""
    text, words = WORDS[name]
    word = random.choice(words)
    misspelt = word[0][:-2] + word[0][-1] + word[0][-2] + "x"
    try:
        result = Catalog(texts={name: text[: word.start()] + misspelt + text[word.end() :]}).compiled(name)
    except CrosswalkError as error:
        assert all(found.position for found in error.diagnostics)  # noqa: PT017  (whether there is one is drawn)
    else:
        assert any(misspelt in found for found in names_of_theirs(result)), f"{word[0]} at {word.start()}"


VALUES = ["~", "{}", "[]", "3", "x", "mlp", "heads", "{is: heads}", "{const: 1}", "{default: ~}", "[a, b]", "none"]
VALUES += ["mixer(mamba)", "'{i}'", "= root", "{a: {b: c}}", "decoder.{i}", "query", "{is: query, axes: hidden}"]
KEYS = [
    "config",
    "sets",
    "tensors",
    "same",
    "by",
    "cases",
    "of",
    "count",
    "kinds",
    "checks",
    "linear",
    "parts",
    "root",
    "is",
    "default",
    "attention",
    "Norm",
]


@given(st.sampled_from(sorted(WORDS)), st.randoms(use_true_random=False))
def test_a_mapping_with_other_lines_compiles_or_says_where_it_is_wrong(name: str, random: Random) -> None:
    """Lines taken out, put elsewhere, or with another key or value: nothing but a CrosswalkError comes of it."""
    lines = WORDS[name][0].splitlines()
    at, other = random.randrange(1, len(lines)), random.randrange(1, len(lines))
    indent, key, value = re.fullmatch(r"(\s*)((?:[^:]|:\S)*)(.*)", lines[at]).groups()  # type: ignore[union-attr]
    lines[at : at + 1] = random.choice(
        [
            [],
            [lines[at], indent + lines[other].strip()],
            [f"{indent}{key}: {random.choice(VALUES)}"],
            [f"{indent}{random.choice(KEYS)}{value}"],
            [lines[at], f"{indent}{random.choice(KEYS)}: {random.choice(VALUES)}"],
        ]
    )
    try:
        Catalog(texts={name: "\n".join(lines) + "\n"}).compiled(name)
    except CrosswalkError as error:
        assert all(found.position for found in error.diagnostics)  # noqa: PT017  (whether there is one is drawn)


def names_of_theirs(mapping: CompiledMapping) -> Iterator[str]:
    source = mapping.source
    yield from (*source.files, *source.auto_map.values(), *source.auto_map, source.config_class or "")
    yield from (source.architecture or "", source.model_type or "")
    yield from (".".join(path) for path in mapping.claims)
    for dialect in source.dialects.values():
        yield from (dialect.name, str(dialect.tensors), *(".".join(move.old) for move in dialect.config))
    for part in source.parts:
        yield from (".".join(part.theirs), part.tensors, part.default or "")
    for node in nodes_of(mapping.root):
        if isinstance(node, Struct):
            yield from (str(line.theirs) for line in node.section.tensors)
            yield from (check.message for check in node.section.checks)
        yield str(getattr(node, "default", ""))
        yield from (str(getattr(node, name, "")) for name in ("default", "cases", "rules"))


# ---- TOML -----------------------------------------------------------------------------------------------------------

TOML = """
crosswalk = 1
extends = "llama"
architecture = "QwenishForCausalLM"
model_type = "qwenish"
keeps = ["seq_length"]

[attention.config]
sliding_window = {is = "window_size", default = 4096}
kv_channels = {is = "head_size", default = "= hidden_size / num_attention_heads"}

[attention.sets]
query_layer.bias.enabled = true

[attention.tensors]
c_attn = ["query", "key_value"]

[mlp]
sets = {add_linear_biases = false}
tensors = {"{w2=gate|w1=up}" = "layer_1", c_proj = {weight = "layer_2.weight", bias = "layer_2.bias"}}
checks = {"intermediate_size % 2 == 0" = "the class halves it"}
"""

YAML = """
crosswalk: 1
extends: llama
architecture: QwenishForCausalLM
model_type: qwenish
keeps: [seq_length]
attention:
  config:
    sliding_window: {is: window_size, default: 4096}
    kv_channels: {is: head_size, default: = hidden_size / num_attention_heads}
  sets:
    query_layer.bias.enabled: true
  tensors:
    c_attn: [query, key_value]
mlp:
  sets: {add_linear_biases: false}
  tensors:
    "{w2=gate|w1=up}": layer_1
    c_proj: {weight: layer_2.weight, bias: layer_2.bias}
  checks:
    intermediate_size % 2 == 0: the class halves it
"""


def test_toml_says_the_same_as_yaml(tmp_path: Path) -> None:
    (tmp_path / "qwenish.toml").write_text(TOML)
    toml = Catalog([tmp_path]).compiled("qwenish")
    yaml = Catalog(texts={"qwenish": YAML}).compiled("qwenish")
    assert str(toml.source.position.file).endswith("qwenish.toml")
    assert without_places(toml) == without_places(yaml)


def test_mistakes_in_toml_have_places_too(tmp_path: Path) -> None:
    (tmp_path / "test.toml").write_text('crosswalk = 1\nextends = "llama"\n\n[attention.sets]\nwindw_size = 3\n')
    with pytest.raises(CrosswalkError) as error:
        Catalog([tmp_path]).compiled("test")
    (found,) = error.value.diagnostics
    assert (found.code, found.position) == ("mapping/no-such-field", Position(str(tmp_path / "test.toml"), 5, 1))


def without_places(value: Any) -> Any:
    """Compiled data as plain values, without where it was written."""
    if isinstance(value, Expression):
        return value.text
    if isinstance(value, Position):
        return None
    if isinstance(value, Record):
        names = (name for name in value.__struct_fields__ if name not in ("file", "layout", "places"))
        return type(value).__name__, {name: without_places(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {str(key): without_places(item) for key, item in value.items()}
    if isinstance(value, frozenset):
        return sorted(map(str, value))
    if isinstance(value, list | tuple):
        return [without_places(item) for item in value]
    return value
