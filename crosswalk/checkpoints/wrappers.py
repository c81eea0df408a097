"""Names of tensors as wrappers of a model leave them in a state dict: compiled, distributed, adapters merged."""

from __future__ import annotations

from collections.abc import Collection

#: Modules that wrappers put anywhere: torch.compile, FSDP, activation checkpointing of torch.
_ANYWHERE = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
#: What wrappers put before all names: DistributedDataParallel, PEFT. A name may be wrapped more than once.
_BEFORE = ("module.", "base_model.model.")


def unwrapped(names: Collection[str]) -> tuple[dict[str, str], str | None]:
    """Names in a file -> without what wrappers add, and a note if anything was. Left alone where two would be one."""
    result = {name: name for name in names}
    removed: set[str] = set()
    text = "\n".join(names)
    marks = [part for part in _ANYWHERE if part in text]
    for name in names if marks else ():
        if any(part in name for part in marks):
            parts = name.split(".")
            result[name] = ".".join(part for part in parts if part not in _ANYWHERE)
            removed.update(part for part in parts if part in _ANYWHERE)
    while prefix := next((p for p in _BEFORE if result and all(n.startswith(p) for n in result.values())), None):
        result = {name: new.removeprefix(prefix) for name, new in result.items()}
        removed.add(prefix)
    twice = any(new.startswith("model.model.") for new in result.values())
    if twice and all(new.startswith("model.") for new in result.values()):
        result = {name: new.removeprefix("model.") for name, new in result.items()}
        removed.add("model.")
    if not removed or len(set(result.values())) < len(result):
        return {name: name for name in names}, None
    shown = ", ".join(f"`{part}`" for part in sorted(removed))
    return result, f"the names of the tensors are read without {shown}, which a wrapper of the model left"
