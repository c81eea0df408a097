"""Pickles read as data: no class of one is looked up, no function of it is called, and nothing of it is imported.

What a pickle would call stays a :class:`Made`: the name of what it names, and the arguments. Dicts are :class:`Table`,
a list of pairs, and sets are lists, so that no value out of a file is ever hashed or compared. Reading is a loop, so
that nesting takes no stack, and what it makes is in proportion to the file.
"""

from __future__ import annotations

import gc
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from crosswalk.runtime.records import Record, field

#: Most objects that one pickle may make.
MAX_OBJECTS = 10_000_000
#: Longest integer, in bytes.
_MAX_INTEGER = 64
_MARK = object()


class Global(Record, frozen=True):
    """The name of a class or function: never the thing itself."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Table(Record, eq=False):
    """A dict, as pairs in the order of the pickle."""

    pairs: list[tuple[Any, Any]] = field(default_factory=list)

    def texts(self) -> dict[str, Any]:
        """The values of the keys that are text."""
        return {key: value for key, value in self.pairs if isinstance(key, str)}


class Made(Record, eq=False):
    """What a pickle would make by calling ``by`` with ``arguments``. ``state`` is what it would then be given, and
    ``items`` and ``pairs`` what would be put into it."""

    by: Global
    arguments: tuple[Any, ...]
    state: Any = None
    items: Sequence[Any] = ()
    pairs: Sequence[tuple[Any, Any]] = ()

    def fields(self) -> dict[str, Any]:
        """The state of an object by its attributes, empty if it is something else."""
        return self.state.texts() if isinstance(self.state, Table) else {}


class Persistent(Record, frozen=True, eq=False):
    """A reference to what lies outside of the pickle, such as the storage of a tensor."""

    key: Any


class PickleError(Exception):
    """What is wrong with a pickle. ``named``: the global that was refused, if it is that."""

    def __init__(self, message: str, named: Global | None = None) -> None:
        super().__init__(message)
        self.named = named


def read_pickle(data: bytes, allowed: Callable[[Global], bool]) -> Any:
    """The value that a pickle of protocol 2 or later holds, as data. Raises ``PickleError`` for one that is malformed,
    and for the first global that is not ``allowed``."""
    try:
        with uncollected():
            return _Machine(data, allowed).run()
    except (LookupError, struct.error, UnicodeDecodeError, OverflowError) as error:
        raise PickleError("it ends too early, or is damaged") from error


@contextmanager
def uncollected() -> Iterator[None]:
    """Nothing that this block makes becomes garbage, and looking for some would take most of the time."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


