"""The class of transformers that a config.json names: found, loaded, and run with its hidden states written down."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from crosswalk.runtime.errors import CrosswalkError, Position, fail
from crosswalk.runtime.records import Record


class Trace(Record, frozen=True):
    """What a class computed: its name, hidden states (elements, hidden) by the native name of the part, in the order in
    which they were computed, and logits (sequence, vocabulary)."""

    name: str
    hidden: Mapping[str, torch.Tensor]
    logits: torch.Tensor


def transformers() -> ModuleType:
    """The package, quiet. Raises ``CrosswalkError`` if it is not installed."""
    try:
        import transformers as package
    except ImportError as error:
        hint = "pip install 'model-crosswalk[transformers]'"
        raise fail("compare/transformers", "this needs transformers, which is not installed", None, hint) from error
    logging: Any = package.logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return package


def class_of(config: Mapping[str, Any], where: str) -> Any:
    """The class that a config.json names. Raises ``CrosswalkError`` if the installed transformers does not have it."""
    package = transformers()
    named = config.get("architectures") or []
    found = next((getattr(package, name) for name in named if hasattr(package, name)), None)
    if found is None:
        wanted = f"class `{named[0]}`" if named else f"class for `{config.get('model_type')}`"
        text = f"transformers {package.__version__} has no {wanted}"
        hint = "only classes that transformers has itself can be compared with, not code that comes with a checkpoint"
        raise fail("compare/class", text, Position(where), hint)
    return found


def config_class_of(config: Mapping[str, Any], where: str) -> Any:
    """The class that reads a config.json: of a model class that several families have, each with a config of its own (a
    Llama by another name), that of the model type. Raises ``CrosswalkError`` as ``class_of``."""
    automatic = transformers().models.auto
    kind = class_of(config, where)
    if config.get("model_type") in automatic.configuration_auto.CONFIG_MAPPING:
        of_type = automatic.configuration_auto.CONFIG_MAPPING[config["model_type"]]
        if automatic.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING.get(of_type, None) is kind:
            return of_type
    return kind.config_class


def config_object(config: Mapping[str, Any], where: str) -> Any:
    """A config.json as its own class reads it, with its defaults. Raises ``CrosswalkError`` if it does not read it."""
    package = transformers()
    kind = config_class_of(config, where)
    with one_message(f"`{kind.__name__}` of transformers {package.__version__} cannot read the config", where):
        return kind.from_dict(dict(config))


def load(directory: Path, config: Mapping[str, Any]) -> Any:
    """The model in a directory, in fp32, with plain loops in place of kernels. Raises ``CrosswalkError`` if the class
    cannot load it, or finds parameters missing."""
    package = transformers()
    kind = class_of(config, str(directory))
    options: dict[str, Any] = {"attn_implementation": "eager"}
    if int(package.__version__.split(".")[0]) >= 5:
        options["experts_implementation"] = "eager"
    if config_class_of(config, str(directory)) is not kind.config_class:  # which the class would read it with
        options["config"] = config_object(config, str(directory))
    what = f"`{kind.__name__}` of transformers {package.__version__} cannot load the checkpoint"
    with one_message(what, str(directory)):
        model, info = kind.from_pretrained(
            directory, dtype=torch.float32, output_loading_info=True, local_files_only=True, **options
        )
    wrong = sorted({*info["missing_keys"], *(str(key[0]) for key in info["mismatched_keys"])})
    if wrong:
        text = f"`{kind.__name__}` does not find {len(wrong)} of its parameters, or in another shape: {wrong[0]}"
        raise fail("compare/class", f"{text}{' and others' if wrong[1:] else ''}", Position(str(directory)))
    return model.eval()


@torch.no_grad()
def trace(model: Any, tokens: torch.Tensor, images: Sequence[torch.Tensor] = ()) -> Trace:
    """Run a model on one sequence of ``tokens`` and ``images`` (3, height, width). Raises ``CrosswalkError`` if it
    cannot be run on them."""
    inputs: dict[str, Any] = {"input_ids": tokens[None], "use_cache": False}
    if images:
        inputs["pixel_values"] = torch.stack(list(images))
        if "image_sizes" in inspect.signature(model.forward).parameters:
            inputs["image_sizes"] = torch.tensor([list(image.shape[1:]) for image in images])
    hidden: dict[str, torch.Tensor] = {}
    hooks = list(_hooks(model, hidden, bool(images)))
    name = type(model).__name__
    try:
        with one_message(f"`{name}` cannot be run", ""):
            logits = model(**inputs).logits[0]
    finally:
        for hook in hooks:
            hook.remove()
    return Trace(name, hidden, logits)


def _hooks(model: Any, hidden: dict[str, torch.Tensor], images: bool) -> Iterator[Any]:
    """Writes down what goes into the first layer, what comes out of each, and what goes into the head."""

    def note(name: str, value: Any) -> None:
        tensor = value[0] if isinstance(value, tuple) else value
        hidden[name] = tensor.detach().reshape(-1, tensor.shape[-1]).clone()

    def outputs(name: str) -> Callable[..., None]:
        return lambda module, args, output: note(name, output)

    def inputs(name: str) -> Callable[..., None]:
        return lambda module, args, kwargs: note(name, args[0] if args else kwargs["hidden_states"])

    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    decoder = model if decoder is None else decoder
    inside = {id(module) for module in decoder.modules()}
    if images and (vision := getattr(model.config, "vision_config", None)) is not None:
        outside = (module for module in model.modules() if id(module) not in inside)
        for i, layer in enumerate(_layers(outside, vision)):
            yield layer.register_forward_hook(outputs(f"vision_encoder.encoder.{i}"))
    layers = _layers(decoder.modules(), model.config.get_text_config())
    for i, layer in enumerate(layers):
        if i == 0:
            yield layer.register_forward_pre_hook(inputs("embeddings"), with_kwargs=True)
        yield layer.register_forward_hook(outputs(f"decoder.{i}"))
    head = model.get_output_embeddings()
    if head is not None:
        yield head.register_forward_pre_hook(inputs("head.final_norm"), with_kwargs=True)


def _layers(modules: Iterator[Any], config: Any) -> Sequence[Any]:
    """The first list of as many modules as the config has layers; empty if there is none."""
    count = getattr(config, "num_hidden_layers", None)
    lists = (list(module) for module in modules if isinstance(module, torch.nn.ModuleList))
    return next((found for found in lists if len(found) == count), [])


@contextmanager
def one_message(what: str, where: str) -> Iterator[None]:
    """Whatever goes wrong in code that is not ours, as one message. Raises ``CrosswalkError``."""
    try:
        yield
    except CrosswalkError:
        raise
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise fail("compare/class", f"{what}: {reason}", Position(where) if where else None) from error
