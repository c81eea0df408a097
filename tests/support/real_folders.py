"""Folders of changes, pulled into a copy of the checkpoint by what slime and SkyRL have for that."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import class_cases as cases
import torch

from crosswalk.publish import folders

#: Of SkyRL, packages that are only folders here.
PACKAGES = ("skyrl", "skyrl.backends", "skyrl.backends.skyrl_train", "skyrl.backends.skyrl_train.weight_sync")


def slime(home: Path, base: Path, local: Path, source: Path) -> Callable[[int], Path]:
    """What pulls a version, and where the checkpoint is then: the module that slime adds to SGLang."""
    spec = importlib.util.spec_from_file_location("local_checkpoint", home / "local_checkpoint.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def pull(version: int) -> Path:
        module.pull(str(local), str(base), str(source), version)
        return local

    return pull


def skyrl(home: Path, base: Path, local: Path, source: Path) -> Callable[[int], Path]:
    """The same with the store of SkyRL's workers."""
    for name in PACKAGES:
        module = types.ModuleType(name)
        module.__path__ = [str(home / name.replace(".", "/"))]
        sys.modules[name] = module
    store = importlib.import_module(f"{PACKAGES[-1]}.delta_checkpoint").LocalCheckpointStore(str(base), str(local))

    def fetch(version: int) -> Path:
        store.fetch(version, sync_dir=str(source))
        store.validate_ready(version)
        return store._current_checkpoint_dir()  # type: ignore[no-any-return]

    return fetch


def pulled(publisher: Any, change: Callable[[], None], home: Path, out: Path, rank: int) -> list[Any]:
    """What is wrong after two versions, of which nobody took the first folder of the second."""
    wrong: list[Any] = []
    publisher.save(out / "base")
    snapshot = publisher.snapshot()
    readers: dict[str, Callable[[int], Path]] = {}
    for name, reader in (("slime", slime), ("skyrl", skyrl)):
        if (home / name).is_dir() and rank == 0:
            (out / name).mkdir()
            readers[name] = reader(home / name, out / "base", out / f"{name}-local", out / name)
    for version in (1, 2):
        change()
        folders.slime(publisher.delta(snapshot), out / f"lost-{version}", version)
        delta = publisher.delta(snapshot)
        folders.slime(delta, out / "slime", version, "xxh3-128")
        folders.skyrl(delta, out / "skyrl", version)
        now = {name: tensor.clone() for bucket in publisher.buckets() for name, tensor in bucket}
        for name, read in readers.items():
            found = cases.files(read(version))
            wrong += [(name, version, one) for one in cases.differences(found, now)]
        delta.commit()
    return wrong if readers or rank != 0 else [*wrong, "no readers"]


def changing(model: Any) -> Callable[[], None]:
    def change() -> None:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.to_local().view(-1)[::11].mul_(0.75)

    return change
