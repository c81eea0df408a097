"""What Crosswalk says of each config of the corpus, as JSON on stdout: run by tests in several environments."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

CORPUS = Path(__file__).with_name("hub_configs")


def read(name: str) -> dict[str, Any]:
    """A config.json of the corpus."""
    config: dict[str, Any] = json.loads((CORPUS / name).read_text(encoding="utf-8"))
    return config


def verdicts(names: list[str]) -> dict[str, Any]:
    """The native config, or the messages, for each config; and the modules of transformers that this has imported."""
    from crosswalk import CrosswalkError, import_config

    result: dict[str, Any] = {}
    for name in names:
        try:
            result[name] = import_config(read(name))
        except CrosswalkError as error:
            result[name] = [f"{found.message} | {found.hint}" for found in error.diagnostics]
    result["imported"] = sorted(name for name in sys.modules if name.partition(".")[0] == "transformers")
    return result


if __name__ == "__main__":
    if "--blocked" in sys.argv:
        sys.modules["transformers"] = None  # type: ignore[assignment]  # importing it fails
    found = verdicts(sorted(path.name for path in CORPUS.glob("*.json")))
    found["imported"] = [] if "--blocked" in sys.argv else found["imported"]
    json.dump(found, sys.stdout)
