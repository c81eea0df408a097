"""How many examples a law gets, by the profile of hypothesis that runs."""

from __future__ import annotations

from hypothesis import settings


def times(number: int) -> settings:
    """``number`` times the examples of the profile: for laws of small things that go wrong in rare combinations."""
    return settings(max_examples=number * settings().max_examples)


def sample(every: list[int], some: list[int]) -> list[int]:
    """``some`` of the sizes of a test that costs a process for each, ``every`` one when asked to be thorough."""
    return every if settings().max_examples > 100 else some


def half() -> settings:
    """Half of the examples of the profile: for laws that build whole models."""
    return settings(max_examples=max(3, settings().max_examples // 2))
