"""The class that a mapping is held against, as a function of a config: what it reads, which tensors it has, and what it
computes on fixed tokens with weights that depend on nothing but their names and shapes."""

from __future__ import annotations

import json
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from crosswalk.models.classes import Trace, class_of, config_object, one_message, trace, transformers
from crosswalk.models.tiny import shrunk
from crosswalk.runtime.errors import CrosswalkError
from crosswalk.runtime.records import Record, field

Config = Mapping[str, Any]

#: How far what a class computes may be off, of its size, where the same is computed in another way.
ROUNDED = 1e-5


class Behaviour(Record, frozen=True):
    """What a class does with a config: shapes of its parameters by name, and logits (sequence, vocabulary) as it is
    evaluated, in plain loops, and as it is trained, dropout and kernels of attention included."""

    shapes: Mapping[str, tuple[int, ...]]
    logits: tuple[torch.Tensor, torch.Tensor]

    def same(self, other: Behaviour, within: float = 0.0) -> bool:
        """Whether two configs give the same function, to the bit, or as far as ``within`` of the size of the logits."""
        pairs = zip(self.logits, other.logits, strict=True)
        return self.shapes == other.shapes and all(_equal(one, two, within) for one, two in pairs)

    def evaluates_as(self, other: Behaviour) -> bool:
        """Whether they do but for what happens in training alone, such as dropout."""
        return self.shapes == other.shapes and _equal(self.logits[0], other.logits[0])


class Subject(Record):
    """A class and that of its configs, and the config of a tiny model of it, ``base``, as the class writes it;
    ``second`` is that of another with other sizes. ``where``: the file of the config that it was made from."""

    kind: Any
    config_class: Any
    base: Config
    where: str
    second: Config = field(default_factory=dict)
    tokens: torch.Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.int64))
    images: Sequence[torch.Tensor] = ()
    _known: dict[str, Behaviour | None] = field(default_factory=dict)

    @classmethod
    def of(cls, config: Config, where: str) -> Subject:
        """The tiny model of a config. Raises ``CrosswalkError`` if transformers has no class for it, or none so
        small."""
        kind = class_of(config, where)
        read = config_object(config, where)
        full, config_class = read.to_dict(), type(read)
        with one_message(f"`{kind.__name__}` cannot be made small", where):
            base, second = (as_written(config_class.from_dict(shrunk(full, more))) for more in (0, 1))
        named = {"architectures": [kind.__name__]}
        return cls(kind, config_class, base | named, where, second | named)

    def read(self, config: Config) -> dict[str, Any] | None:
        """A config with what the class takes for absent keys; None if the class refuses it."""
        try:
            with one_message("", ""):
                return {**as_written(self.config_class.from_dict(_copy(config))), "architectures": [self.name]}
        except CrosswalkError:
            return None

    def keys(self) -> dict[str, Any]:
        """Every key that the class has in its config, with its value in the tiny model; without those that every class
        has and that say nothing of what it computes."""
        package = transformers()
        generic = {*package.PretrainedConfig().to_dict(), "model_type", "architectures"} - {"tie_word_embeddings"}
        full = json.loads(json.dumps(self.config_class.from_dict(_copy(self.base)).to_dict(), default=str))
        return {key: value for key, value in full.items() if key not in generic and not key.startswith("_")}

    @property
    def name(self) -> str:
        """The name of the class."""
        return str(self.kind.__name__)

    def behaviour(self, config: Config) -> Behaviour | None:
        """What the class does with a config; None if it refuses it, or cannot run."""
        key = json.dumps(config, sort_keys=True, default=str)
        if key not in self._known:
            try:
                self._known[key] = self._run(config)
            except CrosswalkError:
                self._known[key] = None
        return self._known[key]

    def _run(self, config: Config) -> Behaviour:
        model = self.model(config)
        evaluated = trace(model.eval(), self.tokens, self.images).logits
        torch.manual_seed(0)
        if getattr(model, "_supports_sdpa", False):  # kernels read what plain attention finds in its mask
            model.set_attn_implementation("sdpa")
        trained = trace(model.train(), self.tokens, self.images).logits
        return Behaviour({n: tuple(t.shape) for n, t in model.state_dict().items()}, (evaluated, trained))

    def model(self, config: Config) -> Any:
        """The model of a config, in fp32. Every weight is random, and the same wherever its name and shape are. Raises
        ``CrosswalkError`` for what the class refuses."""
        with one_message(f"`{self.name}` cannot be made", self.where):
            made = self.config_class.from_dict(_copy(config))
            made._attn_implementation = "eager"
            if hasattr(made, "_experts_implementation"):
                made._experts_implementation = "eager"
            model = self.kind(made).to(torch.float32).eval()
            with torch.no_grad():
                for name, tensor in model.state_dict().items():
                    if tensor.is_floating_point():
                        tensor.copy_(_weight(name, tensor.shape))
        return model

    def trace(self, model: Any) -> Trace:
        """What a model computes, with its hidden states."""
        return trace(model.eval(), self.tokens, self.images)

    def saved(self, model: Any) -> dict[str, torch.Tensor]:
        """The tensors of a model by the names that it has in files."""
        with tempfile.TemporaryDirectory(prefix="crosswalk-") as name, one_message("it cannot be saved", self.where):
            model.save_pretrained(name)
            return load_file(Path(name) / "model.safetensors")


def _equal(one: torch.Tensor, other: torch.Tensor, within: float = 0.0) -> bool:
    one, other = one.nan_to_num(), other.nan_to_num()
    return torch.equal(one, other) or bool((one - other).norm() <= within * other.norm())


def as_written(config: Any) -> dict[str, Any]:
    """The config.json of an object of a config class."""
    result: dict[str, Any] = json.loads(config.to_json_string())
    return result


def _copy(config: Config) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(json.dumps(config))
    return result


def _weight(name: str, shape: torch.Size) -> torch.Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    centre = 1.0 if len(shape) == 1 and not name.endswith("bias") else 0.0
    return centre + (0.3 if len(shape) < 2 else shape[-1] ** -0.5) * torch.randn(shape, generator=generator)
