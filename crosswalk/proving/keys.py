"""Keys of config.json left out and changed: the mapping must see what the class sees, and nothing else."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from crosswalk.compiler.relations.tree import CompiledMapping
from crosswalk.compiler.text.values import same_value
from crosswalk.runtime.errors import CrosswalkError, shown
from crosswalk.runtime.records import Record

from .findings import Proof, dotted
from .reading import Config, Native, differences, line_of_field, line_of_key, native_of, same_name, values_at
from .subject import ROUNDED, Behaviour, Subject
from .values import Path, changed, has, leaves, others, without

#: Values of a key that are tried, of those that class takes; of an object one more, which is all of its kinds.
_VALUES = 2


class Accepted(Record, frozen=True):
    """A config that the class, if there is one, and the mapping accept, and how it came from the tiny one."""

    config: Config
    native: Native
    behaviour: Behaviour | None
    how: str = ""


def check_left_out(mapping: CompiledMapping, subject: Subject, keys: list[Path], proof: Proof) -> None:
    """Leave each key out, of two models without a size in common that others follow from: what the mapping takes must
    be what the class takes."""
    second = subject.second if not isinstance(native_of(mapping, subject.second), CrosswalkError) else {}
    for path in keys:
        for config in (subject.base, second):
            if has(config, path):
                _leave_out(mapping, subject, config, path, proof)


def check_left_out_together(
    mapping: CompiledMapping, subject: Subject, keys: list[Path], others_of: list[Path], proof: Proof
) -> None:
    """Leave out each key for which the class takes what follows from others, beside each change of these others."""
    said = inspect.signature(subject.config_class).parameters
    alone = {path: _taken(subject, subject.base, path) for path in keys if len(path) == 1 and path[0] in said}
    following = {path: taken for path, taken in alone.items() if not same_value(taken, said[path[0]].default)}
    values = dict(leaves({**subject.keys(), **subject.base}))
    for other in others_of if following else ():
        found = others(values.get(other), values_at(mapping, other))
        for value in (*found[:_VALUES], *(() if values.get(other) is None else (None,))):
            config = changed(subject.base, other, value)
            for path, taken in following.items():
                if path[0] != other[0] and not same_value(_taken(subject, config, path), taken):
                    _leave_out(mapping, subject, config, path, proof, f"`{dotted(other)}` = {shown(value)}")


def _taken(subject: Subject, config: Config, path: Path) -> Any:
    """What the class takes for a key that is left out; null if it refuses the config then."""
    filled = subject.read(without(config, path))
    return None if filled is None else _at(filled, path)


def _leave_out(
    mapping: CompiledMapping, subject: Subject, config: Config, path: Path, proof: Proof, how: str = ""
) -> None:
    left = without(config, path)
    filled = subject.read(left)
    if filled is None:
        return
    proof.tried["left out"] += 1
    found, expected = native_of(mapping, left), native_of(mapping, filled)
    taken = _at(filled, path)
    hint = f"`default:` of the class is {shown(taken)}"
    at = line_of_key(mapping, path)
    if isinstance(found, CrosswalkError):
        if not isinstance(expected, CrosswalkError):
            text = f"without `{dotted(path)}` this is refused ({_first(found)}); the class takes {shown(taken)}"
            proof.note("prove/default", text, at, hint, "warning", how)
    elif isinstance(expected, CrosswalkError):
        text = f"without `{dotted(path)}` the class takes {shown(taken)}, which is refused: {_first(expected)}"
        proof.note("prove/default", text, at, hint, how=how)
    else:
        for where, here, there, _ in differences(mapping, found, expected)[:1]:
            text = f"without `{dotted(path)}` the class takes {shown(taken)}, so that `{dotted(where)}` is {there}"
            proof.note("prove/default", f"{text}; the mapping takes {here}", at, hint, how=how)


def check_nothing_said(mapping: CompiledMapping, subject: Subject, proof: Proof) -> None:
    """Leave all keys out at once: some defaults go together, and a size that is left out alone fits no other."""
    left = {key: subject.base[key] for key in ("architectures", "model_type") if key in subject.base}
    filled = subject.read(left)
    if filled is None:
        return
    proof.tried["left out"] += 1
    found, expected = native_of(mapping, left), native_of(mapping, filled)
    if isinstance(expected, CrosswalkError):
        return
    if isinstance(found, CrosswalkError):
        text = f"a config that says nothing is refused ({_first(found)}); the class takes its defaults"
        at = found.diagnostics[0].place or mapping.source.position
        proof.note("prove/default", text, at, "take the defaults of the class", "warning")
        return
    for where, here, there, _ in differences(mapping, found, expected):
        text = f"in a config that says nothing `{dotted(where)}` is {there} to the class; the mapping takes {here}"
        proof.note("prove/default", text, line_of_field(mapping, where), "take the defaults of the class")


def check_changed(
    mapping: CompiledMapping, subject: Subject, base: Accepted, keys: list[Path], proof: Proof
) -> list[Accepted]:
    """Change each key: where the class does something else the native config must be another, and only there. What has
    no effect is tried again with each switch turned. The configs that both accept."""
    values = dict(leaves({**subject.keys(), **subject.base}))
    accepted: list[Accepted] = []
    idle = []
    for path in keys:
        found = list(_changes(mapping, subject, base, path, values.get(path), proof))
        accepted += found
        if not any(one.behaviour is not base.behaviour for one in found):
            idle.append(path)
    switches = [one for one in accepted if one.how and _turned(one, subject.base)]
    for switch in switches:
        for path in idle:
            if same_value(_at(switch.config, path), _at(subject.base, path)):
                turned = _changes(mapping, subject, switch, path, _at(switch.config, path), proof)
                accepted += [one for one in turned if one.behaviour is not switch.behaviour]
    return accepted


def _turned(one: Accepted, base: Config) -> bool:
    """Whether only a switch differs from the tiny config."""
    pairs = [(value, _at(base, path)) for path, value in leaves(one.config)]
    apart = [pair for pair in pairs if not same_value(*pair)]
    return len(apart) == 1 and isinstance(apart[0][0], bool)


def _changes(
    mapping: CompiledMapping, subject: Subject, base: Accepted, path: Path, value: Any, proof: Proof
) -> Iterator[Accepted]:
    """The changes of one key that both accept, null among them; what is wrong with them is noted. A value to which the
    class does nothing is, where it does nothing to any: what is rounded to whole numbers is not felt at once."""
    assert base.behaviour is not None
    done, felt = 0, False
    idle: list[tuple[Any, Native]] = []
    for other in (*others(value, values_at(mapping, path)), None):
        if value is None if other is None else done >= _VALUES + isinstance(value, dict) + (not felt):
            continue
        config = changed(base.config, path, other)
        behaviour = subject.behaviour(config)
        if behaviour is None:
            continue
        if other is None and behaviour.shapes != base.behaviour.shapes:
            continue  # a null that means another size does not fit the tensors, and is refused with them
        proof.tried["changed"] += 1
        done += 1
        same = behaviour.same(base.behaviour, ROUNDED if same_name(mapping, path, value, other) else 0.0)
        native = native_of(mapping, config)
        if not isinstance(native, CrosswalkError):
            severity = "warning" if behaviour.evaluates_as(base.behaviour) else "error"
            felt = felt or not same
            if not same:
                _judge(mapping, base, path, other, severity, native, proof)
            elif other is not None:
                idle.append((other, native))
            how = f"`{dotted(path)}` = {shown(other)}" + (f" and {base.how}" if base.how else "")
            yield Accepted(config, native, base.behaviour if same else behaviour, how)
    for other, native in () if felt else idle:
        _judge(mapping, base, path, other, None, native, proof)


def _judge(
    mapping: CompiledMapping, base: Accepted, path: Path, other: Any, apart: str | None, native: Native, proof: Proof
) -> None:
    """Note what is wrong with a change. ``apart``: None if the class does the same, and ``warning`` if it does in
    evaluation."""
    key = f"`{dotted(path)}` = {shown(other)}" + (f", with {base.how}," if base.how else "")
    at = line_of_key(mapping, path)
    if apart and not differences(mapping, base.native, native):
        does = "computes something else" if apart == "error" else "trains in another way"
        text = f"where {key} the class {does}, and the native config stays the same"
        hint = f"relate the key to a field, or refuse other values than {shown(_at(base.config, path))}"
        proof.note("prove/ignored", text, at, hint, apart)
    elif not apart:
        for where, here, there, _ in differences(mapping, base.native, native, trained=False)[:1]:
            text = f"where {key} `{dotted(where)}` is {there} and not {here}, and the class computes the same"
            proof.note("prove/idle", text, at, "see in the class when it looks at the key")


def check_alone(mapping: CompiledMapping, base: Accepted, keys: list[Path]) -> list[Accepted]:
    """Without a class: other values of each key that the mapping accepts."""
    values = dict(leaves(base.config))
    accepted = []
    for path in keys:
        done = 0
        for other in others(values.get(path), values_at(mapping, path)):
            config = changed(base.config, path, other)
            native = native_of(mapping, config)
            if done < _VALUES and not isinstance(native, CrosswalkError):
                done += 1
                accepted.append(Accepted(config, native, None, f"`{dotted(path)}` = {shown(other)}"))
    return accepted


def _at(config: Config, path: Path) -> Any:
    value: Any = config
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _first(error: CrosswalkError) -> str:
    return error.diagnostics[0].message.partition("\n")[0]
