"""What a proof found: problems with their lines, and how much was tried."""

from __future__ import annotations

from collections import Counter

from crosswalk.runtime.errors import Diagnostic, Position
from crosswalk.runtime.records import Record, field

from .values import Path

#: What is tried, in the order in which it is shown.
CHECKS = {
    "left out": "keys left out: the mapping takes what the class takes",
    "changed": "keys changed: the native config changes where the class computes something else",
    "exported": "configs exported: the class reads them as the original",
    "names": "models: names, shapes and ties of all tensors",
    "native": "native configs drawn: what is exported is read as it was, and the class does something else",
    "logits": "models run: the reference computes what the class computes",
}
#: Error code -> the check that finds it.
CODES = {
    "prove/default": "left out",
    "prove/ignored": "changed",
    "prove/idle": "changed",
    "prove/export": "exported",
    "prove/names": "names",
    "prove/native": "native",
    "prove/logits": "logits",
}


class Proof(Record):
    """``format`` and class (``reference``), which is not there to be asked if ``alone``; ``tried``: check of ``CHECKS``
    -> how many times; ``findings``: what is wrong, each where the mapping says it; ``notes``: in what the tiny model is
    another than that of the config, and what is not proved."""

    format: str
    reference: str
    tried: Counter[str] = field(default_factory=Counter)
    findings: list[Diagnostic] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    alone: bool = False
    _lines: set[tuple[str, Position]] = field(default_factory=set)
    _said: set[tuple[str, str]] = field(default_factory=set)

    @property
    def holds(self) -> bool:
        """Whether nothing is wrong; what is refused though the class takes it is a warning."""
        return all(found.severity != "error" for found in self.findings)

    def note(
        self,
        code: str,
        message: str,
        position: Position,
        hint: str | None = None,
        severity: str = "error",
        how: str = "",
    ) -> None:
        """Add a finding, unless one of its code is on its line already, or one that says the same of another model;
        ``how``: of which model, where it is not the tiny one."""
        if ((code, position) in self._lines and position.line > 1) or (code, message) in self._said:
            return
        self._lines.add((code, position))
        self._said.add((code, message))
        text = f"{message}, of the model with {how}" if how else message
        self.findings.append(Diagnostic(code, text, position, hint, severity))


def dotted(path: Path) -> str:
    """A path of keys as it is written."""
    return ".".join(path)
