"""What of a folder of torch.distributed.checkpoint is the model, and what is state of the training beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing

from crosswalk.runtime.checkpoint.reading import Reader
from crosswalk.runtime.checkpoint.source import Checkpoint
from crosswalk.runtime.errors import Position, fail
from crosswalk.runtime.folding import fold
from crosswalk.runtime.records import replace

#: First parts of names of what trainers save beside a model.
_STATE = frozenset(
    ("optimizer", "optimizers", "optim", "lr_scheduler", "lr_schedulers", "scheduler", "dataloader", "train_state",
     "rng_state", "rng", "loss_scaler", "grad_scaler", "ema", "ft_manager")
)  # fmt: skip
#: What states of training have the model below.
_ABOVE = ("model", "module", "state_dict", "app", "state", "_orig_mod")

#: Whether a model has, under its names, one that begins with this part: then the part is no prefix of a trainer.
Known = Callable[[str, Iterable[str]], bool]


def model_names(entries: Iterable[str], known: Known) -> tuple[dict[str, str], list[str]]:
    """The entries of the model, under the names that they have in it, and the names of those that are state of the
    training. What a model has a module for is no state."""
    names, left = {}, []
    for name in entries:
        first = name.partition(".")[0]
        if first in _STATE and not known(first, ()):
            left.append(name)
        else:
            names[name] = name
    while names:
        firsts = {name.partition(".")[0] for name in names.values()}
        first = next(iter(firsts))
        whole = len(firsts) > 1 or not all("." in name for name in names.values())
        if whole or first not in _ABOVE or known(first, names.values()):
            break
        names = {entry: name.partition(".")[2] for entry, name in names.items()}
    return names, left


def known_to_hugging_face(first: str, names: Iterable[str]) -> bool:
    """Of names of Hugging Face, in which models of text are ``model`` themselves."""
    return first == "model" and not any(name.startswith(("model.model.", "model.lm_head.")) for name in names)


def left_out(tensors: Iterable[str], objects: Iterable[str]) -> tuple[str, ...]:
    """What of a folder is no part of the model, in words."""
    notes = []
    if listed := list(tensors):
        notes.append(f"left out as state of the training, {len(listed)} tensors: {counted(listed)}")
    if listed := list(objects):
        notes.append(f"left out as no tensors, {len(listed)} entries: {counted(listed)}")
    return tuple(notes)


def without_idle(
    checkpoint: Checkpoint, idle: Iterable[str], allow_lossy: bool = False
) -> tuple[Checkpoint, tuple[str, ...]]:
    """A checkpoint without the parameters ``idle``, which a trainer has for its own ends and whose zeros say nothing,
    and a note of that. Raises ``CrosswalkError`` (``lossy/state``) for those that are not zeros, unless they may be
    lost."""
    names = [name for name in idle if name in checkpoint.tensors]
    if not names:
        return checkpoint, ()
    with closing(Reader(names, [checkpoint.tensors[name] for name in names], checkpoint.files)) as reader:
        used = [name for index, name in enumerate(names) if any(reader.bytes_of(index))]
    if used and not allow_lossy:
        text = f"{_folded(used)} is not zero, and changes what the model computes: the class has no place for it"
        hint = "leave it out with --allow-lossy (allow_lossy=True): then the model computes something else"
        raise fail("lossy/state", text, Position(str(checkpoint.path)), hint)
    rest = {name: stored for name, stored in checkpoint.tensors.items() if name not in names}
    return replace(checkpoint, tensors=rest), (f"left out, {'not all ' if used else ''}zeros: {_folded(names)}",)


def _folded(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name, _ in fold(names))


def counted(names: Iterable[str]) -> str:
    """Names by their first parts, with how many there are of each."""
    counts = Counter(f"{name.partition('.')[0]}.*" if "." in name else name for name in names)
    shown = [f"`{name}`" + (f" ({count})" if count > 1 else "") for name, count in sorted(counts.items())]
    return ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "")
