"""The entries of a plan's text, folded: those that differ only in the numbers in names are one, with their ranges.

An entry is a list of texts, numbers and lists. A folded one has one more item, an object: ``for`` are the ranges of its
variables, ``[first, last]`` or ``[first, last, distance]``. In its texts ``{0}`` is the first variable, ``{1+2}`` the
second plus two. A number that grows with them is that of the first entry, and ``steps`` are what it grows by from one
number of each variable to the next.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from operator import eq, mul
from typing import Any, NamedTuple

#: Most entries that a text may stand for: several times those of the largest models.
MOST = 2_000_000
#: Fewer entries than that are listed.
_FEWEST = 4
_MOST_VARIABLES = 9
#: A number in a name: not one with zeros before it, which would come back without them.
_NUMBER = re.compile(r"(?<![0-9])(?:0|[1-9][0-9]{0,8})(?![0-9])")
_DIGITS = re.compile(r"([0-9]+)")
_HOLE = re.compile(r"\{([0-9]{1,2})(?:\+([0-9]{1,9}))?\}")

Entry = list[Any]


class _Member(NamedTuple):
    """An entry among those of its pattern: the numbers in its texts, then the numbers that may grow with them."""

    numbers: tuple[int, ...]
    growing: tuple[int, ...]
    entry: Sequence[Any]


#: What is between the numbers in the texts of an item, and the numbers.
_Parted = tuple[object, tuple[int, ...]]


class Patterns(dict[str, _Parted]):
    """The patterns of texts that were met, as names are in several entries."""

    def __missing__(self, text: str) -> _Parted:
        parts = _DIGITS.split(text)
        if any(len(number) > 9 or (number[0] == "0" and number != "0") for number in parts[1::2]):
            found = tuple(_NUMBER.split(text)), tuple(map(int, _NUMBER.findall(text)))
        else:
            found = tuple(parts[::2]), tuple(map(int, parts[1::2]))
        self[text] = found
        return found


def fold(
    entries: Sequence[Sequence[Any]], growing: Sequence[int] = (), texts: Patterns | None = None
) -> list[Sequence[Any]]:
    """The entries, those that can be folded as one each, where the first of them was. No text may have a brace in it.
    ``growing``: the items of an entry that are numbers which may grow with those in its texts; ``texts``: what was met
    in other entries before."""
    texts = Patterns() if texts is None else texts
    groups: dict[object, list[_Member]] = {}
    shared: dict[int, _Parted] = {}  # of items that are one object in many entries
    still = [number for number in range(len(entries[0]) if entries else 0) if number not in growing]
    for entry in entries:
        patterns: list[object] = []
        numbers: tuple[int, ...] = ()
        for number in still:
            value = entry[number]
            if type(value) is str:
                pattern, more = texts[value]
                numbers += more
            else:
                found = shared.get(id(value))
                if found is None:
                    found = shared[id(value)] = _parted(value, texts)
                pattern, more = found
                numbers += more
            patterns.append(pattern)
        groups.setdefault(tuple(patterns), []).append(_Member(numbers, tuple([entry[n] for n in growing]), entry))
    return [folded for members in groups.values() for folded in _folded(members, growing)]


def _parted(value: Any, texts: Patterns) -> _Parted:
    """The pattern of an item, and the numbers in its texts."""
    if isinstance(value, str):
        return texts[value]
    if not isinstance(value, list | tuple):
        return (type(value), value), ()
    parts = [_parted(item, texts) for item in value]
    return tuple(pattern for pattern, _ in parts), tuple(itertools.chain.from_iterable(n for _, n in parts))


def _folded(members: list[_Member], growing: Sequence[int]) -> Iterator[Sequence[Any]]:
    """Members of one pattern as one entry, or as some for each value of a column of numbers."""
    one = None
    if len(members) >= _FEWEST:
        columns = list(zip(*(member.numbers for member in members), strict=True))
        one = _as_one(members, columns, growing)
        different = [dict.fromkeys(column) for column in columns]
        apart = min((values for values in different if len(values) > 1), key=len, default={})
    if one is not None:
        yield one
    elif len(members) < _FEWEST or len(apart) in (0, len(members)):
        yield from (member.entry for member in members)
    else:
        column = different.index(apart)
        parts: dict[int, list[_Member]] = {value: [] for value in apart}
        for member in members:
            parts[member.numbers[column]].append(member)
        for some in parts.values():
            yield from _folded(some, growing)


def _as_one(members: list[_Member], columns: Sequence[Sequence[int]], growing: Sequence[int]) -> Entry | None:
    """One entry for all, if their numbers are all combinations of some ranges, in which the others grow evenly.
    ``columns``: the numbers at each place of the texts."""
    variables: list[Sequence[int]] = []  # the columns that count for themselves
    terms: list[tuple[int, int] | int] = []  # of each column: a constant, or a variable and what is added
    for column in columns:
        if len(set(column)) == 1:
            terms.append(column[0])
            continue
        same = (_beside(column, chosen) for chosen in variables)
        found = next(((variable, plus) for variable, plus in enumerate(same) if plus is not None), None)
        terms.append(found or (len(variables), 0))
        if found is None:
            variables.append(column)
    ranges = [_range(sorted(set(column))) for column in variables]
    if not ranges or None in ranges or len(ranges) > _MOST_VARIABLES:
        return None
    spans = [span for span in ranges if span is not None]
    if math.prod(map(len, spans)) != len(members):
        return None
    by_place = dict(zip(zip(*variables, strict=True), members, strict=True))
    if len(by_place) != len(members):
        return None
    ordered = [by_place[place] for place in itertools.product(*spans)]
    begin, steps = ordered[0], []
    for item in range(len(growing)):
        numbers = [member.growing[item] for member in ordered]
        steps.append(_steps(numbers, list(map(len, spans))))
        if numbers != [numbers[0] + sum(more) for more in itertools.product(*_multiples(steps[-1], spans))]:
            return None
    holes = iter(terms)
    entry = [item if number in growing else _with_holes(item, holes) for number, item in enumerate(begin.entry)]
    said = [[span[0], span[-1]] if span.step == 1 else [span[0], span[-1], span.step] for span in spans]
    return [*entry, {"for": said, **({"steps": steps} if any(map(any, steps)) else {})}]


def _steps(numbers: Sequence[int], lengths: Sequence[int]) -> list[int]:
    """By how much a number grows along each variable, of which the last goes round first."""
    apart = [math.prod(lengths[variable + 1 :]) for variable in range(len(lengths))]
    return [numbers[distance] - numbers[0] for distance in apart]


def _multiples(steps: Sequence[int], spans: Sequence[range]) -> list[list[int]]:
    """What each variable adds, for all its values."""
    return [[step * index for index in range(len(span))] for step, span in zip(steps, spans, strict=True)]


def _beside(column: Sequence[int], other: Sequence[int]) -> int | None:
    """By how much a column is more than another, if that is the same everywhere."""
    plus = column[0] - other[0]
    return plus if plus >= 0 and {a - b for a, b in zip(column, other, strict=True)} == {plus} else None


def _range(numbers: Sequence[int]) -> range | None:
    """Numbers at equal distances, of which there are at least two."""
    found = range(numbers[0], numbers[-1] + 1, numbers[1] - numbers[0])
    return found if len(found) == len(numbers) and all(map(eq, found, numbers)) else None


def _with_holes(value: Any, holes: Iterator[tuple[int, int] | int]) -> Any:
    if isinstance(value, list | tuple):
        return [_with_holes(item, holes) for item in value]
    if not isinstance(value, str):
        return value

    def hole(match: re.Match[str]) -> str:
        term = next(holes)
        if isinstance(term, int):
            return match.group()
        return f"{{{term[0]}+{term[1]}}}" if term[1] else f"{{{term[0]}}}"

    return _NUMBER.sub(hole, value)


def unfold(entries: Any, growing: Sequence[int], at: str) -> list[Entry]:
    """The entries that folded ones stand for. Raises ``ValueError`` for what :func:`fold` does not make."""
    if not isinstance(entries, list):
        raise ValueError(f"{at} is not a list")
    result: list[Entry] = []
    for number, entry in enumerate(entries):
        if not isinstance(entry, list):
            raise ValueError(f"{at}[{number}] is not a list")
        if not entry or not isinstance(entry[-1], dict):
            result.append(entry)
            continue
        spans, steps = _repeated(entry[-1], len(growing), f"{at}[{number}]")
        if len(result) + math.prod(map(len, spans)) > MOST:
            raise ValueError(f"{at} stands for more than {MOST} entries")
        result += _repeat(entry[:-1], growing, spans, steps, f"{at}[{number}]")
    return result


def _repeated(said: dict[str, Any], growing: int, at: str) -> tuple[list[range], list[list[int]]]:
    """The ranges and steps of a folded entry."""
    ranges = said.get("for")
    if said.keys() - {"for", "steps"} or not isinstance(ranges, list) or not 0 < len(ranges) <= _MOST_VARIABLES:
        raise ValueError(f"{at} ends with an object that is not `for` and `steps`")
    spans = []
    for given in ranges:
        if not _are_numbers(given, 2, 3) or not 0 <= given[0] <= given[1] or (len(given) == 3 and given[2] < 1):
            raise ValueError(f"{at}: a range is not a number, another one that is not less, and a distance")
        spans.append(range(given[0], given[1] + 1, *given[2:]))
        if len(spans[-1]) > MOST:
            raise ValueError(f"{at} stands for more than {MOST} entries")
    steps = said.get("steps", [[0] * len(ranges)] * growing)
    if not isinstance(steps, list) or len(steps) != growing or not all(_are_numbers(s, len(ranges)) for s in steps):
        raise ValueError(f"{at}: `steps` is not a number for each range, {growing} times")
    return spans, steps


def _are_numbers(value: Any, *lengths: int) -> bool:
    return isinstance(value, list) and len(value) in lengths and all(type(number) is int for number in value)


def _repeat(
    entry: Entry, growing: Sequence[int], spans: list[range], steps: list[list[int]], at: str
) -> Iterator[Entry]:
    if any(item >= len(entry) or type(entry[item]) is not int for item in growing):
        raise ValueError(f"{at} has no number where it grows")
    fillers = [_filler(value, len(spans), at) for value in entry]
    indices = itertools.product(*(range(len(span)) for span in spans))
    for index, place in zip(indices, itertools.product(*spans), strict=True):
        filled = [fill(place) for fill in fillers]
        for item, step in zip(growing, steps, strict=True):
            filled[item] += sum(map(mul, index, step))
        yield filled


def _filler(value: Any, variables: int, at: str) -> Callable[[Sequence[int]], Any]:
    """What an item is at a place; items that are the same everywhere are one object."""
    if isinstance(value, list) and any(isinstance(item, str | list) for item in value):
        inner = [_filler(item, variables, at) for item in value]
        return lambda place: [fill(place) for fill in inner]
    if not isinstance(value, str) or "{" not in value:
        return lambda place: value
    parts = _HOLE.split(value)
    texts, holes = parts[::3], [(int(v), int(plus or 0)) for v, plus in zip(parts[1::3], parts[2::3], strict=True)]
    if any(variable >= variables for variable, _ in holes):
        raise ValueError(f"{at} names a variable that it has no range for")
    form = "{}".join(text.replace("{", "{{").replace("}", "}}") for text in texts).format
    return lambda place: form(*[place[variable] + plus for variable, plus in holes])
