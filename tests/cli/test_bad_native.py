"""Damaged native checkpoints, through the command line: one clear message a problem, and nothing written."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from golden_cases import CASES
from random_checkpoints import write_checkpoint
from safetensors.torch import save_file
from small_checkpoints import (
    BASE,
    MIXER,
    CommandLine,
    Damage,
    cut,
    edit_tensors,
    metadata,
    native,
    refuse,
)

from crosswalk import check, convert
from crosswalk.checkpoints import portable_yaml
from crosswalk.runtime.errors import CrosswalkError

# ---- native metadata -------------------------------------------------------------------------------------------------


def rewritten(old: str, new: str) -> Damage:
    def damage(path: Path) -> None:
        content = (path / "metadata.yaml").read_text()
        assert old in content
        (path / "metadata.yaml").write_text(content.replace(old, new, 1))

    return damage


def replaced(content: bytes) -> Damage:
    return lambda path: (path / "metadata.yaml").write_bytes(content)


ORIGIN = ("metadata", "crosswalk")
INDEX = ("metadata", "state_index")
HEAD = "head.output_weights/weights"

METADATA: dict[str, tuple[Damage, tuple[str, ...]]] = {
    "no model": (metadata(model=...), ("metadata.yaml: error: `model` is missing",)),
    "unknown model": (metadata(model="gtp"), ('`model` must be one of gpt, multimodal; it is "gtp"',)),
    "model is a list": (metadata(model=["gpt"]), ('`model` must be one of gpt, multimodal; it is ["gpt"]',)),
    "another format of the trainer": (metadata(format="llama"), ("`format` must be fast_llm",)),
    "what training saves": (
        lambda path: (metadata("metadata", state_index=...)(path), metadata(format="distributed")(path)),
        ("output.path=OUT output.format=fast_llm",),
    ),
    "no config": (metadata(config=...), ("`config` is missing",)),
    "config is text": (metadata(config="x"), ('`config` must be a mapping; it is "x"',)),
    "no base_model": (metadata("config", base_model=...), ("`config.base_model` is missing",)),
    "base_model is a list": (metadata("config", base_model=[1]), ("`config.base_model` must be a mapping; it is [1]",)),
    "no metadata": (metadata(metadata=...), ("`metadata` is missing",)),
    "no index": (metadata("metadata", state_index=...), ("`metadata.state_index` is missing",)),
    "index is a list": (
        metadata("metadata", state_index=[1]),
        ("`metadata.state_index` must be a mapping of tensors",),
    ),
    "index is empty": (metadata("metadata", state_index={}), ("`metadata.state_index` must be a mapping of tensors",)),
    "index names a number": (metadata(*INDEX, **{HEAD: 3}), ("`metadata.state_index` must be a mapping of tensors",)),
    "several": (
        metadata(model=3, config="x", metadata=[]),
        ("`model` must be", "`config` must be", "`metadata` must be"),
    ),
    "origin is text": (metadata("metadata", crosswalk="x"), ('`metadata.crosswalk` must be a mapping; it is "x"',)),
    "origin has the wrong types": (
        metadata(*ORIGIN, format=3, config=[], tensor_dialect={"a": 1}, dtype=1, lossy="x", files={"a": 1}),
        (
            "`metadata.crosswalk.format` must be text; it is 3",
            "`metadata.crosswalk.config` must be text; it is []",
            '`metadata.crosswalk.tensor_dialect` must be text; it is {"a": 1}',
            "`metadata.crosswalk.dtype` must be text; it is 1",
            '`metadata.crosswalk.lossy` must be true or false; it is "x"',
            '`metadata.crosswalk.files` must be a list of file names; it is {"a": 1}',
        ),
    ),
    "origin of an unknown format": (
        metadata(*ORIGIN, format="lama"),
        (
            "there is no format `lama`, which this checkpoint",
            "[format/unknown]",
        ),
    ),
    "origin with a broken config": (metadata(*ORIGIN, config="{"), ("`metadata.crosswalk.config`: not valid JSON",)),
    "a carried file is gone": (
        metadata(*ORIGIN, files=["x.json"]),
        (
            "the carried file `x.json` is gone",
            "[files/missing]",
        ),
    ),
    "a carried file outside": (metadata(*ORIGIN, files=["../x"]), ("the carried file `../x` is gone",)),
    "no origin": (
        metadata("metadata", crosswalk=...),
        (
            "this checkpoint does not say which format it came from",
            "[format/needed]",
        ),
    ),
    "missing file": (
        metadata(*INDEX, **{HEAD: "model_1.safetensors"}),
        ("the file model_1.safetensors with 1 tensors is missing",),
    ),
    "file outside": (metadata(*INDEX, **{HEAD: "../m.safetensors"}), ('"../m.safetensors" is not a plain path',)),
    "missing tensor": (
        metadata(*INDEX, **{"more/weights": "model_0.safetensors"}),
        ("tensor `more/weights` is not in model_0.safetensors, where the index has it",),
    ),
    "unlisted tensor": (
        metadata(*INDEX, **{HEAD: ...}),
        (f"tensor `{HEAD}` of model_0.safetensors is not in the index",),
    ),
    "unknown fields": (
        lambda path: (metadata(*BASE, foo=1)(path), metadata(*MIXER, head=1)(path)),
        (
            "`foo`: type `base_model` of layout `fast_llm` has no field `foo`",
            "`decoder.block.mixer.head`: type `attention`",
        ),
    ),
    "a key that is a number": (
        metadata(*BASE, **{"3": 4}),
        ("`3`: type `base_model` of layout `fast_llm` has no field",),
    ),
    "wrong types": (
        lambda path: (metadata(*BASE, hidden_size="x")(path), metadata(*MIXER, heads=[6], rotary=3)(path)),
        (
            '`hidden_size` must be of type int, it is "x"',
            "`decoder.block.mixer.heads` must be of type int, it is [6]",
            "`decoder.block.mixer.rotary` must be an object, it is 3",
        ),
    ),
    "unknown type": (metadata(*MIXER, type="attn"), ("`decoder.block.mixer.type` must be one of attention, gdn",)),
    "type is a list": (
        metadata(*MIXER, type=["attention"]),
        ("`decoder.block.mixer.type` must be one of attention, gdn",),
    ),
    "a billion layers": (
        metadata(*BASE, "decoder", num_blocks=10**9),
        (
            "`decoder.num_blocks` must be at most 100000",
            "[layout/blocks]",
        ),
    ),
    "layers that no file holds": (
        metadata(*BASE, "decoder", num_blocks=100_000),
        ("the config states 100000 `decoder.{i}`, which take 700001 tensors or more, but the files hold 24 tensors",),
    ),
    "infinite": (
        metadata(*BASE, "head", "normalization", epsilon=float("inf")),
        ("`head.normalization.epsilon` must be of",),
    ),
    "another size": (
        metadata(*BASE, "embeddings", vocab_size=72),
        ("`embeddings.word_embeddings_weight` is [71, 30] in the file, [72, 30]", "`head.output_weights` is [71, 30]"),
    ),
    "what the format cannot hold": (
        metadata(*MIXER, window_size=10),
        ("`decoder.block.mixer.window_size` is 10: this format has no place for it",),
    ),
    "syntax": (rewritten("model: gpt", "model: [gpt"), ("error: expected `,` or a closing bracket",)),
    "tab": (rewritten("  base_model:", "\tbase_model:"), ("metadata.yaml:2:1: error: a tab cannot be used here",)),
    "key twice": (rewritten("model: gpt", "model: gpt\nmodel: gpt"), (": error: `model` is already written at ",)),
    "alias": (
        rewritten("model: gpt", "z: &a gpt\nmodel: *a"),
        ("anchors are not allowed", "aliases (`*a`) are not allowed"),
    ),
    "tag": (rewritten("model: gpt", "model: !!python/name:os.system gpt"), ("error: tags are not allowed",)),
    "two documents": (rewritten("model: gpt", "model: gpt\n---\na: 1\n..."), ("a second document starts here",)),
    "empty": (replaced(b""), ("metadata.yaml: error: this is not a mapping of keys to values",)),
    "a list": (
        replaced(b"- a\n"),
        (
            "metadata.yaml: error: this is not a mapping of keys to values",
            "[native/metadata]",
        ),
    ),
    "not text": (replaced(bytes(range(256))), ("metadata.yaml: error: this is not UTF-8 text",)),
    "too deep": (replaced(b"[" * 300), ("metadata.yaml:1:41: error: more than 40 levels of nesting",)),
    "no data file": (
        lambda path: (path / "model_0.safetensors").unlink(),
        ("the file model_0.safetensors with 24 tensors is missing",),
    ),
    "cut data file": (cut("model_0.safetensors", 9999), ("model_0.safetensors: error: the file is cut off",)),
    "integers": (
        lambda path: edit_tensors(path, lambda t: t.update({HEAD: torch.zeros(71, 30, dtype=torch.int32)})),
        ("tensor `head.output_weights` has the dtype I32, parameters are floats",),
    ),
}


@pytest.mark.parametrize("name", METADATA)
def test_damaged_native_checkpoints(name: str, crosswalk: CommandLine, tmp_path: Path) -> None:
    damage, expected = METADATA[name]
    source = native(tmp_path, crosswalk)
    damage(source)
    refuse(crosswalk, source, *expected)


def test_native_problems_are_shown_where_they_stand(crosswalk: CommandLine, tmp_path: Path) -> None:
    source = native(tmp_path, crosswalk)
    metadata(*MIXER, head=1)(source)
    assert crosswalk("check", source).err == (
        f"{source}/metadata.yaml:11:11: error: `decoder.block.mixer.head`: type `attention` of layout `fast_llm` has no"
        " field `head` [native/unknown-field]\n"
        "  11 |           head: 1\n"
        "     |           ^^^^\n"
        "  hint: did you mean `heads`?\n"
    )


@pytest.mark.parametrize(("model", "ranks"), [("gpt", 1), ("gpt", 3), ("multimodal", 2)])
def test_what_training_saves_is_refused_with_the_command_that_makes_it_readable(
    model: str, ranks: int, crosswalk: CommandLine, tmp_path: Path
) -> None:
    """The trainer's metadata of a job of some ranks: no index, and no metadata of its own."""
    config = f"config:\n  base_model: {{hidden_size: 30}}\n  distributed: {{world_size: {ranks}}}\n"
    text = f"{config}format: distributed\nmodel: {model}\n"
    for rank in range(ranks):
        save_file({"weights_shard": torch.zeros(64)}, tmp_path / f"rank_{rank}.safetensors")
    (tmp_path / "metadata.yaml").write_text(text + "fast_llm_version: 0.4.0\nshards: [weights]\n")
    assert crosswalk("check", tmp_path).err == (
        f"{tmp_path}/metadata.yaml:4:1: error: this is a `distributed` checkpoint of the trainer: all parameters of a"
        " rank are one vector in its file, which only the trainer can take apart [native/distributed]\n"
        "  4 | format: distributed\n"
        "    | ^^^^^^\n"
        "  hint: let the trainer write what can be read, and name OUT here:\n"
        f"        fast-llm convert {model} input.path={tmp_path} input.format=distributed output.path=OUT"
        " output.format=fast_llm use_cpu=True\n"
    )


