"""``init``: a first draft of the mapping of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from crosswalk.checkpoints.huggingface import CONFIG, open_hugging_face, parse_config, read_config_text
from crosswalk.compiler.catalog import Catalog
from crosswalk.compiler.catalog_build import stored
from crosswalk.compiler.text.positioned import did_you_mean
from crosswalk.jobs.formats import DEFAULT_LAYOUT, folders
from crosswalk.runtime.errors import Position, fail

from .classes import Known
from .computing import compute_alike
from .draft import Draft
from .fit import Fit, Fitting
from .keys import relate_keys, state_defaults
from .kinds import layer_kinds
from .search import fit_tensors, nearest, simplest
from .switches import follow_switches
from .words import words_of


def init(source: str | Path, *, without: Iterable[str] = ()) -> Draft:
    """The draft of a mapping for the Hugging Face checkpoint ``source``, a directory, or its config.json alone, whose
    tensors are then those of a tiny model of the class. It extends the nearest format, those in ``without`` excepted.

    Raises ``CrosswalkError`` if the config names no class, or if there are neither tensors nor the class.
    """
    path = Path(source)
    file = path if path.is_file() else path / CONFIG
    written = parse_config(read_config_text(file), file)
    architecture = next(iter(written.get("architectures") or ()), None)
    if not isinstance(architecture, str) or not isinstance(written.get("model_type"), str):
        text = "`architectures` and `model_type` must be there: a mapping is of one class"
        raise fail("init/class", text, Position(str(file)), "write them into config.json")
    known = Known.of(written, str(file))
    config, shapes = _tensors(path, written, known)
    places = folders()
    catalog = Catalog(places, stored=stored(places), inverses=False)  # those of shipped files are proved
    fitting = Fitting(catalog, DEFAULT_LAYOUT, config, shapes)
    if known is not None:
        fitting = Fitting(catalog, DEFAULT_LAYOUT, config, shapes, known.subject.keys(), known.matters)
    excluded = set(without)
    if unknown := sorted(excluded - {*catalog.names()}):
        hint = did_you_mean(unknown[0], catalog.formats()) or "`crosswalk formats` lists them"
        raise fail("usage/format", f"there is no format `{unknown[0]}`", Position("--without"), hint)
    words = words_of(catalog, DEFAULT_LAYOUT, excluded)
    header: dict[str, Any] = {"architecture": architecture, "model_type": config["model_type"]}
    if known is not None:
        header["config_class"] = f"transformers.{known.subject.config_class.__name__}"
    begun = nearest(fitting, header, _formats(catalog, excluded))
    draft, fit = simplest([fit_tensors(fitting, draft, fit, words) for draft, fit in begun])
    if fit.compiled is not None and known is not None:
        draft.header["class_defaults"] = known.defaults(fit.compiled.source.class_defaults)
    draft, fit = layer_kinds(fitting, draft, fit, words, known)
    draft, fit = relate_keys(fitting, draft, fit, known)
    if known is not None and fit.compiled is not None:
        draft, fit = follow_switches(fitting, draft, fit, words, known)
        draft, fit = state_defaults(fitting, draft, fit, known)
        draft, fit = compute_alike(fitting, draft, fit, words, known.subject)
    _ask(draft, fit)
    lacking = _unmapped(catalog).get(config["model_type"])
    if lacking is not None and draft.open:
        draft.open.insert(0, f"such a model has {lacking}: what of it the trainer lacks has to be refused")
    return draft


def _unmapped(catalog: Catalog) -> Mapping[str, str]:
    """What is known of model types without a mapping."""
    known = [catalog.mapping(name).unmapped for name in catalog.formats()]
    return {name: text for one in known for name, text in one.items()}


def _formats(catalog: Catalog, without: set[str]) -> list[str]:
    """The formats that a draft may extend: those of a layout, but for those with model code of their own."""
    listed = [catalog.listed(name) for name in catalog.formats() if name not in without]
    named = [entry.name for entry in listed if entry.layout == DEFAULT_LAYOUT]
    return [name for name in named if not catalog.mapping(name).auto_map and not catalog.mapping(name).files]


def _tensors(
    path: Path, config: Mapping[str, Any], known: Known | None
) -> tuple[Mapping[str, Any], dict[str, tuple[int, ...]]]:
    """The config and the tensors that a draft is fitted to."""
    if path.is_dir() and any(path.glob("*.safetensors*")):
        opened = open_hugging_face(path)
        return opened.config, {spec.name: spec.shape for spec in opened.tensors.specs()}
    if known is None:
        text = "there are neither tensors nor a class of transformers that would say which they are"
        raise fail(
            "init/tensors", text, Position(str(path)), "name a directory with the files, or install transformers"
        )
    base = known.subject.base
    return base, {name: tuple(t.shape) for name, t in known.subject.saved(known.subject.model(base)).items()}


def _ask(draft: Draft, fit: Fit) -> None:
    """Ask about what could not be decided."""
    for name, shape in fit.missing.items():
        draft.open.append(f"which tensor is `{name}` {list(shape)} of `{draft.header['extends']}`, or is it not there?")
    for name, shape in fit.extra.items():
        draft.open.append(f"what is the tensor `{name}` {list(shape)}?")
    for problem in fit.problems:
        draft.open.append(problem.message.partition("\n")[0])
