"""SGLang's updates of weights: buckets of a publisher as its flattened ones (SGLang 0.5.23)."""

from __future__ import annotations

from typing import Any

from crosswalk.runtime.publishing.publisher import Bucket


def described(bucket: Bucket) -> dict[str, Any]:
    """The fields of ``/update_weights_from_distributed`` for a packed bucket (``align=1``), whose buffer is broadcast
    as it is."""
    return {
        "names": [one.name for one in bucket.tensors],
        "dtypes": [str(one.dtype).removeprefix("torch.") for one in bucket.tensors],
        "shapes": [list(one.shape) for one in bucket.tensors],
        "load_format": "flattened_bucket",
    }


def flattened(bucket: Bucket) -> dict[str, Any]:
    """The payload of ``/update_weights_from_tensor`` with ``load_format="flattened_bucket"``, to be serialised by
    SGLang's ``MultiprocessingSerializer``. The buffer must live until the engine has copied it."""
    from sglang.srt.weight_sync.tensor_bucket import FlattenedTensorMetadata

    metadata = [
        FlattenedTensorMetadata(
            name=one.name,
            shape=one.shape,
            dtype=one.dtype,
            start_idx=start,
            end_idx=start + one.nbytes,
            numel=one.nbytes,
        )
        for one, start in zip(bucket.tensors, bucket.offsets, strict=True)
    ]
    return {"flattened_tensor": bucket.buffer, "metadata": metadata}
