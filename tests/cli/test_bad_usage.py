"""Wrong arguments, destinations, mapping files, and a system that fails: exit code 2 for usage, 1 for the rest."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from small_checkpoints import (
    MIXER,
    CommandLine,
    assert_refused,
    config_of,
    contents,
    edit_config,
    edit_tensors,
    make,
    metadata,
    native,
    nothing_written,
)

# ---- destinations ----------------------------------------------------------------------------------------------------


def test_destinations_that_are_taken(crosswalk: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "full")
    with nothing_written(tmp_path):
        assert_refused(crosswalk("convert", source, tmp_path / "file"), "the destination exists and is not a directory")
        assert_refused(crosswalk("convert", source, tmp_path / "full"), "the destination exists and is not empty")
        assert_refused(crosswalk("convert", source, tmp_path / "link", "--overwrite"), "exists and is not a directory")
        assert_refused(crosswalk("convert", source, source), "the source is inside the destination")
        assert_refused(crosswalk("convert", source, source, "--overwrite"), "the source is inside the destination")
        assert_refused(crosswalk("convert", source, tmp_path, "--overwrite"), "the source is inside the destination")


def test_destinations_that_cannot_be_written(crosswalk: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    with nothing_written(tmp_path):
        for path in ("file/out", "file/further/out", "nowhere/out"):
            ran = crosswalk("convert", source, tmp_path / path)
            assert_refused(ran, f"{tmp_path / path}: error: the output cannot be created")
            assert "ot a directory" in ran.err
        assert_refused(crosswalk("convert", source, "/proc/out"), "/proc/out: error: the output cannot be created")
        assert_refused(crosswalk("convert", source, tmp_path / ("x" * 300)), "no name as long as this")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_parent(crosswalk: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    (tmp_path / "parent").mkdir(mode=0o555)
    assert_refused(crosswalk("convert", source, tmp_path / "parent" / "out"), "Permission denied")


def test_sources_that_are_none(crosswalk: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out"
    with nothing_written(tmp_path):
        assert_refused(crosswalk("convert", tmp_path / "none", out), "none: error: there is no such directory")
        assert_refused(crosswalk("convert", tmp_path / "file", out), "file: error: this is a file")
        assert_refused(
            crosswalk("convert", tmp_path / "empty", out),
            "config.json: error: cannot read it",
            "there is no *.safetensors",
        )


# ---- usage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "code", "expected"),
    [
        (
            ("--to", "torchtitan", "--as", "zip"),
            "usage/kind",
            "a checkpoint of layout `torchtitan` cannot be written as `zip`",
        ),
        (
            ("--to", "torchtitan", "--as", "fast_llm"),
            "usage/kind",
            "of layout `torchtitan` cannot be written as `fast_llm`",
        ),
        (("--to", "hf"), "usage/to", "this is a Hugging Face checkpoint (config.json) already"),
        (("--format", "lama"), "usage/format", "there is no format `lama`"),
        (
            ("--dialect", "transformers-4"),
            "usage/dialect",
            "a dialect is one of Hugging Face checkpoints to write; this one is read",
        ),
        (("--dtype", "int8"), "usage/dtype", "`int8` is no float dtype"),
        (("--dtype", "bfloat"), "usage/dtype", "`bfloat` is no float dtype"),
        (("--dtype", "bf16", "--protect", "lm_hed*"), "usage/protect", "no tensor of the output is called `lm_hed*`"),
        (("--max-shard-size", "big"), "usage/size", "--max-shard-size: error: `big` is no size"),
        (("--max-shard-size", "0"), "usage/size", "`0` is no size"),
        (("--max-shard-size", "nanGB"), "usage/size", "`nanGB` is no size"),
        (("--memory", "x"), "usage/size", "--memory: error: `x` is no size"),
        (("--memory", "1MB"), "options/memory", "bytes of memory, 1000000 are allowed"),
        (("--resume", "--checksum", "none"), "options/resume", "a conversion cannot be continued without checksums"),
    ],
)
def test_wrong_arguments(
    options: tuple[str, ...], code: str, expected: str, crosswalk: CommandLine, tmp_path: Path
) -> None:
    source = make(tmp_path / "source")
    with nothing_written(tmp_path):
        assert_refused(crosswalk("convert", source, tmp_path / "out", *options), expected, f"[{code}]", code=2)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("convert",), "Missing argument 'SRC'"),
        (("convert", "a", "b", "--frmat", "x"), "Did you mean '--format'?"),
        (("convrt",), "Did you mean 'convert'?"),
        (("convert", "a", "b", "--workers", "0"), "0 is not in the range"),
        (("convert", "a", "b", "--checksum", "md5"), "'md5' is not one of"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], expected: str, crosswalk: CommandLine) -> None:
    ran = crosswalk(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert expected in ran.err
    assert "Traceback" not in ran.err


def test_wrong_arguments_of_exports(crosswalk: CommandLine, tmp_path: Path) -> None:
    source = native(tmp_path, crosswalk)
    with nothing_written(tmp_path):
        for options, expected in {
            ("--to", "fast_llm"): "this is a fast_llm checkpoint (metadata.yaml) already",
            ("--dialect", "transformers-3"): "has no dialect `transformers-3`; it has transformers-5, transformers-4",
            ("--dialect", ""): "has no dialect ``",
            ("--format", "lama"): "there is no format `lama`",
        }.items():
            assert_refused(crosswalk("convert", source, tmp_path / "out", *options), expected, code=2)


def test_verify_and_explain_say_what_is_wrong(crosswalk: CommandLine, tmp_path: Path) -> None:
    converted = native(tmp_path, crosswalk)
    source = tmp_path / "source"
    assert crosswalk("verify", source, converted).code == 0
    assert_refused(
        crosswalk("verify", source, source),
        "are checkpoints of the same kind: config.json is in both",
        "[verify/kind]",
    )
    assert_refused(crosswalk("verify", converted, converted), "of the same kind: metadata.yaml is in both")
    assert_refused(crosswalk("verify", source, tmp_path / "none"), "none: error: there is no such directory")
    assert_refused(
        crosswalk("explain", source, "decoder.1.mixer.qery.weight"), "did you mean `decoder.1.mixer.query.weight`"
    )
    metadata(*MIXER, "rotary", theta=2.5)(converted)
    assert_refused(
        crosswalk("verify", source, converted),
        "metadata.yaml: error: `decoder.block.mixer.rotary.theta` is 2.5, by the source it is 23456.0",
    )
    metadata(*MIXER, "rotary", theta=23456.0)(converted)
    edit_tensors(converted, lambda t: t["decoder.1.mixer.query.weight/weights"].view(-1)[77:79].add_(1))
    edit_tensors(converted, lambda t: t["head.final_norm.weight/weights"].neg_())
    assert_refused(
        crosswalk("verify", source, converted),
        "tensor `decoder.1.mixer.query.weight` of the output is not the conversion of the source: it differs from byte",
        "tensor `head.final_norm.weight` of the output is not the conversion of the source: it differs from byte",
    )


# ---- mapping files ---------------------------------------------------------------------------------------------------

CHILD = "crosswalk: 1\nextends: llama\nmodel_type: mine\narchitecture: MineForCausalLM\n"
MAPPINGS: dict[str, tuple[str, tuple[str, ...]]] = {
    "unknown section key": (CHILD + "attention:\n  confg: {}\n", ("mine.yaml:6:3: error: unknown key `confg`",)),
    "unknown field": (
        CHILD + "attention:\n  config:\n    num_key_value_heads: head_group\n",
        ("mine.yaml:7:26: error: ",),
    ),
    "unknown parent": (CHILD.replace("llama", "lama"), ("mine.yaml:2:10: error: ",)),
    "its own parent": (CHILD.replace("llama", "mine"), ("mine.yaml:2:10: error: ",)),
    "broken expression": (
        CHILD + "attention:\n  config:\n    head_dim: {is: head_size, default: = hidden_size /}\n",
        ("mine.yaml:7:",),
    ),
    "unknown name in an expression": (
        CHILD + "attention:\n  config:\n    head_dim: {is: head_size, default: = hiden_size / 2}\n",
        ("mine.yaml:7:",),
    ),
    "unknown parameter": (CHILD + "attention:\n  tensors:\n    q_proj: qery\n", ("mine.yaml:7:13: error: ",)),
    "syntax": (CHILD + "attention:\n  config: {a: b\n", ("mine.yaml:6:11: error: this bracket is never closed",)),
    "empty": ("", ("mine.yaml: error: expected `key: value` lines, found nothing",)),
    "two typos": (
        CHILD + "attention:\n  confg: {}\nmlp:\n  tensrs: {}\n",
        ("mine.yaml:6:3: error: unknown key `confg`", "mine.yaml:8:3: error: unknown key `tensrs`"),
    ),
}


@pytest.mark.parametrize("name", MAPPINGS)
def test_wrong_mapping_files(name: str, crosswalk: CommandLine, tmp_path: Path) -> None:
    content, expected = MAPPINGS[name]
    (tmp_path / "mine.yaml").write_text(content)
    with nothing_written(tmp_path):
        assert_refused(crosswalk.compile(tmp_path / "mine.yaml", "-o", tmp_path / "out"), *expected)


def test_mapping_files_that_are_not_there(crosswalk: CommandLine, tmp_path: Path) -> None:
    ran = crosswalk.compile(tmp_path / "none.yaml")
    assert ran.code == 1
    assert "none" in ran.err
    assert "Traceback" not in ran.err
    ran = crosswalk.compile("lama")
    assert ran.code in (1, 2)
    assert "lama" in ran.err
    assert len(ran.problems) == 1


# ---- the system ------------------------------------------------------------------------------------------------------

MAIN = "import sys; from crosswalk.cli.commands import main; main(sys.argv[1:])"


def run_process(script: str, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, timeout=120, **options
    )


def test_in_a_process_of_its_own(tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    edit_config(source, lambda data: data.update(foo=1))
    done = run_process(MAIN, "convert", source, tmp_path / "out")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"{source}/config.json:")
    assert ":3: error: `foo` = 1 has no counterpart" in done.stderr
    assert done.stderr.count("error:") == 1
    done = run_process(MAIN, "convert", source, tmp_path / "out", "--nonsense")
    assert done.returncode == 2
    assert not (tmp_path / "out").exists()


def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    """What a full disk or a quota looks like while data is written."""
    source = make(tmp_path / "source")
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); " + MAIN
    with nothing_written(tmp_path):
        done = run_process(limited, "convert", source, tmp_path / "out")
        assert done.returncode == 1, done
        assert done.stderr == f"{tmp_path}/out: error: the output cannot be written: File too large [output/failed]\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_a_full_disk(crosswalk: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting is not permitted")
    try:
        ran = crosswalk("convert", source, disk / "out")
        assert_refused(ran, f"{disk / 'out'}: error: the output takes")
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", disk], check=True)


INTERRUPTED = """
import contextlib, os, signal, sys
from crosswalk.cli import commands as cli

