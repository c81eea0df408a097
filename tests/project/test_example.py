"""The worked example of docs/add-an-architecture.md against the real GPT-2, and the pages themselves."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import generate
import oracles
import pytest
import torch
from real_configs import GPT2

from crosswalk.compiler.catalog import Catalog
from crosswalk.compiler.config.dialects import dialect_of_names
from crosswalk.compiler.config.read import import_config
from crosswalk.compiler.config.write import export_config
from crosswalk.compiler.relations.tree import CompiledMapping
from crosswalk.compiler.tensors.bind import bind
from crosswalk.compiler.tensors.plan import plan_import
from crosswalk.compiler.text.documents import parse_document
from crosswalk.jobs.options import Options
from crosswalk.jobs.plans import plan_for
from crosswalk.runtime.errors import CrosswalkError
from crosswalk.runtime.memory import execute
from crosswalk.runtime.plan.model import TensorSpec

DOCS = Path(__file__).parents[2] / "docs"
MAPPING = DOCS.parent / "mappings" / "gpt2.yaml"


@pytest.fixture(scope="module")
def gpt2() -> CompiledMapping:
    return Catalog().compiled("gpt2")


def saved(name: str) -> dict[str, Any]:
    """The config as the real class writes it: with every key that it has."""
    return oracles.as_saved(GPT2[name])


@pytest.mark.parametrize("name", GPT2)
def test_names_and_shapes_are_those_of_the_real_class(gpt2: CompiledMapping, name: str) -> None:
    plan = plan_for(gpt2, saved(name), Options())
    assert {tensor.name: tensor.shape for tensor in plan.sources} == oracles.names_and_shapes(GPT2[name])
    assert str(plan.verify()) == "bijective"


@pytest.mark.parametrize("name", GPT2)
def test_the_config_comes_back(gpt2: CompiledMapping, name: str) -> None:
    config = saved(name)
    native, taken = import_config(gpt2, config)
    assert taken.notes == ()
    again = export_config(gpt2, native)[0]
    # An n_inner that was null is written: the trainer has the size alone.
    inner = config["n_inner"] or 4 * config["n_embd"]
    kept = {key for key in config if key not in again}
    assert again == {key: config[key] for key in config if key not in kept} | {"n_inner": inner}
    assert kept == {".".join(path) for path in gpt2.claims} & kept | {"dtype", "transformers_version"} & kept


def test_each_line_has_the_values_that_the_class_means(gpt2: CompiledMapping) -> None:
    config = GPT2["wide-mlp"]
    plan = plan_for(gpt2, saved("wide-mlp"), Options())
    count, theirs = 0, {}
    for tensor in plan.sources:
        size = torch.Size(tensor.shape).numel()
        theirs[tensor.name] = torch.arange(count, count + size, dtype=torch.float32).reshape(tensor.shape)
        count += size
    ours = dict(execute(plan, theirs))
    width = config["n_embd"]
    for layer in range(config["n_layer"]):
        block, native = f"transformer.h.{layer}", f"decoder.{layer}"
        # Conv1D computes x @ weight, a linear layer x @ weight.T; c_attn splits its output into q, k and v.
        q, k, v = theirs[f"{block}.attn.c_attn.weight"].split(width, dim=1)
        assert torch.equal(ours[f"{native}.mixer.query.weight"], q.T)
        assert torch.equal(ours[f"{native}.mixer.key_value.weight"], torch.cat([k.T, v.T]))
        assert torch.equal(ours[f"{native}.mixer.dense.weight"], theirs[f"{block}.attn.c_proj.weight"].T)
        assert torch.equal(ours[f"{native}.mlp.layer_1.weight"], theirs[f"{block}.mlp.c_fc.weight"].T)
        # The trainer stores layer_2 as inputs by outputs, as GPT-2 does.
        assert torch.equal(ours[f"{native}.mlp.layer_2.weight"], theirs[f"{block}.mlp.c_proj.weight"])
        q, k, v = theirs[f"{block}.attn.c_attn.bias"].split(width)
        assert torch.equal(ours[f"{native}.mixer.query.bias"], q)
        assert torch.equal(ours[f"{native}.mixer.key_value.bias"], torch.cat([k, v]))
        for theirs_name, ours_name in (("ln_1", "norm_1"), ("ln_2", "norm_2")):
            for leaf in ("weight", "bias"):
                assert torch.equal(ours[f"{native}.{ours_name}.{leaf}"], theirs[f"{block}.{theirs_name}.{leaf}"])
    assert torch.equal(ours["embeddings.position_embeddings_weight"], theirs["transformer.wpe.weight"])
    assert torch.equal(ours["embeddings.word_embeddings_weight"], theirs["transformer.wte.weight"])
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in execute(plan.inverse(), ours))


def test_files_of_the_first_release_are_read(gpt2: CompiledMapping) -> None:
    """Without the prefix, with the causal masks."""
    native, taken = import_config(gpt2, saved("tied"))
    shapes = oracles.names_and_shapes(GPT2["tied"])
    files = {name.removeprefix("transformer."): shape for name, shape in shapes.items()}
    files |= {f"h.{layer}.attn.bias": (1, 1, 37, 37) for layer in range(3)}
    specs = {name: TensorSpec(name, shape, "F32") for name, shape in files.items()}
    plan = plan_import(bind(gpt2, native, taken.cases), specs, dialect=dialect_of_names(gpt2, specs))
    assert {exemption.tensor for exemption in plan.exemptions} == {f"h.{layer}.attn.bias" for layer in range(3)}
    assert plan.verify()


@pytest.mark.parametrize("key", ["scale_attn_weights", "scale_attn_by_inverse_layer_idx", "add_cross_attention"])
def test_what_the_trainer_cannot_hold_is_refused_where_the_mapping_says_so(gpt2: CompiledMapping, key: str) -> None:
    config = saved("tied")
    with pytest.raises(CrosswalkError) as error:
        import_config(gpt2, config | {key: not config[key]})
    (found,) = error.value.diagnostics
    text = MAPPING.read_text().splitlines()
    assert found.code == "config/unsupported"
    assert found.rule is not None
    assert text[found.rule.line - 1].strip().startswith(f"{key}:")


def test_an_axis_that_does_not_come_out_even_is_said_so(gpt2: CompiledMapping) -> None:
    with pytest.raises(CrosswalkError, match=re.escape("`head_size / 2`: 3 is not a multiple of 2")):
        plan_for(gpt2, saved("tied") | {"n_embd": 21, "n_head": 7}, Options())


# ---- the pages ------------------------------------------------------------------------------------------------------


def test_the_reference_is_that_of_the_schemas() -> None:
    assert generate.generated("language.md") == (DOCS / "language.md").read_text(), "run python docs/generate.py"


def test_every_word_has_an_example_of_a_file_that_is_compiled() -> None:
    """In the last column of its row: of a shipped file, or of the package that tests/project/test_packages.py runs."""
    rows = re.findall(r"^\| `(\w+)` \|.*\| (.*) \|$", (DOCS / "language.md").read_text(), re.MULTILINE)
    assert len(rows) > 90
    assert [word for word, example in rows if f"`{word}: " not in example] == []


@pytest.mark.skipif(oracles.TRANSFORMERS_MAJOR < 5, reason="an older class writes other keys")
def test_the_page_prints_what_the_commands_print() -> None:
    page = DOCS / "add-an-architecture.md"
    assert generate.generated(page.name) == page.read_text(), "run python docs/generate.py"


def test_the_page_ends_with_the_example() -> None:
    mapping: dict[str, dict[str, str]] = {}
    for kind, text in generate.BLOCK.findall((DOCS / "add-an-architecture.md").read_text()):
        if kind == "yaml":
            generate.add(mapping, text)
    example = parse_document(MAPPING.read_text(), "example")
    assert json.loads(json.dumps(parse_document(generate.joined(mapping), "page"))) == json.loads(json.dumps(example))


EXCERPTS = re.findall(r"<!-- from ([\w/]+) -->\n```yaml\n(.*?)```", (DOCS / "language.md").read_text(), re.DOTALL)


@pytest.mark.parametrize(("name", "excerpt"), EXCERPTS, ids=[name for name, _ in EXCERPTS])
def test_excerpts_are_from_the_shipped_file(name: str, excerpt: str) -> None:
    file = Path(Catalog().mapping("llama").file).parent / f"{name}.yaml"
    shipped = [line.split("  #")[0].rstrip() for line in file.read_text().splitlines()]
    at = 0
    for line in (line.split("  #")[0].rstrip() for line in excerpt.splitlines()):
        assert line in shipped[at:], line
        at = shipped.index(line, at) + 1


def test_the_page_names_every_function_and_no_other() -> None:
    from crosswalk.compiler.notation.expressions import _FUNCTIONS

    page = (DOCS / "language.md").read_text()
    listed = page[page.index("* `ceil_div") :].split("\n* ")[0]
    assert set(re.findall(r"`(\w+)", listed)) == set(_FUNCTIONS)
