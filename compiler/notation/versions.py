"""Versions of libraries as numbers that compare: ``4.57.6`` is before ``5.0.0.dev0``."""

from __future__ import annotations

import re


def version_numbers(text: str) -> tuple[int, ...]:
    """The numbers that a version starts with; none for a text that is no version."""
    found = re.match(r"\d{1,9}(?:\.\d{1,9})*", text)
    return tuple(int(number) for number in found.group().split(".")) if found else ()