@contextlib.contextmanager
def progress(quiet, what):
    yield lambda done, total, name: os.kill(os.getpid(), signal.SIGINT)

cli.progress = progress
cli.main(sys.argv[1:])
"""


@pytest.mark.parametrize("resume", [False, True])
def test_interrupted_by_the_user(resume: bool, crosswalk: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    options = ["--resume"] if resume else []
    before = {path.name for path in tmp_path.iterdir()}
    done = run_process(INTERRUPTED, "convert", source, tmp_path / "out", *options)
    assert (done.returncode, done.stderr.strip()) == (130, "interrupted")
    left = {path.name for path in tmp_path.iterdir()} - before
    assert not (tmp_path / "out").exists()
    assert len(left) == (1 if resume else 0)
    assert crosswalk("convert", source, tmp_path / "out", *options).code == 0
    assert {path.name for path in tmp_path.iterdir()} - before == {"out"}
    assert crosswalk("verify", source, tmp_path / "out").code == 0


def test_a_signal_from_outside_during_a_conversion_of_a_larger_model(tmp_path: Path) -> None:
    source = tmp_path / "source"
    make(source)
    edit_config(source, lambda data: data.update(vocab_size=1_000_003))
    edit_tensors(
        source,
        lambda t: t.update(
            {name: torch.zeros(1_000_003, 30) for name in ("lm_head.weight", "model.embed_tokens.weight")}
        ),
    )
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, "convert", str(source), str(tmp_path / "out"), "--workers", "1"],
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not any(path.name.startswith(".out") for path in tmp_path.iterdir()):
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    if process.returncode == 0:  # it was quicker than the signal
        return
    assert (process.returncode, errors.strip()) == (130, "interrupted")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_a_reader_that_goes_away(tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, "plan", str(source), "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    errors = process.stderr.read().decode()
    process.wait(timeout=60)
    process.stderr.close()
    assert "Traceback" not in errors


def test_the_source_stays_as_it_was(crosswalk: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    before = contents(source)
    assert crosswalk("convert", source, tmp_path / "out").code == 0
    assert crosswalk("convert", tmp_path / "out", tmp_path / "back").code == 0
    assert contents(source) == before == contents(tmp_path / "back")
    assert config_of(tmp_path / "back") == config_of(source)
    shutil.rmtree(tmp_path / "out")
