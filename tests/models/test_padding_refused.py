"""Padded vocabularies: what is refused, and what is asked for before anything is cut off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_checkpoints import (
    CommandLine,
    assert_refused,
    config_of,
    contents,
    make,
    metadata,
    native,
    nothing_written,
    tensors_of,
)

import crosswalk
from crosswalk.runtime.errors import CrosswalkError

# ---- what is refused -------------------------------------------------------------------------------------------------


def test_wrong_axes_and_numbers_are_refused_together(command: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    wrong = ("--pad", "vocba=128", "--pad", "hidden=64", "--pad", "nothing=1", "--pad", "vocab=0")
    for name in ("check", "plan"):
        with nothing_written(tmp_path):
            assert_refused(
                command(name, source, *wrong),
                "there is no axis `vocba` that may be padded [usage/pad]\n  hint: did you mean `vocab`?",
                "axis `hidden` may not be padded: the model would be another one [usage/pad]\n  hint: axes that may",
                "there is no axis `nothing` that may be padded [usage/pad]\n  hint: axes that may be padded: vocab",
                "axis `vocab`: a multiple is a whole number from 1 on, not 0",
                code=2,
            )  # fmt: skip
    for number in (True, 1.5, "128", -1, 1 << 70):
        with pytest.raises(CrosswalkError, match="a multiple is a whole number from 1 on"):
            crosswalk.check(source, pad={"vocab": number})  # type: ignore[dict-item]
    with pytest.raises(CrosswalkError, match="there is no axis `3`"):
        crosswalk.check(source, pad={3: 128})  # type: ignore[dict-item]
    assert_refused(
        command(
            "check",
            source,
            "--pad",
            "vocab",
            "--pad",
            "vocab=x",
            "--pad",
            "vocab=1",
            "--pad",
            "vocab=2",
            "--pad",
            "vocab=" + 5000 * "9",
        ),
        "`--pad vocab=9999",
        "`--pad vocab` is not AXIS=NUMBER",
        "`--pad vocab=x` is not AXIS=NUMBER",
        "`--pad` names axis `vocab` twice",
        "[usage/pad]",
        code=2,
    )
    assert_refused(
        command("check", source, "--truncate", "vocab=64"),
        "axes are truncated on the way to `hf`, and this is a conversion to a layout",
        "[usage/truncate]",
        code=2,
    )


def test_truncating_is_checked(command: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    command("convert", source, tmp_path / "native", "--pad", "vocab=128")
    path = tmp_path / "native"
    assert_refused(
        command("check", path, "--truncate", "vocab=129", "--truncate", "layers=2"),
        "axis `vocab` has the size 128: it cannot be truncated to 129",
        "there is no axis `layers` that may be truncated",
        code=2,
    )
    assert_refused(command("check", path, "--truncate", "vocab=0"), "a size is a whole number from 1 on", code=2)
    assert_refused(command("check", path, "--pad", "vocab=256"), "leave out --pad", code=2)
    assert_refused(
        command("check", path, "--truncate", "vocab=70"),
        "hint: cut it to 71 or more, or allow it with --allow-lossy",
    )
    assert command("check", path, "--truncate", "vocab=70", "--allow-lossy").code == 0
    # Less may be cut off, and nothing.
    for size in (71, 100, 128):
        out = tmp_path / f"out{size}"
        assert command("convert", path, out, "--truncate", f"vocab={size}").code == 0
        assert config_of(out)["vocab_size"] == size
        assert tensors_of(out)["lm_head.weight"].shape[0] == size
        assert command("verify", path, out).code == 0
    assert contents(tmp_path / "out71") == contents(source)


def test_without_what_it_remembers_nothing_is_cut_off(command: CommandLine, tmp_path: Path) -> None:
    """A checkpoint that was not padded, or no longer says so."""
    path = native(tmp_path, command)
    assert_refused(
        command("check", path, "--truncate", "vocab=64"),
        "7 of 71 are not known to be padding",
        "[lossy/truncate]",
    )
    assert command("check", path, "--truncate", "vocab=64", "--allow-lossy").code == 0
    source = tmp_path / "source"
    command("convert", source, tmp_path / "padded", "--pad", "vocab=128")
    metadata("metadata", "crosswalk", padded=...)(tmp_path / "padded")
    assert command("convert", tmp_path / "padded", tmp_path / "all").code == 0
    assert config_of(tmp_path / "all")["vocab_size"] == 128
    assert_refused(
        command("verify", source, tmp_path / "padded"), "`embeddings.vocab_size` is 128, by the source it is 71"
    )


def test_a_vocabulary_that_was_changed_after_padding_is_asked_for(command: CommandLine, tmp_path: Path) -> None:
    """Tokens were added in training: how many of the rows are padding is not known."""
    command("convert", make(tmp_path / "source", vocab_size=96), tmp_path / "native")
    path = tmp_path / "native"
    metadata("metadata", "crosswalk", padded={"vocab": {"from": 71, "to": 80}})(path)
    assert_refused(
        command("check", path),
        "axis `vocab` has the size 96 by the config; it was padded from 71 to 80",
    )
    assert command("check", path, "--truncate", "vocab=96").code == 0
    assert_refused(command("check", path, "--truncate", "vocab=80"), "16 of 96 are not known to be padding")
    for size, options in ((96, ()), (80, ("--allow-lossy",))):
        out = tmp_path / f"out{size}"
        assert command("convert", path, out, "--truncate", f"vocab={size}", *options).code == 0
        assert command("verify", path, out, *options).code == 0


@pytest.mark.parametrize(
    "padded",
    [
        [],
        {"vocab": 71},
        {"vocab": {"from": 71}},
        {"vocab": {"from": 128, "to": 71}},
        {"vocab": {"from": "71", "to": 128}},
        {"vocab": {"from": True, "to": 128}},
    ],
)
def test_a_wrong_record_is_refused(command: CommandLine, tmp_path: Path, padded: Any) -> None:
    command("convert", make(tmp_path / "source"), tmp_path / "native", "--pad", "vocab=128")
    metadata("metadata", "crosswalk", padded=padded)(tmp_path / "native")
    assert_refused(
        command("check", tmp_path / "native"),
        "`metadata.crosswalk.padded` must be a mapping of axes to {from: size, to: larger size}",
    )


def test_a_record_of_another_axis_is_refused(command: CommandLine, tmp_path: Path) -> None:
    command("convert", make(tmp_path / "source"), tmp_path / "native", "--pad", "vocab=128")
    metadata("metadata", "crosswalk", padded={"hidden": {"from": 20, "to": 30}})(tmp_path / "native")
    assert_refused(command("check", tmp_path / "native"), "axis `hidden` is none that may be padded", "[native/padded]")


@pytest.mark.parametrize(
    ("padded", "problem"),
    [
        ({"hidden": {"from": 20, "to": 30}}, "is remembered as padded from 20 to 30, and may not be padded"),
        ({"vocab": {"from": 71, "to": 129}}, "to 129; its size is 71 by the source, and 128 by the config"),
        ({"vocab": {"from": 70, "to": 128}}, "from 70 to 128; its size is 71 by the source, and 128 by the config"),
    ],
)
def test_a_record_that_is_not_true_is_found(
    command: CommandLine, tmp_path: Path, padded: dict[str, Any], problem: str
) -> None:
    """The way back would go by it."""
    source = make(tmp_path / "source")
    command("convert", source, tmp_path / "native", "--pad", "vocab=128")
    metadata("metadata", "crosswalk", padded=padded)(tmp_path / "native")
    assert_refused(command("verify", source, tmp_path / "native"), problem)


def test_the_padding_of_another_checkpoint_is_told_apart(command: CommandLine, tmp_path: Path) -> None:
    command("convert", make(tmp_path / "source"), tmp_path / "native", "--pad", "vocab=80")
    other = make(tmp_path / "other", vocab_size=100)
    assert_refused(
        command("verify", other, tmp_path / "native"),
        "its size is 100 by the source, and 80 by the config",
        "[verify/padded]",
    )


def test_what_was_cut_off_beyond_the_padding_is_verified_as_allowed(command: CommandLine, tmp_path: Path) -> None:
    command("convert", make(tmp_path / "source"), tmp_path / "native", "--pad", "vocab=128")
    path, out = tmp_path / "native", tmp_path / "out"
    assert command("convert", path, out, "--truncate", "vocab=64", "--allow-lossy").code == 0
    assert_refused(
        command("verify", path, out), "`embeddings.vocab_size` is 64, by the source it is 71", "[verify/config]"
    )
    assert "truncated by 3,840 elements" in command("verify", path, out, "--allow-lossy").out


def test_the_record_says_both_sizes(tmp_path: Path) -> None:
    crosswalk.convert(make(tmp_path / "source"), tmp_path / "native", pad={"vocab": 128})
    text = (tmp_path / "native" / "metadata.yaml").read_text()
    assert "    padded:\n      vocab:\n        from: 71\n        to: 128\n" in text
