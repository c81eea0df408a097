"""Offline, quiet, and with two hypothesis profiles: a quick default and ``--hypothesis-profile=thorough``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

# Before anything imports transformers: the tests never ask the network for a model.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TQDM_DISABLE"] = "1"
# The tensors of tests are small, and the tests share the cores: more threads would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import portable
import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from small_checkpoints import CommandLine

_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}
settings.register_profile("default", max_examples=8, derandomize=True, database=None, **_COMMON)
settings.register_profile("thorough", max_examples=300, **_COMMON)
settings.load_profile("default")


@pytest.fixture(autouse=True, scope="session")
def every_metadata_is_read_by_the_trainers_yaml() -> Iterator[None]:
    """Whatever test writes a native checkpoint, PyYAML and ruamel read the metadata that was meant, with its types."""
    from crosswalk.checkpoints import yaml_text

    def dump(document: Mapping[str, Any]) -> str:
        text = write(document)
        portable.assert_read_as(text, document)
        return text

    write = yaml_text.dump
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yaml_text, "dump", dump)
        yield


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> CommandLine:
    """The command line called as a function; imported here, since it needs transformers, which most tests do not."""
    from small_checkpoints import CommandLine

    return CommandLine(capsys)
