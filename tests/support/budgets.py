"""How many examples a law gets, by the profile of hypothesis that runs."""

from __future__ import annotations

from hypothesis import settings


def times(number: int) -> settings:
    """``number`` times the examples of the profile: for laws of small things that go wrong in rare combinations."""
    return settings(max_examples=number * settings().max_examples)


def half() -> settings:
    """Half of the examples of the profile: for laws that build whole models."""
    return settings(max_examples=max(3, settings().max_examples // 2))
