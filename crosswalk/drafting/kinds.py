"""Layers of several kinds, in a list of the config: which section differs in which kind."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .classes import Known
from .draft import Draft
from .fit import Fit, Fitting
from .words import Words

#: Most kinds of layers that are drafted.
_KINDS = 3
_WINDOW, _ROTARY = "window_size", "rotary"
#: What names of kinds have in them where a layer has a window, and where it has none.
_LOCAL, _GLOBAL = ("slid", "local", "window", "chunk"), ("full", "global")


def layer_kinds(fitting: Fitting, draft: Draft, fit: Fit, words: Words, known: Known | None) -> tuple[Draft, Fit]:
    """Draft the kinds of layers that a key lists and no line speaks of: by their names first; ``other_kinds`` are tried
    where the model computes something else."""
    for key in _keys(fitting, fit):
        if known is not None and not known.matters(key):
            continue
        options = _options(fitting, fitting.config[key], words)
        named = {kind: next(iter(_by_name(kind, found)), found[0]) for kind, found in options.items()}
        changed = _stating(fitting, draft, key, named)
        found = fitting.of(changed)
        if found.bound is not None and key not in found.unknown and found.cost <= fit.cost:
            return changed, found
    return draft, fit


def _keys(fitting: Fitting, fit: Fit) -> Iterator[str]:
    """Keys that are left, and list as many kinds as there may be layers: of several names the texts first."""
    lists = [(key, fitting.config[key]) for key in fit.unknown if isinstance(fitting.config[key], list)]
    fitting_lists = [(key, value) for key, value in lists if value and len(value) in fitting.counts]
    for key, value in sorted(fitting_lists, key=lambda pair: not isinstance(pair[1][0], str)):
        if all(isinstance(item, (str, int)) for item in value) and len(set(map(repr, value))) <= _KINDS:
            yield key


def _options(fitting: Fitting, values: Sequence[Any], words: Words) -> dict[Any, list[dict[str, Any]]]:
    """What may be different in each kind: the window, whether positions are turned, and by which object."""
    config = fitting.config
    window = next((key for key in words.key_of("attention", _WINDOW) if config.get(key) is not None), None)
    rotary = next((key for key in words.key_of("attention", _ROTARY) if isinstance(config.get(key), Mapping)), None)
    result: dict[Any, list[dict[str, Any]]] = {}
    for kind in dict.fromkeys(values):
        own = f"{rotary}.{kind}" if rotary is not None and kind in config[rotary] else None
        windows: list[dict[str, Any]] = [{}]
        if window is not None:
            windows = [{"config": {window: {"is": _WINDOW, "required": True}}}, {"sets": {_WINDOW: None}}]
        turned: list[dict[str, Any]] = [{"config": {own: _ROTARY}} if own else {}]
        turned.append({"config": {rotary: None}, "sets": {_ROTARY: "none"}} if rotary and not own else turned[0])
        pairs = itertools.product(windows, turned if turned[0] != turned[1] else turned[:1])
        result[kind] = [_joined(*pair) for pair in pairs]
    return result


def _joined(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    parts = {part: {**one.get(part, {}), **other.get(part, {})} for part in ("config", "sets")}
    return {part: lines for part, lines in parts.items() if lines}


def _by_name(kind: Any, options: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Options that the name of a kind speaks for: with the rotary embedding of the model."""
    wanted = not any(part in str(kind) for part in _GLOBAL)
    if isinstance(kind, str) and any(part in kind for part in (*_LOCAL, *_GLOBAL)):
        for option in options:
            plain = option.get("sets", {}).get(_ROTARY) is None
            if plain and (_WINDOW not in option.get("sets", {})) is wanted:
                yield option


def _stating(fitting: Fitting, draft: Draft, key: str, chosen: Mapping[Any, Mapping[str, Any]]) -> Draft:
    changed = draft.copy()
    kinds = {kind: {"attention": dict(option)} if option else {} for kind, option in chosen.items()}
    changed.layers = {"each": key, "kinds": kinds}
    for option in chosen.values():
        for place in option.get("config", {}):
            whole = place.partition(".")[0]
            if whole != place:  # an object for each kind
                changed.put("attention", "config", whole, None)
    return changed


def other_kinds(fitting: Fitting, draft: Draft, words: Words) -> Iterator[Draft]:
    """The same draft with something else in its kinds of layers."""
    if draft.layers:
        key = draft.layers["each"]
        options = _options(fitting, fitting.config[key], words)
        for chosen in itertools.product(*options.values()):
            other = _stating(fitting, draft, key, dict(zip(options, chosen, strict=True)))
            if other.layers != draft.layers:
                yield other
