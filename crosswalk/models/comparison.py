"""A checkpoint in its class of transformers and its conversion in the reference, run side by side."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from crosswalk.checkpoints.huggingface import CONFIG, open_hugging_face, parse_config, read_config_text
from crosswalk.checkpoints.key_positions import read_from
from crosswalk.checkpoints.kinds.every import HUGGING_FACE, kind_of
from crosswalk.jobs.detect import chosen_format
from crosswalk.jobs.formats import DEFAULT_LAYOUT
from crosswalk.jobs.options import Options
from crosswalk.jobs.plans import import_config
from crosswalk.reference import ForwardOutput
from crosswalk.runtime.errors import Position, fail, system_limits
from crosswalk.runtime.records import Record, replace

from .classes import Trace, load, trace
from .converted import converted, layout_asked
from .tiny import make_tiny

TOLERANCE = 1e-4
TOKENS = 64
_MOST_TOKENS = 1 << 20
#: Rows and columns of patches of the image that a model with a vision encoder is shown.
GRID = (2, 3)


class Comparison(Record, frozen=True):
    """``parts``: native name of a part of the model -> relative difference of the hidden states after it, in the order
    in which they are computed. ``logits``: that of the logits. A difference is the size of what differs in that of
    what the class of transformers (``reference``) computes; infinite if only one side has the part. ``by``: what
    computes the conversion."""

    format: str
    reference: str
    tokens: int
    parts: Mapping[str, float]
    logits: float
    tolerance: float = TOLERANCE
    notes: tuple[str, ...] = ()
    by: str = "the reference"

    @property
    def first(self) -> str | None:
        """The first part that differs by more than the tolerance; None if the models are the same."""
        every = {**self.parts, "logits": self.logits}
        return next((name for name, difference in every.items() if not difference <= self.tolerance), None)

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return self.first is None


@system_limits()
def compare(
    src: str | Path,
    dst: str | Path | None = None,
    format: str | None = None,
    *,
    tiny: bool = False,
    tokens: int = TOKENS,
    tolerance: float = TOLERANCE,
    allow_lossy: bool = False,
    keep: str | Iterable[str] = (),
    layout: str | None = None,
) -> Comparison:
    """Compare what the class of transformers computes on the Hugging Face checkpoint ``src`` with what is computed on
    its conversion ``dst`` (by default made in memory), in fp32 on the CPU, for ``tokens`` random tokens and one image
    if the model takes images. The reference computes the layout ``fast_llm``, and what can be held there; the classes
    of torchtitan, where it is installed, the layout ``torchtitan``. The two may stand the other way round.

    ``tiny``: on a small copy of ``src`` with random weights; ``src`` may be the config.json itself then.
    ``layout``: that of ``dst``, if its directory does not say it. ``keep``: see :func:`crosswalk.convert`. Raises
    ``CrosswalkError`` if transformers is not installed, does not have the class or cannot load the checkpoint, and with
    everything that stands in the way of the conversion.
    """
    source, other = _hugging_face_first(Path(src), None if dst is None else Path(dst), layout)
    if tiny and other is not None:
        raise fail("usage/compare", "a tiny copy has no conversion yet", None, "leave out DST or --tiny")
    if not 1 <= tokens <= _MOST_TOKENS:
        text = f"{tokens} tokens are too {'few' if tokens < 1 else 'many'}"
        raise fail("usage/compare", text, Position("--tokens"), f"1 to {_MOST_TOKENS} can be run")
    made = other is None or kind_of(other, layout) is HUGGING_FACE
    to = layout_asked(format) if made else DEFAULT_LAYOUT
    options = Options(format=format, to=to, allow_lossy=allow_lossy, keep=keep, layout=layout)
    if not tiny:  # what is wrong with the files is said as it is everywhere, not by the class
        return _compare(source, open_hugging_face(source).config, other or source, options, tokens, tolerance)
    file = source if source.is_file() else source / CONFIG
    text = read_config_text(file)
    config = parse_config(text, file)
    with read_from(file, text):  # what is wrong with the config is said of the file of the user, not of the copy
        name = chosen_format(format, config, layout=to).name
        import_config(config, name, allow_lossy, keep=keep)
    with tempfile.TemporaryDirectory(prefix="crosswalk-") as directory:
        copy = Path(directory)
        make_tiny(config, str(file), copy)
        written = json.loads((copy / CONFIG).read_text())
        return _compare(copy, written, copy, replace(options, format=name), tokens, tolerance)


def _hugging_face_first(one: Path, other: Path | None, layout: str | None) -> tuple[Path, Path | None]:
    """The two checkpoints, that of Hugging Face first. Raises ``CrosswalkError`` if neither is."""
    if kind_of(one) is HUGGING_FACE:
        return one, other
    if other is not None and kind_of(other) is HUGGING_FACE:
        return other, one
    text = "this is a native checkpoint: no class of transformers can run it"
    hint = "give the Hugging Face checkpoint that it is to be compared with too"
    raise fail("usage/compare", text, Position(str(one)), hint)


def _compare(
    source: Path,
    config: Mapping[str, Any],
    path: Path,
    options: Options,
    count: int,
    tolerance: float,
) -> Comparison:
    here = converted(path, options, config)
    tokens, images = inputs(here.config, count)
    expected = trace(load(source, config), tokens, images)
    found = here.run(tokens, images)
    parts, logits = differences(expected, found, tolerance)
    notes = [*here.notes, *_notes(here.config, len(tokens))]
    scale = _scale(found.hidden, expected.hidden)
    if logits <= tolerance < abs(scale - 1):
        notes.append(f"hidden states are {scale:.6g} times those of the class, and compared as such: the logits agree")
    elif tolerance < abs(scale - 1) and (after := _first_apart(expected, found, scale, tolerance)) != "embeddings":
        notes.append(
            f"the embeddings are {scale:.6g} times those of the class; as such, the first to differ is `{after}`"
        )
    by = "the reference" if here.titan is None else f"`{here.titan}` of torchtitan"
    return Comparison(here.format, expected.name, len(tokens), parts, logits, tolerance, tuple(notes), by)


def differences(expected: Trace, found: ForwardOutput, tolerance: float = TOLERANCE) -> tuple[dict[str, float], float]:
    """How far the reference is from what a class computed: after each part of the model, and in the logits. Where these
    agree, hidden states may all be a number of times as large."""
    logits = _difference(found.logits, expected.logits)
    scale = _scale(found.hidden, expected.hidden) if logits <= tolerance else 1.0
    parts = {
        part: min(_difference(found.hidden.get(part), hidden), _difference(found.hidden.get(part), hidden, scale))
        for part, hidden in _in_order(expected, found.hidden)
    }
    return parts, logits


def _first_apart(expected: Trace, found: ForwardOutput, scale: float, tolerance: float) -> str:
    """The first part that differs where hidden states should be ``scale`` times as large."""
    parts = ((part, found.hidden.get(part), hidden) for part, hidden in _in_order(expected, found.hidden))
    return next((part for part, one, two in parts if not _difference(one, two, scale) <= tolerance), "logits")


def _in_order(expected: Trace, found: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor | None]]:
    """Parts that the class has, in the order of the reference, then those that only the class has; and blocks that
    only the reference has."""
    for name in found:
        if name in expected.hidden or (name.startswith("decoder.") and "decoder.0" in expected.hidden):
            yield name, expected.hidden.get(name)
    yield from ((name, hidden) for name, hidden in expected.hidden.items() if name not in found)


def _scale(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> float:
    """How many times larger the embeddings are, and with them the hidden states: norms do not feel it. A format may
    use that where the trainer lacks a scale, which shows in the logits if it is wrong."""
    ours, theirs = (hidden.get("embeddings") for hidden in (found, expected))
    if ours is None or theirs is None or ours.shape != theirs.shape or not bool(theirs.any()):
        return 1.0
    return float((ours.double() * theirs.double()).sum() / theirs.double().square().sum())


def _difference(found: torch.Tensor | None, expected: torch.Tensor | None, scale: float = 1.0) -> float:
    """The size of the difference in that of what is expected, of which ``found`` should be ``scale`` times as much."""
    if found is None or expected is None or found.shape != expected.shape or not scale:
        return math.inf
    size = float(expected.double().norm())
    return float((found.double() / scale - expected.double()).norm()) / size if size else math.inf


def inputs(native: Mapping[str, Any], count: int) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
    """Random tokens, and an image in the place of some of them if the model takes images."""
    generator = torch.Generator().manual_seed(0)
    if "embeddings" not in native:  # a config of torchtitan
        return torch.randint(native["vocab_size"], (count,), generator=generator), ()
    size, image_token = native["embeddings"]["vocab_size"], native.get("image_token_index")
    if native["embeddings"]["position_embeddings"]["enabled"]:
        count = min(count, native["embeddings"]["num_position_embeddings"])
    tokens = torch.randint(size, (count,), generator=generator)
    tokens[tokens == image_token] = 0 if image_token else 1
    vision = native.get("vision_encoder")
    if vision is None or image_token is None:
        return tokens, ()
    rows, columns = GRID
    around = tokens[: max(2, count - rows * columns)]
    tokens = torch.cat([around[:1], torch.full((rows * columns,), image_token), around[1:]])
    height, width = vision["embeddings"]["patch_height"], vision["embeddings"]["patch_width"]
    return tokens, (torch.randn(3, rows * height, columns * width, generator=generator),)


def _notes(native: Mapping[str, Any], count: int) -> Iterator[str]:
    """What the inputs did not reach."""
    windows = sorted(set(windows_of(native)))
    large = [window for window in windows if window >= count]
    if large:
        few = f"{count} tokens do not reach the window of {', '.join(map(str, large))}"
        yield f"{few}: more of them (--tokens), or a tiny copy (--tiny), would"
    if native.get("vision_encoder") is not None and native.get("image_token_index") is None:
        yield "the config does not say which token stands for an image: the vision encoder was not run"


def windows_of(value: Any) -> Iterator[int]:
    """Every window in a config."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key in ("window_size", "sliding_window_size") and inner is not None:
                yield inner
            yield from windows_of(inner)
