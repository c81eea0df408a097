"""Megatron-core's ``dist_checkpointing``, format ``torch_dist``: a folder of torch.distributed.checkpoint with names of
its own, in which layers and experts are axes, and with the arguments of the run.

How those names follow from the layout is said in the layout (``stacked``). What is written is a run that has only a
release: the model, without the arguments of a run.
"""

from __future__ import annotations

import io
import itertools
import json
import math
from argparse import Namespace
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from crosswalk.checkpoints import yaml_text
from crosswalk.checkpoints.key_positions import read_from
from crosswalk.checkpoints.opened import Opened
from crosswalk.checkpoints.states import left_out, model_names
from crosswalk.compiler.layout.model import Layout
from crosswalk.runtime.checkpoint.header import MAX_HEADER, StoredTensor, parse_json
from crosswalk.runtime.checkpoint.opening import read_inside
from crosswalk.runtime.checkpoint.output import OutputLayout, Written
from crosswalk.runtime.checkpoint.source import Checkpoint
from crosswalk.runtime.dcp.folder import locate, open_folder
from crosswalk.runtime.dcp.metadata import METADATA
from crosswalk.runtime.dcp.output import Place, folder_layout
from crosswalk.runtime.dcp.parts import slice_of
from crosswalk.runtime.errors import CrosswalkError, Position, fail, shorten, shown
from crosswalk.runtime.plan.model import TensorSpec
from crosswalk.runtime.records import replace

from .beside import Said, read, said_of, text_beside
from .dcp import known_to
from .forms import read_form
from .kind import Contents, Given, Kind
from .run import ABOUT, COMMON, COMMON_ENTRY, LATEST, RELEASE, common, is_legacy, is_run, iteration, taken

_EXTRA = "_extra_state"
#: Stands for a number of a name that is an axis of the tensor in a folder.
_AXIS = "{}"
#: Most tensors that the stacks of a folder may come apart into.
_MOST = 500_000


def _open(path: Path, given: Given) -> Opened:
    named, path = path, iteration(path)
    home = path.parent if (path.parent / LATEST).is_file() else named  # of the run, which has what was carried
    if is_legacy(path):
        text = "this is a checkpoint of Megatron's old format `torch`: a pickle for each rank, which only it can read"
        hint = "let Megatron write it again: its script with --ckpt-convert-format torch_dist --ckpt-convert-save DIR"
        raise fail("directory/legacy", text, Position(str(path)), hint)
    _check_backend(path)
    said, layout = said_of(path, given, KIND.name)
    folder = open_folder(path)
    file, run = common(folder)
    names, left = model_names(folder.entries.tensors, known_to(layout))
    if not names:
        raise fail("dcp/no-model", "no tensor of this folder is one of a model", Position(str(path / METADATA)))
    found = locate(folder, names)
    tensors = dict(_apart(found, layout.stacked or {}))
    others = [name for name in folder.entries.objects if not COMMON_ENTRY.fullmatch(name)]
    notes = (*taken(named, path), *left_out(left, others))
    if said.config is None and not given.like:
        said, note = _from_forms(path, said, layout, given, file, run)
        notes = (*notes, *note)
    opened = said.opened(home, KIND.name, layout, replace(found, tensors=tensors), notes)
    return replace(opened, run=run)


def _from_forms(
    path: Path, said: Said, layout: Layout, given: Given, common_file: Path, run: Mapping[str, Any]
) -> tuple[Said, tuple[str, ...]]:
    """The config that a folder says in another form, and a note of which: in a file, or the arguments of the run."""
    files = [path / form["file"] for form in layout.forms if "file" in form]
    for file in filter(Path.is_file, files):
        one = read(file)
        with read_from(file, one.text):
            config = read_form(layout, one.config or {}, given.mappings)
        if config is not None:
            said = replace(said, file=file, text=one.text, config=config, own=True)
            return said, (f"the config is that of `{file.name}`",)
    if any("state" in form for form in layout.forms):
        with read_from(common_file):
            config = read_form(layout, run, given.mappings)
        if config is not None:
            said = replace(said, file=common_file, config=config, own=True)
            return said, ("the config is that of the arguments of the run",)
    return said, ()


def _check_backend(path: Path) -> None:
    file = path / ABOUT
    try:
        about = parse_json(read_inside(file, path, MAX_HEADER), file)
    except OSError as error:
        raise fail("directory/backend", f"cannot be read: {error.strerror or error}", Position(str(file))) from error
    backend = about.get("sharded_backend") if isinstance(about, dict) else None
    if backend != "torch_dist":
        text = f"`sharded_backend` is {shown(backend)}, and only torch_dist is read"
        raise fail("directory/backend", text, Position(str(file)), "let Megatron write it again as torch_dist")


def _apart(found: Checkpoint, stacked: Mapping[str, str]) -> Iterator[tuple[str, StoredTensor]]:
    """The tensors under the names of the layout, stacks taken apart."""
    count = 0
    for name, stored in found.tensors.items():
        parts = unstacked(name, stacked)
        number_of_axes = sum(is_axis for _, is_axis in parts)
        axes = stored.shape[:number_of_axes]
        count += math.prod(axes)
        if number_of_axes > len(stored.shape) or count > _MOST:
            text = f"tensor `{shorten(name)}` {list(stored.shape)} is no stack of layers or experts"
            raise CrosswalkError(fail("directory/stack", text, Position(str(found.path))).diagnostics)
        shape = stored.shape[len(axes) :]
        for number, index in enumerate(itertools.product(*map(range, axes))):
            places = iter(index)
            label = ".".join(f"{text}{next(places)}" if is_axis else text for text, is_axis in parts)
            yield label, slice_of(stored, number * math.prod(shape), shape)


