"""What a user may ask of a conversion: one object for a plan and one for its output, and how users write sizes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypedDict

from crosswalk.compiler.pipeline import PlanOptions, Sizes
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, Position, fail, shorten
from crosswalk.runtime.records import Record

DEFAULT_SHARD = 5_000_000_000


class Options(PlanOptions, frozen=True, kw_only=True):
    """The options of a plan that is made for files. ``format``: a name, None or ``auto`` to find it; ``to``: ``hf`` or
    a layout; ``model_files``: where the model code of a custom architecture is; ``like``: the Hugging Face checkpoint
    that a native one came from; ``text_only``: whether the text tower of a model with other towers is meant.

    ``kind``: of the directory to write, if it is not that of the layout; ``layout``: that of the source, and
    ``native_file``: a file with a native config, where no directory says them."""

    format: str | None = None
    to: str | None = None
    model_files: Path | None = None
    like: Path | None = None
    text_only: bool = False
    kind: str | None = None
    layout: str | None = None
    native_file: Path | None = None

    @property
    def named_format(self) -> str | None:
        """The format asked for, None if it is to be found."""
        return None if self.format in (None, "auto") else self.format


class AskedOptions(TypedDict, total=False):
    """What a user may ask of a conversion by name: the keywords of :func:`crosswalk.check` and
    :func:`crosswalk.convert`. They are said there."""

    protect: tuple[str, ...]
    allow_lossy: bool
    model_files: str | Path | None
    pad: Sizes | None
    truncate: Sizes | None
    like: str | Path | None
    keep: str | Iterable[str]
    take_tied: bool
    text_only: bool
    kind: str | None
    layout: str | None
    native_config: str | Path | Mapping[str, Any] | None


def options_of(
    format: str | None, to: str | None, dialect: str | None, dtype: str | None, asked: AskedOptions
) -> Options:
    """The options that a user's words are. Raises ``TypeError`` for a keyword that there is not."""
    known = AskedOptions.__optional_keys__
    for name in asked:
        if name not in known:
            raise TypeError(f"there is no option {name!r}; there are {', '.join(sorted(known))}")
    given: dict[str, Any] = dict(asked)
    given |= {name: as_path(given.get(name)) for name in ("model_files", "like")}
    given |= {name: given.get(name) or {} for name in ("pad", "truncate")}
    config = given.pop("native_config", None)
    in_a_file = not (config is None or isinstance(config, Mapping))
    given |= {"native_file": Path(config)} if in_a_file else {"native_config": config}
    return Options(format=format, to=to, dialect=dialect, dtype=dtype, **given)


class OutputOptions(Record, frozen=True, kw_only=True):
    """The options of Hugging Face files that a training job writes. ``max_shard_size`` in bytes."""

    max_shard_size: int = DEFAULT_SHARD
    overwrite: bool = False


def check_direction(options: Options, onward: bool = False) -> None:
    """Raise for ``pad`` in a conversion to ``hf``, and for ``truncate`` in one from there. ``onward``: from one layout
    to another, which takes both."""
    if onward:
        return
    if options.to == "hf" and options.pad:
        hint = "leave out --pad: what the checkpoint remembers as padding is cut off"
        raise fail("usage/pad", "axes are padded on the way to a layout, and this is a conversion to `hf`", None, hint)
    if options.to != "hf" and options.truncate:
        text = "axes are truncated on the way to `hf`, and this is a conversion to a layout"
        raise fail("usage/truncate", text, None, "leave out --truncate")
    if options.to != "hf" and options.like and options.layout != "hf":
        text = "an original is given on the way to `hf`, and this is a conversion to a layout"
        raise fail("usage/like", text, None, "leave out --like: all of it is carried along")


def parse_sizes(texts: Iterable[str], option: str) -> dict[str, int]:
    """Numbers by axis, of texts such as ``vocab=128``. ``option`` is what the user calls them.

    Raises ``CrosswalkError`` with every text that is something else, or names an axis again."""
    result: dict[str, int] = {}
    problems = []
    for text in texts:
        axis, _, number = text.partition("=")
        if not axis or not (number.isascii() and number.isdigit() and len(number) < 20):
            problems.append(Diagnostic(f"usage/{option}", f"`--{option} {shorten(text)}` is not AXIS=NUMBER", None,
                                       f"write it as --{option} vocab=128"))  # fmt: skip
        elif axis in result:
            problems.append(Diagnostic(f"usage/{option}", f"`--{option}` names axis `{axis}` twice"))
        else:
            result[axis] = int(number)
    if problems:
        raise CrosswalkError(problems)
    return result


def parse_size(text: int | str | None, option: str = "--max-shard-size") -> int:
    """Bytes of a size such as ``5GB``, ``500MiB`` or a number, by default of the largest data file; ``option`` is what
    the user calls it. Raises ``CrosswalkError`` for what is no size."""
    if text is None:
        return DEFAULT_SHARD
    if isinstance(text, int):
        size = text
    else:
        units = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "B": 1}
        number, unit = text.strip().upper(), ""
        for name in sorted(units, key=len, reverse=True):
            if number.endswith(name):
                number, unit = number[: -len(name)], name
                break
        try:
            size = int(float(number) * units.get(unit, 1))
        except (ValueError, OverflowError):
            size = 0
    if size <= 0:
        raise fail("usage/size", f"`{text}` is no size", Position(option), "write it as 5GB or 500MiB")
    return size


def as_path(path: str | Path | None) -> Path | None:
    """A path as users give it; None stays None."""
    return None if path is None else Path(path)
