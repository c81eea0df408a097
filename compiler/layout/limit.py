"""How many tensors a config may ask for: its numbers are compared with what the files hold before anything is built."""

from __future__ import annotations

import math
from collections.abc import Sized

from crosswalk.compiler.notation.templates import Hole, Template
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, Position
from crosswalk.runtime.records import Record

from .cells import AxisTable, atom_size, atoms_of, check_known

#: Most tensors on one side where no files say how many there are: several times those of the largest models.
MOST_TENSORS = 500_000
#: Up to so many tensors more than the files hold, a comparison names those that are missing.
_LISTED = 2_000


class Limit(Record, frozen=True):
    """At ``most`` so many tensors; ``found`` is how many the files hold that a config is compared with, if any."""

    most: int = MOST_TENSORS
    found: int | None = None

    @staticmethod
    def of(files: Sized | None) -> Limit:
        """For a side whose tensors are in files: beyond it there is nothing to compare."""
        return WITHOUT_FILES if files is None else Limit(2 * len(files) + _LISTED, len(files))

    def check(self, tensors: int, number: int, what: str, position: Position | None = None) -> None:
        """Raise ``CrosswalkError`` (``config/size``) if ``number`` things called ``what`` make too many tensors."""
        if tensors <= self.most:
            return
        text = f"the config states {number} `{what}`, which take {tensors} tensors or more"
        hint = None
        if self.found is None:
            text += f": there can be {self.most}"
        else:
            text += f", but the files hold {self.found} tensors"
            hint = "correct the number in the config, or complete the files"
        raise CrosswalkError(Diagnostic("config/size", text, None, hint, rule=position))


WITHOUT_FILES = Limit()


def names_of(template: Template, sizes: AxisTable) -> int:
    """How many names the axes in a template make; 1 where one of them is not known."""
    named = {hole.name for hole in template.holes if isinstance(hole, Hole)}
    if check_known(named, sizes, "", None):
        return 1
    return math.prod(atom_size(atom, sizes) for axis in named for atom in atoms_of(axis, sizes))