def unstacked(name: str, stacked: Mapping[str, str]) -> list[tuple[str, bool]]:
    """The parts of the name that a layout has for one of its directory, and whether a number follows in each: a leading
    axis of the tensor. A number that stands in the name already, as of layers of several kinds, stays there."""
    parts, result, at = name.split("."), list[tuple[str, bool]](), 0
    while at < len(parts):
        for before, after in stacked.items():
            run = before.split(".")
            if parts[at : at + len(run)] != run:
                continue
            at += len(run)
            numbered = at < len(parts) and parts[at].isdigit()
            written = run if numbered and _AXIS in after else after.split(".")
            result += [(part.removesuffix(_AXIS), part.endswith(_AXIS)) for part in written]
            break
        else:
            result.append((parts[at], False))
            at += 1
    return result


def places(targets: Iterable[TensorSpec], layout: Layout) -> dict[str, Place]:
    """Where in a folder each tensor of a layout is: in a stack of layers, experts or both. Layers are one only if all
    are of one kind."""
    targets, names = list(targets), layout.stacked or {}
    while True:
        groups: dict[str, dict[tuple[int, ...], TensorSpec]] = {}
        for spec in targets:
            name, index = stacked(spec.name, names)
            groups.setdefault(name, {})[index] = spec
        ragged = next((name for name, group in groups.items() if not _is_full(group.values(), group)), None)
        if ragged is None:
            break
        # The outermost of its axes is that of layers, which differ: they keep their numbers.
        outer = next(before for before, after in names.items() if _AXIS in after and f"{before}." in f"{ragged}.")
        names = {before: after for before, after in names.items() if before != outer}
    found: dict[str, Place] = {}
    for name, group in groups.items():
        axes = tuple(max(column) + 1 for column in zip(*group, strict=True))
        found |= {spec.name: Place(name, index, axes) for index, spec in group.items()}
    return found


def extra_states(found: Iterable[Place], modules: Collection[str]) -> Iterator[str]:
    """The entries that a folder has for states of modules beside their weights."""
    for place in found:
        module, _, last = place.entry.rpartition(".")
        if last == "weight" and module.rpartition(".")[2] in modules:
            index, axes = (".".join(map(str, numbers)) for numbers in (place.at or (0,), place.axes or (1,)))
            yield f"{module}.{_EXTRA}/shard_{index}_{axes}"


def _is_full(specs: Iterable[TensorSpec], indexes: Iterable[tuple[int, ...]]) -> bool:
    """Whether tensors are alike, and there is one for each index."""
    found = set(indexes)
    axes = [max(column) + 1 for column in zip(*found, strict=True)]
    return len({(spec.shape, spec.dtype) for spec in specs}) == 1 and len(found) == math.prod(axes)


def stacked(name: str, names: Mapping[str, str]) -> tuple[str, tuple[int, ...]]:
    """The name that a folder has for one of the layout, and the numbers of it that are axes there."""
    parts, result, index, at = name.split("."), list[str](), list[int](), 0
    while at < len(parts):
        for before, after in names.items():
            run = after.split(".")
            numbers = _numbers(parts[at : at + len(run)], run)
            if numbers is not None:
                index += numbers
                result += before.split(".")
                at += len(run)
                break
        else:
            result.append(parts[at])
            at += 1
    return ".".join(result), tuple(index)


def _numbers(parts: list[str], wanted: list[str]) -> list[int] | None:
    """The numbers of parts of a name that are axes; None if they are other parts."""
    numbers = []
    for part, expected in itertools.zip_longest(parts, wanted, fillvalue=""):
        text = expected.removesuffix(_AXIS)
        rest = part.removeprefix(text)
        if not part.startswith(text) or (rest.isdigit() if expected.endswith(_AXIS) else not rest) is False:
            return None
        if rest:
            numbers.append(int(rest))
    return numbers


def _lay_out(contents: Contents, size: int) -> OutputLayout:
    import torch

    about = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}
    state: dict[str, Any] = {
        "checkpoint_version": 3.0,
        "iteration": 0,
        "content_metadata": {"singleton_local_shards": False},
    }
    state |= {form.state: Namespace(**form.document) for form in contents.forms if form.state}

    def saved(value: Any) -> bytes:
        stream = io.BytesIO()
        torch.save(value, stream)
        return stream.getvalue()

    def finish(written: Written) -> Mapping[str, bytes]:
        # Versions up to 0.16 look for a file of what ranks have in common, later ones for an entry.
        there = {ABOUT: json.dumps(about | {"common_backend": "torch", "common_backend_version": 1}).encode()}
        there |= {form.file: yaml_text.dump(form.document).encode() for form in contents.forms if form.file}
        there |= {COMMON: saved(state), **text_beside(contents, written)}
        return {LATEST: RELEASE.encode(), **{f"{RELEASE}/{name}": content for name, content in there.items()}}

    stacks = places(contents.targets, contents.layout)
    # dist_checkpointing refuses a folder without these, unless told otherwise.
    empty = saved([torch.empty(0, dtype=torch.uint8)])
    objects = dict.fromkeys(extra_states(stacks.values(), contents.layout.extra_states or ()), empty)
    return folder_layout(
        finish, size, objects={"common_state/shard_0_1": saved([state]), **objects}, inside=f"{RELEASE}/",
        stacks=stacks,
    )  # fmt: skip


KIND = Kind("torch_dist", ABOUT, is_run, _open, _lay_out, forms=True)