class _Machine:
    def __init__(self, data: bytes, allowed: Callable[[Global], bool]) -> None:
        self.data, self.at, self.allowed = data, 0, allowed
        self.stack: list[Any] = []
        self.memo: list[Any] = []
        self.made = 0

    def run(self) -> Any:
        """What metadata is made of for the most part stands here, for large ones; the rest is in ``_STEPS``."""
        data, stack, memo, at = self.data, self.stack, self.memo, self.at
        push, pop, remember, long = stack.append, stack.pop, memo.append, struct.Struct("<I").unpack_from
        constants, steps = _CONSTANTS, _STEPS
        while True:
            code = data[at]
            if code == 0x94:  # MEMOIZE, before something else
                remember(stack[-1])
                at += 1
                code = data[at]
            at += 1
            if code == 0x6A:  # LONG_BINGET
                push(memo[long(data, at)[0]])
                at += 4
            elif code == 0x68:  # BINGET
                push(memo[data[at]])
                at += 1
            elif code == 0x85:  # TUPLE1
                stack[-1] = (stack[-1],)
            elif code == 0x4B:  # BININT1
                push(data[at])
                at += 1
            elif code in (0x52, 0x81):  # REDUCE, NEWOBJ
                arguments = pop()
                stack[-1] = self.called(stack[-1], arguments)
            elif code in constants:
                push(constants[code])
            elif code == 0x4D:  # BININT2
                push(data[at] | data[at + 1] << 8)
                at += 2
            elif code == 0x86:  # TUPLE2
                stack[-2:] = [(stack[-2], stack[-1])]
            elif code == 0x2E:  # STOP
                return pop()
            else:
                step = steps.get(code)
                if step is None:
                    raise PickleError(f"it has the operation 0x{code:02x}, which is not read here")
                self.at = at
                step(self)
                at = self.at

    def take(self, count: int) -> bytes:
        if count < 0 or count > len(self.data) - self.at:
            raise PickleError("it ends too early")
        start = self.at
        self.at += count
        return self.data[start : self.at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def called(self, by: Any, arguments: Any) -> Made:
        if not isinstance(by, Global) or not isinstance(arguments, tuple):
            raise PickleError("it is damaged: it calls what is no class or function")
        self.count()
        return Made(by, arguments)

    def count(self) -> None:
        self.made += 1
        if self.made > MAX_OBJECTS:
            raise PickleError(f"it makes more than {MAX_OBJECTS:,} objects")

    def push(self, value: Any) -> None:
        self.count()
        self.stack.append(value)

    def since_mark(self) -> list[Any]:
        stack = self.stack
        index = len(stack) - 1
        while stack[index] is not _MARK:
            index -= 1
            if index < 0:
                raise PickleError("it is damaged: a mark is missing")
        found = stack[index + 1 :]
        del stack[index:]
        return found

    def line(self) -> str:
        end = self.data.index(b"\n", self.at) if b"\n" in self.data[self.at : self.at + 1000] else -1
        if end < 0:
            raise PickleError("it is damaged: a name has no end")
        text = self.data[self.at : end].decode()
        self.at = end + 1
        return text


def _text(size: int) -> Callable[[_Machine], None]:
    def step(machine: _Machine) -> None:
        machine.push(machine.take(machine.number(size)).decode("utf-8", "surrogatepass"))

    return step


def _bytes(size: int) -> Callable[[_Machine], None]:
    return lambda machine: machine.push(machine.take(machine.number(size)))


def _unsigned(size: int) -> Callable[[_Machine], None]:
    return lambda machine: machine.push(machine.number(size))


def _signed(machine: _Machine) -> None:
    machine.push(int.from_bytes(machine.take(4), "little", signed=True))


def _long(size: int) -> Callable[[_Machine], None]:
    def step(machine: _Machine) -> None:
        count = machine.number(size)
        if count > _MAX_INTEGER:
            raise PickleError(f"it has an integer of {count} bytes")
        machine.push(int.from_bytes(machine.take(count), "little", signed=True))

    return step


def _float(machine: _Machine) -> None:
    machine.push(struct.unpack(">d", machine.take(8))[0])


def _tuple(count: int) -> Callable[[_Machine], None]:
    def step(machine: _Machine) -> None:
        if len(machine.stack) < count:
            raise PickleError("it is damaged: values are missing")
        machine.stack[len(machine.stack) - count :] = [tuple(machine.stack[len(machine.stack) - count :])]

    return step


def _append(target: Any, values: list[Any]) -> None:
    if isinstance(target, Made):
        target = target.items = target.items or []
    if not isinstance(target, list):
        raise PickleError("it is damaged: it puts values into what is no list")
    target.extend(values)


def _set(target: Any, values: list[Any]) -> None:
    if not isinstance(target, (Table, Made)) or len(values) % 2:
        raise PickleError("it is damaged: it puts keys into what is no dict")
    _put(target, zip(values[::2], values[1::2], strict=True))


def _put(target: Table | Made, pairs: Iterable[tuple[Any, Any]]) -> None:
    found = target.pairs or []
    assert isinstance(found, list)
    found.extend(pairs)
    target.pairs = found


def _append_one(machine: _Machine) -> None:
    value = machine.stack.pop()
    _append(machine.stack[-1], [value])


def _append_all(machine: _Machine) -> None:
    values = machine.since_mark()
    _append(machine.stack[-1], values)


def _set_one(machine: _Machine) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    _set(machine.stack[-1], [key, value])


def _set_all(machine: _Machine) -> None:
    values = machine.since_mark()
    _set(machine.stack[-1], values)


def _named(machine: _Machine, module: Any, name: Any) -> None:
    if not isinstance(module, str) or not isinstance(name, str):
        raise PickleError("it is damaged: a name is no text")
    found = Global(module, name)
    if not machine.allowed(found):
        raise PickleError(f"it names `{found}`", found)
    machine.push(found)


def _global(machine: _Machine) -> None:
    _named(machine, machine.line(), machine.line())


def _stack_global(machine: _Machine) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    _named(machine, module, name)


def _call_with_names(machine: _Machine) -> None:
    names, arguments = machine.stack.pop(), machine.stack.pop()
    machine.stack[-1] = machine.called(machine.stack[-1], arguments)
    if isinstance(names, Table):
        _put(machine.stack[-1], names.pairs)


def _build(machine: _Machine) -> None:
    state, made = machine.stack.pop(), machine.stack[-1]
    if not isinstance(made, Made):
        raise PickleError("it is damaged: it gives a state to what has none")
    made.state = state


def _persistent(machine: _Machine) -> None:
    machine.push(Persistent(machine.stack.pop()))


def _remember(machine: _Machine, index: int) -> None:
    if index > len(machine.memo):
        raise PickleError("it is damaged: it leaves out what it could refer to")
    machine.memo[index : index + 1] = [machine.stack[-1]]


def _frozen(machine: _Machine) -> None:
    machine.push(machine.since_mark())


_CONSTANTS: dict[int, Any] = {ord("N"): None, 0x88: True, 0x89: False, ord(")"): (), ord("("): _MARK}
_STEPS: dict[int, Callable[[_Machine], object]] = {
    0x80: lambda m: m.take(1),  # PROTO
    0x95: lambda m: m.take(8),  # FRAME
    0x94: lambda m: m.memo.append(m.stack[-1]),
    ord("0"): lambda m: m.stack.pop(),
    ord("1"): lambda m: m.since_mark(),
    ord("2"): lambda m: m.push(m.stack[-1]),
    ord("J"): _signed,
    0x8A: _long(1),
    0x8B: _long(4),
    ord("G"): _float,
    0x8C: _text(1),
    ord("X"): _text(4),
    0x8D: _text(8),
    ord("C"): _bytes(1),
    ord("B"): _bytes(4),
    0x8E: _bytes(8),
    0x96: _bytes(8),
    ord("]"): lambda m: m.push([]),
    ord("}"): lambda m: m.push(Table()),
    0x8F: lambda m: m.push([]),  # a set
    0x90: _append_all,
    0x91: _frozen,
    ord("a"): _append_one,
    ord("e"): _append_all,
    ord("s"): _set_one,
    ord("u"): _set_all,
    ord("t"): lambda m: m.push(tuple(m.since_mark())),
    0x87: _tuple(3),
    ord("c"): _global,
    0x93: _stack_global,
    0x92: _call_with_names,
    ord("b"): _build,
    ord("Q"): _persistent,
    ord("q"): lambda m: _remember(m, m.number(1)),
    ord("r"): lambda m: _remember(m, m.number(4)),
}
