"""The command line, by the name that it has in a shell."""

from __future__ import annotations

import pytest
from small_checkpoints import CommandLine


@pytest.fixture
def crosswalk(command: CommandLine) -> CommandLine:
    return command
