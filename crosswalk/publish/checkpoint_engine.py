"""checkpoint-engine: every rank registers its share of whole tensors, and none is in the middle (0.4.2)."""

from __future__ import annotations

from typing import Any

from crosswalk.runtime.publishing.publisher import Publisher


def register(server: Any, name: str, publisher: Publisher, **options: Any) -> None:
    """Register what is published now with a ``ParameterServer`` under ``name``; ``options`` are its own. All ranks
    call this. What was registered under the name before is taken out first by ``server.unregister_checkpoint``."""
    server.register_checkpoint(name, named_tensors=publisher.share(), **options)
