"""What a test does without a program or a service that it needs: it is skipped, but where all is to be there it fails."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

__all__ = ["MUST_RUN", "cannot_run"]

MUST_RUN = "PYLIGHTNIX_TESTS_MUST_RUN"
"""The environment variable that says so; set by `.ci/run`."""


def cannot_run(reason: str) -> NoReturn:
    """Skip the test that calls this, or fail it."""
    if os.environ.get(MUST_RUN):
        pytest.fail(f"{reason}; {MUST_RUN} is set, so that this test is not skipped")
    pytest.skip(reason)
