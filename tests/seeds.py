"""Seeds of tests that make their own inputs."""

from __future__ import annotations

from typing import Any

import pytest


def seeds(count: int) -> list[Any]:
    """Parameters: the first is tried by `make test`, the others by `make test-all`."""
    return [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, count))]
