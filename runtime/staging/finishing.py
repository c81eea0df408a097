"""The last steps before an output is put in place: its small files, and a look at what lies on the disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from crosswalk.runtime.checkpoint.header import StoredTensor, read_header
from crosswalk.runtime.checkpoint.output import DataFile, OutputLayout, Written, check_names, stored
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, Position
from crosswalk.runtime.plan.model import Plan, TensorSpec
from crosswalk.runtime.records import replace

from .directory import Staging, copy_file, digest_of, write_file
from .stale import owner


def add_small_files(
    staging: Staging,
    plan: Plan,
    files: Sequence[DataFile],
    layout: OutputLayout,
    extra: Mapping[str, bytes],
    carried: Mapping[str, Path],
    checksums: Mapping[str, str],
) -> dict[str, bytes]:
    """Write and sync the carried files, the ``extra`` ones and those of the layout, which know where each tensor is and
    the ``checksums`` (tensor -> checksum) there are. The digest of each, by name."""
    keys = {plan.targets[t].name: plan.targets[t].name + layout.key_suffix for file in files for t in file.targets}
    last = layout.finish(
        Written(
            {keys[plan.targets[t].name]: file.name for file in files for t in file.targets},
            {keys[name]: checksum for name, checksum in checksums.items()},
            sum(target.nbytes for target in plan.targets),
            {
                file.name: [replace(plan.targets[t], name=keys[plan.targets[t].name]) for t in file.targets]
                for file in files
            },
        )
    )
    contents = {**extra, **last}
    check_names([file.name for file in files], [*extra, *last], carried)
    with staging.errors("written"):
        copied = {name: copy_file(staging, name, origin) for name, origin in carried.items()}
        return copied | {name: write_file(staging, name, content) for name, content in contents.items()}


def _keyed(target: TensorSpec, layout: OutputLayout) -> TensorSpec:
    return replace(target, name=target.name + layout.key_suffix)


def check_output(
    staging: Staging, plan: Plan, files: Sequence[DataFile], layout: OutputLayout, digests: Mapping[str, bytes]
) -> None:
    """Remove what was not written here, open what was as anybody would, and compare it with the plan: size and header
    of every data file, name, dtype, shape and place of every tensor, and the ``digests`` of the small files, the index
    and what was carried among them. Raises ``CrosswalkError`` for every file that the file system does not give back
    as it was written."""
    problems = []
    with staging.errors("written"):
        staging.sweep()
    wanted = {
        file.name: {
            plan.targets[target].name + layout.key_suffix: place
            for target, place in stored(file, plan.targets, staging.path).items()
        }
        for file in files
    }
    for file in files if layout.reopen is None else ():
        try:
            status, found = read_header(staging.path / file.name)
            same = (status.size, status.metadata, found) == (file.size, layout.header_metadata, wanted[file.name])
            reason = None if same else "its header is not the one that was written"
        except CrosswalkError as error:
            reason = error.diagnostics[0].message
        if reason:
            problems.append(_torn(staging, file.name, reason))
    if layout.reopen is not None:
        problems += _reopened(staging, files, layout.reopen, wanted)
    with staging.errors("read back"):
        for name, digest in digests.items():
            if digest_of(staging.path / name) != digest:
                problems.append(_torn(staging, name, "it has other bytes than were written"))
    if problems:
        raise CrosswalkError(problems)


def _reopened(
    staging: Staging,
    files: Sequence[DataFile],
    reopen: Callable[[Path], Mapping[str, StoredTensor]],
    wanted: Mapping[str, Mapping[str, StoredTensor]],
) -> Iterator[Diagnostic]:
    """Problems of a directory whose data files are opened together."""
    try:
        found = reopen(staging.path)
    except CrosswalkError as error:
        yield _torn(staging, "a data file", error.diagnostics[0].message)
        return
    for file in files:
        same = all(found.get(name) == place for name, place in wanted[file.name].items() if place.nbytes)
        if not same or (staging.path / file.name).stat().st_size != file.size:
            yield _torn(staging, file.name, "its tensors are not where they were written")


def _torn(staging: Staging, name: str, reason: str) -> Diagnostic:
    return Diagnostic(
        "output/torn",
        f"the file system does not give back {name} as it was written: {reason}",
        Position(str(staging.destination)),
        "the disk may be full or failing; nothing was put in place",
    )


def write_folder(target: Path, files: Mapping[str, bytes]) -> Path:
    """A folder of files, which appears whole. Raises ``CrosswalkError``, and leaves nothing, if it is there already or
    cannot be written."""
    staging = Staging(target, {"owner": owner(), "files": list(files)}, files, overwrite=False, resume=False)
    try:
        with staging.errors("written"):
            for name, content in files.items():
                write_file(staging, name, content)
        staging.commit()
    except BaseException:
        staging.abandon()
        raise
    return target
