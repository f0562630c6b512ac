"""Tests in the real Ardour.

They are skipped where Ardour is not installed, and fail there if STEMBRIDGE_REQUIRE_DAW=1.
"""

from __future__ import annotations

import os
import shutil

import pytest

from tests.daw.ardour_lab import PROGRAMS, Ardour


@pytest.fixture(scope="session")
def ardour() -> Ardour:
    """Return the real Ardour."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        reason = f"Ardour 7 is not installed ({', '.join(missing)} not found)"
        if os.environ.get("STEMBRIDGE_REQUIRE_DAW") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return Ardour()
