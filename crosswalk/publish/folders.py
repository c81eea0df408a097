"""Deltas as folders with which receivers patch their copy of the checkpoint, in the spelling of slime or of SkyRL.

Both hold of each tensor that has changed its new bytes XOR the old ones, compressed, and a checksum of the new ones: to
be applied once, to the version before.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from crosswalk.runtime.errors import fail
from crosswalk.runtime.publishing.checksums import digest_of
from crosswalk.runtime.publishing.delta import Delta
from crosswalk.runtime.staging.finishing import write_folder


def slime(delta: Delta, folder: str | Path, version: int, checksum: str = "adler32") -> Path | None:
    """Write ``folder/weight_v000007`` for version 7: a file and an index as slime's ``--update-weight-mode delta`` has
    them with ``xor``. ``checksum``: ``adler32`` or ``xxh3-128``. See :func:`skyrl`."""
    target = Path(folder) / f"weight_v{version:06d}"
    found = _encoded(delta, checksum)
    name = "model-00000-of-00001.safetensors"
    metadata = {"version": f"{version:06d}", "base_version": f"{version - 1:06d}", "delta_encoding": "xor",
                "compression_format": "zstd", "checksum_format": checksum}  # fmt: skip
    index = {"metadata": metadata, "weight_map": dict.fromkeys(found, name)}
    sums = {key: str(record["checksum"]) for key, (_, record) in found.items()}
    return _written(delta, target, name, found, sums, "model.safetensors.index.json", index)


def skyrl(delta: Delta, folder: str | Path, version: int, checksum: str = "xxh3-128") -> Path | None:
    """Write ``folder/delta-00000007`` for version 7: a payload and a manifest as SkyRL's receivers fetch them.
    ``checksum``: ``xxh3-128`` or ``sha256``.

    Rank 0 writes and returns the folder, the others None; all call this. ``delta.commit()`` belongs after the receivers
    have it. Needs the package zstandard (``publisher/package``)."""
    target = Path(folder) / f"delta-{version:08d}"
    found = _encoded(delta, checksum)
    name = "delta-rank00000-file000000.safetensors"
    records = [{**record, "payload_file": name, "payload_key": key} for key, (_, record) in found.items()]
    manifest = {
        "version": version, "base_version": version - 1, "tensors": records,
        "total_uncompressed_num_bytes": sum(record["uncompressed_num_bytes"] for record in records),
        "total_compressed_num_bytes": sum(record["compressed_num_bytes"] for record in records),
        "payload_files": [name] if found else [],
    }  # fmt: skip
    return _written(delta, target, name, found, {}, "manifest.json", manifest)


def _encoded(delta: Delta, checksum: str) -> dict[str, tuple[torch.Tensor, dict[str, Any]]]:
    """Of each tensor that has changed its compressed difference, and what is said of it; nothing but on rank 0."""
    try:
        from zstandard import ZstdCompressor
    except ImportError as error:
        text = "this needs the package `zstandard`"
        raise fail("publisher/package", text, None, "pip install zstandard") from error
    digest, compress = digest_of(checksum), ZstdCompressor(level=1).compress
    result = {}
    for name, shape, dtype, now, before in delta.replaced(to=0):
        new, old = (tensor.cpu().contiguous().view(-1).view(torch.uint8) for tensor in (now, before))
        packed = bytearray(compress(torch.bitwise_xor(new, old).numpy().tobytes()))
        record = {
            "name": name, "dtype": str(dtype).removeprefix("torch."), "shape": list(shape),
            "uncompressed_num_bytes": new.numel(), "compressed_num_bytes": len(packed),
            "checksum": digest(new.numpy().tobytes()), "checksum_algorithm": checksum,
        }  # fmt: skip
        result[name] = torch.frombuffer(packed, dtype=torch.uint8), record
    return result


def _written(delta: Delta, to: Path, name: str, found: Any, sums: dict[str, str], last: str, said: Any) -> Path | None:
    files = {last: json.dumps(said).encode()}
    if found:
        files[name] = save({key: tensor for key, (tensor, _) in found.items()}, metadata=sums)
    return write_folder(to, files) if delta.publisher.team.rank == 0 else None
