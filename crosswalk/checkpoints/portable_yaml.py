"""YAML that means the same to readers of version 1.1 (PyYAML, which the trainer uses) and of version 1.2."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import SafeRepresenter

# What no reader takes for anything but text: numbers, dates, nulls and merge keys do not start with a letter, but these
# words do.
_TEXT = re.compile(r"(?!(?:y|n|yes|no|on|off|true|false|null)\Z)[a-z]", re.IGNORECASE)


class _Representer(SafeRepresenter):
    def represent_str(self, data: str) -> ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=None if _TEXT.match(data) else "'")

    def represent_float(self, data: float) -> ScalarNode:
        """``1.0e-05``: version 1.1 knows no float without a dot."""
        node = super().represent_float(data)
        if "." not in node.value:
            node.value = node.value.replace("e", ".0e")
        return node


_Representer.add_representer(str, _Representer.represent_str)
_Representer.add_representer(float, _Representer.represent_float)


def dump(document: Mapping[str, Any]) -> str:
    """The text of a document of mappings, lists, texts, numbers, booleans and nulls."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Representer = _Representer
    yaml.default_flow_style = False
    yaml.allow_unicode = False  # readers differ in what is a line break
    yaml.width = 4096
    text = io.StringIO()
    yaml.dump(document, text)
    return text.getvalue()
