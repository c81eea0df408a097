"""What the class of transformers says of the keys of a draft, in a tiny model of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from crosswalk.compiler.relations.tree import CompiledMapping
from crosswalk.models.tiny import LAYER_COUNTS
from crosswalk.proving.reading import differences, native_of
from crosswalk.proving.subject import Subject
from crosswalk.proving.values import changed, others, without
from crosswalk.runtime.errors import CrosswalkError

#: Values of a key that are tried; and layers of a model that shows their pattern.
_VALUES, _MANY = 3, 48
#: Most layers of a pattern that an expression repeats.
_PERIOD = 12


class Known:
    """What a class knows."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        subject.tokens = torch.arange(19) * 7 % 53
        self._base = subject.behaviour(subject.base)

    @staticmethod
    def of(config: Mapping[str, Any], where: str) -> Known | None:
        """What the class that a config names knows; None where it is not installed, or cannot be made small."""
        try:
            known = Known(Subject.of(config, where))
        except CrosswalkError:
            return None
        return known if known._base is not None else None

    def matters(self, key: str) -> bool:
        """Whether the class does something else, in evaluation or training, where a key has another value."""
        return not all(self._same(key))

    def ignores(self, key: str) -> bool:
        """Whether it does the same at other values, of which there is one that it takes."""
        tried = list(self._same(key))
        return bool(tried) and all(tried)

    def _same(self, key: str) -> Iterator[bool]:
        """Whether it does the same at each of the other values of a key that it takes."""
        assert self._base is not None
        value = self.subject.keys().get(key, self.subject.base.get(key))
        found = (self.subject.behaviour(changed(self.subject.base, (key,), other)) for other in others(value)[:_VALUES])
        yield from (one.same(self._base) for one in found if one is not None)

    def other_defaults(self, mapping: CompiledMapping) -> Iterator[tuple[str, Any]]:
        """The keys for which the class takes something else than a mapping where they are absent, with that value, or
        an expression; None where no expression is known."""
        for key in self.subject.base:
            left = without(self.subject.base, (key,))
            filled = self.subject.read(left)
            if filled is None or key not in filled or filled[key] is None:
                continue
            found, expected = native_of(mapping, left), native_of(mapping, filled)
            missing = isinstance(found, CrosswalkError) and found.diagnostics[0].code == "config/missing-key"
            if isinstance(expected, CrosswalkError) and isinstance(found, CrosswalkError) and not missing:
                continue
            if (
                isinstance(found, CrosswalkError)
                or isinstance(expected, CrosswalkError)
                or differences(mapping, found, expected)
            ):
                yield key, self._as_expression(key, filled[key])

    def otherwise_where_null(self, mapping: CompiledMapping, key: str) -> bool:
        """Whether the class takes something else where a key is null than where it is absent, as the mapping does."""
        null = changed(self.subject.base, (key,), None)
        absent, filled = (self.subject.read(config) for config in (without(null, (key,)), null))
        if absent is None or filled is None or filled.get(key) in (None, absent.get(key)):
            return False
        found, expected = native_of(mapping, null), native_of(mapping, filled)
        if isinstance(found, CrosswalkError) or isinstance(expected, CrosswalkError):
            return False
        return not list(differences(mapping, found, expected))

    def _as_expression(self, key: str, value: Any) -> Any:
        """What the class takes for an absent key; of a list of layers what it is for any number of them, or None."""
        base = self.subject.base
        count = next((name for name in LAYER_COUNTS if name in base), None)
        if not isinstance(value, list) or count is None or len(value) != base[count]:
            return value
        filled = self.subject.read(without(changed(base, (count,), _MANY), (key,)))
        return None if filled is None else _repeated(filled[key], count)

    def defaults(self, keys: Iterable[str]) -> dict[str, Any]:
        """What the class takes for keys that it has."""
        full = self.subject.config_class().to_dict()
        return {key: full[key] for key in keys if key in full}


def _repeated(values: Sequence[Any], count: str) -> str | None:
    """A list of kinds of layers, as one that repeats its beginning up to the number of layers under the key ``count``;
    None if it does not."""
    for period in range(1, min(_PERIOD, len(values) // 2) + 1):
        if all(value == values[place % period] for place, value in enumerate(values)):
            items = ", ".join(repr(value) for value in values[:period])
            return f"= ([{items}] * {count})[:{count}]"
    return None
