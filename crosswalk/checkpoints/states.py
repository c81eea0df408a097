"""What of a folder of torch.distributed.checkpoint is the model, and what is state of the training beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

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


def counted(names: Iterable[str]) -> str:
    """Names by their first parts, with how many there are of each."""
    counts = Counter(f"{name.partition('.')[0]}.*" if "." in name else name for name in names)
    shown = [f"`{name}`" + (f" ({count})" if count > 1 else "") for name, count in sorted(counts.items())]
    return ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "")