def test_a_large_document_is_parsed_once_whatever_is_wrong_with_it(
    tmp_path: Path, crosswalk: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The positions of problems come from what was read."""
    parsed: list[str] = []
    build = portable_yaml._build
    monkeypatch.setattr(
        portable_yaml, "_build", lambda text, file, *rest: parsed.append(file) or build(text, file, *rest)
    )
    source = native(tmp_path, crosswalk)
    for damage in (metadata(*MIXER, head=1), metadata(model="gtp")):
        damage(source)
        parsed.clear()
        with pytest.raises(CrosswalkError):
            check(source)
        assert parsed == [str(source / "metadata.yaml")]


# ---- every part of the metadata is of another kind -------------------------------------------------------------------

OTHER_KINDS = [None, 3, -1.5, True, "text", "", [], [None], {}, {"type": None}, {"a": [1]}, float("inf"), 10**30]


def parts(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all parts of a document but those that only repeat: entries of the index but one."""
    entries: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield (*path, key)
        if path != INDEX[:-1] or key != INDEX[-1]:
            yield from parts(entry, (*path, key))


def test_no_part_of_another_kind_is_a_traceback(tmp_path: Path) -> None:
    case = CASES["mixtral_base"]
    write_checkpoint(tmp_path / "source", case.hf_config(), case.hf_tensors())
    convert(tmp_path / "source", tmp_path / "native")
    file = tmp_path / "native" / "metadata.yaml"
    document = yaml.safe_load(file.read_text())
    accepted = refused = 0
    for number, path in enumerate(parts(document)):
        for value in OTHER_KINDS[number % 7 :: 7]:
            damaged = copy.deepcopy(document)
            target = damaged
            for key in path[:-1]:
                target = target[key]
            target[path[-1]] = value
            file.write_text(yaml.safe_dump(damaged))
            try:
                check(tmp_path / "native")
                accepted += 1
            except CrosswalkError:
                refused += 1
    assert accepted
    assert refused > accepted


@pytest.mark.parametrize("keys", [("decoder",), ("decoder", "block", "mixer"), ("decoder", "block", "mixer", "rotary")])
def test_a_null_type_is_an_absent_one(keys: tuple[str, ...], crosswalk: CommandLine, tmp_path: Path) -> None:
    """As it is to the trainer."""
    source = native(tmp_path, crosswalk)
    metadata(*BASE, *keys, type=None)(source)
    nulled = crosswalk("check", source)
    metadata(*BASE, *keys, type=...)(source)
    assert crosswalk("check", source) == nulled


def test_large_metadata_is_read_and_its_problems_have_positions(crosswalk: CommandLine, tmp_path: Path) -> None:
    source = native(tmp_path, crosswalk)
    lines = "".join(f"extra_{number}: {'x' * 60_000}\n" for number in range(20))
    file = source / "metadata.yaml"
    file.write_text(lines + file.read_text())
    assert crosswalk("check", source).code == 0
    metadata_text = file.read_text()
    file.write_text(metadata_text.replace("hidden_size: 30", "hidden_size: wide", 1))
    line = metadata_text[: metadata_text.index("hidden_size: 30")].count("\n") + 1
    assert crosswalk("check", source).err.startswith(
        f'{file}:{line}:5: error: `hidden_size` must be of type int, it is "wide" [native/type]\n'
    )
