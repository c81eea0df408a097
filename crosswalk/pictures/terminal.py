"""A picture in the characters of a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .blocks import Picture, Tile, columns_of

#: Most rows of blocks that are drawn, and characters that a row of the tensor is wide.
_ROWS, _WIDTH = 12, 40
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def drawing(picture: Picture, of_target: bool = True) -> Iterator[str]:
    """Lines: the tensor as a box of blocks, each with the letter of the tensor that it comes from or goes to, and what
    the letters stand for."""
    letters = {name: _letter(n) for n, name in enumerate(dict.fromkeys(block.other.name for block in picture.blocks))}
    width = columns_of(picture.tensor)
    bands = _bands(picture.blocks)
    shown = bands if len(bands) <= _ROWS else [*bands[: _ROWS - 1], bands[-1]]
    margin = max(len(str(picture.tensor.shape[0] if picture.tensor.shape else 1)), 1)
    edge = [0]
    for number, band in enumerate(shown):
        cells = [(block, _cell(block.columns.start, width), _cell(block.columns.stop, width)) for block in band]
        edge_now = sorted({0, _WIDTH, *(start for _, start, _ in cells), *(stop for _, _, stop in cells)})
        first, last = number == 0, len(bands) > _ROWS and number == len(shown) - 1
        yield f"{band[0].rows.start:>{margin}} {_rule(edge, edge_now, first)}"
        if last:
            yield f"{'':>{margin}} ⋮ {len(bands) - len(shown)} rows of blocks more"
            yield f"{band[0].rows.start:>{margin}} {_rule([0], edge_now, True)}"
        yield f"{'':>{margin}} {_fill(cells, letters)}"
        edge = edge_now
    yield f"{shown[-1][0].rows.stop if shown else 0:>{margin}} {_rule(edge, [], False)}"
    yield ""
    arrow = "<-" if of_target else "->"
    for block in _first_of_each(picture.blocks):
        yield f"{letters[block.other.name]} {arrow} {block.other.name} {list(block.other.shape)}"
    yield ""
    for block in (block for band in shown for block in band):
        yield f"{letters[block.other.name]}  {described(block, picture)}"
    if picture.more:
        yield f"and {picture.more} blocks more"
    for name in picture.scattered:
        yield f"{name} is spread over single elements"


def described(block: Tile, picture: Picture) -> str:
    """Where a block is, and what it is of the other tensor."""
    own, other = columns_of(picture.tensor), columns_of(block.other)
    here = _place(block.rows, block.columns, own)
    there = _place(block.other_rows, block.other_columns, other)
    if block.transposed:
        there = there.partition(", ")[2] or f"columns {block.other_columns}"
    return f"{here} = {there}" + (", transposed" if block.transposed else "")


def _place(rows: object, columns: object, width: int) -> str:
    text = f"rows {rows}"
    whole = str(columns) == (f"0-{width - 1}" if width > 1 else "0")
    return text if whole else f"{text}, columns {columns}"


def _letter(number: int) -> str:
    return _LETTERS[number] if number < len(_LETTERS) else f"{_LETTERS[number % 26]}{number // 26}"


def _bands(blocks: Sequence[Tile]) -> list[list[Tile]]:
    """Blocks that begin at one row, side by side."""
    bands: dict[int, list[Tile]] = {}
    for block in blocks:
        bands.setdefault(block.rows.start, []).append(block)
    return [bands[start] for start in sorted(bands)]


def _cell(column: int, width: int) -> int:
    return round(column * _WIDTH / max(width, 1))


def _rule(above: Sequence[int], below: Sequence[int], first: bool) -> str:
    """A line between two rows of blocks, with the corners that their edges need."""
    line = []
    for place in range(_WIDTH + 1):
        up, down = not first and place in above, place in below
        sides = place in (0, _WIDTH)
        if sides:
            ends = {(True, True): "├┤", (False, True): "┌┐", (True, False): "└┘"}[up or not (first or down), down]
            line.append(ends[0] if place == 0 else ends[1])
        else:
            line.append({(True, True): "┼", (True, False): "┴", (False, True): "┬", (False, False): "─"}[up, down])
    return "".join(line)


def _fill(cells: Sequence[tuple[Tile, int, int]], letters: dict[str, str]) -> str:
    line = [" "] * (_WIDTH + 1)
    line[0] = line[_WIDTH] = "│"
    for block, start, stop in cells:
        line[start] = line[stop] = "│"
        middle = (start + stop) // 2
        letter = letters[block.other.name]
        line[middle : middle + len(letter)] = letter
    return "".join(line).rstrip()


def _first_of_each(blocks: Sequence[Tile]) -> list[Tile]:
    found: dict[str, Tile] = {}
    for block in blocks:
        found.setdefault(block.other.name, block)
    return list(found.values())
