"""Parameters by name, seen from one module of the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from crosswalk.runtime.errors import fail
from crosswalk.runtime.records import Record

#: A native config, or a part of one, with every default filled in.
Config = Mapping[str, Any]


class Parameters(Record, frozen=True):
    """Tensors by native name, below a prefix; in the dtype that everything is computed in."""

    tensors: Mapping[str, torch.Tensor]
    dtype: torch.dtype
    prefix: str = ""

    def under(self, name: str) -> Parameters:
        """The tensors below a further prefix, ``name.``."""
        return Parameters(self.tensors, self.dtype, f"{self.prefix}{name}.")

    def __getitem__(self, name: str) -> torch.Tensor:
        """The tensor called ``name`` below the prefix. Raises ``CrosswalkError`` if there is none."""
        try:
            return self.tensors[self.prefix + name].detach().to(self.dtype)
        except KeyError:
            raise fail("reference/missing", f"the model has no parameter `{self.prefix}{name}`") from None


def unknown(what: str, value: object) -> Exception:
    """What to raise for a choice that no formula is known of."""
    return fail("reference/type", f"there is no {what} called `{value}`")
