"""The classes that a mapping names, where transformers is installed to be asked."""

from __future__ import annotations

import importlib.util

from crosswalk.compiler.mapping.model import MappingFile
from crosswalk.compiler.text.positioned import did_you_mean
from crosswalk.runtime.errors import Diagnostic


def missing_classes(mapping: MappingFile) -> list[Diagnostic]:
    """The classes of transformers that a mapping names and the installed one does not have; none where it is not
    installed, where the code of the class comes with the checkpoint, or where a base names them."""
    module, _, config_class = (mapping.config_class or "").rpartition(".")
    own = mapping.place("config_class").file == mapping.file
    if not own or module != "transformers" or importlib.util.find_spec("transformers") is None:
        return []
    import transformers

    problems = []
    for word, name in (("config_class", config_class), ("architecture", mapping.architecture)):
        if name is not None and not hasattr(transformers, name):
            message = f"transformers {transformers.__version__} has no class `{name}`"
            near = did_you_mean(name, dir(transformers))
            problems.append(Diagnostic("mapping/no-such-class", message, mapping.place(word), near))
    return problems
