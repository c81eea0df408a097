"""What a model cannot take, and what it lacks, is said in one message; and the compiler is not needed."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from native_cases import inputs, native

from crosswalk.reference import forward
from crosswalk.runtime.errors import CrosswalkError


def test_it_imports_nothing_of_the_compiler() -> None:
    code = "import sys, crosswalk.reference; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "crosswalk.reference.model" in loaded
    assert [name for name in loaded if name.startswith("crosswalk.compiler")] == []
    assert not {"ruamel", "jsonschema", "jinja2", "click", "rich", "transformers"} & {*loaded}


def test_a_parameter_that_is_missing_is_named() -> None:
    config, parameters = native("rotaries")
    del parameters["decoder.3.mixer.key_value.weight"]
    with pytest.raises(
        CrosswalkError, match=r"no parameter `decoder\.3\.mixer\.key_value\.weight`.*\[reference/missing\]"
    ):
        forward(config, parameters, inputs(config)[0])


@pytest.mark.parametrize(
    ("name", "tokens", "images", "message"),
    [
        ("rotaries", [[1, 2]], [], r"shape \[1, 2\]: one sequence is needed"),
        ("rotaries", [3, 61], [], "not among the 61 of the vocabulary"),
        ("rotaries", [3, -1], [], "1 tokens stand for patches of images; the images have 0"),
        ("rotaries", [3, 4], [(3, 8, 6)], "the model takes no images"),
        ("images", [59, 59, 4], [(3, 8, 2), (3, 4, 2)], "2 tokens stand for patches of images; the images have 3"),
        ("images", [59, 4], [(3, 5, 2)], r"shape \[3, 5, 2\]"),
        ("embeddings_norms_heads", [1] * 30, [], "30 tokens, 29 positions"),
    ],
)
def test_inputs_that_the_model_cannot_take(name: str, tokens: Any, images: Any, message: str) -> None:
    config, parameters = native(name)
    with pytest.raises(CrosswalkError, match=rf"{message}.* (\[reference/images\]|\[reference/tokens\])"):
        forward(config, parameters, torch.tensor(tokens), [torch.zeros(shape) for shape in images])


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (("mixer", "type"), "no mixer called `x`"),
        (("mixer", "rotary", "type"), "no rotary embedding called `x`"),
        (("mlp", "type"), "no MLP called `x`"),
        (("mlp", "activation"), "no activation called `x`"),
        (("normalization", "type"), "no normalization called `x`"),
    ],
)
def test_a_choice_that_there_is_not(path: tuple[str, ...], message: str) -> None:
    config, parameters = native("rotaries")
    place = config["decoder"]["blocks"]["b0"]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = "x"
    with pytest.raises(CrosswalkError, match=rf"{message}.* \[reference/type\]"):
        forward(config, parameters, inputs(config)[0])


def test_a_norm_with_a_gate_where_nothing_makes_one() -> None:
    config, parameters = native("rotaries")
    config["decoder"]["blocks"]["b0"]["normalization"]["type"] = "gated_rms_norm"
    with pytest.raises(CrosswalkError, match=r"nothing gives .* `decoder\.0\.norm_1` a gate \[reference/gate\]"):
        forward(config, parameters, inputs(config)[0])


def test_rotations_that_there_cannot_be() -> None:
    config, parameters = native("rotaries")
    rotary = config["decoder"]["blocks"]["b3"]["mixer"]["rotary"]
    rotary["partial_rotary_factor"] = 0.3
    with pytest.raises(CrosswalkError, match=r"3 of 10 channels cannot be turned in pairs.* \[reference/rotary\]"):
        forward(config, parameters, inputs(config)[0])
    rotary["type"] = "default_2d"
    with pytest.raises(CrosswalkError, match="only the patches of an image have rows and columns"):
        forward(config, parameters, inputs(config)[0])
