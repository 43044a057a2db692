"""Programs that a test runs and that not every machine has.

Without one its tests are skipped, with the package that has it. Where TEST_ALL_TOOLS is set, as in CI, they fail instead:
there nothing may be left out unseen.
"""

from __future__ import annotations

import os
import shutil

import pytest

ALL = bool(os.environ.get("TEST_ALL_TOOLS"))


def find(name: str) -> str | None:
    """The path of a program; daemons lie where an ordinary user does not look."""
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


def missing(name: str, package: str) -> str:
    return f"NO {name.upper()} ON THIS MACHINE: what needs it is left out; install it (Debian: {package})"


def tool(name: str, package: str) -> str:
    """The path of a program that the running test needs."""
    path = find(name)
    if path is None and ALL:
        pytest.fail(missing(name, package), pytrace=False)
    if path is None:
        pytest.skip(missing(name, package))
    return path


def needs(name: str, package: str) -> pytest.MarkDecorator:
    """Marks a test that runs a program by its name."""
    return pytest.mark.skipif(find(name) is None and not ALL, reason=missing(name, package))
