"""A model for all tests of broken off conversions: read by them, never changed."""

from __future__ import annotations

from pathlib import Path

import pytest
from crashes import content, make_model, write

from crosswalk.runtime.plan.model import Plan


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Path]:
    """A plan with ranges, transposes and casts, and the directory of its source."""
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def expected(model: tuple[Plan, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a conversion that nothing disturbs writes."""
    destination = tmp_path_factory.mktemp("expected") / "out"
    write(model, destination)
    assert len(content(destination)) == 9
    return content(destination)
